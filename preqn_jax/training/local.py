"""The rollouts of one process's seeds, on its CPU: in a worker process or, without workers, in the
run's own process.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax

from preqn_jax import envs
from preqn_jax.agents import Agent
from preqn_jax.envs import EnvError, contract
from preqn_jax.training import watch
from preqn_jax.training.config import LoopConfig, RunConfig
from preqn_jax.training.errors import Asked, Diverged, never
from preqn_jax.training.rollout import Rollout, make_acting
from preqn_jax.types import Spec


class Recipe(NamedTuple):
    """All that a process builds rollouts from. To be sent to workers it must pickle:
    `partial(agents.make, config)` does, a lambda does not.
    """

    make_agent: Callable[[Spec], Agent]
    env: envs.Source
    config: LoopConfig
    eval_episodes: int
    eval_max_steps: int = RunConfig.eval_max_steps
    env_timeout: float = RunConfig.env_timeout


class Local:
    """The rollouts of this process's seeds, stepped one after the other on its CPU."""

    def __init__(
        self, recipe: Recipe, seeds: Sequence[int], place: watch.Place, asked: Asked = never
    ):
        """`place` is told which call of an environment this is in; `asked` says whether the run is
        to stop. Raises UserError and EnvError as `envs.make` does, and EnvError as a first `reset`
        does, with all environments closed that were made before.
        """
        config = recipe.config
        self._device, self._place, self._seed = cpu(), place, seeds[0]
        self._envs: list[envs.VectorEnv] = []
        with contract.closed_on_error(self.close), self._here():
            with self._in(watch.CONSTRUCTION):
                for count in (recipe.eval_episodes, *[config.num_envs] * len(seeds)):
                    self._envs.append(envs.make(recipe.env, count, partial(watch.onward, place)))
            eval_env, *train_envs = self._envs
            acting = make_acting(recipe.make_agent(eval_env.spec), eval_env.spec, config)
            self._rollouts = [
                Rollout(acting, env, eval_env, config, seed, recipe.eval_max_steps, place, asked)
                for env, seed in zip(train_envs, seeds, strict=True)
            ]

    def call(self, method: str, arguments: Sequence[tuple | None] | None = None) -> list[Any]:
        """Calls a method of every seed's Rollout with that seed's arguments, and returns the
        results in the order of seeds: None where the arguments are None, and a Diverged, not
        raised, for a seed that diverged. Raises Interrupted for an evaluation, once the run is
        asked to stop.
        """
        arguments = [()] * len(self._rollouts) if arguments is None else arguments
        with self._here():
            return [
                None if args is None else _result(getattr(rollout, method), *args)
                for rollout, args in zip(self._rollouts, arguments, strict=True)
            ]

    def close(self) -> None:
        """Closes all environments, then raises EnvError for the first one that raised."""
        failed = []
        with self._here(), self._in(watch.CLOSE):
            for env in self._envs:
                try:
                    env.close()
                except EnvError as error:
                    failed.append(error)
        if failed:
            raise failed[0]

    @contextmanager
    def _here(self) -> Iterator[None]:
        """A context on this device, in which environments may use JAX's rank promotion, whatever
        the caller has set.
        """
        with jax.default_device(self._device), jax.numpy_rank_promotion("allow"):
            yield

    @contextmanager
    def _in(self, call: int) -> Iterator[None]:
        self._place[:] = call, self._seed, 0, self._place[3] + 1
        try:
            yield
        finally:
            self._place[0] = watch.OUTSIDE


def _result(method: Callable[..., Any], *args: Any) -> Any:
    try:
        return method(*args)
    except Diverged as error:
        return error


def cpu() -> Any:
    """The device on which policies act: even where there is an accelerator, the CPU answers a
    single observation sooner.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return jax.local_devices()[0]
