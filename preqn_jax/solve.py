"""Least-squares solutions of K Z = Delta (Eq. 22), with one function for each method.

Each constructor returns a `Solve`: `(gram, delta) -> (z, info)`. K is symmetric and positive
semi-definite, and in practice singular: a minibatch drawn with replacement holds duplicate rows,
and smooth networks map different inputs to nearly parallel gradients. The methods differ only in
what they do with the null directions. None of them hides a failure: `SolveInfo.finite` shows it.
Tolerances and dampings may be traced numbers. A solve computes in the type of K, float32 at least.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.options import require
from preqn_jax.types import Array, Number, dot, power_of_two, wide

# On the CPU: the rows of K that LAPACK factors at once, the rows of a triangle that it inverts at
# once, and the size of K above which its threads are worth waking. OpenBLAS wakes its other threads
# for a Cholesky factorization of some 128 rows, or for 1,024 numbers on the right-hand side
# (docs/results/performance.md).
_BLOCK, _LEAF, _LARGE = 96, 24, 2048


class SolveInfo(NamedTuple):
    """What a solve did; all scalars."""

    residual: Array  # |K z - delta| / |delta|, 0 where delta is 0
    rank: Array  # directions kept (eigh, lstsq), else B
    damping: Array  # absolute number added to K's diagonal (cholesky, cg), else 0
    finite: Array  # bool: z and its residual are finite


Solve = Callable[[Array, Array], tuple[Array, SolveInfo]]
"""`(gram [B, B], delta [B]) -> (z [B], SolveInfo)`."""


def eigh(rcond: Number | None = None) -> Solve:
    """Minimum-norm least squares by the eigendecomposition of K, the paper's "least-squares
    solution" to the letter.

    Args:
      rcond: eigenvalues at or below ``rcond`` times the largest count as zero; None is eps * B of
        K's type.

    Where the cut drops directions that hold much of Delta, alignment is lost that no shorter step
    can bring back: at rcond = 1e-3 the linesearch fails for most batches. First derivatives with
    respect to K keep the cut where it is; there are no second ones.

    Raises ValueError: an rcond outside of [0, 1).
    """
    _check_share(rcond)

    def solve(gram: Array, delta: Array) -> tuple[Array, SolveInfo]:
        gram, delta = _in_one_type(gram, delta)
        z, rank = _by_eigh(gram, delta, _share(rcond, gram))
        return z, _info(gram, delta, z, rank=rank)

    return solve


def cholesky(damping: Number = 1e-3) -> Solve:
    """``(K + damping * mean(diag K) * I) z = delta`` by a Cholesky factorization: the cheapest, and
    differentiable.

    On the CPU it works by blocks, small enough that LAPACK starts no threads, which would compete
    with XLA's.

    >>> import jax.numpy as jnp
    >>> from preqn_jax import solve
    >>> z, info = solve.cholesky(damping=0.0)(2 * jnp.eye(3), jnp.asarray([2.0, 4.0, 6.0]))
    >>> z.round(5).tolist(), bool(info.finite)
    ([1.0, 2.0, 3.0], True)

    Args:
      damping: relative to the mean diagonal of K, so the same number serves every network width.
        Zero or too small a value on a singular K ends in NaN, reported by `SolveInfo.finite`.

    Raises ValueError: a negative damping.
    """
    require(damping, lambda x: x >= 0, "damping must not be negative")

    def solve(gram: Array, delta: Array) -> tuple[Array, SolveInfo]:
        gram, delta = _in_one_type(gram, delta)
        absolute = (damping * jnp.mean(jnp.diagonal(gram))).astype(gram.dtype)
        damped = gram + absolute * jnp.eye(gram.shape[0], dtype=gram.dtype)
        z = _positive(damped, delta)
        return z, _info(gram, delta, z, damping=absolute)

    return solve


def lstsq(rcond: Number | None = None) -> Solve:
    """Minimum-norm least squares by the singular values of K (`jnp.linalg.lstsq`); slower than
    `eigh`, the same answer.

    Args:
      rcond: singular values below ``rcond`` times the largest count as zero; None is eps * B
        of K's type.

    First derivatives with respect to K keep the cut where it is; there are no second ones.

    Raises ValueError: an rcond outside of [0, 1).
    """
    _check_share(rcond)

    def solve(gram: Array, delta: Array) -> tuple[Array, SolveInfo]:
        gram, delta = _in_one_type(gram, delta)
        z, rank = _by_svd(gram, delta, _share(rcond, gram))
        return z, _info(gram, delta, z, rank=rank)

    return solve


def cg(tol: Number = 1e-5, max_steps: int = 100, damping: Number = 0.0) -> Solve:
    """Conjugate gradients from zero, whose iterates stay in the range of K; stopping early is the
    regularization.

    Args:
      tol: stops at ``|(K + c I) z - delta| <= tol * |delta|``, with c the damping;
        `SolveInfo.residual` is computed without c.
      max_steps: bound on the iterations.
      damping: as for `cholesky`.

    Without damping, on a singular K and a delta outside of its range, the iterates end up growing
    without bound: z is the best of them, or 0, which shows as a residual of 1. Derivatives are
    those of the solution, themselves solved for by conjugate gradients, and not of the iterations.

    Raises ValueError: an argument out of range.
    """
    require(tol, lambda x: x >= 0, "tol must not be negative")
    require(max_steps, lambda x: x >= 1, "max_steps must be at least 1")
    require(damping, lambda x: x >= 0, "damping must not be negative")

    def solve(gram: Array, delta: Array) -> tuple[Array, SolveInfo]:
        gram, delta = _in_one_type(gram, delta)
        absolute = (damping * jnp.mean(jnp.diagonal(gram))).astype(gram.dtype)

        unit = power_of_two(delta)
        fixed = jax.lax.stop_gradient(jnp.asarray(tol))  # the solution does not depend on it
        iterate = partial(_conjugate, gram, absolute=absolute, tol=fixed, max_steps=max_steps)
        z = jax.lax.custom_linear_solve(  # which defines the derivative
            lambda v: dot(gram, v) + absolute * v,
            delta / unit,
            lambda _, b: iterate(b),
            symmetric=True,
        )
        z = z * unit
        return z, _info(gram, delta, z, damping=absolute)

    return solve


@jax.jit  # so that a call outside of `jit` is compiled once
def _conjugate(gram: Array, b: Array, absolute: Array, tol: Number, max_steps: int) -> Array:
    """(gram + absolute I)^-1 b by conjugate gradients (Hestenes and Stiefel 1952): the iterate,
    zero included, with the least residual. The iterations end where a direction has no curvature.
    """

    def matvec(v: Array) -> Array:
        return dot(gram, v) + absolute * v

    def unfinished(state: Any) -> Array:
        *_, square, _, _, steps, curved = state
        return curved & (square > tol**2 * dot(b, b)) & (steps < max_steps)

    def step(state: Any) -> Any:
        z, rest, direction, square, best, least, steps, _ = state
        image = matvec(direction)
        curvature = dot(direction, image)
        curved = curvature > 0
        length = jnp.where(curved, square / jnp.where(curved, curvature, 1), 0)
        z, rest = z + length * direction, rest - length * image
        new = dot(rest, rest)
        direction = rest + new / square * direction
        better = new < least
        best, least = jnp.where(better, z, best), jnp.where(better, new, least)
        return z, rest, direction, new, best, least, steps + 1, curved

    zero, square = jnp.zeros_like(b), dot(b, b)
    start = zero, b, b, square, zero, square, jnp.int32(0), jnp.bool_(True)
    best = jax.lax.while_loop(unfinished, step, start)[4]
    return best + 0 * matvec(b)  # NaN where an input holds one


def _spectral(
    solve: Callable[[Array, Array, Array], tuple[Array, Array]],
    kept: Callable[[Array, Array], Array],
) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    """`solve: (gram, delta, share) -> (z, rank)`, which inverts the eigenvalues of K for which
    `kept: (values [B], share) -> [B] bool` is True, with its derivative by K and delta.

    z is f(K) delta, f(x) = 1/x where x is kept, else 0. The derivative of f(K) has the divided
    differences of f between eigenvalues (Daleckii and Krein 1965): those of two kept ones are
    -1/(xy) even where they are equal, where a derivative of the eigenvectors does not exist.
    """

    def rule(primals: Any, tangents: Any) -> Any:
        (gram, delta, share), (dgram, ddelta, _) = primals, tangents
        found = solve(gram, delta, share)
        values, vectors = _eigh(gram)
        keep = kept(values, share)
        inverse = jnp.where(keep, 1 / jnp.where(keep, values, 1), 0)
        mixed = keep[:, None] != keep[None, :]
        gap = jnp.where(mixed, values[:, None] - values[None, :], 1)
        between = (inverse[:, None] - inverse[None, :]) / gap
        slope = jnp.where(mixed, between, -inverse[:, None] * inverse[None, :])
        turned = dot(dot(vectors.T, (dgram + dgram.T) / 2), vectors)
        inner = dot(slope * turned, dot(delta, vectors)) + inverse * dot(ddelta, vectors)
        return found, (dot(vectors, inner), jnp.zeros_like(found[1]))

    wrapped = jax.custom_jvp(solve)
    wrapped.defjvp(rule)
    return wrapped


def _eigh(gram: Array) -> tuple[Array, Array]:
    return _one_by_one(lambda gram: tuple(jnp.linalg.eigh(gram)))(gram)


def _above(values: Array, share: Array) -> Array:
    return values > share * values[-1]  # strictly, so that nothing of a zero matrix is kept


def _from(values: Array, share: Array) -> Array:
    sizes = jnp.abs(values)  # singular values
    return (sizes > 0) & (sizes >= share * jnp.max(sizes))


def _solve_eigh(gram: Array, delta: Array, share: Array) -> tuple[Array, Array]:
    values, vectors = _eigh(gram)
    keep = _above(values, share)
    inner = dot(delta, vectors)
    weights = jnp.where(keep, inner / jnp.where(keep, values, 1), 0)
    return dot(vectors, weights), jnp.sum(keep).astype(gram.dtype)


def _solve_svd(gram: Array, delta: Array, share: Array) -> tuple[Array, Array]:
    z, _, rank, _ = _one_by_one(jnp.linalg.lstsq)(gram, delta, share)
    return z, rank.astype(gram.dtype)


_by_eigh, _by_svd = _spectral(_solve_eigh, _above), _spectral(_solve_svd, _from)


def _share(rcond: Number | None, gram: Array) -> Array:
    """rcond as a number of K's type, with its default."""
    share = float(jnp.finfo(gram.dtype).eps) * gram.shape[0] if rcond is None else rcond
    return jnp.asarray(share, gram.dtype)


