"""Diagnoses in edge cases: a dead layer, an error as small as rounding, a hidden rightmost
eigenvalue.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from diagnosis_cases import draw_case, look, some_returns
from diagnosis_critics import MAKES
from preqn_jax import diagnostics
from preqn_jax.diagnostics import diagnose, diagnosis
from preqn_jax.types import Transition


def test_of_a_layer_that_is_dead_every_unit_is_dormant():
    case = draw_case(MAKES["relu"], 0, gamma=0.8, alpha=0.05, returns=some_returns(3))
    alive, leaves = look(case)["dormant_share"], case.make.leaves(case.theta.copy())
    leaves[2][:], leaves[3][:] = -1, 0
    theta = oracles.theta(leaves)
    assert look(case.replace(theta=theta, moved=theta))["dormant_share"] >= 9 / 17 > alive


@pytest.mark.parametrize(
    ("action", "told"),
    [(np.full((8, 1), 0.99), 1.0), (np.full((8, 1), 1.5), None), (np.ones((8, 1), int), None)],
)
def test_of_actions_whose_bounds_are_not_known_saturation_says_nothing(action, told):
    obs = np.eye(8, 2)
    batch = Transition(obs, action, np.ones(8), np.ones(8), obs)
    q = lambda params, obs, action: params @ obs + 0.1 * action[0]
    found = diagnose(q, diagnostics.Case(np.ones(2), batch, action))
    assert found.get("saturation") == told


def test_an_error_of_some_forty_roundings_is_seen():
    """Q = 1 + p + 2e5 p^2 from 0 to 5e-6: the second-order term is as large as the first."""
    rng = np.random.default_rng(0)
    obs, action = jnp.asarray(rng.normal(size=(8, 2)), jnp.float32), jnp.ones((8, 1))
    batch = Transition(obs, action, jnp.ones(8), jnp.ones(8), obs)
    q = lambda params, obs, action: 1 + params[0] + 2e5 * params[0] ** 2
    case = diagnostics.Case(jnp.zeros(1), batch, action, moved=jnp.full(1, 5e-6))
    assert diagnose(q, case)["linearization_error"] == pytest.approx(1, rel=0.1)


def test_of_a_large_matrix_it_is_the_rightmost_and_not_the_largest():
    """50i and -50i, and to the right of them a much smaller real eigenvalue."""
    matrix = np.diag(-1.0 - 0.01 * np.arange(100))
    matrix[:2, :2] = [[0, 50], [-50, 0]]
    matrix[2, 2] = 2.0
    assert abs(diagnosis.rightmost(matrix) - 2) <= 2e-4 * np.linalg.norm(matrix)
