"""How each step moves the parameters: against NumPy, against one another, and on batches that have
no good step.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from preqn_jax import solve, steps
from preqn_jax.networks import Critic

jit = partial(jax.jit, compiler_options=oracles.QUICK)
HIDDEN, OBS, ACT, BATCH = (9,), 4, 3, 8
LAX = -0.999  # an alignment threshold that refuses next to nothing

# For each: the step, given q. Between them they go through every function that makes a step.
STEPS = {
    "sgd": lambda q: steps.gradient(q, optax.sgd(0.05)),
    "adam": lambda q: steps.gradient(q, optax.adam(0.01)),
    "preqn": lambda q: steps.preconditioned(q),
    "preqn_eigh": lambda q: steps.preconditioned(q, 0.25, solve=solve.eigh()),
    "preqn_jacobian": lambda q: steps.preconditioned(q, 0.25, method="jacobian"),
    "ngql": lambda q: steps.natural_gradient(q),
    "ngql_primal": lambda q: steps.natural_gradient(q, primal=True, max_steps=12),
}
PREQN = ["preqn", "preqn_eigh", "preqn_jacobian"]


def critic(activation="sin") -> Any:
    return Critic(HIDDEN, activation).apply


def case(seed=0, dtype="float64", batch=BATCH):
    """Parameters, inputs, and targets about 1 away, with the layers and joined inputs for the
    oracle.
    """
    rng = np.random.default_rng(seed)
    layers = oracles.random_layers(seed, (OBS + ACT, *HIDDEN, 1))
    x = rng.normal(size=(batch, OBS + ACT))
    targets = oracles.mlp(layers, "sin", x)[0] + rng.normal(size=batch)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), oracles.critic_params(layers))
    inputs = (jnp.asarray(x[:, :OBS], dtype), jnp.asarray(x[:, OBS:], dtype))
    return params, inputs, jnp.asarray(targets, dtype), x


def flat(params):
    return oracles.theta(jax.tree.leaves(params))


def unflat(theta, params):
    leaves, treedef = jax.tree.flatten(params)
    parts = np.split(theta, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return treedef.unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def oracle(params, x, targets, activation="sin"):
    """theta, Phi and Delta in NumPy."""
    values, phi = oracles.mlp(oracles.layers_of(params), activation, x)
    return flat(params), phi, np.asarray(targets, np.float64) - values


def move_error(new, old, expected):
    """How far the move is from the expected one, relative to it."""
    return oracles.relative_error(flat(new) - flat(old), expected - flat(old))


def take(step, params, inputs, targets):
    return jit(step.update)(params, step.init(params), inputs, targets)


def unchanged(new, old):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    )


# --- each step against its formula ----------------------------------------------------------------


@pytest.mark.parametrize("activation", sorted(oracles.ACTIVATIONS))
def test_gradient_with_sgd_is_equation_5(activation, x64):
    params, inputs, targets, x = case()
    theta, phi, delta = oracle(params, x, targets, activation)
    new, _, info = take(steps.gradient(critic(activation), optax.sgd(0.1)), params, inputs, targets)
    assert move_error(new, params, oracles.gradient_step(theta, phi, delta, 0.1)) < 1e-10
    np.testing.assert_allclose(info.delta, delta, rtol=1e-10)
    np.testing.assert_allclose(info.values, np.asarray(targets) - delta, rtol=1e-10)


def test_gradient_keeps_the_optimizers_state(x64):
    """Two steps with momentum: the second one's velocity holds half of the first one's."""
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
    """As agents run it: float32 sines, the default damping. Rounding of 1e-7 times a condition of
    some 1e2.
    """
    params, inputs, targets, x = case(dtype="float32")
    theta, phi, delta = oracle(params, x.astype(np.float32), targets)
    new, _, _ = take(steps.preconditioned(critic(), 0.25, LAX), params, inputs, targets)
    gram = oracles.kernel(phi)
    damped = gram + 1e-3 * np.mean(np.diag(gram)) * np.eye(BATCH)
    assert move_error(new, params, theta + 0.25 * phi @ np.linalg.solve(damped, delta)) < 1e-4


def test_learning_rate_is_kept_to_the_precision_of_the_parameters(x64):
    """0.1 is not a float32 number: rounded to one, it is off by 1.5e-8 of itself."""
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
    """Targets too far for a full step: every candidate is recomputed from outside."""
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
    """cos(K z, Delta): what Eq. 24 would see if Q were linear."""
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


# --- Lemma 4: PreQN and the natural gradient ------------------------------------------------------


def duplicated(inputs, x):
    """The same batch with its first half twice."""
    return jax.tree.map(lambda leaf: leaf.at[4:].set(leaf[:4]), inputs), np.concatenate(
        [x[:4], x[:4]]
    )


def test_undamped_natural_gradient_equals_preconditioned(x64):
    """With a nonsingular K. Conjugate gradients in parameter space end after B = 8 steps, and two
    more for the last digits.
    """
    params, inputs, targets, x = case()
    preqn, _, info = take(
        steps.preconditioned(critic(), 0.25, LAX, solve.eigh()), params, inputs, targets
    )
    assert info.metrics["linesearch/backtracks"] == 0
    theta, phi, delta = oracle(params, x, targets)
    for primal in (False, True):
        step = steps.natural_gradient(critic(), 0.25, 0.0, primal=primal, max_steps=10)
        ngql, _, other = take(step, params, inputs, targets)
        assert (
            move_error(ngql, params, oracles.natural_gradient_step(theta, phi, delta, 0.25)) < 1e-9
        )
        assert move_error(preqn, params, flat(ngql)) < 1e-9
        np.testing.assert_allclose(
            info.metrics["critic/alignment"], other.metrics["critic/alignment"], atol=1e-9
        )


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_damped_natural_gradient_equals_preconditioned_with_cholesky(damping, x64):
    """The push-through identity, with the same number on either side; it does not mind a singular
    K.
    """
    preqn = steps.preconditioned(critic(), 0.25, LAX, solve.cholesky(damping))
    dual = steps.natural_gradient(critic(), 0.25, damping)
    primal = steps.natural_gradient(critic(), 0.25, damping, primal=True, max_steps=12)
    params, inputs, targets, x = case()
    for inputs, x in ((inputs, x), duplicated(inputs, x)):  # noqa: B020
        theta, phi, delta = oracle(params, x, targets)
        fisher, g = phi @ phi.T / BATCH, phi @ delta / BATCH  # Eqs. 26 and 5
        shift = damping * np.trace(fisher) / BATCH * np.eye(len(theta))
        expected = theta + 0.25 * np.linalg.solve(fisher + shift, g)
        for step in (preqn, dual, primal):
            assert move_error(take(step, params, inputs, targets)[0], params, expected) < 1e-9


@pytest.mark.parametrize("dtype, damping", [("float32", 1e-3), ("float64", 1e-3), ("float64", 0.0)])
def test_primal_natural_gradient_survives_more_iterations_than_it_needs(dtype, damping, request):
    """The default of 100 iterations for a batch of 8: past convergence, conjugate gradients must
    not run away.
    """
    if dtype == "float64":
        request.getfixturevalue("x64")
    dual, primal = (
        steps.natural_gradient(critic("tanh"), 0.25, damping, primal=primal)
        for primal in (False, True)
    )
    for seed in range(4):
        params, inputs, targets, _ = case(seed, dtype)
        expected = flat(take(dual, params, inputs, targets)[0])
        # float32: rounding of 1e-7 times a condition of 1e3, the tenfold of it.
        error = move_error(take(primal, params, inputs, targets)[0], params, expected)
        assert error < (1e-3 if dtype == "float32" else 1e-9)


def test_duplicate_rows_do_not_disturb_the_minimum_norm_step(x64):
    """Eq. 28 with a singular K, where duplicates agree on their targets and where they do not."""
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


# --- batches without a good step ------------------------------------------------------------------

SOLVERS = {
    "eigh": solve.eigh(),
    "lstsq": solve.lstsq(),
    "cholesky": solve.cholesky(),
    "cholesky_undamped": solve.cholesky(0.0),
    "cg": solve.cg(),
    "cg_damped": solve.cg(damping=1e-3),
}


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
    assert info.metrics["critic/alignment"] == 0  # of the step that was taken: none
    assert unchanged(new, params)
    reported = [value for name, value in info.metrics.items() if not name.startswith("solve/")]
    assert jnp.all(jnp.isfinite(jnp.stack(reported)))
    assert info.metrics["solve/finite"] == 0 or jnp.isfinite(info.metrics["solve/residual"])


@pytest.mark.parametrize("name", STEPS)
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
        ({"method": "x"}, 'method must be "structured" or "jacobian", got'),
        ({"solve": "cholesky"}, r"solve is 'cholesky', expected a function .* solve.cholesky\(\)"),
    ],
)
def test_options_that_a_step_hands_on_are_checked_as_it_is_made(option, text):
    with pytest.raises(ValueError, match=text):
        steps.preconditioned(critic(), **option)


def test_iterations_of_the_primal_step_are_at_least_one():
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        steps.natural_gradient(critic(), primal=True, max_steps=0)


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("shape", [(BATCH, 1), (1,), (), (BATCH - 1,), (3, BATCH)])
@pytest.mark.parametrize("name", ["sgd", "preqn", "ngql", "ngql_primal"])
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


@pytest.mark.parametrize("name", ["sgd", "preqn", "ngql", "ngql_primal"])
def test_inputs_are_a_tuple(name):
    params, (obs, action), targets, _ = case(dtype="float32")
    step = STEPS[name](critic())
    for inputs in (obs, [obs, action]):
        with pytest.raises(ValueError, match=r"^inputs is of the type .*, expected a tuple"):
            step.update(params, step.init(params), inputs, targets)


# --- numbers that are traced ----------------------------------------------------------------------

SWEEPS = {  # what a step is made with, and the numbers to try
    "preqn, learning_rate": (lambda q, x: steps.preconditioned(q, x), [0.05, 0.1, 0.5]),
    "preqn, eta": (lambda q, x: steps.preconditioned(q, 1.0, x), [-0.999, 0.9, 0.999]),
    "preqn, decay": (lambda q, x: steps.preconditioned(q, 1.0, 0.999, decay=x), [0.2, 0.5, 0.9]),
    "preqn, damping": (
        lambda q, x: steps.preconditioned(q, solve=solve.cholesky(x)),
        [1e-4, 1e-2, 1.0],
    ),
    "preqn, rcond of eigh": (
        lambda q, x: steps.preconditioned(q, 0.5, LAX, solve.eigh(x)),
        [1e-12, 1e-3, 0.1],
    ),
    "preqn, rcond of lstsq": (
        lambda q, x: steps.preconditioned(q, 0.5, LAX, solve.lstsq(x)),
        [1e-12, 1e-3, 0.1],
    ),
    "preqn, damping of cg": (
        lambda q, x: steps.preconditioned(q, 0.5, LAX, solve.cg(damping=x)),
        [1e-3, 1e-2, 1.0],
    ),
    "ngql, learning_rate": (lambda q, x: steps.natural_gradient(q, x), [0.05, 0.1, 0.5]),
    "ngql, damping": (lambda q, x: steps.natural_gradient(q, 0.1, x), [1e-4, 1e-2, 1.0]),
    "ngql, damping of the primal": (
        lambda q, x: steps.natural_gradient(q, 0.1, x, primal=True, max_steps=12),
        [1e-3, 1e-2, 1.0],
    ),
    "adam, learning_rate": (lambda q, x: steps.gradient(q, optax.adam(x)), [1e-4, 1e-2, 1.0]),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_vmap_over_a_number_equals_a_loop(name, x64):
    """A sweep is one compiled call. Targets so far away that searches end differently."""
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
    # A number of Python's own gives the same step.
    alone = take(make(critic(), numbers[1]), params, inputs, targets)
    assert oracles.relative_error(flat(alone[0]), moves[1]) < 1e-10


@pytest.mark.parametrize("name", ["preqn, learning_rate", "preqn, decay", "ngql, learning_rate"])
def test_a_traced_number_keeps_the_types_of_the_parameters(name, x64):
    """A float64 number and float32 parameters."""
    make, numbers = SWEEPS[name]
    params, inputs, targets, _ = case(dtype="float32")

    def update(number):
        return make(critic(), number).update(params, (), inputs, targets)[0]

    found = jax.eval_shape(update, jax.ShapeDtypeStruct((), jnp.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("make", [steps.preconditioned, steps.natural_gradient])
def test_a_schedule_is_called_with_the_number_of_updates_so_far(make, x64):
    """0.4, 0.2, 0.1: each update as by a step with that rate."""
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
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    new, state, _ = take(step, stacked, inputs, targets)
    expected, *_ = take(plain, stacked, inputs, targets)
    assert state.tolist() == [1, 1]
    assert oracles.relative_error(flat(new), flat(expected)) < 1e-6


# --- as pure functions ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_two_updates_are_one_trace(name):
    """Neither what a step returns nor other values of its arguments make `jax.jit` trace it
    again.
    """
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
    """Also where JAX would have made float64 of a float32 and a Python number."""
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


def check_members(new, state, info, each_alone):
    """Member m of stacked results against the results of member m alone."""
    for m, (alone, alone_state, alone_info) in enumerate(each_alone):
        pick = partial(jax.tree.map, lambda leaf, m=m: leaf[m])
        assert oracles.relative_error(flat(pick(new)), flat(alone)) < 1e-10
        pairs = zip(
            jax.tree.leaves(pick((state, info))),
            jax.tree.leaves((alone_state, alone_info)),
            strict=True,
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["adam", "preqn", "ngql", "ngql_primal"])
def test_vmap_over_seeds_equals_a_loop(name, x64):
    step, cases = STEPS[name](critic()), [case(seed)[:3] for seed in range(3)]
    params, inputs, targets = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    new, state, info = jit(jax.vmap(step.update))(
        params, jax.vmap(step.init)(params), inputs, targets
    )
    check_members(new, state, info, [take(step, *one) for one in cases])


@pytest.mark.parametrize("name", ["adam", "preqn", "ngql"])
def test_ensemble_equals_a_loop_over_members(name, x64):
    """Three critics on one batch, with targets so far away that their searches end differently."""
    step = STEPS[name](critic())
    members, (_, inputs, targets, _) = [case(seed)[0] for seed in range(3)], case(5)
    targets = 20 * targets
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
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
