"""Q-learning from samples (Eq. 3): against a loop, and which step sizes make it converge."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import tabular
from tabular_cases import A, S, distributions, jit, one, optimal, oracle_backup, random_mdps

pytestmark = pytest.mark.usefixtures("x64")


def random_mdp(seed, gamma=0.6):
    return one(random_mdps(seed, 4), 3)._replace(gamma=jnp.asarray(gamma))


@pytest.mark.parametrize("per_successor", [False, True])
@pytest.mark.parametrize("power", [0.0, 0.7])
def test_it_is_equation_3_visit_by_visit(per_successor, power):
    rng = np.random.default_rng(0)
    mdp, rho, key = random_mdp(0), distributions(0, 1)[0], jax.random.key(3)
    if per_successor:
        mdp = mdp._replace(reward=jnp.asarray(rng.normal(size=(S, A, S))))
    start, reward = rng.normal(size=(S, A)), np.asarray(mdp.reward)
    q, visits = start.copy(), np.zeros((S, A), int)
    for s, a, after in zip(*map(np.asarray, tabular.transitions(mdp, rho, key, 60)), strict=True):
        r = reward[s, a, after] if per_successor else reward[s, a]
        visits[s, a] += 1
        step = 0.4 / visits[s, a] ** power
        q[s, a] += step * (r + float(mdp.gamma) * max(q[after]) - q[s, a])
    found = tabular.q_learning(mdp, start, rho, key, 60, 0.4, power)
    np.testing.assert_allclose(found.q, q, rtol=1e-12)
    np.testing.assert_array_equal(found.visits, visits)
    assert visits.max() > 5


def test_pairs_are_of_rho_and_successors_of_the_transition_kernel():
    mdp, rho, count = one(random_mdps(1, 8), 3), distributions(1, 1)[0], 40_000
    rho[1, 0] = 0
    rho /= rho.sum()
    met = np.zeros((S, A, S))
    np.add.at(met, tabular.transitions(mdp, rho, jax.random.key(0), count), 1)
    expected = rho[:, :, None] * np.asarray(mdp.transition)
    assert not met[expected == 0].any()
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(met / count - expected) <= 5 * deviation + 1e-12)


def test_one_visit_is_u2_in_expectation():
    """Eq. 13 is alpha D_rho (T*Q - Q): a pair is visited with probability rho, and T* is the mean
    of the targets.
    """
    mdp, rho, count = random_mdp(2), distributions(2, 1)[0], 40_000
    q = np.random.default_rng(2).normal(size=(S, A))
    learn = jit(jax.vmap(lambda key: tabular.q_learning(mdp, q, rho, key, 1, 0.5).q))
    moved = np.asarray(learn(jax.random.split(jax.random.key(0), count))) - q
    expected = 0.5 * rho * (oracle_backup(mdp, q) - q)
    error = moved.std(axis=0) / np.sqrt(count)
    assert np.all(np.abs(moved.mean(axis=0) - expected) < 5 * error)


@pytest.fixture(scope="module")
def errors():
    """power -> mean over 16 runs of max |Q - Q*| after 2,000 and 32,000 steps."""
    with jax.enable_x64(True):
        mdp, rho = random_mdp(5), jnp.full((S, A), 1 / (S * A))
        star, keys = optimal(mdp), jax.random.split(jax.random.key(1), 16)

        @partial(jit, static_argnums=1)
        def mean(power, steps):
            learn = lambda key: tabular.q_learning(
                mdp, jnp.zeros((S, A)), rho, key, steps, 0.9, power
            )
            return jnp.abs(jax.vmap(learn)(keys).q - star[None]).max(axis=(1, 2)).mean()

        return {power: [float(mean(power, n)) for n in (2000, 32_000)] for power in (0.0, 0.8)}


@pytest.mark.slow
def test_with_decaying_steps_it_converges_to_q_star(errors):
    """The error goes as the square root of the last step size, n^-.4: by a factor of 3."""
    early, late = errors[0.8]
    assert late < early / 2.5 and late < 0.03


@pytest.mark.slow
def test_with_constant_steps_it_does_not_settle(errors):
    early, late = errors[0.0]
    assert late > 0.75 * early and late > 4 * errors[0.8][1]


def test_with_constant_steps_it_settles_where_nothing_is_random():
    mdp = one(random_mdps(4, 4), 0)._replace(gamma=jnp.asarray(0.6))
    assert set(np.unique(mdp.transition)) == {0, 1}
    rho = jnp.full((S, A), 1 / (S * A))
    found = tabular.q_learning(mdp, jnp.zeros((S, A)), rho, jax.random.key(0), 2000, 0.5, 0.0)
    np.testing.assert_allclose(found.q, optimal(mdp), atol=1e-9)


def test_a_pair_that_is_never_met_keeps_its_value():
    mdp, rho = random_mdp(5), np.array([[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]])
    q = jnp.full((S, A), 3.0)
    found = tabular.q_learning(mdp, q, rho, jax.random.key(0), 100)
    assert np.all(found.q[1:] == 3) and np.all(found.visits[1:] == 0)
    assert found.visits.sum() == 100 and np.all(found.q[0] != 3)


def test_it_keeps_float32():
    with jax.enable_x64(False):
        mdp = tabular.check(tabular.MDP(np.ones((1, 2, 1)), np.zeros((1, 2)), 0.5))
        found = tabular.q_learning(mdp, jnp.ones((1, 2)), np.ones((1, 2)), jax.random.key(0), 5)
    assert found.q.dtype == np.float32 and found.visits.dtype == np.int32
