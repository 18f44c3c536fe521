"""Section 3 of the paper on random finite problems: each statement with strict margins, against
float64 NumPy.

So are their edges, where they fail to the letter: equality in Eq. 17, and moduli below 1 whose
  product does not vanish.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from preqn_jax import diagnostics, ntk, steps, tabular
from preqn_jax.batching import batched
from preqn_jax.networks import Critic

pytestmark = pytest.mark.usefixtures("x64")
S, A = 3, 2
N = S * A
jit = partial(jax.jit, compiler_options=oracles.QUICK)


def problems(seed, count, states=S, actions=A) -> Any:
    """`count` random MDPs, stacked; discounts from 0.1 to 0.99, deterministic transitions among
    them.
    """
    rng = np.random.default_rng(seed)
    spread = rng.choice([0.05, 1.0], size=count)
    transition = np.stack([rng.dirichlet(np.full(states, c), (states, actions)) for c in spread])
    transition[: count // 4] = np.eye(states)[
        rng.integers(states, size=(count // 4, states, actions))
    ]
    return tabular.MDP(
        transition, rng.normal(size=(count, states, actions)), rng.uniform(0.1, 0.99, count)
    )


def one(mdps, k):
    return tabular.check(tabular.MDP(*(field[k] for field in mdps)))


def distributions(seed, count):
    """rho `[count, S, A]`, no pair below a hundredth."""
    rho = np.random.default_rng(seed).dirichlet(np.ones(N), count).reshape(count, S, A)
    return 0.01 + (1 - 0.01 * N) * rho


def kernels(seed, count, features=N):
    """Positive semi-definite K `[count, N, N]`, of rank `features` at most."""
    phi = np.random.default_rng(seed).normal(size=(count, N, features))
    return phi @ phi.transpose(0, 2, 1)


def conforming(seed, rho, gamma, margin):
    """Kernels that satisfy Eq. 17 with `margin` times the allowed off-diagonal in the tightest row,
    and a step for Eq. 16.
    """
    rng = np.random.default_rng(seed)
    count, rho = len(rho), rho.reshape(len(rho), N)
    off = rng.normal(size=(count, N, N))
    off = (off + off.transpose(0, 2, 1)) * (1 - np.eye(N))
    diagonal = rng.uniform(0.5, 2, (count, N))
    allowed = (
        (1 - gamma[:, None])
        * diagonal
        * rho
        / ((1 + gamma[:, None]) * (np.abs(off) * rho[:, None, :]).sum(axis=2))
    )
    kernel = np.reshape(margin * allowed.min(axis=1), (count, 1, 1)) * off + diagonal[
        :, :, None
    ] * np.eye(N)
    return kernel, 0.9 / (diagonal * rho).max(axis=1)


# Written from the formulas, one entry at a time.


def oracle_backup(mdp, q):
    p, r = np.asarray(mdp.transition), np.asarray(mdp.reward)
    out = np.zeros(q.shape)
    for s, a, after in np.ndindex(p.shape):
        reward = r[s, a, after] if r.ndim == 3 else r[s, a]
        out[s, a] += p[s, a, after] * (reward + float(mdp.gamma) * max(q[after]))
    return out


def oracle_beta(kernel, rho, alpha, gamma):
    rho, size = rho.ravel(), len(kernel)
    rows = [
        sum(
            abs((i == j) - alpha * kernel[i, j] * rho[j])
            + alpha * gamma * abs(kernel[i, j]) * rho[j]
            for j in range(size)
        )
        for i in range(size)
    ]
    return max(rows)


def oracle_modulus(mdp, alpha, rho, kernel):
    """The norm of the derivative under every deterministic policy, the largest."""
    p, size = np.asarray(mdp.transition), rho.size
    kd, largest = kernel @ np.diag(rho.ravel()), 0.0
    for policy in itertools.product(range(p.shape[1]), repeat=p.shape[0]):
        under = np.zeros((size, size))
        for i, (s, a) in enumerate(np.ndindex(*p.shape[:2])):
            for after in range(p.shape[0]):
                under[i, after * p.shape[1] + policy[after]] = p[s, a, after]
        derivative = np.eye(size) - alpha * kd + alpha * float(mdp.gamma) * kd @ under
        largest = max(largest, np.abs(derivative).sum(axis=1).max())
    return largest


def optimal(mdp):
    """Q* as the best of all deterministic policies, each evaluated by a linear solve."""
    p, r = np.asarray(mdp.transition), np.asarray(tabular.expected_reward(mdp))
    states, actions = r.shape
    best = np.full((states, actions), -np.inf)
    for policy in itertools.product(range(actions), repeat=states):
        chosen = np.arange(states), np.array(policy)
        values = np.linalg.solve(np.eye(states) - float(mdp.gamma) * p[chosen], r[chosen])
        best = np.maximum(best, r + float(mdp.gamma) * p @ values)
    return best


def sup(x):
    return np.abs(x).max()


# Backups and operators


@pytest.mark.parametrize("per_successor", [False, True])
def test_backups_are_equation_2(per_successor):
    rng = np.random.default_rng(1)
    mdp = one(problems(0, 4), 3)
    if per_successor:
        mdp = mdp._replace(reward=jnp.asarray(rng.normal(size=(S, A, S))))
    q = rng.normal(size=(S, A))
    np.testing.assert_allclose(tabular.backup(mdp, q), oracle_backup(mdp, q), atol=1e-14)
    np.testing.assert_allclose(
        tabular.policy_backup(mdp, tabular.greedy(jnp.asarray(q)), q),
        oracle_backup(mdp, q),
        atol=1e-14,
    )
    policy = rng.dirichlet(np.ones(A), S)
    expected = np.asarray(tabular.expected_reward(mdp)) + float(mdp.gamma) * np.asarray(
        mdp.transition
    ) @ (policy * q).sum(axis=1)
    np.testing.assert_allclose(tabular.policy_backup(mdp, policy, q), expected, atol=1e-14)


def test_value_iteration_finds_the_best_policy_and_bounds_its_error():
    mdps = problems(2, 40, states=4, actions=3)
    found = jit(jax.vmap(partial(tabular.value_iteration, tol=1e-3)))(mdps)
    for k in range(40):
        expected = optimal(one(mdps, k))
        assert sup(found.q[k] - expected) <= found.error[k] + 1e-12 <= 1.001e-3
        np.testing.assert_array_equal(
            tabular.greedy(found.q[k]).argmax(axis=1), found.q[k].argmax(axis=1)
        )
    few = tabular.value_iteration(one(mdps, 0), 1e-9, 3)
    assert few.steps == 3 and few.error > 1e-9 and sup(few.q - optimal(one(mdps, 0))) <= few.error


def test_operators_are_equations_11_to_14():
    """With a kernel that is not symmetric, so that a transpose shows."""
    rng = np.random.default_rng(3)
    mdp, rho, kernel = one(problems(3, 4), 3), distributions(3, 1)[0], rng.normal(size=(N, N))
    q = rng.normal(size=(S, A))
    delta = oracle_backup(mdp, q) - q
    np.testing.assert_allclose(tabular.u1(mdp, q, 0.3), q + 0.3 * delta, atol=1e-14)
    np.testing.assert_allclose(tabular.u2(mdp, q, 0.3, rho), q + 0.3 * rho * delta, atol=1e-14)
    moved = q.ravel() + 0.3 * kernel @ np.diag(rho.ravel()) @ delta.ravel()
    np.testing.assert_allclose(tabular.u(mdp, q, 0.3, rho, kernel).ravel(), moved, atol=1e-13)
    np.testing.assert_allclose(tabular.u3(mdp, q, 0.3, rho, kernel).ravel(), moved, atol=1e-13)


def test_operators_keep_float32():
    def everything(mdp, rho, kernel, q):
        outs = [
            tabular.u1(mdp, q, 0.5),
            tabular.u2(mdp, q, 0.5, rho),
            tabular.u(mdp, q, 0.5, rho, kernel),
        ]
        outs += [
            tabular.preconditioned(mdp, q, 0.5, rho, kernel),
            tabular.value_iteration(mdp, 1e-3).q,
            tabular.greedy(q),
        ]
        outs += [tabular.policy_backup(mdp, q, q), tabular.modulus(mdp, 0.5, rho, kernel)]
        return [*outs, diagnostics.contraction_bound(kernel, 1 / N, 0.5, mdp.gamma)]

    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    mdp = tabular.MDP(shaped(S, A, S), shaped(S, A), shaped())
    outs = jax.eval_shape(everything, mdp, shaped(S, A), shaped(N, N), shaped(S, A))
    assert {out.dtype for out in outs} == {np.dtype("float32")}


@pytest.mark.parametrize(("features", "missing"), [(N, 0), (N, 2), (4, 0), (4, 1)])
def test_preconditioned_is_least_squares_on_the_data(features, missing):
    mdp, rho, kernel = one(problems(4, 4), 3), distributions(4, 1)[0], kernels(4, 1, features)[0]
    rho.ravel()[:missing] = 0
    q = np.random.default_rng(4).normal(size=(S, A))
    delta, batch = (oracle_backup(mdp, q) - q).ravel()[missing:], slice(missing, None)
    z = np.linalg.pinv(kernel[batch, batch], 1e-10, hermitian=True) @ delta
    moved = q.ravel() + 0.3 * kernel[:, batch] @ z
    np.testing.assert_allclose(
        tabular.preconditioned(mdp, q, 0.3, rho, kernel).ravel(), moved, atol=1e-9
    )
    if features == N and not missing:
        np.testing.assert_allclose(
            tabular.preconditioned(mdp, q, 0.3, rho, kernel), tabular.u1(mdp, q, 0.3), atol=1e-9
        )


# Theorem 1 and Lemma 3: what Eq. 5 does to Q


def pairs():
    """Every pair of a problem as inputs of a critic: a state one-hot, an action as a number."""
    state, action = (index.ravel() for index in np.indices((S, A)))
    return jnp.eye(S)[state], jnp.linspace(-1, 1, A)[action][:, None]


def expected_update(q, params, alpha, mdp, rho):
    """Q before and after Eq. 5, and the parameters after it.

    `steps.gradient` weighs pairs alike; targets that lie N rho_i delta_i off stand for the weights
    rho.
    """
    inputs = pairs()
    table = lambda p: batched(q)(p, inputs).reshape(S, A)
    before = table(params)
    targets = before + N * rho * (tabular.backup(mdp, before) - before)
    step = steps.gradient(q, optax.sgd(alpha))
    params, _, _ = step.update(params, step.init(params), inputs, targets.reshape(-1))
    return before, table(params), params


@pytest.mark.parametrize("activation", ["sin", "tanh"])
def test_theorem_1_the_remainder_is_quadratic_in_the_step(activation):
    """Halving alpha leaves a quarter of |Q' - U Q|, with a network, a real T*, and rho of zero
    somewhere.
    """
    critic, mdp = Critic((8,), activation), one(problems(5, 4), 3)
    rho = distributions(5, 1)[0]
    rho = jnp.asarray(np.where(np.arange(N).reshape(S, A) == 2, 0, rho) / (1 - rho.ravel()[2]))
    params = jax.tree.map(
        jnp.asarray, oracles.critic_params(oracles.random_layers(5, (S + 1, 8, 1)))
    )
    kernel = ntk.kernel(critic.apply, params, pairs())

    @jit
    def remainder(alpha):
        before, after, _ = expected_update(critic.apply, params, alpha, mdp, rho)
        return jnp.max(jnp.abs(after - tabular.u(mdp, before, alpha, rho, kernel))), jnp.max(
            jnp.abs(after - before)
        )

    found = np.array([remainder(2.0**-k) for k in (6, 7, 8)])
    assert np.all(found[:, 0] < 0.1 * found[:, 1])
    ratios = found[:-1, 0] / found[1:, 0]
    assert np.all(np.abs(ratios - 4) < 0.4), ratios


def test_lemma_3_linear_updates_are_u3_for_many_steps():
    rng = np.random.default_rng(6)
    basis, mdp, rho = (
        rng.normal(size=(S + 1, 5)),
        one(problems(6, 4), 3),
        jnp.asarray(distributions(6, 1)[0]),
    )
    q = lambda theta, obs, action: jnp.sin(jnp.concatenate([obs, action]) @ basis) @ theta
    phi = np.sin(np.concatenate(pairs(), axis=1) @ basis)
    theta = jnp.asarray(rng.normal(size=5))
    step = jit(lambda theta: expected_update(q, theta, 3.0, mdp, rho))
    for _ in range(5):
        before, after, theta = step(theta)
        expected = tabular.u3(mdp, before, 3.0, rho, phi @ phi.T)
        assert oracles.relative_error(after, expected) < 1e-12
        assert sup(after - before) > 1e-2


# Moduli


@partial(jit, static_argnames="operator")
def estimates(operator, key, *args):
    """`estimate_modulus` for every instance of the stacked arguments."""

    def single(key, *args):
        return tabular.estimate_modulus(lambda q: operator(*args, q), (S, A), key, 16)

    return jax.vmap(single)(jax.random.split(key, len(args[0].gamma)), *args)


def _u1(mdp, alpha, q):
    return tabular.u1(mdp, q, alpha)


def _u2(mdp, alpha, rho, q):
    return tabular.u2(mdp, q, alpha, rho)


def _u3(mdp, alpha, rho, kernel, q):
    return tabular.u3(mdp, q, alpha, rho, kernel)


COUNT = 1000
bounds = jax.vmap(
    lambda k, rho, alpha, gamma: diagnostics.contraction_bound(k, rho.reshape(-1), alpha, gamma)
)
moduli = jit(jax.vmap(tabular.modulus))


def test_lemma_1_u1_contracts_with_its_modulus_and_no_less():
    mdps, alpha = problems(7, COUNT), np.random.default_rng(7).uniform(0.02, 0.98, COUNT)
    closed = 1 - (1 - mdps.gamma) * alpha
    ones, eye = np.ones((COUNT, S, A)), np.broadcast_to(np.eye(N), (COUNT, N, N))
    found = estimates(_u1, jax.random.key(7), mdps, alpha)
    assert np.all(closed < 1)
    np.testing.assert_allclose(found, closed, rtol=1e-12)  # never above, and attained by shifts
    np.testing.assert_allclose(moduli(mdps, alpha, ones, eye), closed, rtol=1e-12)
    np.testing.assert_allclose(bounds(eye, ones, alpha, mdps.gamma), closed, rtol=1e-12)
    mdp, star = one(mdps, 0), optimal(one(mdps, 0))
    np.testing.assert_allclose(tabular.u1(mdp, star, 0.5), star, atol=1e-12)
    shifted = tabular.u1(mdp, star + 1, alpha[0]) - tabular.u1(mdp, star, alpha[0])
    np.testing.assert_allclose(shifted, np.full((S, A), closed[0]), atol=1e-12)


def test_lemma_2_u2_contracts_with_its_modulus_and_no_less():
    mdps, rho, rng = problems(8, COUNT), distributions(8, COUNT), np.random.default_rng(8)
    alpha = rng.uniform(0.02, 0.98, COUNT) / rho.max(axis=(1, 2))
    closed = 1 - (1 - mdps.gamma) * alpha * rho.min(axis=(1, 2))
    eye = np.broadcast_to(np.eye(N), (COUNT, N, N))
    assert np.all(closed < 1)
    np.testing.assert_allclose(
        estimates(_u2, jax.random.key(8), mdps, alpha, rho), closed, rtol=1e-12
    )
    np.testing.assert_allclose(moduli(mdps, alpha, rho, eye), closed, rtol=1e-12)
    np.testing.assert_allclose(bounds(eye, rho, alpha, mdps.gamma), closed, rtol=1e-12)
    mdp, star = one(mdps, 0), optimal(one(mdps, 0))
    np.testing.assert_allclose(tabular.u2(mdp, star, alpha[0], rho[0]), star, atol=1e-12)
    shifted = tabular.u2(mdp, star + 1, alpha[0], rho[0]) - tabular.u2(mdp, star, alpha[0], rho[0])
    np.testing.assert_allclose(shifted, 1 - (1 - mdps.gamma[0]) * alpha[0] * rho[0], atol=1e-12)


def test_lemma_2_without_data_on_a_pair_u2_expands_nothing_and_is_no_contraction():
    mdp, rho = one(problems(9, 4), 3), distributions(9, 1)[0]
    rho[1, 0] = 0
    rho /= rho.sum()
    alpha = 0.9 / rho.max()
    assert tabular.modulus(mdp, alpha, rho, jnp.eye(N)) == 1
    star = optimal(mdp)
    for start in (star + 1, star - 1):
        end = tabular.iterate(lambda q: tabular.u2(mdp, q, alpha, rho), jnp.asarray(start), 20_000)[
            -1
        ]
        assert end[1, 0] == start[1, 0]  # the missing value stays
        np.testing.assert_allclose(end, tabular.u2(mdp, end, alpha, rho), atol=1e-9)
        assert sup(end - star) > 0.99  # and another point is fixed


def test_the_modulus_is_the_largest_over_policies_and_at_most_beta():
    """Any K and alpha, those that overshoot and over-generalize among them; no search finds two
    tables torn further apart.
    """
    mdps, rho, rng = problems(10, COUNT), distributions(10, COUNT), np.random.default_rng(10)
    kernel = kernels(10, COUNT)
    alpha = rng.uniform(0.05, 2.5, COUNT) / (
        np.diagonal(kernel, axis1=1, axis2=2) * rho.reshape(COUNT, N)
    ).max(axis=1)
    exact, beta = (
        np.asarray(moduli(mdps, alpha, rho, kernel)),
        np.asarray(bounds(kernel, rho, alpha, mdps.gamma)),
    )
    found = np.asarray(estimates(_u3, jax.random.key(10), mdps, alpha, rho, kernel))
    assert np.all(exact <= beta * (1 + 1e-12)) and np.all(found <= exact * (1 + 1e-12))
    assert np.all(found > 0.8 * exact) and np.mean(found > (1 - 1e-9) * exact) > 0.8
    assert (
        np.mean(exact < 0.95 * beta) > 0.5
    )  # the bound is one: on most instances the modulus stays well below
    for k in range(0, COUNT, 20):
        one_of = one(mdps, k)
        np.testing.assert_allclose(
            exact[k], oracle_modulus(one_of, alpha[k], rho[k], kernel[k]), rtol=1e-12
        )
        np.testing.assert_allclose(
            beta[k], oracle_beta(kernel[k], rho[k], alpha[k], mdps.gamma[k]), rtol=1e-12
        )


def test_theorem_2_its_conditions_make_u3_a_contraction():
    mdps, rho = problems(11, COUNT), distributions(11, COUNT)
    kernel, alpha = conforming(11, rho, mdps.gamma, 0.9)
    flat = rho.reshape(COUNT, N)
    overshoot = np.asarray(jax.vmap(diagnostics.overshoot_slack)(kernel, flat, alpha))
    generalize = np.asarray(jax.vmap(diagnostics.generalization_slack)(kernel, flat, mdps.gamma))
    beta = np.asarray(bounds(kernel, rho, alpha, mdps.gamma))
    assert overshoot.min() > 0 and generalize.min() > 0 and np.linalg.eigvalsh(kernel).min() > 0
    np.testing.assert_allclose(beta, 1 - alpha * generalize.min(axis=1), rtol=1e-12)
    found = np.asarray(estimates(_u3, jax.random.key(11), mdps, alpha, rho, kernel))
    assert np.all(found <= beta * (1 + 1e-12)) and beta.max() < 1
    for k in range(0, COUNT, 100):
        mdp, star = one(mdps, k), optimal(one(mdps, k))
        np.testing.assert_allclose(
            tabular.u3(mdp, star, alpha[k], rho[k], kernel[k]), star, atol=1e-11
        )


def test_slacks_are_equations_16_and_17():
    rho, kernel = distributions(12, 1)[0].ravel(), kernels(12, 1)[0]
    overshoot = [1 - 0.7 * kernel[i, i] * rho[i] for i in range(N)]
    generalize = [
        0.1 * kernel[i, i] * rho[i]
        - 1.9 * sum(abs(kernel[i, j]) * rho[j] for j in range(N) if j != i)
        for i in range(N)
    ]
    np.testing.assert_allclose(diagnostics.overshoot_slack(kernel, rho, 0.7), overshoot, rtol=1e-13)
    np.testing.assert_allclose(
        diagnostics.generalization_slack(kernel, rho, 0.9), generalize, rtol=1e-13
    )
    minibatch = diagnostics.generalization_slack(kernel, 1 / N, 0.9)
    np.testing.assert_array_equal(
        minibatch, diagnostics.generalization_slack(kernel, np.full(N, 1 / N), 0.9)
    )


def test_theorem_2_at_equality_of_equation_17_the_bound_is_one():
    """0 <= 0 in a pair without data and without generalization to it: both conditions hold, and U3
    moves it nowhere.
    """
    mdp, rho = one(problems(13, 4), 3), np.full((S, A), 1 / (N - 1))
    rho[0, 0] = 0
    eye = jnp.eye(N)
    assert diagnostics.overshoot_slack(eye, rho.ravel(), 1.0).min() > 0
    assert diagnostics.generalization_slack(eye, rho.ravel(), mdp.gamma).min() == 0
    assert diagnostics.contraction_bound(eye, rho.ravel(), 1.0, mdp.gamma) == 1
    assert tabular.modulus(mdp, 1.0, rho, eye) == 1


def test_theorem_3_changing_kernels_with_one_fixed_point():
    """Eq. 18 after every update of a random sequence of K and rho, and convergence, with betas kept
    off 1.
    """
    length, mdps = 400, problems(14, 3)
    for k in range(3):
        mdp = one(mdps._replace(gamma=np.array([0.3, 0.5, 0.7])), k)
        rho = 0.5 / N + 0.5 * distributions(14 + k, length)
        kernel, alpha = conforming(
            14 + k, rho, np.full(length, float(mdp.gamma)), np.linspace(0, 0.5, length)
        )
        beta = np.asarray(bounds(kernel, rho, alpha, np.full(length, mdp.gamma)))
        star = optimal(mdp)

        def update(q, args, mdp=mdp):
            return (tabular.u3(mdp, q, *args), q)

        start = star + 10 * np.random.default_rng(14).normal(size=(S, A))
        _, path = jax.lax.scan(update, jnp.asarray(start), (alpha, rho, kernel))
        error = np.abs(np.asarray(path) - star).max(axis=(1, 2))
        bound = np.concatenate([[1], np.cumprod(beta)[:-1]]) * error[0]
        assert beta.max() < 1 and np.all(error <= bound * (1 + 1e-12) + 1e-13)
        assert error[-1] < 1e-6 * error[0]


def test_theorem_3_needs_more_than_moduli_below_one():
    """Every U_k contracts, with modulus 1 - 1/(k + 2)^2, all share Q*, and the distance to it never
    falls below a half.
    """
    mdp = one(problems(15, 4), 3)._replace(gamma=jnp.asarray(0.5))
    star = optimal(mdp)
    start = star + 1  # a shift, on which U1 attains its modulus

    def update(q, k):
        q = tabular.u1(mdp, q, 1 / (k + 2) ** 2 / (1 - mdp.gamma))
        return q, jnp.max(jnp.abs(q - star))

    _, error = jax.lax.scan(update, jnp.asarray(start), jnp.arange(10_000.0))
    assert np.all(np.diff(error) < 0)
    np.testing.assert_allclose(error[-1], 0.5, atol=1e-3)


# What a person may get wrong


GOOD = tabular.MDP(np.full((S, A, S), 1 / S), np.zeros((S, A)), 0.9)
RHO, KERNEL = np.full((S, A), 1 / N), np.eye(N)


def edited(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("mdp", "words"),
    [
        (
            GOOD._replace(transition=np.ones((S, A))),
            r"transition has the shape \(3, 2\), expected \[S, A, S\]",
        ),
        (GOOD._replace(transition=np.ones((S, A, S + 1))), "transition has the shape"),
        (
            GOOD._replace(transition=edited(GOOD.transition, (1, 0, 2), 0.5)),
            r"transition\[1, 0\] sums to 1.16667, expected 1",
        ),
        (
            GOOD._replace(transition=edited(GOOD.transition, (1, 0), [-0.5, 0.5, 1])),
            "transition has the entry -0.5, expected",
        ),
        (
            GOOD._replace(transition=edited(GOOD.transition, (2, 1, 0), np.nan)),
            r"transition holds .* at \[2, 1, 0\]",
        ),
        (
            GOOD._replace(reward=np.zeros((A, S))),
            r"reward has the shape \(2, 3\), expected \(3, 2\) or \(3, 2, 3\)",
        ),
        (
            GOOD._replace(reward=edited(GOOD.reward, (0, 1), np.inf)),
            r"reward holds .* at \[0, 1\], expected finite",
        ),
        (
            GOOD._replace(reward=np.full((S, A), "1")),
            "reward holds a value that is no finite number",
        ),
        (GOOD._replace(gamma=1.0), r"gamma is 1.0, expected a number in \[0, 1\)"),
        (GOOD._replace(gamma=-0.1), "gamma is -0.1"),
        (GOOD._replace(gamma=float("nan")), "gamma is nan"),
        (GOOD._replace(gamma=np.ones(2)), "gamma is"),
    ],
)
def test_check_names_what_is_wrong_with_an_mdp(mdp, words):
    with pytest.raises(ValueError, match=words):
        tabular.check(mdp)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": 0.0}, "alpha is 0.0, expected a positive number"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"rho": np.ones(N) / N}, r"rho has the shape \(6,\), expected \(3, 2\)"),
        ({"rho": RHO / 2}, "rho sums to 0.5, expected 1"),
        ({"rho": edited(RHO, (0, slice(None)), [-0.1, 0.1 + 1 / 3])}, "rho has the entry -0.1"),
        ({"rho": edited(RHO, (2, 1), np.nan)}, r"rho holds .* at \[2, 1\]"),
        ({"kernel": np.eye(N)[:, 1:]}, r"kernel has the shape \(6, 5\), expected \(6, 6\)"),
        ({"kernel": np.eye(S)}, r"kernel has the shape \(3, 3\), expected \(6, 6\)"),
        (
            {"kernel": edited(KERNEL, (1, 4), 0.25)},
            r"kernel is not symmetric: entry \[1, 4\] is 0.25 and \[4, 1\] is 0",
        ),
        ({"kernel": edited(KERNEL, (3, 3), np.nan)}, r"kernel holds .* at \[3, 3\]"),
        (
            {"kernel": edited(KERNEL, (3, 3), -2)},
            "kernel has the eigenvalue -2, expected none below 0",
        ),
    ],
)
def test_check_update_names_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=words):
        tabular.check_update(GOOD, **{"alpha": 0.1, **arguments})


def test_what_is_right_passes_in_float32_and_as_a_singular_kernel():
    for dtype in (np.float32, np.float64):
        mdps = problems(16, 20, 40, 3)
        for k in range(20):
            got = one(tabular.MDP(*(np.asarray(field, dtype) for field in mdps)), k)
            assert got.transition.dtype == np.float64
        tabular.check_update(GOOD, 0.1, RHO.astype(dtype), kernels(16, 1, 2)[0].astype(dtype))


def test_shapes_are_checked_under_tracing_too():
    q = jnp.zeros((S, A))
    for call in (
        lambda: tabular.backup(GOOD, q.T),
        lambda: tabular.u2(GOOD, q, 0.1, RHO.ravel()),
        lambda: tabular.u(GOOD, q, 0.1, RHO, KERNEL[:S, :S]),
        lambda: tabular.policy_backup(GOOD, jnp.zeros(S), q),
        lambda: tabular.modulus(GOOD, 0.1, RHO, KERNEL[0]),
    ):
        with pytest.raises(ValueError, match="has the shape .* expected"):
            jit(call)()
