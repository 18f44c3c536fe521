"""MuJoCo Playground's environments: `playground/CheetahRun`.

Only reset and step are Playground's; episodes are this package's own, with Playground's time
limits. If observations are several arrays, the agent sees "state", as Playground's own policies do.

The physics is MJX in JAX. Playground's default, MJX in Warp, has arrays that all environments
share, so that no single one could be frozen or saved, and it does not run on TPUs.

Environments of robots download the models of MuJoCo Menagerie from GitHub when they are first made;
those of the DeepMind Control Suite (such as CheetahRun) download nothing.
"""

from collections.abc import Callable
from typing import Any

import jax

from preqn_jax.envs import contract
from preqn_jax.envs.functional import FunctionalEnv, allow_rank_promotion, of_states
from preqn_jax.options import UserError, choose, to_install

PREFIX = "playground/"


def make(env_id: str) -> FunctionalEnv:
    """The environment `playground/<name>`; actions are in [-1, 1].

    Raises:
      UserError: there is no such environment, or Playground is not installed.
      EnvError: the environment raised when it was made.
    """
    try:
        from mujoco_playground import registry  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"environment {env_id!r} needs MuJoCo Playground, which is not installed ({error}); "
            f"{to_install('playground')}"
        ) from error
    name = env_id.removeprefix(PREFIX)
    choose("environment of MuJoCo Playground", name, registry.ALL_ENVS)
    try:
        config = registry.get_default_config(name)
        with allow_rank_promotion():
            env = registry.load(name, config, {"impl": "jax"})
        times = config.action_repeat
        step = repeated(env.step, times) if times > 1 else env.step
        return of_states(env.reset, step, env.action_size, -(-config.episode_length // times))
    except contract.RAISED as error:
        raise contract.raised(env_id, "its construction", error) from error


def repeated(step: Callable[[Any, Any], Any], times: int) -> Callable[[Any, Any], Any]:
    """`(state, action) -> state` that applies `step` `times` times and sums the rewards."""

    def steps(state: Any, action: Any) -> Any:
        def one(state: Any, _: None) -> tuple[Any, Any]:
            after = step(state, action)
            return after, after.reward

        state, rewards = jax.lax.scan(one, state, length=times)
        return state.replace(reward=rewards.sum())

    return steps
