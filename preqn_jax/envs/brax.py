"""Brax's environments: `brax/halfcheetah`, or `brax/spring/halfcheetah` for another physics.

Only reset and step are Brax's. Episodes and time limits are this package's own, because Brax's
wrappers replace the true successor by the first observation of a new episode.
"""

import warnings

from preqn_jax.envs import contract
from preqn_jax.envs.functional import FunctionalEnv, allow_rank_promotion, of_states
from preqn_jax.options import UserError, choose, to_install

PREFIX = "brax/"
PHYSICS = ("mjx", "generalized", "positional", "spring")  # the first is the default
TIME_LIMIT = 1000


def make(env_id: str) -> FunctionalEnv:
    """The environment `brax/<name>` or `brax/<physics>/<name>`; actions are in [-1, 1], and
    episodes are cut off after 1000 steps.

    Raises:
      UserError: there is no such environment, or Brax is not installed.
      EnvError: the environment raised when it was made, as it does without support for the physics.
    """
    try:
        import brax.envs as library  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"environment {env_id!r} needs Brax, which is not installed ({error}); "
            f"{to_install('brax')}"
        ) from error
    physics, _, name = env_id.removeprefix(PREFIX).rpartition("/")
    physics = choose("physics of Brax", physics or PHYSICS[0], PHYSICS)
    env_class = library._envs[choose("environment of Brax", name, library._envs)]
    from preqn_jax.envs.gym import route_mujoco_warnings

    route_mujoco_warnings()
    try:
        with warnings.catch_warnings(), allow_rank_promotion():
            warnings.simplefilter("ignore")  # that Brax is not actively maintained
            env = env_class(backend=physics)
        return of_states(env.reset, env.step, env.action_size, TIME_LIMIT)
    except contract.RAISED as error:
        raise contract.raised(env_id, "its construction", error) from error
