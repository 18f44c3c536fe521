"""One look at a critic: every number of `diagnose` against NumPy in float64, written from
`GLOSSARY`'s formulas.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import diagnostics
from preqn_jax.diagnostics import GLOSSARY, diagnose, diagnosis
from preqn_jax.networks import Critic
from preqn_jax.types import Transition

OBS, ACT, BATCH = 5, 3, 12


# --- critics, in NumPy and in JAX -----------------------------------------------------------------


class Make(NamedTuple):
    """A kind of critic. Its parameters as one vector theta `[d]` are the leaves of `treedef` in
    their order.
    """

    q: Callable[..., Any]  # in JAX, for one example
    treedef: Any
    shapes: list[tuple[int, ...]]
    numpy: Callable[[list[np.ndarray], np.ndarray], tuple[np.ndarray, np.ndarray, list[np.ndarray]]]
    """(leaves, x `[N, OBS + ACT]`) -> Q `[N]`, Phi `[d, N]`, and what each layer after the first
    takes `[N, width]`.
    """

    def leaves(self, theta):
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        parts = np.split(theta, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def params(self, theta, dtype="float64"):
        return self.treedef.unflatten([jnp.asarray(leaf, dtype) for leaf in self.leaves(theta)])

    def __call__(self, theta, x):
        return self.numpy(self.leaves(theta), x)


def mlp(hidden, activation):
    sizes = (OBS + ACT, *hidden, 1)
    layers = oracles.random_layers(0, sizes)

    def critic(leaves, x):
        layers, h = list(zip(leaves[1::2], leaves[::2], strict=True)), []
        for w, b in layers[:-1]:
            h.append(oracles.ACTIVATIONS[activation][0]((h[-1] if h else x) @ w + b))
        return *oracles.mlp(layers, activation, x), h

    shapes = [leaf.shape for w, b in layers for leaf in (b, w)]
    return Make(
        Critic(hidden, activation).apply,
        jax.tree.structure(oracles.critic_params(layers)),
        shapes,
        critic,
    )


class LayerNormCritic(nn.Module):
    """Not of ours: two hidden layers, normalised before their activation, without a name for
    anything.
    """

    @nn.compact
    def __call__(self, obs, action):
        h = jnp.concatenate([obs, action])
        for width in (6, 7):
            h = jnp.tanh(nn.LayerNorm()(nn.Dense(width)(h)))
        return nn.Dense(1)(h)[0]


def layer_norm():
    dense = {f"Dense_{i}": {"bias": 0, "kernel": 0} for i in range(3)}
    norms = {f"LayerNorm_{i}": {"bias": 0, "scale": 0} for i in range(2)}
    sizes = [(6,), (OBS + ACT, 6), (7,), (6, 7), (1,), (7, 1), (6,), (6,), (7,), (7,)]

    def forward(leaves, x):
        biases, kernels, h = leaves[:6:2], leaves[1:6:2], [x]
        for i in range(2):
            z = h[-1] @ kernels[i] + biases[i]
            z = z - z.mean(axis=1, keepdims=True)
            z = z / np.sqrt((z**2).mean(axis=1, keepdims=True) + 1e-6)
            h.append(np.tanh(z * leaves[7 + 2 * i] + leaves[6 + 2 * i]))
        return (h[-1] @ kernels[2] + biases[2])[:, 0], h[1:]

    make = Make(
        LayerNormCritic().apply,
        jax.tree.structure({"params": {**dense, **norms}}),
        sizes,
        lambda *_: None,
    )

    def critic(leaves, x):
        """Gradients by complex steps: exact to rounding for anything analytic."""
        theta = oracles.theta(leaves)
        phi = [
            forward(make.leaves(theta + 1e-30j * unit), x)[0].imag / 1e-30
            for unit in np.eye(theta.size)
        ]
        values, h = forward(leaves, x)
        return values, np.stack(phi), h

    return make._replace(numpy=critic)


def linear():
    q = lambda p, obs, action: jnp.concatenate([obs, action]) @ p["w"]
    return Make(
        q, jax.tree.structure({"w": 0}), [(OBS + ACT,)], lambda leaves, x: (x @ leaves[0], x.T, [])
    )


MAKES = {
    "sin": mlp((8, 9), "sin"),
    "tanh": mlp((8, 9), "tanh"),
    "relu": mlp((8, 9), "relu"),
    "one hidden layer": mlp((9,), "sin"),
    "LayerNorm": layer_norm(),
    "linear": linear(),
}


# --- cases ----------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What `diagnose` is called with; theta and `options["moved"]` are vectors, and `options` is
    without what is not given.
    """

    make: Make
    theta: np.ndarray
    batch: Transition
    next_action: np.ndarray
    options: dict[str, Any]

    def replace(self, **options):
        """The same with other options, or another part of the batch."""
        parts = {name: options.pop(name) for name in Transition._fields if name in options}
        fields = {name: options.pop(name) for name in Case._fields if name in options}
        changed = self._replace(**fields)
        return changed._replace(
            batch=changed.batch._replace(**parts), options={**self.options, **options}
        )