@jax.jit
def _positive(matrix: Array, b: Array) -> Array:
    """matrix^-1 b for a symmetric positive definite matrix; NaN where the matrix is not one."""
    solve = _one_by_one(_by_blocks, _at_once)
    return jax.lax.custom_linear_solve(  # which defines the derivative
        partial(dot, matrix), b, lambda _, b: solve(matrix, b), symmetric=True
    )


def _one_by_one(on_cpu: Callable[..., Any], elsewhere: Callable[..., Any] | None = None):
    """A function that calls `on_cpu` on a CPU, under `vmap` in a loop over the batch, and
    `elsewhere` (by default also `on_cpu`) on other devices.

    A LAPACK call for a batch hands shares of it to XLA's thread pool, and waits for them in one of
    the pool's threads. Where as many such calls run at once as there are threads, on one device or
    on several, they wait for ever (jaxlib 0.10.2).
    """
    loop = jax.custom_batching.sequential_vmap(on_cpu)
    return partial(jax.lax.platform_dependent, cpu=loop, default=elsewhere or on_cpu)


def _at_once(matrix: Array, b: Array) -> Array:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix, lower=True), b)


def _by_blocks(matrix: Array, b: Array) -> Array:
    """As `_at_once`, but by blocks: the first rows are eliminated by their own Cholesky factor L,
    the others by recursion. With matrix = [[L L^T, .], [P L^T, S + P P^T]] what is left to solve is
    ``S x' = b' - P L^-1 b``.
    """
    if not _BLOCK < b.shape[0] <= _LARGE:
        return _at_once(matrix, b)
    inverse = _inverse(jnp.linalg.cholesky(matrix[:_BLOCK, :_BLOCK], symmetrize_input=False))
    below, y = dot(matrix[_BLOCK:, :_BLOCK], inverse.T), dot(inverse, b[:_BLOCK])
    rest = matrix[_BLOCK:, _BLOCK:] - dot(below, below.T)
    x = _by_blocks(rest, b[_BLOCK:] - dot(below, y))
    return jnp.concatenate([dot(y - dot(x, below), inverse), x])


