"""How each step moves the parameters: against NumPy, and against other steps."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from preqn_jax import solve, steps
from step_cases import (
    BATCH,
    LAX,
    STEPS,
    case,
    critic,
    duplicated,
    flat,
    jit,
    move_error,
    oracle,
    take,
    unchanged,
    unflat,
)


@pytest.mark.parametrize("activation", sorted(oracles.ACTIVATIONS))
def test_gradient_with_sgd_is_equation_5(activation, x64):
    params, inputs, targets, x = case()
    theta, phi, delta = oracle(params, x, targets, activation)
    new, _, info = take(steps.gradient(critic(activation), optax.sgd(0.1)), params, inputs, targets)
    assert move_error(new, params, oracles.gradient_step(theta, phi, delta, 0.1)) < 1e-10
    np.testing.assert_allclose(info.delta, delta, rtol=1e-10)
    np.testing.assert_allclose(info.values, np.asarray(targets) - delta, rtol=1e-10)


def test_gradient_of_one_sample_is_equation_4(x64):
    params, inputs, targets, x = case(batch=1)
    theta, phi, delta = oracle(params, x, targets)
    new, _, _ = take(steps.gradient(critic(), optax.sgd(0.1)), params, inputs, targets)
    assert move_error(new, params, theta + 0.1 * delta[0] * phi[:, 0]) < 1e-10


def test_a_bound_on_td_errors_is_the_gradient_of_hubers_loss(x64):
    """The step uses TD errors clipped to the bound; the metrics report them unclipped."""
    params, inputs, targets, x = case()
    theta, phi, delta = oracle(params, x, targets)
    bound = float(np.median(np.abs(delta)))
    step = steps.gradient(critic(), optax.sgd(0.1), huber=bound)
    new, _, info = take(step, params, inputs, targets)
    clipped = np.sign(delta) * np.minimum(np.abs(delta), bound)
    assert (clipped != delta).any() and (clipped == delta).any()
    assert move_error(new, params, oracles.gradient_step(theta, phi, clipped, 0.1)) < 1e-10
    np.testing.assert_allclose(info.delta, delta, rtol=1e-10)
    with pytest.raises(ValueError, match="huber must be positive"):
        steps.gradient(critic(), optax.sgd(0.1), huber=0.0)


def test_gradient_keeps_the_optimizers_state(x64):
    """Two steps with momentum: the second velocity holds half of the first."""
    params, inputs, targets, x = case()
    step = steps.gradient(critic(), optax.sgd(0.1, momentum=0.5))
    state, velocity, expected = step.init(params), 0.0, None
    for _ in range(2):
        theta, phi, delta = oracle(params, x, targets)
        velocity = 0.5 * velocity + oracles.gradient_step(theta, phi, delta, 1.0) - theta
        expected = theta + 0.1 * velocity
        new, state, _ = jit(step.update)(params, state, inputs, targets)
        assert move_error(new, params, expected) < 1e-10
        params = new


@pytest.mark.parametrize(
    "activation, method",
    [("sin", "structured"), ("relu", "structured"), ("tanh", "structured"), ("sin", "jacobian")],
)
def test_preconditioned_is_equations_22_and_23(activation, method, x64):
    params, inputs, targets, x = case()
    theta, phi, delta = oracle(params, x, targets, activation)
    step = steps.preconditioned(critic(activation), 0.25, LAX, solve.eigh(), method=method)
    new, state, info = take(step, params, inputs, targets)
    assert info.metrics["linesearch/backtracks"] == 0
    assert move_error(new, params, oracles.preqn_step(theta, phi, delta, 0.25)) < 1e-10
    assert state == ()
    np.testing.assert_allclose(
        info.metrics["ntk/diagonal_mean"], np.mean(np.diag(oracles.kernel(phi))), rtol=1e-10
    )
    np.testing.assert_allclose(
        info.metrics["ntk/row_ratio_mean"],
        np.mean(oracles.row_ratio(oracles.kernel(phi))),
        rtol=1e-9,
    )


def test_preconditioned_in_float32_is_near_the_oracle():
    """As agents run it: float32 sines, the default damping. The error is rounding of 1e-7, times a
    condition of about 1e2.
    """
    params, inputs, targets, x = case(dtype="float32")
    theta, phi, delta = oracle(params, x.astype(np.float32), targets)
    new, _, _ = take(steps.preconditioned(critic(), 0.25, LAX), params, inputs, targets)
    gram = oracles.kernel(phi)
    damped = gram + 1e-3 * np.mean(np.diag(gram)) * np.eye(BATCH)
    assert move_error(new, params, theta + 0.25 * phi @ np.linalg.solve(damped, delta)) < 1e-4


def test_learning_rate_is_kept_to_the_precision_of_the_parameters(x64):
    """0.1 is not a float32 number: rounded to one, it has a relative error of 1.5e-8."""
    params, inputs, targets, x = case()
    theta, phi, delta = oracle(params, x, targets)
    new, _, _ = take(
        steps.preconditioned(critic(), 0.1, LAX, solve.eigh()), params, inputs, targets
    )
    assert move_error(new, params, oracles.preqn_step(theta, phi, delta, 0.1)) < 1e-10


def test_preconditioned_attains_equation_20_to_second_order(x64):
    """max |Q' - (Q + alpha Delta)| is O(alpha^2): half the learning rate leaves a quarter of it."""
    params, inputs, targets, x = case()
    values, _ = oracles.mlp(oracles.layers_of(params), "sin", x)
    errors = []
    for alpha in (2**-5, 2**-6, 2**-7):
        new, _, _ = take(
            steps.preconditioned(critic(), alpha, LAX, solve.eigh()), params, inputs, targets
        )
        wanted = values + alpha * (np.asarray(targets) - values)
        errors.append(np.abs(oracles.mlp(oracles.layers_of(new), "sin", x)[0] - wanted).max())
    ratios = np.array(errors[:-1]) / errors[1:]
    assert np.all(np.abs(ratios - 4) < 0.4)  # a tenth for the third-order term


