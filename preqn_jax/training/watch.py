"""Watches for environments that hang: which call each process is in, and whether it comes back."""

import threading
from collections.abc import Callable, MutableSequence, Sequence

OUTSIDE, CONSTRUCTION, RESET, STEP, EVAL_RESET, EVAL_STEP, LOAD, CLOSE = range(8)
_CALLS = ("", "its construction", "reset", "step", "reset", "step", "reset", "close")

Place = MutableSequence[int]
"""Where a process is: `[call or OUTSIDE, seed, step of the run, count that tells two calls apart]`.
It may be memory that processes share.
"""
_TICKS = 10  # looks that must find the same call before it counts as hung


def nowhere() -> Place:
    """A new place, of this process alone, outside of all calls."""
    return [OUTSIDE, 0, 0, 0]


def onward(place: Place) -> None:
    """Tells that the next call of the same kind begins, as that of the next copy of an
    environment: each has the whole time.
    """
    place[3] += 1


def when(place: Sequence[int]) -> str:
    """When a call was made, as text for a message."""
    call, seed, step, _ = place
    if call in (EVAL_RESET, EVAL_STEP):
        return f"in the evaluation at step {step}, seed {seed}"
    if call == LOAD:
        return f"on resuming, seed {seed}"
    return f"step {step}, seed {seed}"


def hung(name: str, place: Sequence[int], seconds: float) -> str:
    """The message that environment `name` has not left the call at `place` for so many seconds."""
    known = "" if place[0] in (CONSTRUCTION, CLOSE) else f" ({when(place)})"
    return (
        f"environment {name!r} has not returned from {_CALLS[place[0]]} for {seconds:g} "
        f"seconds{known}; if it needs more time, use `env_timeout={2 * seconds:g}`"
    )


class Watch:
    """A thread that looks at places, and reports each place where a call lasts too long."""

    def __init__(
        self,
        places: Sequence[Place],
        seconds: float,
        tell: Callable[[int, Sequence[int]], None],
    ):
        """`tell(i, place)` is called once for each call, at place `i`, that lasts `seconds`; 0 for
        never.

        Time is counted in looks, so that the time for which this process is stopped, as by Ctrl-Z,
        does not count.
        """
        self._places, self._every, self._tell = places, seconds / _TICKS, tell
        self._over = threading.Event()
        if seconds and places:
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        last, still = [nowhere() for _ in self._places], [0 for _ in self._places]
        while not self._over.wait(self._every):
            for i, place in enumerate(self._places):
                now = list(place)
                stays = now[0] != OUTSIDE and now == last[i]
                last[i], still[i] = now, still[i] + 1 if stays else 0
                if still[i] == _TICKS:
                    self._tell(i, now)

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()