def draw_case(make, seed=0, size=BATCH, **options):
    """Random parameters and transitions; some are terminal, and the largest reward is a negative
    one.
    """
    rng = np.random.default_rng(seed)
    theta = [
        rng.normal(size=shape) / np.sqrt(shape[0] if len(shape) > 1 else 4) for shape in make.shapes
    ]
    obs, next_obs = rng.normal(size=(2, size, OBS))
    action, next_action = np.tanh(rng.normal(size=(2, size, ACT)))
    reward, discount = rng.uniform(-1, 1, size=size), np.ones(size)
    reward[3], discount[[1, 4, 5]] = -1.5, 0
    return Case(
        make,
        oracles.theta(theta),
        Transition(obs, action, reward, discount, next_obs),
        next_action,
        options,
    )


def some_returns(seed):
    """Of either sign, for five pairs that are not in the batch."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(5, OBS)), np.tanh(rng.normal(size=(5, ACT)))), np.array(
        [1.0, -2.0, 4.0, 3.0, -0.5]
    )


def joined(case):
    """X and X*, `[N, OBS + ACT]` each."""
    return np.hstack([case.batch.obs, case.batch.action]), np.hstack(
        [case.batch.next_obs, case.next_action]
    )


def linearized(case):
    """Q, Phi, and delta at X, without `targets` of its own."""
    x, ahead = joined(case)
    values, phi, _ = case.make(case.theta, x)
    targets = (
        case.batch.reward
        + case.options.get("gamma", 0.99) * case.batch.discount * case.make(case.theta, ahead)[0]
    )
    return values, phi, targets - values


def updated(case, alpha, length, seed=0):
    """theta after Eq. 5's step, and one of some length in some direction on top of it."""
    _, phi, delta = linearized(case)
    direction = np.random.default_rng(seed).normal(size=case.theta.size)
    return oracles.gradient_step(
        case.theta, phi, delta, alpha
    ) + length * direction / np.linalg.norm(direction)


def with_idle_units(case, second=1.0):
    """Two units of the first hidden layer, and one of the second, next to asleep; the second layer
    as small as `second`.
    """
    b0, w0, b1, w1, b2, w2 = case.make.leaves(case.theta)
    b0[:2], w0[:, :2], b1[4], w1[:, 4] = 0.001, 0.001 * w0[:, :2], 0.001, 0.0001
    return case.replace(theta=oracles.theta([b0, w0, second * b1, second * w1, b2, w2]))


def _moved():
    case = draw_case(MAKES["sin"], 1, gamma=0.9)
    return case.replace(moved=updated(case, 0.3, 0.3))


def _own_step():
    targets = np.random.default_rng(2).normal(size=BATCH)
    options = {
        "alpha": 0.3,
        "targets": targets,
        "reward_bound": 2.5,
        "returns": some_returns(2),
        "spectrum_rows": 7,
    }
    return with_idle_units(draw_case(MAKES["tanh"], 2, gamma=0.97, **options))


