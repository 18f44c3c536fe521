"""MuJoCo Playground's environments: `playground/CheetahRun`.

Only their reset and step are taken; episodes are ours, with Playground's own time limits. One whose
observations are several arrays shows "state", which is what Playground's own policies see.

The physics is MJX in JAX: that in Warp, which is Playground's default, keeps arrays that belong to
no one environment, so that none of these could be frozen or saved by itself, and it knows no TPU.

Environments of robots load MuJoCo's Menagerie of models from GitHub as they are made for the first
time; those of the suite of dm_control (CheetahRun and its neighbours) need nothing of the kind.
"""

from collections.abc import Callable
from typing import Any

import jax

from preqn_jax.envs import contract
from preqn_jax.envs.functional import FunctionalEnv, of_states, their_ways
from preqn_jax.options import UserError, choose, to_install

PREFIX = "playground/"


def make(env_id: str) -> FunctionalEnv:
    """The environment `playground/<name>`; actions are in [-1, 1].

    Raises:
      UserError: there is no such, or no Playground.
      EnvError: it raised as it was made.
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
        with their_ways():
            env = registry.load(name, config, {"impl": "jax"})
        times = config.action_repeat
        step = repeated(env.step, times) if times > 1 else env.step
        return of_states(env.reset, step, env.action_size, -(-config.episode_length // times))
    except contract.RAISED as error:
        raise contract.raised(env_id, "its construction", error) from error


def repeated(step: Callable[[Any, Any], Any], times: int) -> Callable[[Any, Any], Any]:
    """`(state, action) -> state` after the same action several times, with the sum of rewards."""

    def steps(state: Any, action: Any) -> Any:
        def one(state: Any, _: None) -> tuple[Any, Any]:
            after = step(state, action)
            return after, after.reward

        state, rewards = jax.lax.scan(one, state, length=times)
        return state.replace(reward=rewards.sum())

    return steps
