"""Environments: `make(env_id, num_envs)` builds a vector of any Gymnasium environment, of a probe,
or of a finite problem.
"""

import functools

from preqn_jax.envs.base import Step, VectorEnv, derive_seed
from preqn_jax.envs.finite import FINITE
from preqn_jax.envs.functional import FunctionalEnv, FunctionalVector
from preqn_jax.envs.probe import PROBES
from preqn_jax.options import choose
from preqn_jax.types import Spec

__all__ = ["FINITE", "PROBES", "Step", "VectorEnv", "derive_seed", "make", "spec"]


def make(env_id: str, num_envs: int) -> VectorEnv:
    """`num_envs` copies of an environment. Raises UserError if there is no such, or its spaces do
    not fit.
    """
    if env_id.startswith(("probe/", "tabular/")):
        return FunctionalVector(
            _functional(choose("environment", env_id, {**PROBES, **FINITE})), num_envs
        )
    from preqn_jax.envs.gym import (
        GymVector,
    )  # needs gymnasium and mujoco, which notebooks on kernels do without

    return GymVector(env_id, num_envs)


@functools.cache  # what is compiled of one is shared by all vectors of it
def _functional(env_id: str) -> FunctionalEnv:
    return {**PROBES, **FINITE}[env_id]()


def spec(env_id: str) -> Spec:
    """Sizes and bounds of an environment. Raises UserError as `make` does."""
    env = make(env_id, 1)
    env.close()
    return env.spec
