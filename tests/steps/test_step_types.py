"""Steps with observations, targets and parameters of every type: what they learn depends on the
numbers, not on their type.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from preqn_jax import solve, steps
from preqn_jax.batching import batched
from step_cases import PREQN, SOLVERS, STEPS, flat, take

SLOW = pytest.mark.slow  # similar to others
OF_A_KIND = set(STEPS) - {"sgd", "preqn"}
EACH = [pytest.param(name, marks=[SLOW] * (name in OF_A_KIND)) for name in STEPS]


def pixels(p, x):
    """A user's critic, which multiplies its input without a cast."""
    return jnp.sin(x @ p["w"] / 50) @ p["v"] + p["b"]


def drawn(dtype="uint8", size=8):
    """Rows that are bright in one place each, so that K is well conditioned, and dim elsewhere."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(size, 16)) / 5, "v": rng.normal(size=16), "b": np.zeros(())}
    x = 200 * np.eye(size) + rng.integers(0, 40, size=(size, size)) * (1 - np.eye(size))
    x = x > 32 if dtype == "bool" else x
    targets = rng.integers(-3, 4, size)
    return jax.tree.map(jnp.float32, params), jnp.asarray(x, dtype), jnp.float32(targets)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
    "dtype", ["uint8", *(pytest.param(d, marks=SLOW) for d in ("bool", "float16"))]
)
def test_observations_of_any_type_are_learned_from_as_their_numbers(name, dtype):
    step = STEPS[name](pixels)
    params, x, targets = drawn(dtype)
    found, expected = (take(step, params, (rows,), targets) for rows in (x, jnp.float32(x)))
    assert oracles.relative_error(found[2].values, expected[2].values) < 1e-5
    move = flat(expected[0]) - flat(params)
    assert np.linalg.norm(flat(found[0]) - flat(expected[0])) < 1e-2 * np.linalg.norm(move)
    if name in PREQN:
        assert found[2].metrics["linesearch/accepted"] == 1


def test_preqn_fits_targets_of_uint8_observations():
    """Every update removes a tenth of the errors."""
    step = steps.preconditioned(pixels, 0.1)
    params, x, targets = drawn("uint8")
    update, errors = jax.jit(step.update), []
    for _ in range(20):
        params, _, info = update(params, (), (x,), targets)
        errors.append(float(jnp.linalg.norm(info.delta)))
        assert info.metrics["linesearch/accepted"] == 1 and info.metrics["critic/alignment"] > 0.97
    ratios = np.divide(errors[1:], errors[:-1])
    assert (ratios > 0.88).all() and (ratios < 0.93).all()


# Adam's 1e-8 is zero in float16, whatever the step.
NARROW = [pytest.param(name, "bfloat16", marks=[SLOW] * (name in OF_A_KIND)) for name in STEPS] + [
    pytest.param(name, "float16", marks=SLOW) for name in STEPS if name != "adam"
]


@pytest.mark.parametrize("name, dtype", NARROW)
def test_narrow_parameters_keep_their_type_and_move_as_wide_ones(name, dtype):
    """Up to their own rounding; everything in between is computed in float32."""
    step = STEPS[name](pixels)
    params, x, targets = drawn("float32")
    params, x = jax.tree.map(lambda p: p.astype(dtype), params), x / 100
    wide = jax.tree.map(jnp.float32, params)
    found, expected = take(step, params, (x,), targets), take(step, wide, (x,), targets)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found[0]))
    assert found[2].values.dtype == found[2].delta.dtype == jnp.float32
    assert all(m.dtype == jnp.float32 for m in found[2].metrics.values())
    assert oracles.relative_error(found[2].delta, expected[2].delta) < 0.1
    eps = float(jnp.finfo(dtype).eps)
    rounding = eps * np.abs(flat(wide))
    move = np.abs(flat(expected[0]) - flat(wide))
    slack = 0.3 * move.max() if name == "adam" else 0.1 * move.max()
    assert (np.abs(flat(found[0]) - flat(expected[0])) <= rounding + slack).all()


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
    "dtype", ["float64", *(pytest.param(d, marks=SLOW) for d in ("int32", "bfloat16"))]
)
def test_targets_of_any_type(name, dtype, x64):
    step = STEPS[name](pixels)
    params, x, targets = drawn("float32")
    (_, _, found), (_, _, expected) = (
        take(step, params, (x,), y) for y in (targets.astype(dtype), targets)
    )
    assert found.delta.dtype == jnp.float32
    np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_takes_uint8_observations(name):
    params, x, targets = drawn("uint8")
    step = steps.preconditioned(pixels, 0.1, solve=SOLVERS[name])
    _, _, info = take(step, params, (x,), targets)
    assert info.metrics["linesearch/accepted"] == 1


@pytest.mark.parametrize("name", STEPS)
def test_a_leaf_that_is_no_parameter_and_an_empty_batch_are_refused(name):
    step = STEPS[name](lambda p, x: pixels(p["net"], x))
    params, x, targets = drawn("float32")
    with pytest.raises(ValueError, match=r"^params\['count'\] is of the type int32, expected real"):
        step.update({"net": params, "count": jnp.arange(2)}, (), (x,), targets)
    with pytest.raises(ValueError, match="^inputs hold no example"):
        step.update({"net": params}, (), (x[:0],), targets[:0])


@pytest.mark.parametrize("make", [solve.eigh, solve.lstsq, solve.cholesky, solve.cg])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_solves_work_in_float32_at_least(make, dtype):
    gram, delta, solve_ = np.diag([1.0, 2, 4]), np.array([1.0, 2, 3]), jax.jit(make())
    found, info = solve_(jnp.asarray(gram, dtype), jnp.asarray(delta, dtype))
    expected, _ = solve_(jnp.float32(gram), jnp.float32(delta))
    assert found.dtype == info.residual.dtype == info.damping.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_solve_is_as_precise_as_its_kernel(x64):
    """Float64 errors do not make a float32 kernel more precise: its rounding must not count as a
    direction.
    """
    gram, delta = np.diag(np.float32([1.0, 1e-3, 1e-10])), np.ones(3)
    for make in (solve.eigh, solve.lstsq):
        z, info = jax.jit(make())(gram, delta)
        assert info.rank == 2 and z.dtype == jnp.float32


def test_a_python_float_is_learned_too():
    step = steps.gradient(lambda p, x: p["gain"] * x, optax.sgd(0.5))
    params = {"gain": 1.0}
    params, _, _ = step.update(params, step.init(params), (jnp.ones(2),), jnp.full(2, 3.0))
    assert float(params["gain"]) == 2.0


def test_what_momentum_carries_keeps_its_type_whatever_the_number_is(x64):
    """So that a scan can carry it."""
    params, x, targets = drawn("float32")
    for dtype, share in (("bfloat16", jnp.float32(0.9)), ("float32", np.float64(0.9))):
        step = steps.preconditioned(pixels, 0.1, -0.99, momentum=share)
        start = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), params)
        memory = step.init(start)
        _, after, _ = take(step, start, (x / 100,), targets)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, memory)
        assert {leaf.dtype for leaf in jax.tree.leaves(after.move)} == {jnp.dtype(dtype)}


def test_a_bound_of_more_digits_than_q(x64):
    params, x, targets = drawn("float32")
    bounds = (np.float64(0.5), 0.5)
    steps_ = [steps.gradient(pixels, optax.sgd(0.1), huber=bound) for bound in bounds]
    moved = [flat(take(step, params, (x,), targets)[0]) for step in steps_]
    np.testing.assert_array_equal(*moved)


@pytest.mark.parametrize(("bits", "size", "accepted"), [(23, 300, 1), (10, 300, 0), (10, 10, 1)])
def test_what_tf32_rounds_away_of_a_large_q_hides_the_step(bits, size, accepted):
    """Why products of Q have a fixed precision, and layers in bfloat16 are refused: what 10 bits
    lose of a Q of 300 is as large as the changes for TD errors of 1.
    """

    def q(params, x):
        narrow = lambda y: jax.lax.reduce_precision(y, 8, bits)
        for w in params[:-1]:
            x = jnp.sin(narrow(x) @ narrow(w))
        return narrow(x) @ narrow(params[-1])

    rng = np.random.default_rng(0)
    sizes = zip((12, 128, 128), (128, 128), strict=False)
    params = [rng.normal(size=(m, n)).astype(np.float32) / m**0.5 for m, n in sizes]
    x = rng.normal(size=(64, 12)).astype(np.float32)
    hidden = np.sin(np.sin(x @ params[0]) @ params[1])
    last = np.linalg.lstsq(hidden, size * (1 + 0.3 * np.tanh(x[:, 0])), rcond=None)[0]
    params = [*map(jnp.asarray, params), jnp.asarray(last, jnp.float32)]
    targets = batched(q)(params, (x,)) + rng.normal(size=64).astype(np.float32)
    step = steps.preconditioned(q, 0.1, method="jacobian")
    metrics = jax.jit(step.update)(params, (), (x,), targets)[2].metrics
    assert metrics["linesearch/accepted"] == accepted and metrics["solve/alignment"] > 0.97
