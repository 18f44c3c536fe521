"""Collecting and evaluating for all seeds, in this process or in several.

Between two updates the policy is frozen, so a whole round of every seed is one exchange: out go the
actors' parameters, back come the transitions. Workers build their share of the seeds from the same
`Recipe` as this process would, run the same compiled functions on it, and so return the same
numbers, bit for bit.
"""

import contextlib
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from preqn_jax import envs
from preqn_jax.agents import Agent
from preqn_jax.options import UserError
from preqn_jax.training.config import LoopConfig
from preqn_jax.training.errors import Stopped
from preqn_jax.training.rollout import Evaluation, Rollout, make_acting
from preqn_jax.types import Params, Spec, Transition


class Recipe(NamedTuple):
    """What a process builds rollouts from. For workers it must pickle: `partial(agents.make,
    config)` does, a lambda does not.
    """

    make_agent: Callable[[Spec], Agent]
    env: envs.Source
    config: LoopConfig
    eval_episodes: int


def default_workers(seeds: int) -> int:
    """Worker processes that suit this machine: none for one seed, which has nothing to run beside
    it; else one a core.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(cores, seeds) if min(cores, seeds) > 1 else 0


class Collector:
    """The rollouts of all seeds, wherever they run."""

    def __init__(self, recipe: Recipe, workers: int = 0):
        """`workers` processes at most, as no seed is divided; 0 for this one alone.

        Raises UserError for an environment that cannot be made.
        """
        if workers < 0:
            raise ValueError(f"workers is {workers}, but it must be at least 0")
        seeds = recipe.config.seeds
        self._pool: _Pool = _Workers(recipe, workers) if workers else _Local(recipe, seeds)

        @jax.jit
        def split(params: Params) -> list[Params]:
            return [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(len(seeds))]

        self._split = split

    def collect(self, params: Params, round_: int) -> tuple[Transition, list[tuple[int, float]]]:
        """One round with the actors `[S]`: transitions `[S, update_every]`, and (index of the seed,
        return) of ended episodes.

        Raises:
          Diverged: a NaN or an infinity from an environment.
          Stopped: a worker died.
        """
        rows = self._pool.call(
            "collect", [(one, round_) for one in jax.device_get(self._split(params))]
        )
        transitions = jax.tree.map(lambda *leaves: np.stack(leaves), *(row[0] for row in rows))
        return transitions, [(i, total) for i, row in enumerate(rows) for total in row[1]]

    def evaluate(self, params: Params, step: int) -> list[Evaluation]:
        """Noiseless episodes of each of the actors `[S]`.

        They depend on nothing else but the step.
        """
        return self._pool.call(
            "evaluate", [(one, step) for one in jax.device_get(self._split(params))]
        )

    def save(self) -> list[Any]:
        """The state of every seed's environments, as plain JSON."""
        return self._pool.call("save")

    def load(self, state: list[Any]) -> None:
        """Go on from what `save` returned, whether it was saved with as many workers or not."""
        self._pool.call("load", [(one,) for one in state])

    def close(self) -> None:
        """End the workers, and free what the environments hold."""
        self._pool.close()


class _Pool(Protocol):
    def call(self, method: str, arguments: Sequence[tuple] | None = None) -> list[Any]:
        """A method of every seed's Rollout with that seed's arguments: the results, in the order of
        seeds.
        """
        ...

    def close(self) -> None: ...


class _Local:
    """Seeds of this process, one after the other, on its CPU."""

    def __init__(self, recipe: Recipe, seeds: Sequence[int]):
        config = recipe.config
        self._device = _cpu()
        with jax.default_device(self._device):
            eval_env = envs.make(recipe.env, recipe.eval_episodes)
            acting = make_acting(recipe.make_agent(eval_env.spec), eval_env.spec, config)
            train_envs = [envs.make(recipe.env, config.num_envs) for _ in seeds]
            self._rollouts = [
                Rollout(acting, env, eval_env, config, seed)
                for env, seed in zip(train_envs, seeds, strict=True)
            ]
        self._envs = [*train_envs, eval_env]

    def call(self, method: str, arguments: Sequence[tuple] | None = None) -> list[Any]:
        arguments = [()] * len(self._rollouts) if arguments is None else arguments
        with jax.default_device(self._device):
            return [
                getattr(rollout, method)(*args)
                for rollout, args in zip(self._rollouts, arguments, strict=True)
            ]

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _cpu() -> Any:
    """Where acting goes on: even with an accelerator at hand, one observation is answered sooner
    next to the environment.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection
    seeds: list[int]


class _Workers:
    """Seeds divided among processes; the same calls as `_Local`, one exchange each."""

    def __init__(self, recipe: Recipe, count: int):
        context = multiprocessing.get_context("spawn")  # a fork of JAX's threads would hang
        seeds = recipe.config.seeds
        self._workers: list[_Worker] = []
        with _signals_held():
            for share in np.array_split(np.array(seeds), min(count, len(seeds))):
                share = [int(seed) for seed in share]
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, recipe, share), daemon=True)
                process.start()
                theirs.close()  # or we would not hear of its death
                self._workers.append(_Worker(process, ours, share))
        self._end = weakref.finalize(
            self, _end, self._workers
        )  # at exit too, before multiprocessing waits for them

    def call(self, method: str, arguments: Sequence[tuple] | None = None) -> list[Any]:
        first = 0
        for worker in self._workers:
            last = first + len(worker.seeds)
            with self._deaths(worker):
                worker.pipe.send((method, None if arguments is None else arguments[first:last]))
            first = last
        results = []
        for worker in self._workers:
            with self._deaths(worker):
                reply = worker.pipe.recv()
            if isinstance(reply, UserError):
                raise reply
            results.extend(reply)
        return results

    @contextlib.contextmanager
    def _deaths(self, worker: _Worker) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            worker.process.join(5)
            code = worker.process.exitcode
            how = (
                f"was killed by signal {-code}"
                if code is not None and code < 0
                else f"ended with status {code}"
            )
            named = (
                f"seed {worker.seeds[0]}"
                if len(worker.seeds) == 1
                else f"seeds {', '.join(map(str, worker.seeds))}"
            )
            raise Stopped(
                f"the worker process that steps {named} {how}; `workers=0` does without such "
                f"processes"
            ) from error

    def close(self) -> None:
        self._end()


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()  # an idle worker ends by itself
    for worker in workers:
        worker.process.join(2)
        worker.process.kill()  # a busy one has nothing to lose
        worker.process.join()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes started in here never see Ctrl-C or a SIGTERM to the group: the last checkpoint
    still needs their states.
    """
    resource_tracker.ensure_running()  # starting it lets the signals through again
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _serve(pipe: Connection, recipe: Recipe, seeds: list[int]) -> None:
    """What a worker does until its pipe closes."""
    jax.config.update("jax_platforms", "cpu")  # accelerators belong to the learner
    jax.config.update(
        "jax_cpu_enable_async_dispatch", False
    )  # handing over to a thread takes longer than the policy
    local = _Local(recipe, seeds)
    with contextlib.suppress(EOFError, OSError):  # the other end is gone
        while True:
            method, arguments = pipe.recv()
            try:
                reply = local.call(method, arguments)
            except UserError as error:
                reply = error
            pipe.send(reply)
