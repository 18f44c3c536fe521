"""Steps as pure functions: traced once, types kept, under vmap, and with traced settings."""

from functools import partial

import jax
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
    check_members,
    critic,
    flat,
    jit,
    move_error,
    take,
)

SWEEPS = {  # how a step is made, and the numbers to try
    "preqn, learning_rate": (lambda q, x: steps.preconditioned(q, x), [0.05, 0.1, 0.5]),
    "preqn, eta": (lambda q, x: steps.preconditioned(q, 1.0, x), [-0.999, 0.9, 0.999]),
    "preqn, decay": (lambda q, x: steps.preconditioned(q, 1.0, 0.999, decay=x), [0.2, 0.5, 0.9]),
    "preqn, damping": (
        lambda q, x: steps.preconditioned(q, solve=solve.cholesky(x)),
        [1e-4, 1e-2, 1.0],
    ),
    "preqn, rcond of eigh": (
        lambda q, x: steps.preconditioned(q, 0.5, LAX, solve.eigh(x)),
        [1e-12, 0.05, 0.3],
    ),
    "preqn, rcond of lstsq": (
        lambda q, x: steps.preconditioned(q, 0.5, LAX, solve.lstsq(x)),
        [1e-12, 0.05, 0.3],
    ),
    "preqn, damping of cg": (
        lambda q, x: steps.preconditioned(q, 0.5, LAX, solve.cg(damping=x)),
        [1e-3, 1e-2, 1.0],
    ),
    "ngql, learning_rate": (lambda q, x: steps.natural_gradient(q, x), [0.05, 0.1, 0.5]),
    "ngql, damping": (lambda q, x: steps.natural_gradient(q, 0.1, x), [1e-4, 1e-2, 1.0]),
    "adam, learning_rate": (lambda q, x: steps.gradient(q, optax.adam(x)), [1e-4, 1e-2, 1.0]),
}


# The traced number is used in the linesearch, or in a solve that iterates.
FAST = ("preqn, decay", "adam, learning_rate")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in SWEEPS]
)
def test_vmap_over_a_number_equals_a_loop(name, x64):
    """A sweep is a single compiled call. Targets are so far that linesearches end differently."""
    make, numbers = SWEEPS[name]
    params, inputs, targets, _ = case()
    targets = 10 * targets

    def update(number):
        step = make(critic(), number)
        return step.update(params, step.init(params), inputs, targets)

    new, state, info = jit(jax.vmap(update))(jnp.asarray(numbers))
    one = jit(update)
    check_members(new, state, info, [one(number) for number in numbers])
    moves = [flat(jax.tree.map(lambda leaf, m=m: leaf[m], new)) for m in range(3)]
    assert all(oracles.relative_error(moves[m], moves[0]) > 1e-6 for m in (1, 2))
    # A Python number gives the same step.
    alone = take(make(critic(), numbers[1]), params, inputs, targets)
    assert oracles.relative_error(flat(alone[0]), moves[1]) < 1e-10


@pytest.mark.parametrize(
    "name",  # Adam is made with numbers of the parameters' own type
    [name for name in SWEEPS if name.startswith(("preqn", "ngql"))],
)
def test_a_traced_number_keeps_the_types_of_the_parameters(name, x64):
    """A float64 number, with float32 parameters."""
    make, numbers = SWEEPS[name]
    params, inputs, targets, _ = case(dtype="float32")

    def update(number):
        return make(critic(), number).update(params, (), inputs, targets)[0]

    found = jax.eval_shape(update, jax.ShapeDtypeStruct((), jnp.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("make", [steps.preconditioned, steps.natural_gradient])
def test_a_schedule_is_called_with_the_number_of_updates_so_far(make, x64):
    """0.4, 0.2, 0.1: each update equals that of a step with this rate."""
    params, inputs, targets, _ = case()
    step = make(critic(), optax.exponential_decay(0.4, 1, 0.5))
    state, update = step.init(params), jit(step.update)
    for rate in (0.4, 0.2, 0.1):
        expected, *_ = take(make(critic(), rate), params, inputs, targets)
        new, state, _ = update(params, state, inputs, targets)
        assert move_error(new, params, flat(expected)) < 1e-6  # the schedule's float32
        params = new
    assert jnp.asarray(state).dtype == jnp.int32 and state == 3


def test_members_of_an_ensemble_follow_a_schedule():
    params, inputs, targets, _ = case(dtype="float32")
    step = steps.ensemble(steps.preconditioned(critic(), optax.constant_schedule(0.1)))
    plain = steps.ensemble(steps.preconditioned(critic(), 0.1))
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, 0.5 * leaf]), jax.device_get(params))
    new, state, _ = take(step, stacked, inputs, targets)
    expected, *_ = take(plain, stacked, inputs, targets)
    assert state.tolist() == [1, 1]
    assert oracles.relative_error(flat(new), flat(expected)) < 1e-6


