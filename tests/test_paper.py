"""The paper's statements on updates and kernels, tested on the code with real networks.

Achiam, Knight and Abbeel 2019, "Towards Characterizing Divergence in Deep Q-Learning". Everything
here is float64.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from preqn_jax import ntk, solve, steps, tabular
from preqn_jax.batching import batched
from preqn_jax.networks import Critic

jit = partial(jax.jit, compiler_options=oracles.QUICK)
pytestmark = pytest.mark.usefixtures("x64")

PAIRS, OBS, ACT, HIDDEN = 9, 4, 3, (8,)  # a finite set of 9 state-action pairs
COUNTS = np.array(
    [3, 1, 0, 2, 0, 1, 5, 4, 0]
)  # how often each is in the buffer: 16 in all; three pairs never are


def network(seed=0, activation="sin") -> Any:
    """q, its parameters, the whole finite set as inputs, and Q and Phi there by the oracle."""
    layers = oracles.random_layers(seed, (OBS + ACT, *HIDDEN, 1))
    x = np.random.default_rng(seed + 100).normal(size=(PAIRS, OBS + ACT))
    values, phi = oracles.mlp(layers, activation, x)
    params = jax.tree.map(jnp.asarray, oracles.critic_params(layers))
    return (
        Critic(HIDDEN, activation).apply,
        params,
        (jnp.asarray(x[:, :OBS]), jnp.asarray(x[:, OBS:])),
        values,
        phi,
    )


def linear(seed=0, features=20):
    """A critic Q = theta^T phi(s, a) with fixed nonlinear features."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(OBS + ACT, features))
    x, theta = rng.normal(size=(PAIRS, OBS + ACT)), rng.normal(size=features)

    def q(theta, obs, action):
        return jnp.sin(jnp.concatenate([obs, action]) @ basis) @ theta

    phi = np.sin(x @ basis).T
    return (
        q,
        jnp.asarray(theta),
        (jnp.asarray(x[:, :OBS]), jnp.asarray(x[:, OBS:])),
        theta @ phi,
        phi,
    )


def drawn():
    """The rows of a batch that has the frequencies of COUNTS."""
    return np.repeat(np.arange(PAIRS), COUNTS)


