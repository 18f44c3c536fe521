"""What the paper measures: the row ratio of a kernel (section 5.1) and the alignment of an update (section 5.2)."""

import jax.numpy as jnp

from preqn_jax.linesearch import cosine
from preqn_jax.types import Array


def row_ratio(gram: Array) -> Array:
    """R_i(K) = (1/N) sum_{j != i} |K_ij| / K_ii, `[N]`: how far an update at i reaches others (section 5.1).

    A row without a diagonal has no off-diagonal either (Cauchy-Schwarz), and counts as 0.
    """
    diagonal = jnp.diagonal(gram)
    off_diagonal = jnp.sum(jnp.abs(gram), axis=-1) - jnp.abs(diagonal)
    return off_diagonal / (gram.shape[0] * jnp.where(diagonal > 0, diagonal, 1))


def alignment(change: Array, delta: Array) -> Array:
    """cos(Q' - Q, y - Q): how well an update moved Q `[B]` towards its targets (section 5.2, Figure 3)."""
    return cosine(change, delta)
