"""The linesearch of Algorithm 1, line 13: shorten a step by exponential decay until it is accepted
(Eq. 24).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from preqn_jax.options import require
from preqn_jax.types import Array, Number, dot, scaled

Accept = Callable[[Array], tuple[Array, Any]]
"""`scale [] -> (accepted [] bool, aux)`: judge the candidate `theta + scale * step`; `aux` is
whatever it measured.
"""


class Search(NamedTuple):
    """How a search ended."""

    scale: Array  # [], factor of the accepted step; 0 where none was accepted, so theta stays
    accepted: Array  # [] bool
    backtracks: Array  # [] int32, candidates rejected
    aux: Any  # what `accept` measured at the last candidate tried


def check(decay: Number, max_steps: int) -> None:
    """Raises ValueError where `decay` or `max_steps` is out of range, as `backtrack` does."""
    require(decay, lambda x: 0 < x < 1, "decay must lie in (0, 1)")
    require(max_steps, lambda x: x >= 1, "max_steps must be at least 1")


def backtrack(accept: Accept, *, decay: Number = 0.5, max_steps: int = 12) -> Search:
    """Finds the first accepted of the scales 1, decay, decay^2, ..., trying at most `max_steps`.

    >>> from preqn_jax import linesearch
    >>> search = linesearch.backtrack(lambda scale: (scale < 0.3, scale**2))
    >>> float(search.scale), bool(search.accepted), int(search.backtracks), float(search.aux)
    (0.25, True, 2, 0.0625)

    The paper's loop has no limit; this one has, because for some batches no scale is ever accepted
    (where the solve itself has lost the alignment, a shorter step does not help). A failed search
    returns scale 0, with `accepted` False; theta + 0 * step is NaN where the step is not finite, so
    keep theta by `accepted`.

    Args:
      accept: judges one scale; usually one forward pass.
      decay: factor between candidates, in (0, 1); may be traced.
      max_steps: the largest number of candidates to try, at least 1.

    Raises:
      ValueError: `decay` or `max_steps` out of range.
    """
    check(decay, max_steps)

    def trial(scale: Array, count: Array) -> tuple[Array, Array, Array, Any]:
        accepted, aux = accept(scale)
        return scale, jnp.asarray(accepted), count, aux

    def searching(state: tuple[Array, Array, Array, Any]) -> Array:
        _, accepted, count, _ = state
        return ~accepted & (count < max_steps)

    def shorten(state: tuple[Array, Array, Array, Any]) -> tuple[Array, Array, Array, Any]:
        scale, _, count, _ = state
        return trial(scale * jnp.asarray(decay, scale.dtype), count + 1)

    # The first candidate nearly always passes: outside of the loop, so that XLA can fuse it with
    # what comes before.
    state = trial(jnp.float32(1), jnp.int32(1))
    if any(isinstance(one, jax.core.Tracer) for one in (state[1], decay)):
        state = jax.lax.while_loop(searching, shorten, state)
    else:  # outside of `jit` a `while_loop` would compile, and keep, a program at every call
        while searching(state):
            state = shorten(state)
    scale, accepted, count, aux = state
    return Search(jnp.where(accepted, scale, 0), accepted, count - accepted.astype(jnp.int32), aux)


def check_vectors(a: Array, b: Array) -> None:
    """Raises ValueError unless they are vectors of one size."""
    if np.ndim(a) != 1 or np.shape(a) != np.shape(b):
        raise ValueError(
            f"got arrays of the shapes {np.shape(a)} and {np.shape(b)}, expected [B] for both"
        )


def cosine(a: Array, b: Array) -> Array:
    """cos(a, b) of two `[B]` vectors, the alignment of Eq. 24; 0 where either is zero, NaN where
    either holds one. Raises ValueError for other shapes.
    """
    check_vectors(a, b)
    (a, _), (b, _) = scaled(a), scaled(b)
    norms = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    inner = dot(a, b)
    return jnp.where(norms == 0, 0, inner / jnp.where(norms == 0, 1, norms))