def backup(values, seed=0):
    """T*Q of some random problem: rewards, plus the discounted largest values of successors."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=PAIRS) + 0.99 * values[rng.integers(PAIRS, size=(PAIRS, 3))].max(axis=1)


def update(step, params, inputs, targets):
    new, _, info = jit(step.update)(params, step.init(params), inputs, jnp.asarray(targets))
    return new, info


def values_of(q, params, inputs):
    return np.asarray(batched(q)(params, inputs))


@pytest.mark.parametrize("activation", sorted(oracles.ACTIVATIONS))
def test_equation_9_the_kernel_is_of_inner_products_of_gradients(activation):
    q, params, inputs, _, phi = network(activation=activation)
    assert (
        oracles.relative_error(
            jit(partial(ntk.kernel, q, block=4))(params, inputs), oracles.kernel(phi)
        )
        < 1e-12
    )


@pytest.mark.parametrize(
    "activation", ["sin", "tanh"]
)  # relu is left out: it has no second derivative
def test_theorem_1_a_gradient_step_is_u_to_second_order(activation):
    """Eq. 10: Q' = Q + alpha K D_rho (T*Q - Q) + O(alpha^2) on the whole set, including pairs that
    are never in the buffer.
    """
    q, params, inputs, values, phi = network(activation=activation)
    batch, targets = jax.tree.map(lambda leaf: leaf[drawn()], inputs), backup(values)
    first_order = oracles.kernel(phi) @ np.diag(COUNTS / COUNTS.sum()) @ (targets - values)
    remainders = []
    for alpha in (2**-6, 2**-7, 2**-8):
        new, _ = update(steps.gradient(q, optax.sgd(alpha)), params, batch, targets[drawn()])
        remainders.append(np.abs(values_of(q, new, inputs) - (values + alpha * first_order)).max())
        assert remainders[-1] < 0.2 * alpha * np.abs(first_order).max()
    ratios = np.array(remainders[:-1]) / remainders[1:]
    assert np.all(np.abs(ratios - 4) < 0.4)  # 4, and a tenth for the third-order term


def test_lemma_3_linear_features_have_no_higher_order_terms():
    """Eq. 15, even for a long step: Q' = Q + alpha K D_rho (T*Q - Q) exactly, and K does not
    change.
    """
    q, theta, inputs, values, phi = linear()
    batch, targets = jax.tree.map(lambda leaf: leaf[drawn()], inputs), backup(values)
    new, _ = update(steps.gradient(q, optax.sgd(10.0)), theta, batch, targets[drawn()])
    expected = values + 10.0 * oracles.kernel(phi) @ np.diag(COUNTS / COUNTS.sum()) @ (
        targets - values
    )
    assert oracles.relative_error(values_of(q, new, inputs), expected) < 1e-12
    before, after = (ntk.kernel(q, p, inputs) for p in (theta, new))
    assert oracles.relative_error(before, oracles.kernel(phi)) < 1e-12
    assert np.array_equal(before, after)


@pytest.mark.parametrize("alpha", [0.125, 1.0])
def test_equation_21_attains_equation_20_where_q_is_linear(alpha):
    """K has full rank and there are no higher-order terms: Q' = Q + alpha (T*Q - Q), with alignment
    1.
    """
    q, theta, inputs, values, phi = linear()
    assert np.linalg.matrix_rank(oracles.kernel(phi)) == PAIRS
    targets = backup(values)
    new, info = update(
        steps.preconditioned(q, alpha, 0.999999, solve.eigh()), theta, inputs, targets
    )
    assert info.metrics["linesearch/backtracks"] == 0
    assert (
        oracles.relative_error(values_of(q, new, inputs), values + alpha * (targets - values))
        < 1e-10
    )
    np.testing.assert_allclose(info.metrics["critic/alignment"], 1, atol=1e-10)


def test_with_fewer_parameters_than_pairs_equation_22_is_least_squares():
    """The second obstacle of section 4: K is rank deficient, and Q' - Q is alpha times the
    projection of T*Q - Q.
    """
    q, theta, inputs, values, phi = linear(features=5)
    targets = backup(values)
    new, info = update(steps.preconditioned(q, 0.5, -0.999, solve.eigh()), theta, inputs, targets)
    nearest = phi.T @ np.linalg.lstsq(phi.T, targets - values, rcond=None)[0]
    assert info.metrics["solve/rank"] == 5
    assert oracles.relative_error(values_of(q, new, inputs) - values, 0.5 * nearest) < 1e-10
    np.testing.assert_allclose(
        info.metrics["critic/alignment"], oracles.cosine(nearest, targets - values), atol=1e-10
    )


@pytest.mark.parametrize("eta", [0.9, 0.97, 0.999])
def test_equation_24_every_accepted_step_satisfies_its_criterion(eta):
    """A sequence of steps towards moving targets, each checked from outside; some need the
    linesearch.
    """
    q, params, inputs, _, _ = network()
    step = steps.preconditioned(q, 1.0, eta, solve.cholesky(1e-6))
    searched = 0
    for k in range(12):
        before = values_of(q, params, inputs)
        targets = backup(before, seed=k) + 3 * np.random.default_rng(k).normal(size=PAIRS)
        params, info = update(step, params, inputs, targets)
        change = values_of(q, params, inputs) - before
        assert info.metrics["linesearch/accepted"] == 1
        assert oracles.cosine(change, targets - before) >= eta
        searched += int(info.metrics["linesearch/backtracks"])
    assert searched > 0


@pytest.mark.parametrize("what", ["network", "duplicate pairs", "more pairs than parameters"])
def test_lemma_4_on_the_features_of_a_network(what):
    """(Phi Phi^T)^+ Phi = Phi (Phi^T Phi)^+, with Phi column by column from the pullback and K from
    the structured kernel.
    """
    if what == "more pairs than parameters":
        q, params, inputs, _, _ = linear(features=5)
    else:
        q, params, inputs, _, _ = network()
    if what == "duplicate pairs":
        inputs = jax.tree.map(lambda leaf: leaf[drawn()], inputs)

    @jit
    def linearize(params, inputs):
        lin = ntk.linearize(q, params, inputs)
        return lin.gram, jax.vmap(lin.pullback)(jnp.eye(lin.values.shape[0]))

    gram, columns = linearize(params, inputs)
    phi = np.concatenate(
        [np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(columns)], axis=1
    ).T
    assert oracles.relative_error(gram, phi.T @ phi) < 1e-12
    left = np.linalg.pinv(phi @ phi.T, oracles.RCOND, hermitian=True) @ phi
    right = phi @ np.linalg.pinv(np.asarray(gram), oracles.RCOND, hermitian=True)
    rank = {
        "network": PAIRS,
        "duplicate pairs": np.count_nonzero(COUNTS),
        "more pairs than parameters": 5,
    }[what]
    assert np.linalg.matrix_rank(np.asarray(gram), tol=1e-9) == rank
    assert oracles.relative_error(left, right) < 1e-9


def test_section_4_1_preqn_and_natural_gradient_are_one_update():
    """Eqs. 27 and 28 as implemented, on the same samples, over several steps that each start where
    the last one ended.
    """
    q, params, inputs, values, _ = network()
    preqn = steps.preconditioned(q, 0.25, -0.999, solve.eigh())
    ngql = steps.natural_gradient(q, 0.25, 0.0)
    theta = other = params
    for k in range(3):
        targets = backup(values, seed=k)
        theta, info = update(preqn, theta, inputs, targets)
        other, _ = update(ngql, other, inputs, targets)
        assert info.metrics["linesearch/backtracks"] == 0
        a, b = (oracles.theta(jax.tree.leaves(p)) for p in (theta, other))
        assert oracles.relative_error(a, b) < 1e-9


# Section 5.2: "divergence issues with PreQN-relu were straightforwardly resolved by decreasing the
# learning rate". Three states at 1, 2 and 32; the first leads to the third, the second to itself,
# and there are data of these two alone. A relu network without biases is linear on positive
# numbers, so what it says at 32 is 31 Q(2) - 30 Q(1) to first order, whatever its weights: every
# step alpha moves Q(1) by -30 alpha gamma times as much as it moves the target of Q(1).
PLACES, GAMMA = np.array([1.0, 2.0, 32.0]), 0.9
MDP = tabular.MDP(np.eye(3)[[2, 1, 2]][:, None], np.array([[1.0], [0.0], [0.0]]), GAMMA)
DATA = jnp.asarray([[0.5], [0.5], [0.0]])


def far_apart(activation, seed):
    """A critic on the three states, with its parameters and inputs."""
    critic = Critic((32,), activation)
    inputs = jnp.asarray(PLACES)[:, None], jnp.zeros((3, 1))
    params = critic.init(jax.random.key(seed), inputs[0][0], inputs[1][0])
    return critic.apply, jax.tree.map(lambda leaf: leaf.astype(float), params), inputs


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


@pytest.mark.parametrize("seed", SEEDS)
def test_section_5_2_preconditioned_steps_of_a_relu_kernel_diverge_unless_they_are_small(seed):
    """To first order: K of a new network, and the step of Eqs. 21-23 with it."""
    q, params, inputs = far_apart("relu", seed)
    kernel = np.asarray(ntk.kernel(q, params, inputs))
    far = kernel[2, :2] @ np.linalg.inv(kernel[:2, :2])
    np.testing.assert_allclose(far, [-30, 31], rtol=1e-9)
    factor = 0.1 * (1 + 30 * GAMMA) - 1  # of the error of Q(1), in a step that turns it round
    assert factor > 1 and 0.01 * (1 + 30 * GAMMA) < 1
    start = values_of(q, params, inputs)[:, None]

    def td_errors(alpha, steps):
        step = lambda table: tabular.preconditioned(MDP, table, alpha, DATA, kernel)
        path = np.asarray(tabular.iterate(step, jnp.asarray(start), steps))
        return np.array([np.abs(tabular.backup(MDP, q) - q)[:2].max() for q in path])

    at_the_papers, smaller = td_errors(0.1, 60), td_errors(0.01, 3000)
    np.testing.assert_allclose(at_the_papers[-5:] / at_the_papers[-6:-1], factor, rtol=1e-6)
    assert smaller[-1] < 0.1 * smaller[0] and smaller[-1] < 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_section_5_2_preqn_relu_settles_at_a_smaller_rate_and_preqn_sin_at_the_papers(seed):
    """With network and linesearch. At the paper's rate and eta the TD errors of relu stay, though
    the linesearch bounds them; at 0.01 they vanish, and those of sin vanish at 0.1.
    """

    def td_errors(activation, alpha, updates):
        q, params, inputs = far_apart(activation, seed)
        step = steps.preconditioned(q, alpha, 0.97)
        data = jax.tree.map(lambda leaf: leaf[:2], inputs)

        def advance(params, _):
            table = batched(q)(params, inputs)[:, None]
            targets = tabular.backup(MDP, table)[:2, 0]
            new, _, _ = step.update(params, step.init(params), data, targets)
            return new, jnp.max(jnp.abs(targets - table[:2, 0]))

        return np.asarray(jit(lambda p: jax.lax.scan(advance, p, length=updates)[1])(params))

    assert td_errors("relu", 0.1, 1000)[500:].max() > 0.2
    assert td_errors("relu", 0.01, 3000)[1500:].max() < 0.02
    assert td_errors("sin", 0.1, 1000)[500:].max() < 0.02
