"""The row ratio (section 5.1) and the alignment (section 5.2) against the paper's formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import diagnostics


def gram(seed, size=9):
    phi = np.random.default_rng(seed).normal(size=(12, size))
    return phi.T @ phi


@pytest.mark.parametrize("seed", range(3))
def test_row_ratio_equals_the_formula(seed):
    expected = oracles.row_ratio(gram(seed))
    assert (gram(seed) < 0).any()  # the formula takes absolute values
    got = jax.jit(diagnostics.row_ratio)(jnp.asarray(gram(seed), jnp.float32))
    assert got.shape == (9,)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_row_ratio_divides_a_row_by_its_own_diagonal():
    """2/N, 1/N: rows and columns of an asymmetric scaling are not exchanged, and N counts the diagonal."""
    np.testing.assert_allclose(diagnostics.row_ratio(jnp.asarray([[1.0, 2.0], [2.0, 4.0]])), [1.0, 0.25])


def test_row_ratio_of_a_diagonal_kernel_is_zero():
    assert jnp.all(diagnostics.row_ratio(jnp.diag(jnp.asarray([1.0, 1e-3, 1e3]))) == 0)


def test_row_ratio_does_not_depend_on_the_scale():
    k = jnp.asarray(gram(0), jnp.float32)
    np.testing.assert_allclose(diagnostics.row_ratio(1e6 * k), diagnostics.row_ratio(k), rtol=1e-5)


def test_a_row_without_a_diagonal_counts_as_zero():
    k = jnp.asarray(gram(0), jnp.float32).at[2].set(0).at[:, 2].set(0)
    got = diagnostics.row_ratio(k)
    assert got[2] == 0
    keep = np.delete(np.arange(9), 2)
    np.testing.assert_allclose(got[keep], oracles.row_ratio(np.asarray(k, np.float64)[np.ix_(keep, keep)]) * 8 / 9, rtol=1e-5)
    assert jnp.all(diagnostics.row_ratio(jnp.zeros((3, 3))) == 0)


def test_row_ratio_under_vmap_equals_a_loop():
    ks = jnp.asarray(np.stack([gram(s) for s in range(3)]), jnp.float32)
    together = jax.vmap(diagnostics.row_ratio)(ks)
    np.testing.assert_allclose(together, np.stack([oracles.row_ratio(gram(s)) for s in range(3)]), rtol=1e-5)


def test_alignment_is_the_cosine_of_a_change_with_the_errors():
    change, delta = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    got = diagnostics.alignment(jnp.asarray(change), jnp.asarray(delta))
    np.testing.assert_allclose(got, oracles.cosine(change, delta), atol=3e-7)
    assert jnp.allclose(diagnostics.alignment(0.1 * delta, delta), 1, atol=3e-7)
