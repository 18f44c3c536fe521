"""Collecting and evaluating for all seeds, in this process or in several.

Between two updates the policy is frozen, so a whole round of every seed is one exchange: out go the
actors' parameters, back come the transitions. Workers build their share of the seeds from the same
`Recipe` as this process would, run the same compiled functions on it, and so return the same
numbers, bit for bit.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from preqn_jax import envs
from preqn_jax.envs import EnvError
from preqn_jax.training import files, watch
from preqn_jax.training.errors import Asked, Diverged, never
from preqn_jax.training.local import Local, Recipe
from preqn_jax.training.rollout import Evaluation
from preqn_jax.training.workers import Remote, Workers
from preqn_jax.types import Params, Transition

_log = logging.getLogger(__name__)


def cores() -> int:
    """Of this machine, those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers(seeds: int, cores: int) -> int:
    """Worker processes that suit so many cores: none for one seed, which has nothing to run beside
    it; else one a core.
    """
    return min(cores, seeds) if min(cores, seeds) > 1 else 0


def say(error: EnvError) -> None:
    """What is done about an environment of this process that hangs, if nobody has a better idea."""
    _log.error("%s", error)


class Collector:
    """The rollouts of all seeds, wherever they run."""

    def __init__(
        self,
        recipe: Recipe,
        workers: int = 0,
        log: Path | None = None,
        hung: Callable[[EnvError], None] = say,
        asked: Asked = never,
    ):
        """`workers` processes at most, as no seed is divided; 0 for this one alone.

        What an environment itself raised is added to the file `log`. `hung` is called, in a thread
        of its own, once an environment of this process hangs; a worker whose environment does is
        ended. An evaluation is given up once the run is `asked` to stop.

        Raises:
          UserError: an environment cannot be made, or what makes it not be sent to workers.
          EnvError: it raised as it was made or reset; with workers the first call says so.
        """
        if workers < 0:
            raise ValueError(f"workers is {workers}, but it must be at least 0")
        seeds, place = recipe.config.seeds, watch.nowhere()
        self._log, self._limit, self._members = log, recipe.eval_max_steps, len(seeds)
        self._said: set[Any] = set()
        name, seconds = envs.name(recipe.env), recipe.env_timeout
        tell = partial(_tell, name, seconds, log, hung, threading.get_ident())
        self._watch = watch.Watch([] if workers else [place], seconds, tell)
        try:
            self._pool = (
                Workers(recipe, workers, asked) if workers else Local(recipe, seeds, place, asked)
            )
        except BaseException as error:
            self._watch.close()
            if isinstance(error, EnvError):
                raise _kept(error, log) from error.__cause__
            raise

    def collect(
        self, params: Params, round_: int, frozen: Sequence[int] = ()
    ) -> tuple[Transition | None, list[tuple[int, float]], list[tuple[int, Diverged]]]:
        """One round with the actors `[P]`, but for the `frozen`, by index, whose environments stand
        still.

        Returns:
          transitions `[M, update_every]`, zeros where there are none; None if there are none at
          all. (index of the member, return) of ended episodes. Who met a NaN or an infinity.

        Raises Stopped: a worker died.
        """
        rows = self._call("collect", self._arguments(params, round_, frozen))
        diverged = [(i, row) for i, row in enumerate(rows) if isinstance(row, Diverged)]
        good = {i: row for i, row in enumerate(rows) if isinstance(row, tuple)}
        if not good:
            return None, [], diverged
        blank = jax.tree.map(np.zeros_like, next(iter(good.values()))[0])
        each = [good[i][0] if i in good else blank for i in range(len(rows))]
        transitions = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        return transitions, [(i, total) for i in good for total in good[i][1]], diverged

    def _arguments(
        self, params: Params, when: int, frozen: Sequence[int]
    ) -> list[tuple[Params, int] | None]:
        # Nobody writes to these, which may lie in the device's own memory: what is held here is
        # copied when it is donated.
        rows = jax.device_get(params)
        each = (jax.tree.map(lambda leaf, i=i: leaf[i], rows) for i in range(self._members))
        return [None if i in frozen else (one, when) for i, one in enumerate(each)]

    def evaluate(
        self, params: Params, step: int, frozen: Sequence[int] = ()
    ) -> list[Evaluation | None]:
        """Noiseless episodes of each of the actors `[P]`; None for those that are frozen.

        They depend on nothing else but the step. One that is cut off, or whose return is not
        finite, is warned of, once. Raises Interrupted where the run is asked to stop, after which
        workers can only be closed.
        """
        found = self._call("evaluate", self._arguments(params, step, frozen))
        warn(found, step, self._limit, self._said)
        return found

    def save(self) -> list[Any]:
        """The state of every seed's environments, as plain JSON."""
        return self._call("save")

    def load(self, state: list[Any]) -> None:
        """Go on from what `save` returned, whether it was saved with as many workers or not."""
        self._call("load", [(one,) for one in state])

    def _call(self, method: str, arguments: Sequence[tuple | None] | None = None) -> list[Any]:
        try:
            return self._pool.call(method, arguments)
        except EnvError as error:
            raise _kept(error, self._log) from error.__cause__

    def close(self) -> None:
        """End the workers, and free what the environments hold; one that raises then is warned
        of.
        """
        try:
            self._pool.close()
        except EnvError as error:
            _log.warning("%s", _kept(error, self._log))
        self._watch.close()


