"""Row ratio, alignment, gain, interference and attribution against their formulas."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import measures, networks, ntk


def gram(seed, size=9):
    phi = np.random.default_rng(seed).normal(size=(12, size))
    return phi.T @ phi


@pytest.mark.parametrize("seed", range(3))
def test_row_ratio_equals_the_formula(seed):
    expected = oracles.row_ratio(gram(seed))
    assert (gram(seed) < 0).any()  # the formula takes absolute values
    got = jax.jit(measures.row_ratio)(jnp.asarray(gram(seed), jnp.float32))
    assert got.shape == (9,)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_row_ratio_divides_a_row_by_its_own_diagonal():
    """2/N and 1/N: an asymmetric scaling shows that rows and columns are not exchanged, and N
    counts the diagonal.
    """
    np.testing.assert_allclose(
        measures.row_ratio(jnp.asarray([[1.0, 2.0], [2.0, 4.0]])), [1.0, 0.25]
    )


def test_row_ratio_has_its_digits_where_k_is_nearly_diagonal():
    """Subtracting the diagonal from a sum that contains it would leave no digits."""
    found = measures.row_ratio(jnp.asarray([[3e3, 1e-5], [1e-5, 3e3]], jnp.float32))
    np.testing.assert_allclose(found, 1e-5 / 3e3 / 2, rtol=1e-6)


def test_interference_of_one_example_is_none():
    assert measures.interference(jnp.ones((1, 1)), jnp.ones(1)) == 0


def test_row_ratio_of_a_diagonal_kernel_is_zero():
    assert jnp.all(measures.row_ratio(jnp.diag(jnp.asarray([1.0, 1e-3, 1e3]))) == 0)


def test_row_ratio_does_not_depend_on_the_scale():
    k = jnp.asarray(gram(0), jnp.float32)
    np.testing.assert_allclose(measures.row_ratio(1e6 * k), measures.row_ratio(k), rtol=1e-5)


def test_a_row_without_a_diagonal_counts_as_zero():
    k = jnp.asarray(gram(0), jnp.float32).at[2].set(0).at[:, 2].set(0)
    got = measures.row_ratio(k)
    assert got[2] == 0
    keep = np.delete(np.arange(9), 2)
    np.testing.assert_allclose(
        got[keep],
        oracles.row_ratio(np.asarray(k, np.float64)[np.ix_(keep, keep)]) * 8 / 9,
        rtol=1e-5,
    )
    assert jnp.all(measures.row_ratio(jnp.zeros((3, 3))) == 0)


def test_row_ratio_under_vmap_equals_a_loop():
    ks = jnp.asarray(np.stack([gram(s) for s in range(3)]), jnp.float32)
    together = jax.vmap(measures.row_ratio)(ks)
    np.testing.assert_allclose(
        together, np.stack([oracles.row_ratio(gram(s)) for s in range(3)]), rtol=1e-5
    )


def test_alignment_is_the_cosine_of_a_change_with_the_errors():
    change, delta = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    got = measures.alignment(jnp.asarray(change), jnp.asarray(delta))
    np.testing.assert_allclose(got, oracles.cosine(change, delta), atol=3e-7)
    assert jnp.allclose(measures.alignment(0.1 * delta, delta), 1, atol=3e-7)


# --- what an update does to Q, and who did it -----------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_gain_is_the_share_of_the_errors_that_is_taken_away(seed, x64):
    change, delta = np.random.default_rng(seed).normal(size=(2, 16))
    gain = jax.jit(measures.gain)
    expected = sum(c * d for c, d in zip(change, delta, strict=True)) / sum(d**2 for d in delta)
    np.testing.assert_allclose(gain(change, delta), expected, rtol=1e-12)
    for share in (0.25, 2.0, -1.0):
        np.testing.assert_allclose(gain(share * delta, delta), share, rtol=1e-12)


def test_gain_with_a_diagonal_kernel_lies_between_the_least_and_the_largest_of_equation_16(x64):
    """It is the mean of alpha K_ii / N, weighted by delta_i^2."""
    diagonal, alpha, rng = np.array([0.5, 2.0, 7.0]), 0.6, np.random.default_rng(0)
    slack = np.asarray(measures.overshoot_slack(jnp.diag(jnp.asarray(diagonal)), 1 / 3, alpha))
    np.testing.assert_allclose(slack, [0.9, 0.6, -0.4], rtol=1e-12)
    gain = jax.jit(measures.gain)
    for delta in (*np.eye(3), *rng.normal(size=(9, 3))):
        got = float(gain(alpha * diagonal * delta / 3, delta))
        np.testing.assert_allclose(
            got, alpha / 3 * diagonal @ delta**2 / (delta @ delta), rtol=1e-12
        )
        assert slack.min() - 1e-12 <= 1 - got <= slack.max() + 1e-12


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_gain_neither_overflows_nor_vanishes(size):
    """In float32 the square of 1e25 is infinite, and that of 1e-25 is zero."""
    delta = jnp.asarray([1.0, -2.0, 0.5], jnp.float32) * size
    np.testing.assert_allclose(jax.jit(measures.gain)(0.5 * delta, delta), 0.5, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_interference_equals_the_formula(seed, x64):
    k, delta = gram(seed), np.random.default_rng(10 + seed).normal(size=9)
    pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
    interference = jax.jit(measures.interference)
    others = sum(delta[i] * delta[j] * k[i, j] for i, j in pairs)
    expected = others / (8 * sum(delta[i] ** 2 * k[i, i] for i in range(9)))
    got = interference(k, delta)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(interference(7 * k, -3 * delta), got, rtol=1e-12)


def test_interference_goes_from_opposition_to_unison(x64):
    """-1 / (N - 1) if all semi-gradients cancel, 0 if they are orthogonal, 1 if all are equal."""
    ones, opposed, same = np.ones(4), np.array([1.0, -1.0, 1.0, -1.0]), np.ones((4, 4))
    interference = jax.jit(measures.interference)
    np.testing.assert_allclose(interference(same, ones), 1, rtol=1e-12)
    np.testing.assert_allclose(interference(same, opposed), -1 / 3, rtol=1e-12)
    assert interference(np.diag([1.0, 5.0, 2.0, 3.0]), opposed) == 0
    np.testing.assert_allclose(interference(np.outer(opposed, opposed), opposed), 1, rtol=1e-12)


def test_without_errors_gain_and_interference_are_zero():
    k, zero = jnp.asarray(gram(0), jnp.float32), jnp.zeros(9)
    for measure in (measures.gain, jax.jit(measures.gain)):
        assert measure(jnp.arange(9.0), zero) == 0
        assert measure(zero, zero) == 0
    for measure in (measures.interference, jax.jit(measures.interference)):
        assert measure(k, zero) == 0
        assert measure(jnp.zeros((9, 9)), jnp.ones(9)) == 0


def attributed(activation="sin", batch=7, places=4):
    """A critic of 5 + 2 inputs, a minibatch and other inputs, with Q and Phi at both in NumPy."""
    layers = oracles.random_layers(3, (7, 8, 1))
    params = jax.tree.map(jnp.asarray, oracles.critic_params(layers))
    x, y = (
        np.random.default_rng(seed).normal(size=(size, 7))
        for seed, size in ((1, batch), (2, places))
    )
    split = lambda rows: (jnp.asarray(rows[:, :5]), jnp.asarray(rows[:, 5:]))
    oracle = lambda layers, rows: oracles.mlp(layers, activation, rows)
    return (
        networks.Critic((8,), activation).apply,
        params,
        (split(x), split(y)),
        layers,
        (x, y),
        oracle,
    )


@pytest.mark.parametrize("activation", sorted(oracles.ACTIVATIONS))
def test_attribution_is_alpha_k_z(activation, x64):
    """For each member of the minibatch, and summed over all: the leading order of what Eq. 5
    changes Q by (Eq. 8).
    """
    q, params, (inputs, at), layers, (x, y), oracle = attributed(activation)
    (_, phi), (_, phi_y) = oracle(layers, x), oracle(layers, y)
    delta, theta = np.random.default_rng(5).normal(size=7), np.zeros(len(phi))
    got = jax.jit(measures.attribution, static_argnums=0)(
        q, params, inputs, jnp.asarray(delta / 7), at, 0.3
    )
    assert got.shape == (4, 7)
    expected = [
        [0.3 * (phi_y[:, i] @ phi[:, j]) * delta[j] / 7 for j in range(7)] for i in range(4)
    ]
    assert oracles.relative_error(got, expected) < 1e-12
    move = oracles.gradient_step(theta, phi, delta, 0.3)
    np.testing.assert_allclose(np.sum(got, axis=1), phi_y.T @ move, rtol=1e-10)


def test_the_rows_of_an_attribution_are_the_change_of_q_to_second_order(x64):
    """Half of the step leaves a quarter of the part that is not explained."""
    q, params, (inputs, at), layers, (x, y), oracle = attributed()
    (_, phi), (before, _) = oracle(layers, x), oracle(layers, y)
    z, left = np.random.default_rng(5).normal(size=7), []
    attribution = jax.jit(measures.attribution, static_argnums=0)
    for alpha in (1e-3, 5e-4):
        step = np.split(alpha * phi @ z, np.cumsum([8, 56, 1]))
        moved = [
            (w + step[2 * i + 1].reshape(w.shape), b + step[2 * i])
            for i, (w, b) in enumerate(layers)
        ]
        got = np.sum(attribution(q, params, inputs, z, at, alpha), axis=1)
        left.append(np.abs(oracle(moved, y)[0] - before - got).max())
        assert 0 < left[-1] < 0.1 * np.abs(got).max()
    assert abs(left[0] / left[1] - 4) < 0.2


def test_attribution_takes_a_full_step_unless_told(x64):
    q, params, (inputs, at), *_ = attributed()
    got = jax.jit(
        lambda p: (
            measures.attribution(q, p, inputs, jnp.ones(7), at),
            ntk.kernel(q, p, at, inputs),
        )
    )(params)
    np.testing.assert_allclose(*got, rtol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (6,), (7, 1), (1, 7), ()])
def test_a_weight_for_each_member_or_none_at_all(shape):
    q, params, (inputs, at), *_ = attributed()
    with pytest.raises(
        ValueError, match=rf"^z has the shape {re.escape(str(shape))}, expected \(7,\)"
    ):
        measures.attribution(q, params, inputs, jnp.zeros(shape), at)


# --- numbers of any type --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "int32", "float16", "bfloat16"])
def test_measures_of_narrow_numbers_are_those_of_the_same_numbers(dtype):
    """Integers, whose sums and products overflow int8 or the digits of other types; and a share
    rho, which is no integer.
    """
    rng = np.random.default_rng(0)
    k = 13.0 * (np.abs(rng.integers(-8, 9, size=(9, 9))) + 9 * np.eye(9))
    k, (change, delta) = np.minimum(k, 127), rng.integers(-99, 100, size=(2, 9))
    others = [[j for j in range(9) if j != i] for i in range(9)]
    off = np.array([sum(k[i, j] for j in others[i]) for i in range(9)])
    diagonal, weighted = np.diag(k), k * np.outer(delta, delta)
    expected = {
        "row_ratio": off / diagonal / 9,
        "alignment": oracles.cosine(change, delta),
        "gain": change @ delta / (delta @ delta),
        "interference": (weighted.sum() - np.trace(weighted)) / 8 / np.trace(weighted),
        "overshoot_slack": 1 - 0.01 * diagonal / 9,
        "generalization_slack": (0.1 * diagonal - 1.9 * off) / 9,
        "contraction_bound": max(
            abs(1 - 0.01 * d / 9) + 0.009 * d / 9 + 0.019 * o / 9
            for d, o in zip(diagonal, off, strict=True)
        ),
    }
    k, change, delta = (jnp.asarray(v, dtype) for v in (k, change, delta))
    arguments = {
        "row_ratio": (k,),
        "alignment": (change, delta),
        "gain": (change, delta),
        "interference": (k, delta),
        "overshoot_slack": (k, 1 / 9, 0.01),
        "generalization_slack": (k, 1 / 9, 0.9),
        "contraction_bound": (k, 1 / 9, 0.01, 0.9),
    }
    for name, wanted in expected.items():
        got = getattr(measures, name)(*arguments[name])
        assert got.dtype == jnp.float32, name
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_attribution_at_uint8_inputs():
    x, y = (np.random.default_rng(s).integers(0, 255, size=(4, 3)).astype("uint8") for s in (0, 1))
    q = lambda p, x: x @ p
    got = measures.attribution(q, jnp.ones(3), (jnp.asarray(x),), jnp.arange(4), (jnp.asarray(y),))
    np.testing.assert_allclose(got, y.astype(float) @ x.T.astype(float) * np.arange(4), rtol=1e-6)


def test_products_of_measures_are_pinned_to_full_precision():
    for measure in (measures.gain, measures.alignment):
        text = str(jax.make_jaxpr(measure)(jnp.ones(9), jnp.ones(9)))
        assert text.count("dot_general[") == text.count("(Precision.HIGHEST, Precision.HIGHEST)")
        assert "dot_general[" in text


@pytest.mark.parametrize("alpha", [0.3, -0.3])
def test_the_contraction_bound_is_the_formula_for_steps_of_either_sign(alpha, x64):
    """max_i sum_j (|1_ij - alpha K_ij rho_j| + |alpha| gamma |K_ij| rho_j)."""
    k, rho = gram(0), np.random.default_rng(1).dirichlet(np.ones(9))
    entries = np.abs(np.eye(9) - alpha * k * rho) + abs(alpha) * 0.9 * np.abs(k) * rho
    got = measures.contraction_bound(jnp.asarray(k), jnp.asarray(rho), alpha, 0.9)
    np.testing.assert_allclose(got, entries.sum(axis=1).max(), rtol=1e-12)


@pytest.mark.parametrize("shapes", [((4, 1), (1,)), ((4,), (1,)), ((), ())])
def test_measures_of_a_batch_take_vectors_of_one_size(shapes):
    change, delta = map(jnp.ones, shapes)
    for measure in (measures.alignment, measures.gain):
        with pytest.raises(ValueError, match=r"expected \[B\] for both"):
            measure(change, delta)
    with pytest.raises(ValueError, match=r"expected \[B\] for both"):
        measures.interference(jnp.ones((4, 4)), delta)


def test_a_kernel_is_square_and_rho_is_a_vector_or_a_number():
    grid, rho = jnp.eye(6), jnp.full((3, 2), 1 / 6)
    for call in (
        lambda: measures.overshoot_slack(grid, rho, 0.1),
        lambda: measures.generalization_slack(grid, rho, 0.9),
        lambda: measures.contraction_bound(grid, rho, 0.1, 0.9),
    ):
        with pytest.raises(ValueError, match=r"rho of the shape \(3, 2\).* give rho.ravel\(\)"):
            call()
    assert measures.overshoot_slack(grid, rho.ravel(), 0.1).shape == (6,)
    for call in (
        lambda: measures.row_ratio(grid[:4]),
        lambda: measures.interference(grid[:4], jnp.ones(4)),
    ):
        with pytest.raises(ValueError, match=r"K of the shape \(4, 6\), expected \[N, N\]"):
            call()
