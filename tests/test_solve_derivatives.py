"""Derivatives of the solves, against finite differences in float64, where naive ones fail: repeated
eigenvalues, directions that are cut off, iterations that end early.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import solve

SIZE = 5
MAKERS = {
    "cholesky": solve.cholesky(0.0),
    "cg": solve.cg(tol=1e-12),
    "eigh": solve.eigh(1e-3),
    "lstsq": solve.lstsq(1e-3),
}


def kernel(values):
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))
    return (basis * np.asarray(values)) @ basis.T  # in float64, which JAX has not yet


KERNELS = {
    "generic": kernel([0.3, 0.7, 1.0, 2.0, 3.0]),
    "one value": 2 * np.eye(SIZE),
    "values alike": kernel(1 + 1e-9 * np.arange(SIZE)),
    "some cut off": kernel([1e-7, 1e-7, 1.0, 1.0, 3.0]),
}
CASES = [
    (maker, name)
    for maker in MAKERS
    for name in KERNELS
    if maker in ("eigh", "lstsq") or name != "some cut off"
]


@pytest.fixture
def moved(x64):
    """delta, and a direction of K and one of delta."""
    draw = np.random.default_rng(1)
    turn = draw.normal(size=(SIZE, SIZE))
    return [jnp.asarray(x) for x in (draw.normal(size=SIZE), turn + turn.T, draw.normal(size=SIZE))]


@pytest.mark.parametrize(("maker", "name"), CASES)
def test_a_derivative_is_that_of_the_solution(maker, name, moved):
    delta, dgram, ddelta = moved
    gram = jnp.asarray(KERNELS[name])
    of = lambda gram, delta: MAKERS[maker](gram, delta)[0]
    step = 1e-4 * jnp.min(jnp.where(jnp.linalg.eigvalsh(gram) > 1e-3, 1.0, 1e-5))
    ends = [of(gram + t * dgram, delta + t * ddelta) for t in (step, -step)]
    finite = (ends[0] - ends[1]) / (2 * step)
    value, slope = jax.jvp(of, (gram, delta), (dgram, ddelta))
    np.testing.assert_allclose(slope, finite, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(value, of(gram, delta))
    columns = jax.jacfwd(of, argnums=(0, 1))(gram, delta)
    forward = jnp.einsum("kij,ij->k", columns[0], dgram) + columns[1] @ ddelta
    np.testing.assert_allclose(forward, finite, rtol=1e-4, atol=1e-6)
    weights = jnp.arange(1.0, SIZE + 1)
    by = jax.grad(lambda *given: weights @ of(*given), argnums=(0, 1))(gram, delta)
    backward = jnp.sum(by[0] * dgram) + by[1] @ ddelta
    np.testing.assert_allclose(backward, weights @ finite, rtol=1e-4, atol=1e-6)


def test_a_solution_does_not_depend_on_a_tolerance():
    of = lambda tol: jnp.sum(solve.cg(tol)(jnp.eye(3), jnp.ones(3))[0])
    assert jax.grad(of)(1e-3) == 0


@pytest.mark.parametrize("maker", MAKERS)
def test_a_derivative_may_be_mapped_over_kernels(maker, moved):
    delta, dgram, _ = moved
    of = lambda gram: MAKERS[maker](gram, delta)[0]
    grams = np.stack([KERNELS["generic"], KERNELS["one value"]])
    slopes = jax.jit(jax.vmap(lambda gram: jax.jvp(of, (gram,), (dgram,))[1]))(grams)
    for gram, slope in zip(grams, slopes, strict=True):
        inverse = jnp.linalg.inv(gram)
        np.testing.assert_allclose(slope, -inverse @ dgram @ inverse @ delta, rtol=1e-6, atol=1e-9)
