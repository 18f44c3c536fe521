"""How the numbers of a diagnosis behave, also in edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from diagnosis_cases import (
    CASES,
    draw_case,
    joined,
    linearized,
    look,
    some_returns,
    sum_of_entries,
    updated,
)
from diagnosis_critics import ACT, BATCH, MAKES, OBS
from preqn_jax import diagnostics
from preqn_jax.diagnostics import diagnose, diagnosis
from preqn_jax.types import Transition


@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_the_best_fit_of_equation_5s_step_to_a_short_update(seed):
    """No other step of Eq. 5 comes closer. The update is short, as there the change of Q equals its
    leading order.
    """
    case = CASES["moved"]()
    values, phi, delta = linearized(case)
    own = oracles.gradient_step(case.theta, phi, delta, 1.0) - case.theta
    moved = updated(case, 1e-6, 1e-6, seed)
    alpha = look(case.replace(moved=moved))["alpha"]
    distance = lambda a: np.linalg.norm(
        case.make(moved, joined(case)[0])[0] - values - a * phi.T @ own
    )
    assert distance(alpha) < min(distance(0.999 * alpha), distance(1.001 * alpha))
    assert abs(alpha / 1e-6 - 1) > 1e-3
    np.testing.assert_allclose(
        look(case.replace(moved=case.theta + 1e-6 * own))["alpha"], 1e-6, rtol=1e-4
    )


def test_the_linearization_breaks_in_proportion_to_the_step():
    """Halving a small step halves the second-order terms relative to the first-order ones."""
    case = CASES["own step"]()
    errors = np.array(
        [look(case.replace(alpha=alpha))["linearization_error"] for alpha in (1e-3, 5e-4, 2.5e-4)]
    )
    assert np.all(errors > 1e-6)
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2, rtol=0.01)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_what_bootstraps_from_itself_does_not_excite_itself(gamma):
    """With X* = X and no terminal the matrix is gamma K - K: its rightmost eigenvalue belongs to
    the smallest of K.
    """
    case = CASES["moved"]()
    same = {
        "next_obs": case.batch.obs,
        "next_action": case.batch.action,
        "discount": np.ones(BATCH),
    }
    phi = linearized(case)[1]
    least = np.linalg.eigvalsh(oracles.kernel(phi))[0]
    found = look(case.replace(gamma=gamma, **same))["self_excitation"]
    np.testing.assert_allclose(
        found, -(1 - gamma) * least / np.mean(np.sum(phi**2, axis=0)), rtol=1e-8
    )


@pytest.mark.parametrize("gamma", [0.4, 0.5, 0.9])
def test_twice_the_features_excite_above_a_discount_of_a_half(gamma):
    """Tsitsiklis and Van Roy's w -> 2 w: a linear critic that bootstraps from 2 X has (2 gamma - 1)
    K.
    """
    case = CASES["linear"]()
    x, _ = joined(case)
    twice = {
        "next_obs": 2 * case.batch.obs,
        "next_action": 2 * case.batch.action,
        "discount": np.ones(8),
    }
    spectrum = np.linalg.eigvalsh((2 * gamma - 1) * x @ x.T)
    found = look(case.replace(gamma=gamma, **twice))["self_excitation"]
    np.testing.assert_allclose(
        found, spectrum.max() / np.mean(np.sum(x**2, axis=1)), rtol=1e-8, atol=1e-12
    )


def test_the_rightmost_eigenvalue_of_a_large_batch():
    """96 rows, more than are solved in full. The successors are near the states, far from them, or
    beyond the data, or all transitions are terminal.
    """
    start = draw_case(MAKES["sin"], 0, 96, gamma=0.95)
    (obs, action, *_), scale = start.batch, np.mean(np.sum(linearized(start)[1] ** 2, axis=0))
    near = {"next_obs": obs + 0.1 * start.batch.next_obs, "next_action": action}
    beyond = {"next_obs": 1.5 * obs, "next_action": 1.5 * action}
    for change, grows in (
        (near, True),
        ({}, False),
        (beyond, True),
        ({"discount": np.zeros(96)}, False),
    ):
        case = start.replace(**change)
        phi, ahead = (case.make(case.theta, x)[1] for x in joined(case))
        matrix = 0.95 * case.batch.discount[:, None] * oracles.kernel(ahead, phi) - oracles.kernel(
            phi
        )
        wanted = np.real(np.linalg.eigvals(matrix)).max()
        found = look(case)["self_excitation"] * scale
        assert abs(found - wanted) < 2e-4 * np.linalg.norm(matrix)
        if grows:
            assert wanted > 0
            np.testing.assert_allclose(found, wanted, rtol=0.001)


def matrices():
    """Matrices of 8 to 256 rows: random, normal, with a complex rightmost pair, zero."""
    rng = np.random.default_rng(0)
    for size in (8, 64, 65, 256):
        yield rng.normal(size=(size, size))
        phi = rng.normal(size=(size, size // 2))
        yield -phi @ phi.T  # half of its eigenvalues are zero, the rightmost
        yield 0.9 * rng.normal(size=(size, 1)) * (phi @ phi.T) - phi @ phi.T
        turn = np.diag(-1.0 - np.arange(size))
        turn[:2, :2] = [[3, 5], [-5, 3]]
        yield turn
        yield -np.eye(size)
        yield np.zeros((size, size))


def test_the_rightmost_eigenvalue_is_that_of_all_of_them():
    """A share of 2e-4 of the norm is what ARPACK is asked for; matrices it gives up are solved in
    full.
    """
    for matrix in matrices():
        wanted = np.real(np.linalg.eigvals(matrix)).max()
        found = diagnosis.rightmost(matrix)
        assert abs(found - wanted) <= 2e-4 * np.linalg.norm(matrix) + 1e-12
        assert diagnosis.rightmost(matrix) == found


@pytest.mark.parametrize("size", [8, 100])
def test_a_matrix_that_is_not_finite_has_no_rightmost_eigenvalue(size):
    assert np.isnan(diagnosis.rightmost(np.full((size, size), np.inf)))


def test_a_fitted_step_has_its_digits_where_q_is_huge():
    """In float32 the square of a change of 1e20 would be infinite."""
    case = draw_case(MAKES["linear"], 0, gamma=0.9)
    small = look(case.replace(moved=updated(case, 0.3, 0.3)), "float32")
    huge = case.replace(theta=1e20 * case.theta, reward=1e20 * case.batch.reward)
    found = look(huge.replace(moved=updated(huge, 0.3, 0.3e20)), "float32")
    for number in ("alpha", "interference", "contraction_bound", "overshoot_slack"):
        assert found[number] == pytest.approx(small[number], rel=1e-3), number


def test_a_unit_is_dormant_at_a_fortieth_of_its_own_layers_mean():
    """Activities that are constants. The first layer's mean is 0.63, the second's 0.0062; of both
    together it is 0.3.
    """
    case = draw_case(MAKES["relu"], 0, gamma=0.8, alpha=0.05, returns=some_returns(3))
    b0, w0, b1, w1, b2, w2 = case.make.leaves(case.theta)
    b0[:], b1[:] = (
        [1, 1, 1, 1, 1, 0, 0.01, 0.03],
        [0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.00001, 0.0003, 0.0003],
    )
    theta = oracles.theta([b0, 0 * w0, b1, 0 * w1, b2, w2])
    assert look(case.replace(theta=theta, moved=theta + 0.01))["dormant_share"] == pytest.approx(
        3 / 17, rel=1e-6
    )


def test_duplicates_bring_the_condition_to_its_ceiling():
    case = CASES["own step"]()
    batch = Transition(*(np.concatenate([leaf[:6], leaf[:6]]) for leaf in case.batch))
    found = look(case.replace(batch=batch))["condition"]
    assert 1e14 < found <= 1.001 / np.finfo(np.float64).eps


def test_a_critic_with_nothing_to_learn_has_no_number_that_is_none():
    """Q, rewards and TD errors are zero: every share of nothing is 0, and not NaN."""
    case = CASES["linear"]()
    found = look(case.replace(theta=np.zeros(OBS + ACT), reward=np.zeros(8)))
    zero = [
        "q_mean",
        "q_largest",
        "td_error",
        "alignment",
        "gain",
        "linearization_error",
        "soft_divergence",
        "interference",
    ]
    assert [found[number] for number in (*zero, "extrapolation")] == [0] * 9
    assert all(np.isfinite(value) for value in found.values())
    assert found["diagonal_mean"] > 0 and found["effective_rank"] > 1


def test_what_is_beyond_a_terminal_counts_for_nothing():
    """No target bootstraps from the state after a terminal transition."""
    case = CASES["own step"]()
    names, discount = ("extrapolation", "coadaptation", "self_excitation"), case.batch.discount
    assert 0 < discount.sum() < len(discount)
    far = np.where(discount[:, None] == 0, 20.0, 1.0) * case.batch.next_obs
    near, wild = look(case), look(case.replace(next_obs=far))
    for name in names:
        np.testing.assert_allclose(wild[name], near[name], rtol=1e-9, err_msg=name)
    alone = look(case.replace(discount=np.zeros_like(discount), next_obs=far))
    assert alone["extrapolation"] == alone["coadaptation"] == 0


def test_two_looks_are_one_trace():
    """Other numbers in every argument, of the same shapes, are no reason to trace again."""
    calls = []

    def q(params, obs, action):
        calls.append(None)
        return jnp.sum(jnp.tanh(jnp.concatenate([obs, action]) @ params["w"]))

    def once(seed, **options):
        case = draw_case(MAKES["linear"], seed, 8)
        params = {
            "w": jnp.asarray(np.random.default_rng(seed).normal(size=(OBS + ACT, 3)), jnp.float32)
        }
        options["returns"] = some_returns(seed)
        return diagnose(q, diagnostics.Case(params, case.batch, case.next_action, **options))

    first = once(0, gamma=0.9, alpha=0.1, reward_bound=2.0)
    traced = len(calls)
    assert traced > 0
    assert once(1, gamma=0.5, alpha=0.2, reward_bound=3.0) != first
    assert len(calls) == traced


# --- at the edges ---------------------------------------------------------------------------------


def test_an_update_away_from_its_targets_is_no_contraction():
    case = CASES["moved"]()
    found = look(case.replace(moved=updated(case, -0.3, 0)))
    assert found["alpha"] < 0
    wanted = sum_of_entries(oracles.kernel(linearized(case)[1]), found["alpha"], 0.9)
    assert wanted > 1
    np.testing.assert_allclose(found["contraction_bound"], wanted, rtol=1e-8)


def test_an_eigenvalue_that_repeats_is_found():
    """One-hot features and only terminals: the matrix is -K, and all its eigenvalues are -1."""
    case = CASES["linear"]()
    eye = np.eye(8)
    case = case.replace(obs=eye[:, :OBS], action=eye[:, OBS:], discount=np.zeros(8))
    assert look(case)["self_excitation"] == pytest.approx(-1)


def test_features_that_are_all_zero_have_a_low_rank():
    case = CASES["moved and alpha"]()
    b0, w0, b1, w1, b2, w2 = case.make.leaves(case.theta)
    theta = oracles.theta([b0, w0, b1 - 100, w1, b2, w2])
    assert look(case.replace(theta=theta, moved=theta + 0.01))["feature_rank"] <= 1


@pytest.mark.parametrize("seed", range(200))
def test_the_rank_of_features_is_exact_in_float32(seed):
    """32 rows of a last layer with few directions, each with a weight of its own."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 12))
    scales = 10.0 ** rng.uniform(-3, 0, size=rank)
    layer = (rng.normal(size=(32, rank)) * scales @ rng.normal(size=(rank, 48))).astype(np.float32)
    sigma = np.linalg.svd(layer.astype(np.float64), compute_uv=False)
    cumulative = np.cumsum(sigma) / np.sum(sigma)
    found = hidden_numbers(jnp.asarray(layer))["feature_rank"]
    assert found == 1 + np.sum(cumulative < 0.99)
    assert found <= rank


