"""The defaults by which SAC's temperature is tuned: Haarnoja et al. 2018b, Appendix D."""

import jax
import numpy as np
import pytest

from agent_cases import SPEC, compiled, learn, make
from preqn_jax import agents

TUNED = {"algorithm": "sac", "automatic_temperature": True}


def log_temperatures(updates, **fields):
    """log alpha at the start, and after so many updates."""
    agent = compiled({**TUNED, **fields})
    start = agent.init(jax.random.key(0))
    end, _ = learn(agent, start, updates)
    return float(start.policy.log_temperature), float(end.policy.log_temperature)


@pytest.mark.slow
def test_the_target_entropy_is_minus_the_number_of_actions():
    """Another target leads elsewhere, as Adam's second step depends on the size of a gradient."""
    assert SPEC.action_size == 2
    default = log_temperatures(3)
    assert default == log_temperatures(3, target_entropy=-2.0)
    assert default != log_temperatures(3, target_entropy=-1.0)


def test_the_learning_rate_is_3e_4():
    """Adam's first step is as long as its learning rate, whatever the gradient."""
    before, after = log_temperatures(1)
    np.testing.assert_allclose(abs(after - before), 3e-4, rtol=2e-3)


def test_the_temperature_of_preqn_soft_is_tuned_at_that_rate_too():
    config = agents.AgentConfig("preqn_soft", automatic_temperature=True)
    assert agents.resolve(config).policy[1] == 3e-4


def test_a_traced_temperature_starts_where_a_number_does():
    def start(temperature):
        agent = make({**TUNED, "temperature": temperature})
        return agent.init(jax.random.key(0)).policy.log_temperature

    assert jax.jit(start)(0.7) == start(0.7)
