"""The interface of environments to the training loop: a vector of them, on the host, whose state
can be saved exactly.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from preqn_jax.options import UserError
from preqn_jax.types import Spec


class EnvError(UserError):
    """An environment raised, hung, or returned what does not fit its spaces. An exception that it
    raised itself is the `__cause__`.
    """


@contextlib.contextmanager
def staying_here() -> Iterator[None]:
    """A context that comes back to the current folder, which an environment may leave. It does
    nothing where that folder is gone.
    """
    here = None
    with contextlib.suppress(OSError):
        here = os.getcwd()
    try:
        yield
    finally:
        if here is not None:
            with contextlib.suppress(OSError):
                os.chdir(here)


class Step(NamedTuple):
    """The result of one step of every environment. Where an episode ended, `obs` is already of the
    next one, except in an evaluation. Arrays are NumPy's, or JAX's for environments on the device.
    """

    reward: Any  # `[n]` float32
    terminated: Any  # `[n]` bool, the episode ended by the task's own rule: no bootstrap
    truncated: Any  # `[n]` bool, the episode was cut off by a time limit: targets bootstrap
    next_obs: Any  # `[n, obs]` float32, the true successor, also where the episode ended
    # `[n, obs]` float32, where to act from next: `next_obs`, or a new episode's first observation
    obs: Any


class VectorEnv(Protocol):
    """Several environments stepped as one. Actions are in [-1, 1], and are scaled to the
    environment's bounds inside. Every call raises EnvError if one of the environments raises, or
    returns something invalid.
    """

    spec: Spec
    num_envs: int

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start a new episode in each from its seed; `[n, obs]` float32."""
        ...

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        """Advance all environments, or only those where `active [n]` is true. The others do not
        change; their rows are zero, but those of `obs` mean nothing. With `active`, as in an
        evaluation, no new episode needs to begin where one ended: there is no next step before a
        `reset`.
        """
        ...

    def save(self) -> Any:
        """Everything that the next steps depend on, as plain JSON (`envs.codec`). A None in its
        list "envs" is an environment that cannot be saved.
        """
        ...

    def load(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Go on from a saved state, bit for bit; returns the observations `[n, obs]` to act from,
        and where a new episode begins `[n]`: in an environment that could not be saved, or cannot
        be loaded, as it holds what cannot be saved when an episode begins.
        """
        ...

    def close(self) -> None:
        """Free the resources of all environments, even if closing one of them raises."""
        ...


def derive_seed(*words: int) -> int:
    """A seed for an environment from numbers that name it, as (seed of the run, purpose, index)."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])
