"""Environments: `make(env_id, num_envs)` builds a vector of any Gymnasium environment, of a probe,
or of a finite problem.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

from preqn_jax.envs.base import EnvError, Step, VectorEnv, derive_seed
from preqn_jax.envs.finite import FINITE
from preqn_jax.envs.functional import FunctionalEnv, FunctionalVector, Outcome
from preqn_jax.envs.probe import PROBES
from preqn_jax.options import choose
from preqn_jax.types import Spec

__all__ = [
    "FINITE",
    "PROBES",
    "EnvError",
    "FunctionalEnv",
    "Outcome",
    "Source",
    "Step",
    "VectorEnv",
    "derive_seed",
    "make",
    "name",
    "spec",
]

_log = logging.getLogger(__name__)

Source = str | FunctionalEnv | Callable[[], Any]
"""Where environments come from: a Gymnasium id, the name of a probe or of a finite problem, a
functional environment, or a function without arguments that makes a `gymnasium.Env`.
"""


def make(source: Source, num_envs: int) -> VectorEnv:
    """`num_envs` copies of an environment.

    Raises:
      UserError: there is no such, or its spaces do not fit.
      EnvError: it raised as it was made.
    """
    called = name(source)
    if isinstance(source, str) and source.startswith(("probe/", "tabular/")):
        source = _functional(choose("environment", source, {**PROBES, **FINITE}))
    if isinstance(source, FunctionalEnv):
        return FunctionalVector(source, num_envs, called)
    # It needs gymnasium and mujoco, which notebooks on kernels do without.
    from preqn_jax.envs.gym import GymVector

    return GymVector(source, num_envs)


@functools.cache  # what is compiled of one is shared by all vectors of it
def _functional(env_id: str) -> FunctionalEnv:
    return {**PROBES, **FINITE}[env_id]()


def name(source: Source) -> str:
    """What to call an environment: its id, or the name of what makes it."""
    if isinstance(source, str):
        return source
    return getattr(source, "__qualname__", type(source).__name__)


def spec(source: Source) -> Spec:
    """Sizes and bounds of an environment. Raises UserError as `make` does."""
    env = make(source, 1)
    try:
        env.close()
    except EnvError as error:
        _log.warning("%s", error)  # nothing that was asked for is lost
    return env.spec
