"""Environments: `make(env_id, num_envs)` builds a vector of any Gymnasium environment, of a probe, or of a finite problem."""

from preqn_jax.envs.base import Step, VectorEnv, derive_seed
from preqn_jax.envs.finite import FINITE
from preqn_jax.envs.functional import FunctionalVector
from preqn_jax.envs.probe import PROBES
from preqn_jax.options import choose

__all__ = ["FINITE", "PROBES", "Step", "VectorEnv", "derive_seed", "make"]


def make(env_id: str, num_envs: int) -> VectorEnv:
    """`num_envs` copies of an environment. Raises UserError if there is no such, or its spaces do not fit."""
    if env_id.startswith(("probe/", "tabular/")):
        functional = {**PROBES, **FINITE}
        return FunctionalVector(functional[choose("environment", env_id, functional)](), num_envs)
    from preqn_jax.envs.gym import GymVector  # needs gymnasium and mujoco, which notebooks on kernels do without

    return GymVector(env_id, num_envs)
