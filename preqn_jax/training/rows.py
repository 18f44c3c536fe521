"""Reads and writes the rows of members in arrays that are divided among devices.

Each device cuts from its own share, and is given the rows that belong there. If rows were cut from
the whole array, XLA would first copy all rows of all members to every device.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.types import Array, Transition


@partial(jax.jit, static_argnums=2)
def _slice(share: Array, starts: tuple[Any, ...], sizes: tuple[int, ...]) -> Array:
    rest = share.shape[len(sizes) :]
    return jax.lax.dynamic_slice(share, (*starts, *[0] * len(rest)), (*sizes, *rest))


@partial(jax.jit, donate_argnums=0)
def _put(share: Array, rows: Array, starts: tuple[Any, ...]) -> Array:
    rest = [0] * (share.ndim - len(starts))
    return jax.lax.dynamic_update_slice(share, rows, (*starts, *rest))


def _common(first: int, count: int, members: range) -> range:
    """Those of the members whose rows are among the `count` rows from `first` on."""
    return range(max(first, members.start), min(first + count, members.stop))


def cut(leaf: Any, members: range) -> np.ndarray:
    """Some members' rows of a leaf `[P, ...]`. They are a copy, so the leaf can still be
    donated.
    """
    return _cut(leaf, members, (), ())


def cut_ring(ring: Any, members: range, start: int, count: int, most: int) -> np.ndarray:
    """As `cut`, some members' transitions in a ring `[P, capacity, ...]`: `count` from `start` on.
    One program serves all counts up to `most`, which is the same at each checkpoint.

    >>> import jax.numpy as jnp
    >>> from preqn_jax.training import rows
    >>> rows.cut_ring(jnp.arange(12).reshape(3, 4), range(1, 3), 1, 2, most=3).tolist()
    [[5, 6], [9, 10]]
    """
    most = min(most, ring.shape[1])
    first = min(start, ring.shape[1] - most)
    return _cut(ring, members, (first,), (most,), slice(start - first, start - first + count))


def _cut(
    leaf: Any,
    members: range,
    starts: tuple[int, ...],
    sizes: tuple[int, ...],
    kept: slice | None = None,
) -> np.ndarray:
    shards = jnp.asarray(leaf).addressable_shards
    shares = {shard.index[0].start or 0: shard.data for shard in shards}  # replicas count once
    found = [
        _slice(share, (here.start - first, *starts), (len(here), *sizes))
        for first, share in sorted(shares.items())
        if (here := _common(first, len(share), members))
    ]
    host = jax.device_get(found)
    return np.concatenate(host if kept is None else [part[:, kept] for part in host])


def of_member(i: int, tree: Any) -> Any:
    """One member's rows of all leaves `[P, ...]`."""
    return jax.tree.map(lambda leaf: cut(leaf, range(i, i + 1))[0], tree)


class Rings:
    """New rings of a replay, `[P, capacity, ...]`, filled member by member on the devices where
    they stay. They take the place of older ones, `like`, which are deleted when the first rows are
    put.
    """

    def __init__(self, like: Transition):
        self._like = like
        self._shares: list[list[tuple[int, Array]]] = []  # of each ring: first row, rows

    def clear(self) -> None:
        """Forget what was put."""
        self._shares = []

    def _begun(self) -> list[list[tuple[int, Array]]]:
        if not self._shares:
            rings = jax.tree.leaves(self._like)
            for ring in rings:
                if not ring.is_deleted():
                    ring.delete()
            self._shares = [list(_empty(ring)) for ring in rings]
        return self._shares

    def put(self, members: range, start: int, piece: Transition) -> None:
        """Writes transitions `[len(members), n]` of these members to the rows from `start` on."""
        for shares, new in zip(self._begun(), jax.tree.leaves(piece), strict=True):
            for i, (first, share) in enumerate(shares):
                if here := _common(first, len(share), members):
                    mine = new[here.start - members.start : here.stop - members.start]
                    mine = jax.device_put(mine, share.sharding)
                    shares[i] = first, _put(share, mine, (here.start - first, start))

    def taken(self) -> Transition:
        """The new rings, in the form of those whose place they take; rows that were not put are
        0.
        """
        whole = [
            jax.make_array_from_single_device_arrays(
                ring.shape, ring.sharding, [share for _, share in shares]
            )
            for ring, shares in zip(jax.tree.leaves(self._like), self._begun(), strict=True)
        ]
        self.clear()
        return jax.tree.unflatten(jax.tree.structure(self._like), whole)


def _empty(ring: Array) -> Iterator[tuple[int, Array]]:
    places = ring.sharding.addressable_devices_indices_map(ring.shape)
    for device, at in places.items():
        first, last, _ = at[0].indices(ring.shape[0]) if at else (0, ring.shape[0], 1)
        yield first, jnp.zeros((last - first, *ring.shape[1:]), ring.dtype, device=device)