def warn(found: Sequence[Evaluation | None], step: int, limit: int, said: set[Any]) -> None:
    """Of episodes of an evaluation that were cut off after `limit` steps, or whose return is not
    finite, once each, as noted in `said`.
    """
    made = [one for one in found if one is not None]
    cut = sum(int(np.sum(one.cut)) for one in made)
    if cut and "cut" not in said:
        words = "%d of the evaluation's episodes had not ended after %d steps, at step %d, and "
        words += "were cut off: they count as truncated (eval_max_steps)"
        _log.warning(words, cut, limit, step)
        said.add("cut")
    lost = sum(int((~np.isfinite(one.returns)).sum()) for one in made)
    if lost and "lost" not in said:
        words = "%d of the evaluation's episodes met a NaN or an infinity from the environment,"
        words += " at step %d: their seeds' returns are recorded as null"
        _log.warning(words, lost, step)
        said.add("lost")


@contextlib.contextmanager
def watched(
    env: envs.Source, seconds: float, hung: Callable[[EnvError], None]
) -> Iterator[Callable[[], None]]:
    """Inside, an environment is made, which may hang; what this yields is called before each of its
    resets, which may, too.
    """
    place = watch.nowhere()
    place[0] = watch.CONSTRUCTION
    tell = partial(_tell, envs.name(env), seconds, None, hung, threading.get_ident())

    def reset() -> None:
        place[:] = watch.RESET, 0, 0, place[3] + 1

    with contextlib.closing(watch.Watch([place], seconds, tell)):
        yield reset


def _tell(
    name: str,
    seconds: float,
    log: Path | None,
    hung: Callable[[EnvError], None],
    thread: int,
    _: int,
    place: Sequence[int],
) -> None:
    """Hands on that an environment of this process hangs, with where its thread stands."""
    error = EnvError(watch.hung(name, place, seconds))
    if (frame := sys._current_frames().get(thread)) is not None:
        error.__cause__ = Remote("\n" + "".join(traceback.format_stack(frame)))
    hung(_kept(error, log))


def _kept(error: EnvError, log: Path | None) -> EnvError:
    """The error, once what lies behind it is written down; a link is not followed."""
    if log is None or error.__cause__ is None:
        return error
    trace = "".join(traceback.format_exception(error.__cause__))
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {error}\n{trace}\n"
    try:
        files.add(log, text.encode(errors="backslashreplace"))
    except OSError:
        return error  # as of a full disk: the sentence is what matters
    kept = EnvError(f"{error}; its traceback is in {log}")
    kept.__cause__ = error.__cause__
    return kept
