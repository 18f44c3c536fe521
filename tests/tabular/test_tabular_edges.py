"""Operators at their edges: no discount, and no derivative."""

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import tabular


def test_without_a_discount_one_backup_is_known_to_be_enough():
    mdp = tabular.check(tabular.MDP(np.ones((1, 2, 1)), np.array([[0.0, 3.0]]), 0.0))
    found = tabular.value_iteration(mdp)
    assert found.steps == 1 and found.error == 0


def test_the_modulus_of_a_constant_operator_is_zero():
    constant = lambda q: jnp.ones_like(q)
    assert tabular.estimate_modulus(constant, (3, 2), jax.random.key(0)) == 0