def _inverse(lower: Array) -> Array:
    """The inverse of a lower triangular matrix, by recursion on its halves."""
    size = lower.shape[0]
    if size <= _LEAF:
        eye = jnp.eye(size, dtype=lower.dtype)
        return jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
    half = size // 2
    first, last = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    corner = -dot(dot(last, lower[half:, :half]), first)
    return jnp.block([[first, jnp.zeros((half, size - half), lower.dtype)], [corner, last]])


def _check_share(rcond: Number | None) -> None:
    require(rcond, lambda x: 0 <= x < 1, "rcond is a share of the largest eigenvalue, in [0, 1)")


def _in_one_type(gram: Array, delta: Array) -> tuple[Array, Array]:
    """K in float32 at least, and delta in the same type: more digits in delta would be of no use.
    Raises ValueError where they are not `[B, B]` and `[B]`, with B at least 1.
    """
    gram = wide(gram)
    seen, size = jnp.shape(delta), gram.shape[0] if gram.ndim else 0
    if gram.shape != (size, size) or seen != (size,) or not size:
        raise ValueError(
            f"K has the shape {gram.shape} and delta {seen}, expected [B, B] and [B], B at least 1"
        )
    return gram, jnp.asarray(delta, gram.dtype)


def _info(
    gram: Array, delta: Array, z: Array, rank: Array | None = None, damping: Array | None = None
) -> SolveInfo:
    unit = power_of_two(delta)
    error = jnp.linalg.norm((dot(gram, z) - delta) / unit)
    size = jnp.linalg.norm(delta / unit)
    return SolveInfo(
        residual=jnp.where(size > 0, error / jnp.where(size > 0, size, 1), error),
        rank=jnp.asarray(gram.shape[0] if rank is None else rank, jnp.int32),
        damping=jnp.zeros((), gram.dtype) if damping is None else damping,
        finite=jnp.isfinite(error) & jnp.all(jnp.isfinite(z)),
    )
