"""Collecting and evaluating for all seeds, in this process or in several.

The policy is frozen during a round, so a whole round of all seeds takes one exchange with the
workers: the actors' parameters go out, and the transitions come back. Workers build their share of
the seeds from the same `Recipe` as this process would, run the same compiled functions on it, and
so return the same numbers, bit for bit.
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
    """The number of the machine's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers(seeds: int, cores: int) -> int:
    """The number of worker processes for so many cores: one for each core or seed, whichever are
    fewer, but none for a single one, where nothing would run in parallel.
    """
    return min(cores, seeds) if min(cores, seeds) > 1 else 0


def say(error: EnvError) -> None:
    """The default reaction to an environment of this process that hangs: the error is logged."""
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
        """`workers` is the number of worker processes, of which no more are started than there are
        seeds; 0 keeps all seeds in this process.

        The traceback of an environment's error is added to the file `log`. `hung` is called, in a
        thread of its own, once an environment of this process hangs; a worker whose environment
        hangs is killed. An evaluation is given up once the run is `asked` to stop.

        Raises:
          UserError: an environment cannot be made, or the function that makes it cannot be sent to
            workers.
          EnvError: an environment raised as it was made or reset; with workers the first call
            raises this.
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
        """Collect one round with the actors' parameters `[P]`. Members that are `frozen`, given by
        index, take no part: their environments stand still.

        Returns:
          transitions `[M, update_every]`, zeros for a member that has none, None if no member has
          any; (index of the member, return) of each episode that ended; (index, error) of each
          member that met a NaN or an infinity.

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
        # These arrays may share the device's memory. Nobody writes to them, and JAX copies a buffer
        # that is in use here where it would donate it.
        rows = jax.device_get(params)
        each = (jax.tree.map(lambda leaf, i=i: leaf[i], rows) for i in range(self._members))
        return [None if i in frozen else (one, when) for i, one in enumerate(each)]

    def evaluate(
        self, params: Params, step: int, frozen: Sequence[int] = ()
    ) -> list[Evaluation | None]:
        """Evaluate the actors `[P]` in noiseless episodes; None for members that are frozen.

        The episodes depend on nothing but the actor, its seed and the step. A warning is logged,
        once each, where episodes are cut off, and where a return is not finite. Raises Interrupted
        where the run is asked to stop, after which workers can only be closed.
        """
        found = self._call("evaluate", self._arguments(params, step, frozen))
        warn(found, step, self._limit, self._said)
        return found

    def save(self) -> list[Any]:
        """The state of every seed's environments, as plain JSON."""
        return self._call("save")

    def load(self, state: list[Any]) -> None:
        """Go on from what `save` returned, whatever the number of workers was then."""
        self._call("load", [(one,) for one in state])

    def _call(self, method: str, arguments: Sequence[tuple | None] | None = None) -> list[Any]:
        try:
            return self._pool.call(method, arguments)
        except EnvError as error:
            raise _kept(error, self._log) from error.__cause__

    def close(self) -> None:
        """End the workers, and close the environments; an error of one that raises is logged."""
        try:
            self._pool.close()
        except EnvError as error:
            _log.warning("%s", _kept(error, self._log))
        self._watch.close()


def warn(found: Sequence[Evaluation | None], step: int, limit: int, said: set[Any]) -> None:
    """Warn of episodes of an evaluation that were cut off after `limit` steps, and of those whose
    return is not finite. Each warning comes once for a set `said`, which notes it.
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
    """A context in which to make and reset an environment, which may hang: `hung` is called then.
    Yields a function to call before each reset.
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
    """Calls `hung` with the error that an environment of this process hangs, and its thread's
    stack.
    """
    error = EnvError(watch.hung(name, place, seconds))
    if (frame := sys._current_frames().get(thread)) is not None:
        error.__cause__ = Remote("\n" + "".join(traceback.format_stack(frame)))
    hung(_kept(error, log))


def _kept(error: EnvError, log: Path | None) -> EnvError:
    """The error, once the traceback of its cause is in `log`; a symbolic link there is not
    followed.
    """
    if log is None or error.__cause__ is None:
        return error
    trace = "".join(traceback.format_exception(error.__cause__))
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {error}\n{trace}\n"
    try:
        files.add(log, text.encode(errors="backslashreplace"))
    except OSError:
        return error  # as on a full disk: the error itself is what matters
    kept = EnvError(f"{error}; its traceback is in {log}")
    kept.__cause__ = error.__cause__
    return kept
