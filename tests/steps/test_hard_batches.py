"""Batches for which there is no good step, and wrong arguments."""

import jax
import jax.numpy as jnp
import optax
import pytest

from preqn_jax import solve, steps
from step_cases import (
    BATCH,
    LAX,
    PREQN,
    SOLVERS,
    STEPS,
    case,
    critic,
    duplicated,
    jit,
    move_error,
    oracle,
    take,
    unchanged,
)


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_inputs_with_opposite_targets_leave_theta_as_it_is(solver):
    """Q' - Q is the same on equal inputs, so that its cosine with opposite errors is 0: no step can
    be accepted.
    """
    params, inputs, _, x = case(dtype="float32")
    inputs, _ = duplicated(inputs, x)
    step = steps.preconditioned(critic("tanh"), 0.25, 0.5, SOLVERS[solver], max_steps=5)
    values = take(step, params, inputs, jnp.zeros(BATCH))[2].values
    errors = jnp.asarray([1.0, -2.0, 0.5, 1.5])
    new, _, info = take(step, params, inputs, values + jnp.concatenate([errors, -errors]))
    assert info.metrics["linesearch/accepted"] == 0
    assert info.metrics["linesearch/backtracks"] == 5
    assert info.metrics["critic/alignment"] == 0  # of the step that was taken, which is none
    assert unchanged(new, params)
    reported = [value for name, value in info.metrics.items() if not name.startswith("solve/")]
    assert jnp.all(jnp.isfinite(jnp.stack(reported)))
    assert info.metrics["solve/finite"] == 0 or jnp.isfinite(info.metrics["solve/residual"])


OF_A_KIND = ("sgd", "preqn_eigh", "preqn_jacobian", "ngql")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in OF_A_KIND)) for name in STEPS]
)
def test_zero_errors_move_nothing(name):
    params, inputs, targets, _ = case(dtype="float32")
    step = STEPS[name](critic("tanh"))
    update = jit(step.update)
    values = update(params, step.init(params), inputs, targets)[2].values
    new, _, info = update(params, step.init(params), inputs, values)
    assert jnp.all(info.delta == 0)
    assert unchanged(new, params)
    assert jnp.all(jnp.isfinite(jnp.stack(list(info.metrics.values()))))
    assert info.metrics["critic/alignment"] == 0
    if name in PREQN:  # nothing to do is not a failure
        assert info.metrics["linesearch/accepted"] == 1
        assert info.metrics["linesearch/backtracks"] == 0


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "cg"])
def test_a_target_that_is_no_number_is_never_accepted(solver):
    params, inputs, targets, _ = case(dtype="float32")
    step = steps.preconditioned(critic("tanh"), 0.25, LAX, SOLVERS[solver], max_steps=3)
    for bad in (jnp.nan, jnp.inf):
        new, _, info = take(step, params, inputs, targets.at[2].set(bad))
        assert info.metrics["linesearch/accepted"] == 0
        assert info.metrics["linesearch/backtracks"] == 3
        assert info.metrics["critic/alignment"] == 0
        assert unchanged(new, params)


def test_a_batch_of_one(x64):
    params, inputs, targets, x = case(batch=1)
    theta, phi, delta = oracle(params, x, targets)
    new, _, _ = take(
        steps.preconditioned(critic(), 0.25, LAX, solve.eigh()), params, inputs, targets
    )
    assert (
        move_error(new, params, theta + 0.25 * phi[:, 0] * delta[0] / (phi[:, 0] @ phi[:, 0]))
        < 1e-10
    )


@pytest.mark.parametrize("eta", [-1.0, 1.0, 1.5, float("nan")])
def test_eta_out_of_range(eta):
    with pytest.raises(ValueError, match=r"eta is a cosine and must lie in \(-1, 1\), got"):
        steps.preconditioned(critic(), eta=eta)


@pytest.mark.parametrize("alpha", [0.0, -0.1, float("nan")])
@pytest.mark.parametrize("make", [steps.preconditioned, steps.natural_gradient])
def test_learning_rate_out_of_range(make, alpha):
    with pytest.raises(ValueError, match="learning_rate must be positive, got"):
        make(critic(), alpha)


def test_damping_out_of_range():
    with pytest.raises(ValueError, match=r"damping must not be negative, got -0.1"):
        steps.natural_gradient(critic(), 0.1, -0.1)


