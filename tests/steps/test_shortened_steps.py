"""Steps that the linesearch shortens or rejects: what momentum carries, how damping changes."""

import jax.numpy as jnp
import numpy as np

from preqn_jax import solve, steps
from step_cases import jit

TWO = (np.array([0, 1]),)


def test_the_gain_of_a_shortened_step_is_over_what_its_own_length_predicted():
    """Q_1 = p_1 + p_0^2 / 10: a quarter of the step is aligned, and gains 0.67 of what its first
    order predicts. For the whole step that predicts a loss.
    """
    q = lambda p, i: p[i] + 0.1 * i * p[0] ** 2
    adaptive = steps.Adaptive(start=0.1, minimum=1e-3, factor=2.0)
    step = steps.preconditioned(q, 8.0, 0.97, adaptive)
    memory = jit(step.init)(jnp.zeros(2))
    _, memory, info = jit(step.update)(jnp.zeros(2), memory, TWO, np.array([1.0, 0.0]))
    assert info.metrics["linesearch/backtracks"] == 2 and info.metrics["linesearch/accepted"] == 1
    np.testing.assert_allclose(memory.damping, 0.1, rtol=1e-6)


def test_a_solve_that_leads_away_from_the_targets_takes_no_step_that_does():
    """cos(K Z, Delta) = -1, though by the curvature of Q_1 the whole step's cosine is -0.01."""
    away = lambda gram, delta: (-delta, solve.cholesky()(gram, delta)[1])
    q = lambda p, i: p[i] + 100 * i * p[0] ** 2
    step = steps.preconditioned(q, 1.0, 0.5, away, relative=True)
    new, _, info = jit(step.update)(jnp.zeros(2), (), TWO, np.array([1.0, 0.0]))
    assert info.metrics["solve/alignment"] == -1 and info.metrics["linesearch/accepted"] == 0
    assert not np.any(new)


def test_where_there_is_no_td_error_a_carried_move_that_changes_q_is_refused():
    """Q = p_0 + p_1 at the only pair: K = 2, and damping leaves a part of the carried change."""
    step = steps.preconditioned(lambda p, x: p @ x, 0.5, 0.97, solve.cholesky(0.5), momentum=0.9)
    params, ones = jnp.ones(2), (jnp.ones((1, 2)),)
    memory = jit(step.init)(params)._replace(move=jnp.ones(2))
    new, memory, info = jit(step.update)(params, memory, ones, np.array([2.0]))
    assert info.metrics["linesearch/accepted"] == 0
    assert np.array_equal(new, params) and not np.any(memory.move)


def test_what_is_carried_is_the_whole_move_where_the_step_was_shortened():
    q, two = lambda p, i: p[i] + 0.1 * i * p[0] ** 2, (np.array([0, 1]),)
    step = steps.preconditioned(q, 8.0, 0.97, solve.cholesky(0.1), momentum=0.9)
    memory = jit(step.init)(jnp.zeros(2))
    new, memory, info = jit(step.update)(jnp.zeros(2), memory, two, np.array([1.0, 0.0]))
    assert info.metrics["linesearch/backtracks"] == 2
    np.testing.assert_allclose(memory.move, [1 / 1.1, 0], atol=1e-6)
    np.testing.assert_allclose(new, [2 / 1.1, 0], atol=1e-6)