@jax.jit
def hidden_numbers(layer):
    return diagnosis._of_hidden_layers([layer], [layer], jnp.ones(len(layer)))


def test_a_critic_that_does_not_depend_on_its_parameters_has_the_worst_condition():
    obs, action = jnp.ones((4, 2)), jnp.ones((4, 1))
    batch = Transition(obs, action, jnp.ones(4), jnp.ones(4), obs)
    nothing = lambda params, obs, action: 0 * jnp.sum(params)
    found = diagnose(nothing, diagnostics.Case(jnp.ones(3), batch, action))
    assert found["condition"] == pytest.approx(1 / jnp.finfo(jnp.float32).eps)


def test_where_differences_have_no_digits_left_the_linearization_has_no_error():
    """A linear critic in float32 with Q of about 1e6: any error that is measured is rounding."""
    obs, action = (
        jnp.asarray(np.random.default_rng(0).uniform(1, 2, (16, 3)), jnp.float32),
        jnp.ones((16, 1)),
    )
    batch = Transition(obs, action, jnp.ones(16), jnp.ones(16), obs)
    q, params = lambda params, obs, action: jnp.dot(params, obs), jnp.full(3, 2e5)
    found = diagnose(q, diagnostics.Case(params, batch, action, moved=params + 0.02))
    assert found["linearization_error"] == 0
