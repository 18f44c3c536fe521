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
    """The initial copy, in memory of its own, so that JAX may donate the buffers of both."""
    return None if polyak is None else jax.tree.map(jnp.copy, params)


def follow(copy: Params, params: Params, polyak: Polyak) -> Params:
    """copy <- polyak * copy + (1 - polyak) * params."""
    return None if polyak is None else optax.incremental_update(params, copy, 1 - polyak)


def bootstrap(copy: Params, params: Params) -> Params:
    """The parameters to use in targets: the copy if there is one, else `params`."""
    return params if copy is None else copy
