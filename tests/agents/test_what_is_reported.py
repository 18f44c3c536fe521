"""What updates report, and of which critics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from test_variants import in_numpy

from agent_cases import HandCritic, compiled, learn, recording, transitions
from preqn_jax import agents, networks, ntk, steps


def test_what_is_measured_is_of_the_slow_copies_where_they_bootstrap():
    net, batch = networks.Critic((8,)), transitions()
    critic = agents.critic(net, recording([]), members=3, target=0.9, pessimism=None)
    first = np.asarray(batch.obs)[0], np.asarray(batch.action)[0]
    start = jax.jit(critic.init)
    slow = start(jax.random.key(1), *first).params
    state = start(jax.random.key(0), *first).replace(target=slow)
    upcoming = agents.Upcoming(batch.action, None, {})
    did = jax.jit(lambda state: critic.update(state, batch, upcoming, 0.9)[1])(state)
    of_one = lambda params, obs: ntk.linearize(net.apply, params, (obs, batch.action)).values
    of_each = jax.jit(jax.vmap(of_one, in_axes=(0, None)))
    ahead, here = (np.asarray(of_each(slow, obs)) for obs in (batch.next_obs, batch.obs))
    beta = in_numpy(ahead, here)
    assert 0 < beta < 1 and abs(beta - in_numpy(ahead, of_each(state.params, batch.obs))) > 1e-3
    np.testing.assert_allclose(did.metrics["critic/pessimism"], beta, atol=1e-5)


def test_q_mean_is_over_all_critics():
    network, batch = HandCritic(2.0), transitions(n=8)
    critic = agents.critic(network, steps.gradient(network.apply, optax.sgd(1e-3)), members=2)
    state = critic.init(jax.random.key(0), batch.obs[0], batch.action[0])
    state = state.replace(params={"w": jnp.asarray([2.0, 6.0])})
    did = critic.update(state, batch, agents.Upcoming(batch.action, None, {}), 0.5)[1]
    of_one = np.float64(batch.obs).sum(axis=1) + 10 * np.float64(batch.action).sum(axis=1)
    np.testing.assert_allclose(did.metrics["critic/q_mean"], 4 * of_one.mean(), rtol=1e-5)


def test_the_temperature_reported_is_the_one_that_the_targets_used():
    fields = {"algorithm": "sac", "automatic_temperature": True, "target_entropy": 100.0}
    agent = compiled({**fields, "temperature": 0.2})
    state, first = learn(agent, agent.init(jax.random.key(0)), updates=3)
    used = np.exp(state.policy.log_temperature)
    _, metrics = agent.update(state, transitions(3), jax.random.key(1), jnp.int32(3))
    assert used > 0.2001
    np.testing.assert_allclose(metrics["actor/temperature"], used, rtol=1e-6)
