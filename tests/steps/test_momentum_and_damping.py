"""Steps with a state: momentum in the kernel solve, and a damping that adapts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import solve, steps
from step_cases import (
    BATCH,
    LAX,
    case,
    critic,
    duplicated,
    flat,
    jit,
    move_error,
    oracle,
    take,
    unflat,
)


def spring(phi, delta, last, mu, damping):
    """The m that minimises |Phi^T m - Delta|^2 + lambda |m - mu m'|^2, in parameter space."""
    shift = damping * np.mean(np.sum(phi**2, axis=0))
    inverse = np.linalg.inv(phi @ phi.T + shift * np.eye(len(phi)))
    return inverse @ (phi @ delta + shift * mu * last)


def test_momentum_is_the_regularised_least_squares_near_the_last_move(x64):
    """Over three updates, each with its own batch. The oracle solves in parameter space, the step
    with the kernel.
    """
    step = steps.preconditioned(critic(), 0.25, LAX, solve.cholesky(0.1), momentum=0.8)
    params = case()[0]
    memory, last = step.init(params), 0.0 * flat(params)
    for seed in range(3):
        _, inputs, targets, x = case(seed)
        theta, phi, delta = oracle(params, x, targets)
        last = spring(phi, delta, last, 0.8, 0.1)
        new, memory, info = jit(step.update)(params, memory, inputs, targets)
        assert info.metrics["linesearch/backtracks"] == 0
        assert move_error(new, params, theta + 0.25 * last) < 1e-9
        image = phi.T @ last
        assert abs(info.metrics["solve/alignment"] - oracles.cosine(image, delta)) < 1e-9
        params = new
    assert oracles.relative_error(flat(memory.move), last) < 1e-9


def test_momentum_of_zero_is_the_papers_algorithm(x64):
    params, inputs, targets, _ = case()
    plain, _, info = take(steps.preconditioned(critic()), params, inputs, targets)
    new, _, same = take(steps.preconditioned(critic(), momentum=0.0), params, inputs, targets)
    assert oracles.relative_error(flat(new), flat(plain)) < 1e-12
    for name, value in info.metrics.items():
        np.testing.assert_allclose(same.metrics[name], value, rtol=1e-6, err_msg=name)


def test_momentum_leaves_alone_what_an_earlier_batch_taught(x64):
    """Two batches of different entries of a table: the second step moves the first batch's entries
    on by mu, and its own as if there were no momentum.
    """
    step = steps.preconditioned(
        lambda table, i: table[i], 0.5, LAX, solve.cholesky(1e-9), momentum=0.5
    )
    update, params = jit(step.update), jnp.zeros(4)
    memory = jit(step.init)(params)
    first, second = (np.array([0, 1]),), (np.array([2, 3]),)
    params, memory, _ = update(params, memory, first, np.array([4.0, 8.0]))
    np.testing.assert_allclose(params, [2, 4, 0, 0], atol=1e-7)
    params, memory, _ = update(params, memory, second, np.array([-4.0, 6.0]))
    np.testing.assert_allclose(params, [3, 6, -2, 3], atol=1e-7)


@pytest.mark.parametrize("mu", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_refused(mu):
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\)"):
        steps.preconditioned(critic(), momentum=mu)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"start": -1.0}, "start of an adaptive damping must lie in"),
        ({"start": 5.0}, r"must lie in \[0.0001, 1.0\], got 5.0"),
        ({"factor": 0.5}, "factor must be above 1, got 0.5"),
        ({"minimum": -1.0}, "minimum must not be negative"),
        ({"maximum": 1e-5}, "maximum must not be below minimum"),
    ],
)
def test_an_adaptive_damping_out_of_range_is_refused(numbers, words):
    with pytest.raises(ValueError, match=words):
        steps.preconditioned(critic(), solve=steps.Adaptive(**numbers))


def test_a_memory_that_is_none_of_the_steps_is_named():
    params, inputs, targets, _ = case(dtype="float32")
    step = steps.preconditioned(critic(), momentum=0.9)
    with pytest.raises(ValueError, match=r"memory is \(\), expected what step.init\(params\)"):
        step.update(params, (), inputs, targets)


def test_a_move_that_was_not_accepted_is_not_carried():
    params, inputs, targets, _ = case(dtype="float32")
    step = steps.preconditioned(critic(), 1.0, 0.999999, momentum=0.9, max_steps=1)
    memory = step.init(params)._replace(move=jax.tree.map(jnp.ones_like, params))
    new, memory, info = jit(step.update)(params, memory, inputs, targets)
    assert info.metrics["linesearch/accepted"] == 0
    assert np.array_equal(flat(new), flat(params)) and not flat(memory.move).any()


ADAPTIVE = steps.Adaptive(start=0.1, minimum=1e-3, maximum=10.0, factor=2.0)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 8.0], ids=["short", "whole", "long"])
def test_the_damping_follows_the_gain(alpha, x64):
    """Against the ratio of decreases, computed in NumPy, for three lengths of the same step."""
    params, inputs, targets, x = case()
    step = steps.preconditioned(critic(), alpha, LAX, ADAPTIVE, max_steps=1)
    _, memory, info = take(step, params, inputs, targets)
    theta, phi, delta = oracle(params, x, targets)
    shift = 0.1 * np.mean(np.sum(phi**2, axis=0))
    move = alpha * phi @ np.linalg.solve(phi.T @ phi + shift * np.eye(BATCH), delta)
    layers = oracles.layers_of(unflat(theta + move, params))
    change = oracles.mlp(layers, "sin", x)[0] - (np.asarray(targets) - delta)
    fell = lambda c: np.sum(delta**2) - np.sum((delta - c) ** 2)
    gain = fell(change) / fell(phi.T @ move)
    accepted = bool(info.metrics["linesearch/accepted"])
    assert accepted == (oracles.cosine(change, delta) >= LAX)
    expected = 0.2 if not accepted or not gain >= 0.25 else 0.05 if gain > 0.75 else 0.1
    np.testing.assert_allclose(memory.damping, expected, rtol=1e-6)
    np.testing.assert_allclose(info.metrics["solve/damping"], 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    "damping, gain, accepted, expected",
    [
        (0.1, 0.9, True, 0.05),
        (0.1, 0.5, True, 0.1),
        (0.1, 0.2, True, 0.2),
        (0.1, -3.0, True, 0.2),
        (0.1, np.nan, True, 0.2),
        (0.1, 0.9, False, 0.2),
        (1e-3, 1.0, True, 1e-3),
        (10.0, 0.0, True, 10.0),
    ],
)
def test_the_next_damping(damping, gain, accepted, expected):
    got = ADAPTIVE.after(jnp.float32(damping), jnp.float32(gain), jnp.bool_(accepted))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_solve_that_fails_raises_the_damping_until_one_succeeds():
    """Every input comes twice: K is singular, and without damping Cholesky gives NaN."""
    params, inputs, targets, x = case(dtype="float32")
    inputs, _ = duplicated(inputs, x)
    targets = targets.at[4:].set(targets[:4])
    tiny = steps.Adaptive(start=1e-12, minimum=0.0, maximum=1.0, factor=100.0)
    step = steps.preconditioned(critic(), 0.1, LAX, tiny, max_steps=2)
    memory, finite = step.init(params), []
    update = jit(step.update)
    for _ in range(8):
        new, memory, info = update(params, memory, inputs, targets)
        finite.append(bool(info.metrics["linesearch/accepted"]))
        assert np.isfinite(flat(new)).all()
        params = new
        if finite[-1]:
            break
    assert not finite[0] and finite[-1]