# --- as pure functions ----------------------------------------------------------------------------


OF_A_KIND = ("sgd", "preqn_eigh", "preqn_jacobian", "ngql")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in OF_A_KIND)) for name in STEPS]
)
def test_two_updates_are_one_trace(name):
    """Neither results of a step nor other values of its arguments make `jax.jit` trace it again."""
    calls = []

    def q(params, obs, action):
        calls.append(None)
        return critic("tanh")(params, obs, action)

    params, inputs, targets, _ = case(dtype="float32")
    step = STEPS[name](q)
    update = jit(step.update)
    params, state, _ = update(params, step.init(params), inputs, targets)
    traced = len(calls)
    assert traced > 0
    update(params, state, jax.tree.map(lambda leaf: leaf + 1, inputs), targets - 1)
    assert len(calls) == traced


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", ["float32", "float32 in float64", "float64"])
def test_types_and_shapes_are_kept(name, dtype, request):
    """Also where JAX would make float64 of a float32 and a Python number."""
    if dtype != "float32":
        request.getfixturevalue("x64")
    params, inputs, targets, _ = case(dtype=dtype.split()[0])
    step = STEPS[name](critic())
    state = step.init(params)
    new, new_state, info = jax.eval_shape(step.update, params, state, inputs, targets)
    shapes = partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(new) == shapes(params)
    assert shapes(new_state) == shapes(state)
    assert info.values.shape == info.delta.shape == (BATCH,)
    assert {(m.shape, m.dtype) for m in info.metrics.values()} == {((), targets.dtype)}
    assert info.values.dtype == info.delta.dtype == targets.dtype


@pytest.mark.parametrize("name", ["preqn", "ngql"])
def test_vmap_over_seeds_equals_a_loop(name, x64):
    step, cases = STEPS[name](critic()), [case(seed)[:3] for seed in range(3)]
    params, inputs, targets = jax.tree.map(lambda *leaves: np.stack(leaves), *cases)
    new, state, info = jit(jax.vmap(step.update))(
        params, jit(jax.vmap(step.init))(params), inputs, targets
    )
    check_members(new, state, info, [take(step, *one) for one in cases])


@pytest.mark.parametrize("name", ["preqn", "ngql"])
def test_ensemble_equals_a_loop_over_members(name, x64):
    """Three critics on one batch, with targets so far that their linesearches end differently."""
    step = STEPS[name](critic())
    members, (_, inputs, targets, _) = [case(seed)[0] for seed in range(3)], case(5)
    targets = 20 * targets
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    new, state, info = take(steps.ensemble(step), stacked, inputs, targets)
    assert info.values.shape == info.delta.shape == (3, BATCH)
    alone = [take(step, params, inputs, targets) for params in members]
    metrics = [found[2].metrics for found in alone]
    for key, value in info.metrics.items():
        np.testing.assert_allclose(value, np.mean([m[key] for m in metrics]), rtol=1e-7, atol=1e-9)
    if name == "preqn":
        assert len({float(m["linesearch/backtracks"]) for m in metrics}) > 1
    without = [(p, s, i._replace(metrics={})) for p, s, i in alone]
    check_members(new, state, info._replace(metrics={}), without)


@pytest.mark.parametrize(
    "make", [steps.preconditioned, steps.natural_gradient], ids=["preqn", "ngql"]
)
def test_leaves_of_a_shorter_type_keep_it(make):
    params, inputs, targets, _ = case(dtype="float32")
    mixed = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim == 1 else leaf, params)
    new, _, _ = take(make(critic()), mixed, inputs, targets)
    assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [
        leaf.dtype for leaf in jax.tree.leaves(mixed)
    ]
