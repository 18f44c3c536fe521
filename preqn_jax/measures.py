"""The paper's measures: the row ratio of a kernel (section 5.1), the alignment of an update
(section 5.2), and how far an update is from a contraction (Theorem 2). Also, which examples of a
batch moved Q at given inputs. All are computed in float32 at least.
"""

import jax.numpy as jnp
import numpy as np

from preqn_jax import ntk
from preqn_jax.batching import batch_size
from preqn_jax.linesearch import check_vectors, cosine
from preqn_jax.types import Array, Inputs, Params, QFunction, dot, scaled, wide


def row_ratio(gram: Array) -> Array:
    """R_i(K) = (1/N) sum_{j != i} |K_ij| / K_ii, `[N]`: how far an update at i reaches others
    (section 5.1).

    >>> import jax.numpy as jnp
    >>> from preqn_jax.measures import row_ratio
    >>> row_ratio(jnp.asarray([[1.0, 0.5], [0.5, 2.0]])).tolist()
    [0.25, 0.125]

    A row whose diagonal is 0 is 0 everywhere (Cauchy-Schwarz), and its ratio counts as 0.
    """
    diagonal, off_diagonal = _weighted(gram, 1.0)
    return off_diagonal / (gram.shape[0] * jnp.where(diagonal > 0, diagonal, 1))


def alignment(change: Array, delta: Array) -> Array:
    """cos(Q' - Q, y - Q): how well an update moved Q `[B]` towards its targets (section 5.2, Figure
    3).

    >>> import jax.numpy as jnp
    >>> from preqn_jax.measures import alignment
    >>> delta = jnp.asarray([1.0, -2.0])
    >>> alignment(0.1 * delta, delta).round(3).tolist(), alignment(-delta, delta).round(3).tolist()
    (1.0, -1.0)
    """
    return cosine(*_of_a_batch(change, delta))


def _of_a_batch(change: Array, delta: Array) -> tuple[Array, Array]:
    """Both arrays, in float32 at least. Raises ValueError unless they are vectors of one size."""
    check_vectors(change, delta)
    return wide(change), wide(delta)


def gain(change: Array, delta: Array) -> Array:
    """<Q' - Q, y - Q> / |y - Q|^2, `[]`: the share of the TD errors `[B]` that an update removes; 0
    where all of them are 0.

    With a diagonal K it lies between the smallest and the largest alpha K_ii rho_i, so that above 1
    Eq. 16 fails somewhere.
    """
    change, delta = _of_a_batch(change, delta)
    less = jnp.where(jnp.max(jnp.abs(delta)) > 1e30, 0.5**64, 1.0).astype(delta.dtype)
    change, delta = less * change, less * delta  # so that the square of the largest is finite
    unit, scale = scaled(delta)
    return dot(change, unit) / jnp.where(scale > 0, scale * dot(unit, unit), 1)


def interference(gram: Array, delta: Array) -> Array:
    """sum_{i != j} delta_i delta_j K_ij / ((N - 1) sum_i delta_i^2 K_ii), `[]`, in [-1 / (N - 1),
    1].

    TD interference (Bengio et al. 2020): the mean inner product of two examples' semi-gradients,
    divided by the mean of their squared norms. At 1 every example pulls the parameters the same
    way. It is 0 where there is one example, or all TD errors are 0.
    """
    gram, delta = _square(gram), wide(delta)
    _of_a_batch(jnp.diagonal(gram), delta)
    unit, _ = scaled(delta)
    weighted = gram * unit[:, None] * unit[None, :]
    own = jnp.trace(weighted)
    others = max(gram.shape[0] - 1, 1)
    return (jnp.sum(weighted) - own) / (others * jnp.where(own > 0, own, 1))


