"""Replay: a ring of transitions on the device, sampled uniformly with replacement."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from preqn_jax.types import Array, Key, Spec, Transition


@flax.struct.dataclass
class Replay:
    """The buffer D of Algorithm 1."""

    data: Transition  # `[capacity, ...]`, float32
    position: Array  # [] int32, where the next transition goes
    size: Array  # [] int32, rows filled


def init(spec: Spec, capacity: int) -> Replay:
    """An empty buffer; memory is `capacity * (2 obs + act + 2)` float32."""

    def zeros(*shape: int) -> Array:
        return jnp.zeros((capacity, *shape), jnp.float32)

    data = Transition(zeros(spec.obs_size), zeros(spec.action_size), zeros(), zeros(), zeros(spec.obs_size))
    return Replay(data, jnp.int32(0), jnp.int32(0))


def add(replay: Replay, transitions: Transition) -> Replay:
    """Append `[n]` transitions, over the oldest where the ring is full. `n` must not exceed the capacity."""
    capacity, n = replay.data.reward.shape[0], transitions.reward.shape[0]
    if n > capacity:
        raise ValueError(f"{n} transitions do not fit into a replay of capacity {capacity}")
    rows = (replay.position + jnp.arange(n)) % capacity

    def put(ring: Array, new: Any) -> Array:
        return ring.at[rows].set(jnp.asarray(new, ring.dtype), unique_indices=True)

    data = jax.tree.map(put, replay.data, transitions)
    return Replay(data, (replay.position + n) % capacity, jnp.minimum(replay.size + n, capacity))


def sample(replay: Replay, key: Key, shape: tuple[int, ...]) -> Transition:
    """Transitions `[*shape]` drawn uniformly with replacement from a buffer that is not empty. The key is consumed."""
    rows = jax.random.randint(key, shape, 0, replay.size)
    return jax.tree.map(lambda ring: ring[rows], replay.data)