@pytest.mark.parametrize(
    "option, text",
    [
        ({"decay": 1.0}, r"decay must lie in \(0, 1\), got 1.0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"method": "x"}, "unknown method 'x'; choose one of jacobian, structured"),
        (
            {"solve": "cholesky"},
            r"solve is 'cholesky', expected a function .*cholesky\(\) returns",
        ),
        ({"solve": solve.eigh}, r"solve is <function eigh.* preqn_jax.solve.eigh\(\) returns"),
        ({"learning_rate": "0.1"}, "learning_rate is '0.1', expected a number, or an optax sch"),
    ],
)
def test_options_that_a_step_hands_on_are_checked_as_it_is_made(option, text):
    with pytest.raises(ValueError, match=text):
        steps.preconditioned(critic(), **option)


def test_a_schedule_without_its_count_and_a_column_of_targets_are_one_sentence():
    params, inputs, targets, _ = case(dtype="float32")
    step = steps.preconditioned(critic(), optax.constant_schedule(0.1))
    with pytest.raises(ValueError, match=r"^memory is \(\), expected what step.init\(params\)"):
        step.update(params, (), inputs, targets)
    with pytest.raises(ValueError, match=r"as targets\[:, 0\] is: one number for each input"):
        step.update(params, step.init(params), inputs, targets[:, None])


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("shape", [(BATCH, 1), (1,), (), (BATCH - 1,), (3, BATCH)])
@pytest.mark.parametrize("name", ["sgd", "preqn", "ngql"])
def test_targets_of_another_shape_are_refused(name, shape, members):
    """A column of targets would be broadcast to a square of TD errors."""
    params, inputs, _, _ = case(dtype="float32")
    step = STEPS[name](critic())
    if members:
        params = jax.tree.map(lambda leaf: jnp.stack([leaf] * members), params)
        step = steps.ensemble(step)
    with pytest.raises(ValueError, match=rf"^targets has the shape .*, expected \({BATCH},\)") as e:
        jax.eval_shape(step.update, params, step.init(params), inputs, jnp.zeros(shape))
    assert f"targets has the shape {shape}, expected" in str(e.value)


@pytest.mark.parametrize("name", ["sgd", "preqn", "ngql"])
def test_inputs_are_a_tuple(name):
    params, (obs, action), targets, _ = case(dtype="float32")
    step = STEPS[name](critic())
    for inputs in (obs, [obs, action]):
        with pytest.raises(ValueError, match=r"^inputs is of the type .*, expected a tuple"):
            step.update(params, step.init(params), inputs, targets)


@pytest.mark.parametrize("name", ["sgd", "preqn", "ngql"])
def test_a_q_that_returns_no_scalar_is_named(name):
    params, inputs, targets, _ = case(dtype="float32")
    step = STEPS[name](lambda params, *x: critic()(params, *x)[None])
    with pytest.raises(ValueError, match=r"one scalar for one example, got shapes \[\(1,\)\]"):
        step.update(params, step.init(params), inputs, targets)


def test_a_natural_gradient_step_without_a_solution_moves_nothing():
    """Inputs on which Q depends on no parameter: K = 0, and F = 0 too."""
    step = steps.natural_gradient(lambda params, x: x @ params, 0.1)
    params = jnp.ones(2)
    new, _, info = step.update(params, (), (jnp.zeros((3, 2)),), jnp.ones(3))
    assert new.tolist() == [1, 1] and info.metrics["solve/finite"] == 0


def test_an_adaptive_damping_reads_errors_whose_square_overflows():
    found = []
    for size in (1.0, 2.0**-70):
        linear = steps.preconditioned(lambda p, x: x @ p, 0.5, solve=steps.Adaptive())
        weights, x = jnp.zeros(3), jnp.eye(3)
        _, memory, info = linear.update(
            weights, linear.init(weights), (x,), jnp.asarray([1.0, 2.0, 4.0]) / size
        )
        assert info.metrics["linesearch/accepted"] == 1
        found.append(float(memory.damping))
    assert found[0] == found[1] < 1e-3


def test_a_step_to_an_infinite_weight_is_not_accepted():
    """Where an activation saturates, Q on the minibatch does not show it. A float16 theta overflows
    at 65,504, and momentum would go on in its direction.
    """
    q = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
    step, accepted = steps.preconditioned(q, 0.1, momentum=0.9), []
    update = jax.jit(step.update)
    for seed in range(12):
        keys = jax.random.split(jax.random.key(seed), 4)
        theta = {"w": jax.random.normal(keys[0], (3, 16)), "v": jax.random.normal(keys[1], (16,))}
        theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), theta)
        x, y = jax.random.normal(keys[2], (1, 3)), 1e6 * jax.random.normal(keys[3], (1,))
        moved, _, info = update(theta, step.init(theta), (x,), y)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))
        accepted.append(float(info.metrics["linesearch/accepted"]))
    assert set(accepted) == {0.0, 1.0}


def test_a_natural_gradient_step_to_an_infinite_weight_is_not_taken():
    q = lambda p, x: jnp.tanh(x * p["w"]) * p["v"]
    theta = {"w": jnp.float16(0.1), "v": jnp.float16(1e-3)}
    step = steps.natural_gradient(q, 0.5)
    moved, *_ = step.update(theta, step.init(theta), (jnp.full(1, 1e-3),), jnp.full(1, 100.0))
    assert moved == theta


def test_a_healthy_update_makes_no_nan_on_its_way():
    """Else `jax_debug_nans`, which looks for the origin of a NaN, would stop there."""
    step = steps.preconditioned(lambda p, x: x @ p, 0.1, solve=steps.Adaptive())
    with jax.debug_nans(True):
        z, _ = solve.cg()(jnp.eye(2), jnp.ones(2))
        moved, *_ = step.update(jnp.zeros(2), step.init(jnp.zeros(2)), (jnp.eye(2),), jnp.ones(2))
    assert jnp.allclose(z, 1) and jnp.allclose(moved, 0.1, rtol=1e-2)
