"""The replay buffer: a ring of transitions on the device, sampled uniformly with replacement."""

import numbers
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import actions
from preqn_jax.types import Array, Key, Spec, Transition


@flax.struct.dataclass
class Replay:
    """The buffer D of Algorithm 1."""

    data: Transition  # `[capacity, ...]`, float32
    # [] int32, transitions added so far, also those overwritten since; rows that were never filled
    # are never drawn
    added: Array

    @property
    def size(self) -> Array:
        """[] int32, rows filled."""
        return jnp.minimum(self.added, self.data.reward.shape[-1])


def init(spec: Spec, capacity: int) -> Replay:
    """An empty buffer; memory is `capacity * (2 obs + act + 2)` float32.

    Raises ValueError: capacity is no whole number, or below 1, or the spec's sizes are not.
    """
    actions.check(spec, "spec")
    if not isinstance(capacity, numbers.Integral) or capacity < 1:
        raise ValueError(f"capacity is {capacity!r}, expected a whole number of transitions")

    def zeros(*shape: int) -> Array:
        return jnp.zeros((capacity, *shape), jnp.float32)

    data = Transition(
        zeros(spec.obs_size), zeros(spec.action_size), zeros(), zeros(), zeros(spec.obs_size)
    )
    return Replay(data, jnp.int32(0))


def add(replay: Replay, transitions: Transition, skip: bool | Array = False) -> Replay:
    """Add `[n]` transitions, which overwrite the oldest where the ring is full; add none where
    `skip`. `n` must not exceed the capacity.

    Raises ValueError: too many, arrays of other shapes than the buffer's, or integers as actions.
    """
    actions.refuse_integers(transitions.action)
    if np.ndim(transitions.reward) != 1:
        raise ValueError(
            f"transitions have rewards of the shape {np.shape(transitions.reward)}, expected [n]; "
            "to add a single one put an axis before each of its arrays, as in obs[None]"
        )
    capacity, n = replay.data.reward.shape[0], len(transitions.reward)
    if n > capacity:
        raise ValueError(f"{n} transitions do not fit into a replay buffer of capacity {capacity}")
    rows = (replay.added + jnp.arange(n)) % capacity
    rows = jnp.where(skip, capacity + jnp.arange(n), rows)  # beyond the end: nothing is written

    def put(ring: Array, new: Any) -> Array:
        if np.shape(new) != (n, *ring.shape[1:]):
            raise ValueError(
                f"transitions have an array of the shape {np.shape(new)}, expected "
                f"{(n, *ring.shape[1:])}: one for each reward, as the buffer holds them"
            )
        return ring.at[rows].set(jnp.asarray(new, ring.dtype), unique_indices=True, mode="drop")

    added = replay.added + jnp.where(skip, 0, n)
    return Replay(jax.tree.map(put, replay.data, transitions), added)


def sample(replay: Replay, key: Key, shape: tuple[int, ...]) -> Transition:
    """Transitions `[*shape]` drawn uniformly with replacement from a buffer that is not empty. The
    key is consumed.
    """
    rows = jax.random.randint(key, shape, 0, replay.size)
    return jax.tree.map(lambda ring: ring[rows], replay.data)
