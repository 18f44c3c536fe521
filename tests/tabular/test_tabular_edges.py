"""Edge cases of the operators: no discount, and no derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import problems, tabular


def test_without_a_discount_one_backup_is_known_to_be_enough():
    mdp = tabular.check(tabular.MDP(np.ones((1, 2, 1)), np.array([[0.0, 3.0]]), 0.0))
    found = tabular.value_iteration(mdp)
    assert found.steps == 1 and 0 <= found.error < 1e-6


def test_the_modulus_of_a_constant_operator_is_zero():
    constant = lambda q: jnp.ones_like(q)
    assert tabular.estimate_modulus(constant, (3, 2), jax.random.key(0)) == 0


@pytest.mark.parametrize("gamma", [0.9, 0.99, 0.999, 0.9999])
def test_the_error_told_in_float32_is_a_bound_of_the_error_there_is(gamma):
    """Where rounded backups stop changing, Q is near Q*, but not equal to it."""
    mdp = problems.garnet(gamma=gamma).mdp
    reward, transition = (np.asarray(x, np.float64) for x in (mdp.reward, mdp.transition))
    (states, choices), discount = reward.shape, float(mdp.gamma)
    q = np.zeros((states, choices))
    for _ in range(30):  # Howard's policy iteration
        best = np.arange(states), q.argmax(axis=1)
        values = np.linalg.solve(np.eye(states) - discount * transition[best], reward[best])
        q = reward + discount * transition @ values
    found = tabular.value_iteration(mdp)
    wrong = np.abs(found.q - q).max()
    assert 0 < wrong <= found.error < max(1e-5, 1e-3 * np.abs(q).max() / (1 - gamma) * 1e-2)