def attribution(
    q: QFunction, params: Params, inputs: Inputs, z: Array, at: Inputs, alpha: float = 1.0
) -> Array:
    """alpha K_ij z_j, `[M, B]`: how much example j of a minibatch moves Q at each of M other
    inputs, at leading order (Eq. 8).

    Rows sum to the leading-order change of Q there, alpha sum_j K_ij z_j.

    Args:
      q: `q(params, *inputs) -> scalar`, for one example.
      params: theta.
      inputs: the minibatch, arrays leading with `[B]`.
      z: `[B]`, what the update weighs the gradients with: delta / B for Eq. 5, K^-1 delta for PreQN
        (Eq. 22).
      at: where to look, arrays leading with `[M]`.
      alpha: the step size.

    Raises:
      ValueError: z does not fit inputs.
    """
    size = batch_size(inputs)
    if np.shape(z) != (size,):
        raise ValueError(
            f"z has the shape {np.shape(z)}, expected {(size,)}: a weight for each example"
        )
    return alpha * ntk.kernel(q, params, at, inputs) * wide(z)[None, :]


def overshoot_slack(gram: Array, rho: Array | float, alpha: Array | float) -> Array:
    """1 - alpha K_ii rho_i, `[N]`: Eq. 16 holds at i where it is positive. Below zero lies failure
    mode 2, overshooting.

    `gram` is K `[N, N]`; `rho` is the data's distribution `[N]`, or 1 / N for a minibatch of N.
    `alpha` is the step size of Eq. 5.
    """
    return 1 - alpha * _weighted(gram, rho)[0]


def generalization_slack(gram: Array, rho: Array | float, gamma: Array | float) -> Array:
    """(1 - gamma) K_ii rho_i - (1 + gamma) sum_{j != i} |K_ij| rho_j, `[N]`: Eq. 17 holds at i
    where it is not negative.

    Below zero lies failure mode 3, over-generalization. At zero the bound of Theorem 2 is 1 and
    promises nothing. Arguments as for `overshoot_slack`; where that is positive,
    ``contraction_bound = 1 - alpha min_i generalization_slack_i``.
    """
    diagonal, off_diagonal = _weighted(gram, rho)
    return (1 - gamma) * diagonal - (1 + gamma) * off_diagonal


def contraction_bound(
    gram: Array, rho: Array | float, alpha: Array | float, gamma: Array | float
) -> Array:
    """beta(K) = max_i sum_j (|delta_ij - alpha K_ij rho_j| + alpha gamma |K_ij| rho_j), `[]`: the
    modulus in Theorem 2's proof.

    An upper bound of the sup-norm modulus of Eq. 11: below 1 the update is a contraction, above 1
    it may still be one. This needs `gram` to hold all state-action pairs: a pair outside of it, as
    are most that a minibatch bootstraps from, has a row sum of at least 1, so a bound below 1 from
    a minibatch alone promises nothing.

    With K = I it is Lemma 2's modulus, 1 - (1 - gamma) alpha min rho for alpha max rho < 1, and
    with rho = 1 too it is Lemma 1's, 1 - (1 - gamma) alpha. Arguments as for `overshoot_slack`.
    """
    diagonal, off_diagonal = _weighted(gram, rho)
    step = jnp.abs(alpha)  # a fitted alpha may be negative
    return jnp.max(
        jnp.abs(1 - alpha * diagonal)
        + step * gamma * jnp.abs(diagonal)
        + step * (1 + gamma) * off_diagonal
    )


def _square(gram: Array) -> Array:
    """K, in float32 at least. Raises ValueError where it is not `[N, N]`."""
    gram = wide(gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"got K of the shape {gram.shape}, expected [N, N]")
    return gram


def _weighted(gram: Array, rho: Array | float) -> tuple[Array, Array]:
    """K_ii rho_i `[N]` and sum_{j != i} |K_ij| rho_j `[N]`."""
    gram = _square(gram)
    if np.shape(rho) not in ((), gram.shape[:1]):
        raise ValueError(
            f"got rho of the shape {np.shape(rho)} beside K {gram.shape}, expected [] or [N]; if "
            "rho is [S, A], give rho.ravel()"
        )
    weighted = gram * jnp.broadcast_to(jnp.asarray(rho, gram.dtype), gram.shape[:1])[None, :]
    diagonal = jnp.diagonal(weighted)
    # The diagonal is masked before the sum, not subtracted after it: where K is nearly diagonal,
    # the difference would be all rounding error.
    own = jnp.eye(gram.shape[0], dtype=bool)
    off_diagonal = jnp.sum(jnp.where(own, 0, jnp.abs(weighted)), axis=1)
    return diagonal, off_diagonal
