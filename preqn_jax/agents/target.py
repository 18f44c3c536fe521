"""Target networks: copies of parameters that follow them slowly (Lillicrap et al. 2016).

`polyak` is the share of the copy that one update keeps, or None for no target network: then targets
use the online parameters, as in PreQN, and the copy is None.
"""

import jax
import jax.numpy as jnp
import optax

from preqn_jax.options import require
from preqn_jax.types import Params

Polyak = float | jax.Array | None


def check(polyak: Polyak) -> None:
    """Raises ValueError for a `polyak` outside of [0, 1): with 1 the copy would never move."""
    words = "target, the share of a target network that is kept, must lie in [0, 1) or be None"
    require(polyak, lambda x: x is not True and 0 <= x < 1, words)


def start(params: Params, polyak: Polyak) -> Params:
    """The initial copy, in memory of its own, so that JAX may donate the buffers of both. It has
    float32 at least: in 8 bits of a bfloat16 a slow copy would stand still.
    """
    return None if polyak is None else jax.tree.map(lambda leaf: jnp.copy(_wide(leaf)), params)


def follow(copy: Params, params: Params, polyak: Polyak) -> Params:
    """copy <- polyak * copy + (1 - polyak) * params."""
    if polyak is None:
        return None
    return optax.incremental_update(jax.tree.map(_wide, params), copy, 1 - polyak)


def bootstrap(copy: Params, params: Params) -> Params:
    """The parameters to use in targets: the copy if there is one, else `params`, in their types."""
    if copy is None:
        return params
    return jax.tree.map(lambda slow, leaf: slow.astype(leaf.dtype), copy, params)


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
