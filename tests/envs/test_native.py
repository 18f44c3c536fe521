"""The Pendulum in JAX against Gymnasium's."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import envs
from preqn_jax.options import UserError

ENV = envs.pure("native/pendulum")
RNG = np.random.default_rng(0)
STATES = RNG.uniform([-20, -8], [20, 8], (300, 2))  # beyond a full turn
ACTIONS = RNG.uniform(-3, 3, (300, 1))  # some beyond the bounds, where they are clipped


def theirs():
    """(state, observation, reward) after one step of Gymnasium's Pendulum, from every state."""
    env: Any = gymnasium.make("Pendulum-v1").unwrapped
    rows = []
    for state, action in zip(STATES, ACTIONS, strict=True):
        env.reset(seed=0)
        env.state = state
        obs, reward, *_ = env.step(action)
        rows.append((env.state, obs, reward))
    return [np.array(column) for column in zip(*rows, strict=True)]


def ours(dtype):
    states, actions = jnp.asarray(STATES, dtype), jnp.asarray(ACTIONS, dtype)
    keys = jax.random.split(jax.random.key(0), len(states))
    after, outcome = jax.jit(jax.vmap(ENV.step))(states, actions, keys)
    assert not outcome.terminated.any()
    return after, jax.vmap(ENV.observe)(after), outcome.reward


def test_a_step_in_float32_is_gymnasiums_to_rounding():
    for mine, his in zip(ours(jnp.float32), theirs(), strict=True):
        np.testing.assert_allclose(mine, his, rtol=2e-5, atol=1e-5)


def test_a_step_in_float64_is_gymnasiums_to_rounding(x64):
    (state, obs, reward), (his_state, his_obs, his_reward) = ours(jnp.float64), theirs()
    np.testing.assert_allclose(state, his_state, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(reward, his_reward, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(obs, his_obs, rtol=1e-6, atol=1e-6)  # which are in float32


def test_it_is_what_gymnasium_says_it_is():
    his: Any = gymnasium.make("Pendulum-v1")
    assert ENV.spec.obs_size == his.observation_space.shape[0]
    assert ENV.spec.action_low == his.action_space.low
    assert ENV.spec.action_high == his.action_space.high
    assert ENV.time_limit == his.spec.max_episode_steps
    starts = jax.vmap(ENV.reset)(jax.random.split(jax.random.key(0), 2000))
    bound = np.array([np.pi, 1])
    assert (np.abs(starts) <= bound).all()
    np.testing.assert_allclose(starts.std(axis=0), bound / np.sqrt(3), rtol=0.05)


def test_episodes_are_cut_off_and_the_successor_is_the_true_one():
    """A time limit is not terminal, and the observation to act on next is that of a new episode."""
    vector = envs.make("native/pendulum", 3)
    vector.reset([1, 2, 3])
    for t in range(400):
        out = vector.step(np.zeros((3, 1)))
        assert (out.truncated == ((t + 1) % 200 == 0)).all() and not out.terminated.any()
        same = (out.obs == out.next_obs).all(axis=1)
        assert (same == ~out.truncated).all()


def test_a_name_that_is_none_is_one_sentence():
    with pytest.raises(UserError, match="unknown environment 'native/pendulm' \\(did you mean"):
        envs.make("native/pendulm", 1)
