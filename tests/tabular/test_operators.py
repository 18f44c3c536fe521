"""Backups, the operators U to U3, and what Eq. 5 does to Q (Theorem 1, Lemma 3), on random finite
problems.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from preqn_jax import diagnostics, ntk, steps, tabular
from preqn_jax.batching import batched
from preqn_jax.networks import Critic
from tabular_cases import (
    A,
    N,
    S,
    distributions,
    jit,
    kernels,
    one,
    optimal,
    oracle_backup,
    random_mdps,
    sup,
)

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("per_successor", [False, True])
def test_backups_are_equation_2(per_successor):
    rng = np.random.default_rng(1)
    mdp = one(random_mdps(0, 4), 3)
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
    mdps = random_mdps(2, 40, states=4, actions=3)
    found = jit(jax.vmap(partial(tabular.value_iteration, tol=1e-3)))(mdps)
    for k in range(40):
        expected = optimal(one(mdps, k))
        assert sup(found.q[k] - expected) <= found.error[k] + 1e-12 <= 1.001e-3
        np.testing.assert_array_equal(
            tabular.greedy(found.q[k]).argmax(axis=1), found.q[k].argmax(axis=1)
        )
    few = tabular.value_iteration(one(mdps, 0), 1e-9, 3)
    assert few.steps == 3 and few.error > 1e-9 and sup(few.q - optimal(one(mdps, 0))) <= few.error


def test_the_greedy_policy_takes_the_first_of_several_best_actions():
    q = jnp.asarray([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, 1.0, 5.0]])
    np.testing.assert_array_equal(tabular.greedy(q), [[0, 1, 0], [1, 0, 0], [0, 0, 1]])


def test_operators_are_equations_11_to_14():
    """The kernel is not symmetric, so that a wrong transpose shows."""
    rng = np.random.default_rng(3)
    mdp, rho, kernel = one(random_mdps(3, 4), 3), distributions(3, 1)[0], rng.normal(size=(N, N))
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
    mdp, rho, kernel = one(random_mdps(4, 4), 3), distributions(4, 1)[0], kernels(4, 1, features)[0]
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
    """All pairs of a problem as inputs of a critic: a one-hot state, and the action as a number."""
    state, action = (index.ravel() for index in np.indices((S, A)))
    return jnp.eye(S)[state], jnp.linspace(-1, 1, A)[action][:, None]


def expected_update(q, params, alpha, mdp, rho):
    """Q before and after Eq. 5, and the parameters after it.

    `steps.gradient` gives all pairs the same weight; targets that are off by N rho_i delta_i stand
    in for the weights rho.
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
    """Half the alpha leaves a quarter of |Q' - U Q|, for a network, a real T*, and a rho that is
    zero somewhere.
    """
    critic, mdp = Critic((8,), activation), one(random_mdps(5, 4), 3)
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
        one(random_mdps(6, 4), 3),
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
