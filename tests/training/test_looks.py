"""What a diagnosis during training is based on: rewards in the replay buffer, returns of an
evaluation.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import agents
from preqn_jax.replay import Replay
from preqn_jax.training import monitor
from preqn_jax.training.config import LoopConfig
from preqn_jax.training.loop import Learner
from preqn_jax.training.rollout import Evaluation
from preqn_jax.types import Spec, Transition

ONES = lambda *shape: np.ones(shape, np.float32)


def test_a_look_is_held_against_the_largest_reward_of_the_replay():
    agent: Any = SimpleNamespace(q=lambda p, obs, action: p @ obs)
    batch = Transition(ONES(4, 3), ONES(4, 1), ONES(4), ONES(4), ONES(4, 3))
    step = agents.Inspection(ONES(3), 1.1 * ONES(3), ONES(4), ONES(4, 1))
    looks = [monitor.Look(batch, step, bound) for bound in (1.0, 4.0, 0.0)]
    found = [monitor.measure(agent, look, 0.9)["soft_divergence"] for look in looks]
    np.testing.assert_allclose(found, [0.3, 0.075, 0.3], rtol=1e-5)


def test_that_is_the_largest_of_either_sign():
    spec = Spec(3, 1, -np.ones(1), np.ones(1))
    agent = agents.make(agents.AgentConfig("ddpg", None, (4,), (4,)), spec)
    config = LoopConfig(seeds=(0, 1), batch_size=4)
    rewards = jnp.asarray([[1.0, -5.0, 2.0], [0.5, 0.25, 0.0]])
    ones = lambda *shape: jnp.ones((2, 3, *shape))
    data = Transition(ones(3), ones(1), rewards, ones(), ones(3))
    states = jax.vmap(agent.init)(jax.vmap(jax.random.key)(jnp.arange(2)))
    learner = Learner(states, Replay(data, jnp.asarray([3, 3])))
    found = monitor.make_looks(agent, config)(learner, 0)
    assert [look.reward_bound for look in found] == [5.0, 0.5]


def test_a_bias_is_q_less_the_discounted_return():
    """Discounted returns are 1 + 0.5 * 2 = 2 from the first step, and 2 from the second."""
    agent: Any = SimpleNamespace(q=lambda p, obs, action: p)
    rewards, seen = np.array([[1.0, 1.0], [2.0, 2.0]]), np.zeros((2, 2, 1), np.float32)
    episodes = Evaluation(rewards, seen, seen, np.array([2, 2]), np.ones(2, bool))
    found = monitor.bias(agent, jnp.float32(5), episodes, 0.5)
    assert found == pytest.approx({"bias": 3.0, "bias_relative": 1.5})