def _moved_and_alpha():
    """Half of its targets lie behind terminals, and all of Q is below zero."""
    case = draw_case(
        MAKES["relu"], 3, gamma=0.8, alpha=0.05, returns=some_returns(3), spectrum_rows=None
    )
    case = with_idle_units(case, second=0.02)
    case.theta[-10] = -3.0  # the bias of the output
    case = case.replace(discount=np.arange(BATCH) % 2.0)
    return case.replace(moved=updated(case, 0.1, 0.2))


CASES = {
    "moved": _moved,
    "own step": _own_step,
    "moved and alpha": _moved_and_alpha,
    "defaults": lambda: draw_case(MAKES["one hidden layer"], 4),
    "LayerNorm": lambda: draw_case(MAKES["LayerNorm"], 5, gamma=0.95, alpha=3.0),
    "linear": lambda: draw_case(MAKES["linear"], 6, 8, gamma=0.9, alpha=0.1, spectrum_rows=6),
}


def look(case, dtype="float64"):
    """`diagnose` of a case, in float64 unless told; the caller's arrays are NumPy's."""
    with jax.enable_x64(dtype == "float64"):
        cast = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree)
        options = dict(case.options)
        for name in {"targets", "returns"} & set(options):
            options[name] = cast(options[name])
        if "moved" in options:
            options["moved"] = case.make.params(options["moved"], dtype)
        rows = {name: options.pop(name) for name in ("spectrum_rows",) if name in options}
        batch, next_action = cast((case.batch, case.next_action))
        params = case.make.params(case.theta, dtype)
        return diagnose(
            case.make.q, diagnostics.Case(params, batch, next_action, **options), **rows
        )


@functools.cache
def measured(name):
    return look(CASES[name]())


# --- the formulas ---------------------------------------------------------------------------------


def formulas(case, alpha=None):
    """Every number by its formula. `alpha` is the one that others are stated with; the formula's
    own if None.
    """
    batch, options = case.batch, case.options
    x, ahead_x = joined(case)
    values, phi, hidden = case.make(case.theta, x)
    ahead_values, ahead_phi, ahead_hidden = case.make(case.theta, ahead_x)
    gamma, size = options.get("gamma", 0.99), len(values)
    targets = options.get("targets", batch.reward + gamma * batch.discount * ahead_values)
    delta, k = targets - values, oracles.kernel(phi)
    others = [[j for j in range(size) if j != i] for i in range(size)]
    plain = k @ delta / size

    given = options.get("alpha", None if "moved" in options else 1e-3)
    if "moved" in options:
        moved = options["moved"]
        linear = phi.T @ (moved - case.theta)
    else:
        moved, linear = oracles.gradient_step(case.theta, phi, delta, given), given * plain
    change = case.make(moved, x)[0] - values
    fit = given if given is not None else np.linalg.lstsq(plain[:, None], linear, rcond=None)[0][0]
    alpha = fit if alpha is None else alpha

    rows = slice(options.get("spectrum_rows", 64))
    spectrum = np.linalg.eigvalsh(k[rows, rows])
    excitation = gamma * batch.discount[:, None] * oracles.kernel(ahead_phi, phi) - k
    off = np.array([sum(abs(k[i, j]) for j in others[i]) for i in range(size)])
    bound = sum_of_entries(k, alpha, gamma)
    pairs = sum(delta[i] * delta[j] * k[i, j] for i in range(size) for j in others[i]) / (
        size * (size - 1)
    )
    numbers = {
        "q_mean": values.mean(),
        "q_largest": np.abs(values).max(),
        "td_error": np.abs(delta).mean(),
        "diagonal_mean": np.mean([phi[:, i] @ phi[:, i] for i in range(size)]),
        "row_ratio": np.mean(oracles.row_ratio(k)),
        "alpha": fit,
        "contraction_bound": bound,
        "overshoot_slack": min(1 - alpha * k[i, i] / size for i in range(size)),
        "generalization_slack": min(
            (1 - gamma) * k[i, i] - (1 + gamma) * off[i] for i in range(size)
        )
        / size,
        "alignment": oracles.cosine(change, delta),
        "gain": change @ delta / (delta @ delta),
        "linearization_error": np.linalg.norm(change - linear) / np.linalg.norm(linear),
        "effective_rank": np.trace(k) ** 2 / np.linalg.norm(k, "fro") ** 2,
        "condition": spectrum.max() / spectrum.min(),
        "self_excitation": np.linalg.eigvals(excitation).real.max() / np.mean(np.diag(k)),
        "soft_divergence": np.abs(values).max()
        * (1 - gamma)
        / options.get("reward_bound", np.abs(batch.reward).max()),
        "interference": pairs / np.mean(delta**2 * np.diag(k)),
        "extrapolation": (ahead_values.mean() - values.mean()) / values.std(),
    }
    if hidden:
        sigma = np.linalg.svd(hidden[-1][rows], compute_uv=False)
        numbers["feature_rank"] = min(
            n for n in range(1, len(sigma) + 1) if sigma[:n].sum() >= 0.99 * sigma.sum()
        )
        activity = [np.abs(h).mean(axis=0) for h in hidden]
        idle = [unit <= 0.025 * layer.mean() for layer in activity for unit in layer]
        numbers["dormant_share"] = sum(idle) / len(idle)
        pairs = zip(hidden[-1], ahead_hidden[-1], strict=True)
        numbers["coadaptation"] = np.mean([oracles.cosine(h, ahead) for h, ahead in pairs])
    if "returns" in options:
        (obs, action), returns = options["returns"]
        numbers["bias"] = np.mean(case.make(case.theta, np.hstack([obs, action]))[0] - returns)
        numbers["bias_relative"] = numbers["bias"] / np.mean(np.abs(returns))
    return numbers


