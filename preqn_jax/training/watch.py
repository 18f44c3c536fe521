"""A watch over environments: which call of one each process is in, and which has not come back."""

import threading
from collections.abc import Callable, MutableSequence, Sequence

OUTSIDE, CONSTRUCTION, RESET, STEP, EVAL_RESET, EVAL_STEP, LOAD, CLOSE = range(8)
_CALLS = ("", "its construction", "reset", "step", "reset", "step", "reset", "close")

Place = MutableSequence[int]
"""Where a process is: a call, or OUTSIDE of all; the seed; the step of the run; and a count that
makes two calls differ. It may be memory that processes share.
"""
_TICKS = 10  # looks that must find the same call before it counts as hung


def nowhere() -> Place:
    """A place that nobody else sees, outside of all calls."""
    return [OUTSIDE, 0, 0, 0]


def when(place: Sequence[int]) -> str:
    """When a call was made, in words."""
    call, seed, step, _ = place
    if call in (EVAL_RESET, EVAL_STEP):
        return f"in the evaluation at step {step}, seed {seed}"
    if call == LOAD:
        return f"on resuming, seed {seed}"
    return f"step {step}, seed {seed}"


def hung(name: str, place: Sequence[int], seconds: float) -> str:
    """The sentence on environment `name`, which is at `place` for so long."""
    known = "" if place[0] in (CONSTRUCTION, CLOSE) else f" ({when(place)})"
    return (
        f"environment {name!r} has not come back from {_CALLS[place[0]]} for {seconds:g} "
        f"seconds{known}; give more if it needs them, as in `env_timeout={2 * seconds:g}`"
    )


class Watch:
    """A thread that looks at places, and tells of each where one call lasts too long."""

    def __init__(
        self,
        places: Sequence[Place],
        seconds: float,
        tell: Callable[[int, Sequence[int]], None],
    ):
        """`tell(i, place)` is called once for each place `i` that stays in one call for `seconds`;
        0 for never.

        Time is counted in looks: of a process that was stopped and goes on, as by Ctrl-Z, nothing
        is thought.
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
        """No more looks."""
        self._over.set()
