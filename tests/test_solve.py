"""Every solve of K z = delta (Eq. 22) against NumPy, and what each reports where there is no good
answer.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import solve

jit = partial(jax.jit, compiler_options=oracles.QUICK)
DAMPING = 1e-3
SOLVERS = {  # name -> (the solve, function from K to the matrix that it inverts)
    "eigh": (solve.eigh(), lambda k: k),
    "lstsq": (solve.lstsq(), lambda k: k),
    "cg": (solve.cg(tol=1e-13), lambda k: k),
    "cholesky": (solve.cholesky(0.0), lambda k: k),
    "cg_damped": (
        solve.cg(tol=1e-13, damping=DAMPING),
        lambda k: k + DAMPING * np.mean(np.diag(k)) * np.eye(len(k)),
    ),
    "cholesky_damped": (
        solve.cholesky(DAMPING),
        lambda k: k + DAMPING * np.mean(np.diag(k)) * np.eye(len(k)),
    ),
}
JITTED = {name: jit(solver) for name, (solver, _) in SOLVERS.items()}
DAMPED = ["cg_damped", "cholesky_damped"]
MINIMUM_NORM = ["eigh", "lstsq"]
BATCH = 10


def positive(seed=0, batch=BATCH):
    """A well-conditioned kernel: Phi^T Phi with more parameters than examples."""
    phi = np.random.default_rng(seed).normal(size=(4 * batch, batch))
    return phi.T @ phi


def with_duplicates(seed=0):
    """The kernel of a minibatch in which three examples come twice: rank 7 of 10."""
    rows = np.array([0, 1, 2, 3, 4, 5, 6, 0, 3, 5])
    return positive(seed, 7)[np.ix_(rows, rows)]


def delta_for(seed=1, batch=BATCH):
    return np.random.default_rng(seed).normal(size=batch)


def run(name, gram, delta, dtype=jnp.float64):
    return JITTED[name](jnp.asarray(gram, dtype), jnp.asarray(delta, dtype))


@pytest.mark.parametrize("name", SOLVERS)
def test_equals_numpy_on_a_well_conditioned_kernel(name, x64):
    gram, delta = positive(), delta_for()
    z, info = run(name, gram, delta)
    matrix = SOLVERS[name][1](gram)
    assert oracles.relative_error(z, np.linalg.solve(matrix, delta)) < 1e-10
    assert oracles.relative_error(z, np.linalg.lstsq(matrix, delta, rcond=None)[0]) < 1e-10
    assert info.finite and info.rank == BATCH


@pytest.mark.parametrize("name", SOLVERS)
def test_reports_residual_rank_and_damping(name, x64):
    """The residual is |K z - delta| / |delta| with K itself, so that damping shows in it."""
    gram, delta = positive(), delta_for()
    z, info = run(name, gram, delta)
    residual = np.linalg.norm(gram @ np.asarray(z) - delta) / np.linalg.norm(delta)
    np.testing.assert_allclose(info.residual, residual, rtol=1e-6, atol=1e-12)
    damping = DAMPING * np.trace(gram) / BATCH if name in DAMPED else 0.0
    np.testing.assert_allclose(info.damping, damping, rtol=1e-12)
    assert (info.residual > 1e-5) == (name in DAMPED)
    assert info.rank.dtype == jnp.int32 and info.finite.dtype == bool
    assert all(x.shape == () for x in info)
    assert z.dtype == info.residual.dtype == info.damping.dtype == jnp.float64


@pytest.mark.parametrize("name", SOLVERS)
def test_damping_is_relative_to_the_diagonal(name, x64):
    """K -> s K and delta -> s delta leave z as it is, so that the scale of K, which depends on the
    network's width, does not matter.
    """
    gram, delta = positive(), delta_for()
    z, _ = run(name, gram, delta)
    scaled, _ = run(name, 1e6 * gram, 1e6 * delta)
    assert oracles.relative_error(scaled, z) < 1e-9


@pytest.mark.parametrize("name", MINIMUM_NORM)
def test_duplicate_rows_get_the_minimum_norm_solution(name, x64):
    """Opposite targets on equal rows have no exact solution: the least-squares one is found, with
    nothing in the null space.
    """
    gram, delta = with_duplicates(), delta_for()
    z, info = run(name, gram, delta)
    expected, _, rank, _ = np.linalg.lstsq(gram, delta, rcond=1e-12)
    assert info.rank == rank == 7
    assert info.finite
    assert oracles.relative_error(z, expected) < 1e-10
    null = np.linalg.svd(gram)[0][:, 7:]
    assert np.abs(null.T @ np.asarray(z)).max() < 1e-12 * np.linalg.norm(z) + 1e-14
    best = np.linalg.norm(null.T @ delta) / np.linalg.norm(delta)  # what no z can remove
    np.testing.assert_allclose(info.residual, best, rtol=1e-10)


@pytest.mark.parametrize(
    "make", [solve.eigh, solve.lstsq, solve.cg, solve.cholesky, lambda: solve.cg(damping=DAMPING)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_solvable_singular_system_is_solved(make, dtype, request):
    """Delta is in the range of K, as duplicate rows agree on their target; every solve with its
    defaults.
    """
    if dtype == "float64":
        request.getfixturevalue("x64")
    gram = with_duplicates()
    z, info = jit(make())(jnp.asarray(gram, dtype), jnp.asarray(gram @ delta_for(), dtype))
    assert info.finite and jnp.all(jnp.isfinite(z))
    # Damping leaves c / (c + lambda) of an eigendirection: c is 1e-3 of the diagonal, the smallest
    # lambda above a tenth of it.
    assert info.residual < (1e-2 if info.damping > 0 else 2e-5)


@pytest.mark.parametrize("name", [*MINIMUM_NORM, *DAMPED])
def test_an_unsolvable_singular_system_ends_no_worse_than_zero(name, x64):
    """Duplicate rows with different targets. The zero vector has residual 1; least squares cannot
    be above it.
    """
    z, info = run(name, with_duplicates(), delta_for())
    assert info.finite and jnp.all(jnp.isfinite(z))
    assert info.residual <= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_undamped_cg_on_an_unsolvable_system_ends_no_worse_than_zero(dtype, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    cg = jit(solve.cg())
    for seed in range(5):
        gram, delta = (
            jnp.asarray(with_duplicates(seed), dtype),
            jnp.asarray(delta_for(seed + 1), dtype),
        )
        _, info = cg(gram, delta)
        assert not info.finite or info.residual <= 1


@pytest.mark.parametrize("rcond, rank", [(None, 4), (1e-9, 3), (1e-4, 2), (1e-1, 1)])
@pytest.mark.parametrize("make", [solve.eigh, solve.lstsq])
def test_rcond_cuts_relative_to_the_largest(make, rcond, rank, x64):
    values = np.array([1e3, 1.0, 1e-3, 1e-8])
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    gram, delta = basis @ np.diag(values) @ basis.T, delta_for(batch=4)
    z, info = jit(make(rcond))(jnp.asarray(gram), jnp.asarray(delta))
    kept = np.arange(4) < rank
    # The smallest kept eigenvalue is known to eps * 1e3 / 1e-8 of itself.
    assert oracles.relative_error(
        z, basis @ (np.where(kept, 1 / values, 0) * (basis.T @ delta))
    ) < (1e-3 if rcond is None else 1e-7)
    assert info.rank == rank


@pytest.mark.parametrize("make", [solve.eigh, solve.lstsq])
def test_the_default_cut_is_of_the_kernels_own_precision_and_size(make, x64):
    """The same matrix has full rank in float64, but not in float32. The cut is B times the
    precision, relative to the largest eigenvalue.
    """
    eps = np.finfo(np.float64).eps
    solver = jit(make())
    for last, rank in ((0.5 * BATCH * eps, BATCH - 1), (2 * BATCH * eps, BATCH)):
        for scale in (1e-6, 1.0, 1e6):
            gram = scale * np.diag([*np.ones(BATCH - 1), last])
            assert solver(gram, np.ones(BATCH))[1].rank == rank
    gram = np.diag([1.0, 1e-3, 1e-10])
    ranks = {
        dtype: solver(jnp.asarray(gram, dtype), np.ones(3, dtype))[1].rank
        for dtype in (jnp.float32, jnp.float64)
    }
    assert ranks == {jnp.float32: 2, jnp.float64: 3}


@pytest.mark.parametrize(
    "gram", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]
)
def test_cholesky_without_damping_reports_a_matrix_it_cannot_factor(gram):
    z, info = run("cholesky", gram, [1.0, -1.0], jnp.float32)
    assert not info.finite
    assert not jnp.any(jnp.isfinite(z))


@pytest.mark.parametrize("name", SOLVERS)
def test_zero_delta_gives_zero(name, x64):
    z, info = run(name, positive(), np.zeros(BATCH))
    assert jnp.all(z == 0)
    assert info.residual == 0 and info.finite


@pytest.mark.parametrize("name", MINIMUM_NORM)
@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_zero_kernel_has_the_zero_solution(name, delta):
    z, info = run(name, np.zeros((4, 4)), np.full(4, delta), jnp.float32)
    assert jnp.all(z == 0) and info.finite
    assert info.rank == 0
    assert info.residual == delta  # nothing of delta was removed: 1, or 0 if delta is zero


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("gram", ["zero", "nan", "duplicates"])
def test_finite_tells_the_truth(name, gram):
    matrix = {
        "zero": np.zeros((BATCH, BATCH)),
        "nan": np.full((BATCH, BATCH), np.nan),
        "duplicates": with_duplicates(),
    }[gram]
    z, info = run(name, matrix, delta_for(), jnp.float32)
    assert info.finite == (jnp.all(jnp.isfinite(z)) & jnp.isfinite(info.residual))
    if gram == "nan":
        assert not info.finite


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_cg_stops_at_its_tolerance_and_at_its_bound(damping, x64):
    gram, delta = positive(), delta_for()
    matrix = gram + damping * np.mean(np.diag(gram)) * np.eye(BATCH)

    def error(**options):
        z, _ = jit(solve.cg(damping=damping, **options))(jnp.asarray(gram), jnp.asarray(delta))
        return np.linalg.norm(matrix @ np.asarray(z) - delta) / np.linalg.norm(delta)

    assert 1e-4 < error(tol=1e-1) <= 1e-1
    assert error(tol=1e-6) <= 1e-6
    assert error(tol=0.0, max_steps=2) > 1e-3 > 1e-10 > error(tol=0.0, max_steps=3 * BATCH)


@pytest.mark.parametrize("name", SOLVERS)
def test_vmap_over_seeds_equals_a_loop(name, x64):
    grams, deltas = (
        np.stack([positive(s) for s in range(3)]),
        np.stack([delta_for(s) for s in range(3)]),
    )
    each, info = jit(jax.vmap(SOLVERS[name][0]))(jnp.asarray(grams), jnp.asarray(deltas))
    for seed in range(3):
        z, alone = run(name, grams[seed], deltas[seed])
        assert oracles.relative_error(each[seed], z) < 1e-10
        np.testing.assert_allclose(info.residual[seed], alone.residual, atol=1e-10)
        assert info.rank[seed] == alone.rank and info.finite[seed] == alone.finite


def test_one_bad_seed_spoils_no_other(x64):
    grams, deltas = (
        np.stack([positive(0), np.zeros((BATCH, BATCH)), positive(2)]),
        np.stack([delta_for(s) for s in range(3)]),
    )
    z, info = jit(jax.vmap(solve.cholesky()))(jnp.asarray(grams), jnp.asarray(deltas))
    assert info.finite.tolist() == [True, False, True]
    assert oracles.relative_error(z[2], run("cholesky_damped", grams[2], deltas[2])[0]) < 1e-10


@pytest.mark.parametrize("name", SOLVERS)
def test_no_product_leaves_its_precision_to_a_default(name):
    """As in the kernel: a product in less than float32 has an error of 1e-3, times the condition of
    K.
    """
    text = str(jax.make_jaxpr(SOLVERS[name][0])(jnp.eye(BATCH), jnp.ones(BATCH)))
    assert (
        text.count("dot_general[")
        == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
        >= 1
    )


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_conjugate_gradients_end_where_there_is_no_curvature(damping):
    """The next step would divide by zero."""
    z, info = jit(solve.cg(damping=damping))(jnp.zeros((4, 4)), jnp.ones(4))
    assert (z == 0).all() and info.finite and info.residual == 1


@pytest.mark.parametrize("kind", [np.nan, np.inf])
def test_conjugate_gradients_hide_no_nan(kind):
    for gram, delta in ((jnp.eye(3).at[1, 1].set(kind), jnp.ones(3)), (jnp.eye(3), [1.0, kind, 0])):
        z, info = jit(solve.cg())(gram, jnp.asarray(delta))
        assert not jnp.isfinite(z).all() and not info.finite


def test_of_a_target_outside_of_the_range_the_best_iterate_stays():
    """The first iterate, worked out by hand; the next direction has no curvature."""
    delta = jnp.asarray([0.0, 1.0, 2.0])
    z, info = jit(solve.cg())(jnp.ones((3, 3)), delta)
    np.testing.assert_allclose(z, 5 / 9 * delta, rtol=1e-6)
    np.testing.assert_allclose(info.residual, (2 / 3) ** 0.5, rtol=1e-6)
