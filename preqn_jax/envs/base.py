"""What the training loop needs of an environment: a vector of them, on the host, whose state can be
saved exactly.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from preqn_jax.options import UserError
from preqn_jax.types import Spec


class EnvError(UserError):
    """An environment raised, hung, or returned what its spaces do not hold. What it raised itself
    is the cause.
    """


class Step(NamedTuple):
    """One step of every environment; finished ones have already been reset in `obs`, but for those
    of an evaluation. Arrays are NumPy's, or on the device JAX's.
    """

    reward: Any  # `[n]` float32
    terminated: Any  # `[n]` bool, the episode ended by the task's own rule: nothing follows
    truncated: Any  # `[n]` bool, it was cut off by a time limit: the value goes on
    next_obs: Any  # `[n, obs]` float32, the true successor, also where the episode ended
    # `[n, obs]` float32, where to act from next: `next_obs`, or a new episode's first observation
    obs: Any


class VectorEnv(Protocol):
    """Several environments stepped as one. Actions are in [-1, 1] and scaled to the environment's
    bounds inside. Every call raises EnvError for what an environment of it raises or returns amiss.
    """

    spec: Spec
    num_envs: int

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start a new episode in each from its seed; `[n, obs]` float32."""
        ...

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        """Advance all, or those where `active [n]` is true; the others stand still: their rows are
        zero, and of `obs` without meaning. With `active`, as in an evaluation, one that ends need
        not begin anew: it has no next step before a reset.
        """
        ...

    def save(self) -> Any:
        """All that the next steps depend on, as plain JSON (`envs.codec`). Where it has `envs`, one
        that is None there cannot be saved, and `load` begins it anew.
        """
        ...

    def load(self, state: Any) -> np.ndarray:
        """Go on from a saved state, bit for bit; returns the observations `[n, obs]` to act
        from.
        """
        ...

    def close(self) -> None:
        """Free what the environments hold, of all of them whichever raises."""
        ...


def derive_seed(*words: int) -> int:
    """A seed for an environment from numbers that name it, as (seed of the run, purpose, index)."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])