def sum_of_entries(k, alpha, gamma):
    """beta(K) = max_i sum_j (|1_ij - alpha K_ij / B| + |alpha| gamma |K_ij| / B)."""
    size = len(k)
    terms = np.abs(np.eye(size) - alpha * k / size) + abs(alpha) * gamma * np.abs(k) / size
    return terms.sum(axis=1).max()


# --- every number ---------------------------------------------------------------------------------


@functools.cache
def expected(name):
    return formulas(CASES[name](), alpha=measured(name)["alpha"])


def numbers_of(name):
    """What there is to measure of a case."""
    without = {"feature_rank", "dormant_share", "coadaptation"} if name == "linear" else set()
    without |= set() if name in ("own step", "moved and alpha") else {"bias", "bias_relative"}
    return [number for number in GLOSSARY if number not in without]


@pytest.mark.parametrize(
    "name, number", [(name, number) for name in CASES for number in numbers_of(name)]
)
def test_every_number_equals_its_formula(name, number):
    tolerance = (
        1e-7 if number == "dormant_share" else 1e-8
    )  # a mean of booleans is float32 everywhere
    np.testing.assert_allclose(
        measured(name)[number], expected(name)[number], rtol=tolerance, atol=1e-11
    )


def test_the_cases_can_tell_formulas_apart():
    """Signs, terminals and thresholds that a wrong formula would get wrong."""
    found = {name: expected(name) for name in CASES}
    moved, idle, own = found["moved"], found["moved and alpha"], found["own step"]
    assert idle["q_mean"] < 0 < idle["q_largest"]
    assert all(1 < found[name]["feature_rank"] < 9 for name in ("moved", "own step"))
    assert own["dormant_share"] == 3 / 17 <= idle["dormant_share"] < 1
    assert moved["linearization_error"] > 0.01 and own["linearization_error"] > 0.01
    assert {np.sign(found[name]["self_excitation"]) for name in CASES} == {-1, 1}
    assert own["bias"] < 0 < own["alignment"] < 1
    assert found["LayerNorm"]["overshoot_slack"] < 0 < own["overshoot_slack"]
    for name in CASES:
        assert 0 < np.sum(CASES[name]().batch.discount == 0) < len(CASES[name]().batch.reward)