def test_the_linesearch_takes_the_first_candidate_that_satisfies_equation_24(x64):
    """The targets are too far for a full step; the test computes every candidate itself."""
    eta, decay = 0.97, 0.5
    step = steps.preconditioned(critic(), 1.0, eta, solve.eigh(), decay=decay)
    for seed in range(4):
        params, inputs, targets, x = case(seed)
        targets = 30 * targets
        theta, phi, delta = oracle(params, x, targets)
        new, _, info = take(step, params, inputs, targets)
        backtracks = int(info.metrics["linesearch/backtracks"])
        assert info.metrics["linesearch/accepted"] == 1 and backtracks >= 2
        assert (
            move_error(new, params, oracles.preqn_step(theta, phi, delta, decay**backtracks)) < 1e-9
        )
        for tried in range(backtracks + 1):
            candidate = unflat(oracles.preqn_step(theta, phi, delta, decay**tried), params)
            change = oracles.mlp(oracles.layers_of(candidate), "sin", x)[0] - (
                np.asarray(targets) - delta
            )
            assert (oracles.cosine(change, delta) >= eta) == (tried == backtracks)


@pytest.mark.parametrize("name", STEPS)
def test_the_alignment_is_that_of_the_new_values(name, x64):
    params, inputs, targets, x = case()
    new, _, info = take(STEPS[name](critic()), params, inputs, targets)
    assert not unchanged(new, params)
    (before, after) = (oracles.mlp(oracles.layers_of(p), "sin", x)[0] for p in (params, new))
    delta = np.asarray(targets) - before
    np.testing.assert_allclose(
        info.metrics["critic/alignment"], oracles.cosine(after - before, delta), atol=1e-10
    )
    np.testing.assert_allclose(info.values, before, rtol=1e-10)
    np.testing.assert_allclose(info.delta, delta, rtol=1e-10)


@pytest.mark.parametrize("solver", [solve.eigh(), solve.cholesky(1e-2)])
def test_the_solves_own_alignment_is_that_of_the_linear_model(solver, x64):
    """cos(K z, Delta): the left side of Eq. 24 if Q were linear."""
    params, inputs, targets, x = case()
    inputs, x = duplicated(inputs, x)
    _, phi, delta = oracle(params, x, targets)
    gram = oracles.kernel(phi)
    _, _, info = take(steps.preconditioned(critic(), 0.25, LAX, solver), params, inputs, targets)
    z, fit = solver(jnp.asarray(gram), jnp.asarray(delta))
    np.testing.assert_allclose(
        info.metrics["solve/alignment"], oracles.cosine(gram @ np.asarray(z), delta), atol=1e-9
    )
    np.testing.assert_allclose(info.metrics["solve/residual"], fit.residual, rtol=1e-6)
    assert info.metrics["solve/rank"] == fit.rank and info.metrics["solve/finite"] == 1


def test_undamped_natural_gradient_equals_preconditioned(x64):
    """For a nonsingular K."""
    params, inputs, targets, x = case()
    preqn, _, info = take(
        steps.preconditioned(critic(), 0.25, LAX, solve.eigh()), params, inputs, targets
    )
    assert info.metrics["linesearch/backtracks"] == 0
    theta, phi, delta = oracle(params, x, targets)
    step = steps.natural_gradient(critic(), 0.25, 0.0)
    ngql, _, other = take(step, params, inputs, targets)
    assert move_error(ngql, params, oracles.natural_gradient_step(theta, phi, delta, 0.25)) < 1e-9
    assert move_error(preqn, params, flat(ngql)) < 1e-9
    np.testing.assert_allclose(
        info.metrics["critic/alignment"], other.metrics["critic/alignment"], atol=1e-9
    )


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_damped_natural_gradient_equals_preconditioned_with_cholesky(damping, x64):
    """By the push-through identity, with the same damping on both sides; K may be singular."""
    preqn = steps.preconditioned(critic(), 0.25, LAX, solve.cholesky(damping))
    dual = steps.natural_gradient(critic(), 0.25, damping)
    params, inputs, targets, x = case()
    for inputs, x in ((inputs, x), duplicated(inputs, x)):  # noqa: B020
        theta, phi, delta = oracle(params, x, targets)
        fisher, g = phi @ phi.T / BATCH, phi @ delta / BATCH  # Eqs. 26 and 5
        shift = damping * np.trace(fisher) / BATCH * np.eye(len(theta))
        expected = theta + 0.25 * np.linalg.solve(fisher + shift, g)
        for step in (preqn, dual):
            assert move_error(take(step, params, inputs, targets)[0], params, expected) < 1e-9


def test_duplicate_rows_do_not_disturb_the_minimum_norm_step(x64):
    """Eq. 28 with a singular K, where duplicates have equal targets and where they have different
    ones.
    """
    params, inputs, targets, x = case()
    inputs, x = duplicated(inputs, x)
    step = steps.preconditioned(critic(), 0.25, LAX, solve.eigh())
    for y in (targets, targets.at[4:].set(targets[:4])):
        theta, phi, delta = oracle(params, x, y)
        new, _, info = take(step, params, inputs, y)
        assert info.metrics["solve/rank"] == 4
        assert move_error(new, params, oracles.preqn_step(theta, phi, delta, 0.25)) < 1e-9
        assert (
            move_error(new, params, oracles.natural_gradient_step(theta, phi, delta, 0.25)) < 1e-9
        )
