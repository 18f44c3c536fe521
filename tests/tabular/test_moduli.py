"""The lemmas and theorems of section 3 on random finite problems, with strict margins.

Also their edge cases, in which they fail to the letter: equality in Eq. 17, and moduli below 1
whose product does not vanish.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import diagnostics, tabular
from tabular_cases import (
    A,
    N,
    S,
    conforming,
    distributions,
    jit,
    kernels,
    one,
    optimal,
    oracle_beta,
    oracle_modulus,
    random_mdps,
    sup,
)

pytestmark = pytest.mark.usefixtures("x64")


@partial(jit, static_argnames="operator")
def estimates(operator, key, *args):
    """`estimate_modulus` for each instance in the stacked arguments."""

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
bounds = jit(
    jax.vmap(
        lambda k, rho, alpha, gamma: diagnostics.contraction_bound(k, rho.reshape(-1), alpha, gamma)
    )
)
moduli = jit(jax.vmap(tabular.modulus))


def test_lemma_1_u1_contracts_with_its_modulus_and_no_less():
    mdps, alpha = random_mdps(7, COUNT), np.random.default_rng(7).uniform(0.02, 0.98, COUNT)
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
    mdps, rho, rng = random_mdps(8, COUNT), distributions(8, COUNT), np.random.default_rng(8)
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
    mdp, rho = one(random_mdps(9, 4), 3), distributions(9, 1)[0]
    rho[1, 0] = 0
    rho /= rho.sum()
    alpha = 0.9 / rho.max()
    assert tabular.modulus(mdp, alpha, rho, jnp.eye(N)) == 1
    star = optimal(mdp)
    for start in (star + 1, star - 1):
        end = tabular.iterate(lambda q: tabular.u2(mdp, q, alpha, rho), jnp.asarray(start), 20_000)[
            -1
        ]
        assert end[1, 0] == start[1, 0]  # the value without data stays
        np.testing.assert_allclose(end, tabular.u2(mdp, end, alpha, rho), atol=1e-9)
        assert sup(end - star) > 0.99  # and the fixed point is another one


def test_the_modulus_is_the_largest_over_policies_and_at_most_beta():
    """For any K and alpha, even those that overshoot and over-generalize; no search finds two
    tables that move further apart.
    """
    mdps, rho, rng = random_mdps(10, COUNT), distributions(10, COUNT), np.random.default_rng(10)
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
    )  # it is a bound: in most instances the modulus is well below
    for k in range(0, COUNT, 20):
        one_of = one(mdps, k)
        np.testing.assert_allclose(
            exact[k], oracle_modulus(one_of, alpha[k], rho[k], kernel[k]), rtol=1e-12
        )
        np.testing.assert_allclose(
            beta[k], oracle_beta(kernel[k], rho[k], alpha[k], mdps.gamma[k]), rtol=1e-12
        )


def test_theorem_2_its_conditions_make_u3_a_contraction():
    mdps, rho = random_mdps(11, COUNT), distributions(11, COUNT)
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
    """0 <= 0 for a pair without data and without generalization to it: both conditions hold, but U3
    does not move it.
    """
    mdp, rho = one(random_mdps(13, 4), 3), np.full((S, A), 1 / (N - 1))
    rho[0, 0] = 0
    eye = jnp.eye(N)
    assert diagnostics.overshoot_slack(eye, rho.ravel(), 1.0).min() > 0
    assert diagnostics.generalization_slack(eye, rho.ravel(), mdp.gamma).min() == 0
    assert diagnostics.contraction_bound(eye, rho.ravel(), 1.0, mdp.gamma) == 1
    assert tabular.modulus(mdp, 1.0, rho, eye) == 1


def test_theorem_3_changing_kernels_with_one_fixed_point():
    """Eq. 18 holds after every update of a random sequence of K and rho, and Q converges, as betas
    are kept away from 1.
    """
    length, mdps = 400, random_mdps(14, 3)
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
    """Every U_k contracts, with modulus 1 - 1/(k + 2)^2, and all share Q*, but the distance to it
    never falls below a half.
    """
    mdp = one(random_mdps(15, 4), 3)._replace(gamma=jnp.asarray(0.5))
    star = optimal(mdp)
    start = star + 1  # a shift, on which U1 attains its modulus

    def update(q, k):
        q = tabular.u1(mdp, q, 1 / (k + 2) ** 2 / (1 - mdp.gamma))
        return q, jnp.max(jnp.abs(q - star))

    _, error = jax.lax.scan(update, jnp.asarray(start), jnp.arange(10_000.0))
    assert np.all(np.diff(error) < 0)
    np.testing.assert_allclose(error[-1], 0.5, atol=1e-3)