@pytest.mark.parametrize("name", CASES)
def test_numbers_come_by_name_in_the_order_of_the_glossary(name):
    found = measured(name)
    assert list(found) == numbers_of(name)
    assert all(type(value) is float and np.isfinite(value) for value in found.values())


def test_in_float32_every_number_is_near_its_formula():
    """As agents run it: rounding of 1e-7, times a condition of some 1e2."""
    case = CASES["own step"]()
    got, wanted = look(case, "float32"), formulas(case)
    for number in GLOSSARY:
        np.testing.assert_allclose(
            got[number], wanted[number], rtol=1e-4, atol=1e-6, err_msg=number
        )


# --- what the numbers do --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_the_best_fit_of_equation_5s_step_to_a_short_update(seed):
    """No other step of Eq. 5 comes closer. Short, for there the change of Q and its leading order
    are the same.
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
    """Half of a small step halves what is of second order, as a share of what is of first."""
    case = CASES["own step"]()
    errors = np.array(
        [look(case.replace(alpha=alpha))["linearization_error"] for alpha in (1e-3, 5e-4, 2.5e-4)]
    )
    assert np.all(errors > 1e-6)
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2, rtol=0.01)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_what_bootstraps_from_itself_does_not_excite_itself(gamma):
    """With X* = X and no terminal, gamma K - K: the rightmost of its eigenvalues is that of the
    least of K.
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
    """96 rows, more than are solved in full: near what bootstraps, far from it, beyond the data,
    and all terminal.
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
        wanted = np.linalg.eigvals(matrix).real.max()
        found = look(case)["self_excitation"] * scale
        assert abs(found - wanted) < 2e-4 * np.linalg.norm(matrix)
        if grows:
            assert wanted > 0
            np.testing.assert_allclose(found, wanted, rtol=0.001)


def matrices():
    """Of 8 to 256 rows: random, normal, with a rightmost pair of complex ones, defective, zero."""
    rng = np.random.default_rng(0)
    for size in (8, 64, 65, 256):
        yield rng.normal(size=(size, size))
        phi = rng.normal(size=(size, size // 2))
        yield -phi @ phi.T  # half of its eigenvalues are zero, the rightmost
        yield 0.9 * rng.normal(size=(size, 1)) * (phi @ phi.T) - phi @ phi.T
        turn = np.diag(-1.0 - np.arange(size))
        turn[:2, :2] = [[3, 5], [-5, 3]]
        yield turn
        yield np.diag(np.full(size, 2.0)) + np.diag(np.ones(size - 1), 1)
        yield -np.eye(size)
        yield np.zeros((size, size))


def test_the_rightmost_eigenvalue_is_that_of_all_of_them():
    """A share of 2e-4 of the norm is what ARPACK is asked for; matrices it gives up are solved in
    full.
    """
    for matrix in matrices():
        wanted = np.linalg.eigvals(matrix).real.max()
        found = diagnosis.rightmost(matrix)
        assert abs(found - wanted) <= 2e-4 * np.linalg.norm(matrix) + 1e-12
        assert diagnosis.rightmost(matrix) == found


@pytest.mark.parametrize("size", [8, 100])
def test_a_matrix_that_is_not_finite_has_no_rightmost_eigenvalue(size):
    assert np.isnan(diagnosis.rightmost(np.full((size, size), np.inf)))


def test_spectra_are_of_the_first_64_rows():
    case = draw_case(MAKES["sin"], 0, 96, gamma=0.95)
    found, wanted = look(case), formulas(case.replace(spectrum_rows=64))
    everything = formulas(case.replace(spectrum_rows=None))
    np.testing.assert_allclose(found["condition"], wanted["condition"], rtol=1e-6)
    assert found["feature_rank"] == wanted["feature_rank"]
    assert abs(everything["condition"] / wanted["condition"] - 1) > 0.1
    for number in ("row_ratio", "effective_rank", "interference", "dormant_share", "coadaptation"):
        np.testing.assert_allclose(found[number], everything[number], rtol=1e-8, err_msg=number)


def test_a_unit_is_dormant_at_a_fortieth_of_its_own_layers_mean():
    """Activities that are constants. The first layer's mean is 0.63, the second's 0.0062; of both
    together it is 0.3.
    """
    case = draw_case(
        MAKES["relu"], 0, gamma=0.8, alpha=0.05, returns=some_returns(3), spectrum_rows=None
    )
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
    found = look(case.replace(batch=batch, spectrum_rows=7))["condition"]
    assert 1e14 < found <= 1.001 / np.finfo(np.float64).eps


def test_a_critic_with_nothing_to_learn_has_no_number_that_is_none():
    """Q, rewards and TD errors of zero: every share of nothing is 0."""
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


def test_two_looks_are_one_trace():
    """Other numbers in every argument, of the same shapes."""
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


# --- bad input ------------------------------------------------------------------------------------

VECTOR, FEWER = np.zeros(BATCH), np.zeros(BATCH - 1)
WRONG = {
    "gamma of 1": ("gamma", {"gamma": 1.0}),
    "gamma below 0": ("gamma", {"gamma": -0.1}),
    "gamma no number": ("gamma", {"gamma": float("nan")}),
    "gamma for each row": ("gamma", {"gamma": VECTOR}),
    "alpha of 0": ("alpha", {"alpha": 0.0}),
    "alpha below 0": ("alpha", {"alpha": -1.0}),
    "alpha no number": ("alpha", {"alpha": float("nan")}),
    "alpha infinite": ("alpha", {"alpha": float("inf")}),
    "alpha for each row": ("alpha", {"alpha": VECTOR + 1}),
    "reward_bound of 0": ("reward_bound", {"reward_bound": 0.0}),
    "reward_bound infinite": ("reward_bound", {"reward_bound": float("inf")}),
    "next_action too wide": ("next_action", {"next_action": np.zeros((BATCH, ACT + 1))}),
    "next_action too short": ("next_action", {"next_action": np.zeros((BATCH - 1, ACT))}),
    "next_action flat": ("next_action", {"next_action": VECTOR}),
    "targets too short": ("targets", {"targets": FEWER}),
    "targets as a column": ("targets", {"targets": VECTOR[:, None]}),
    "discount too short": ("batch.discount", {"discount": FEWER}),
    "discount a number": ("batch.discount", {"discount": np.asarray(1.0)}),
    "next_obs too wide": ("batch.next_obs", {"next_obs": np.zeros((BATCH, OBS + 1))}),
    "next_obs too short": ("batch.next_obs", {"next_obs": np.zeros((BATCH - 1, OBS))}),
    "reward as a column": ("batch.reward", {"reward": VECTOR[:, None]}),
    "reward a number": ("batch.reward", {"reward": np.asarray(1.0)}),
    "obs too short": (
        "batch.obs",
        {"obs": np.zeros((BATCH - 1, OBS)), "next_obs": np.zeros((BATCH - 1, OBS))},
    ),
    "action too short": (
        "batch.action",
        {"action": np.zeros((BATCH - 1, ACT)), "next_action": np.zeros((BATCH - 1, ACT))},
    ),
    "too few returns": ("returns", {"returns": (some_returns(0)[0], np.zeros(4))}),
    "returns a number": ("returns", {"returns": (some_returns(0)[0], np.asarray(1.0))}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named(wrong):
    name, change = WRONG[wrong]
    case = CASES["own step"]().replace(**change)
    with pytest.raises(ValueError, match=rf"^{name} .*expected"):
        look(case)


def test_a_batch_of_one_is_refused():
    case = draw_case(MAKES["linear"], 0, 8)
    one = Transition(*(leaf[:1] for leaf in case.batch))
    with pytest.raises(
        ValueError, match=r"^batch.reward has the shape \(1,\), expected \[B\] with B of at least 2"
    ):
        look(case.replace(batch=one, next_action=case.next_action[:1]))


def test_moved_must_fit_the_parameters():
    case = CASES["linear"]()
    params = case.make.params(case.theta, "float32")
    for moved in (
        {"v": params["w"]},
        {**params, "v": params["w"]},
        {"w": params["w"][:-1]},
        params["w"],
    ):
        with pytest.raises(ValueError, match="^moved has another structure than params"):
            diagnose(
                case.make.q,
                diagnostics.Case(params, case.batch, case.next_action, moved=moved),
            )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["params", "batch", "next_action", "targets", "moved"])
def test_what_is_no_number_is_named(name, bad):
    case = CASES["moved" if name == "moved" else "own step"]()

    def spoiled(array):
        array = np.array(array)
        array.flat[array.size // 2] = bad
        return array

    change = {
        "params": lambda: {"theta": spoiled(case.theta)},
        "batch": lambda: {"reward": spoiled(case.batch.reward)},
        "next_action": lambda: {"next_action": spoiled(case.next_action)},
        "targets": lambda: {"targets": spoiled(case.options["targets"])},
        "moved": lambda: {"moved": spoiled(case.options["moved"])},
    }[name]()
    with pytest.raises(ValueError, match=f"^{name} holds a NaN or an infinity"):
        look(case.replace(**change))


@pytest.mark.parametrize("part", Transition._fields)
def test_every_part_of_the_batch_has_to_be_finite(part):
    case = CASES["own step"]()
    array = np.array(getattr(case.batch, part))
    array.flat[-1] = np.nan
    with pytest.raises(ValueError, match="^batch holds a NaN"):
        look(case.replace(**{part: array}))


# --- at the edges ---------------------------------------------------------------------------------


def test_an_update_away_from_its_targets_is_no_contraction():
    case = CASES["moved"]()
    found = look(case.replace(moved=updated(case, -0.3, 0)))
    assert found["alpha"] < 0
    wanted = sum_of_entries(oracles.kernel(linearized(case)[1]), found["alpha"], 0.9)
    assert wanted > 1
    np.testing.assert_allclose(found["contraction_bound"], wanted, rtol=1e-8)


def test_an_eigenvalue_that_repeats_is_found():
    """One-hot features and terminals alone: -K = -1, all eigenvalues at -1."""
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
    """32 rows of a last layer of few directions, all of them with a weight of their own."""
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
    return diagnosis._of_hidden_layers([layer], [layer], len(layer))


@pytest.mark.parametrize("which", ["obs", "G"])
def test_returns_that_are_no_numbers_are_named(which):
    case = CASES["own step"]()
    (obs, action), returns = case.options["returns"]
    (obs if which == "obs" else returns)[1] = np.nan
    with pytest.raises(ValueError, match="^returns"):
        look(case.replace(returns=((obs, action), returns)))


@pytest.mark.parametrize("rows", [0, -5])
def test_rows_of_a_spectrum_are_at_least_one(rows):
    with pytest.raises(ValueError, match="^spectrum_rows is"):
        look(CASES["linear"]().replace(spectrum_rows=rows))


def test_a_critic_that_does_not_depend_on_its_parameters_has_the_worst_condition():
    obs, action = jnp.ones((4, 2)), jnp.ones((4, 1))
    batch = Transition(obs, action, jnp.ones(4), jnp.ones(4), obs)
    nothing = lambda params, obs, action: 0 * jnp.sum(params)
    found = diagnose(nothing, diagnostics.Case(jnp.ones(3), batch, action))
    assert found["condition"] == pytest.approx(1 / jnp.finfo(jnp.float32).eps)


def test_where_differences_have_no_digits_left_the_linearization_has_no_error():
    """A linear critic in float32 with Q about 1e6: all that there is to see of an error is
    rounding.
    """
    obs, action = (
        jnp.asarray(np.random.default_rng(0).uniform(1, 2, (16, 3)), jnp.float32),
        jnp.ones((16, 1)),
    )
    batch = Transition(obs, action, jnp.ones(16), jnp.ones(16), obs)
    q, params = lambda params, obs, action: jnp.dot(params, obs), jnp.full(3, 2e5)
    found = diagnose(q, diagnostics.Case(params, batch, action, moved=params + 0.02))
    assert found["linearization_error"] == 0
