"""The metrics of an agent, and the random keys it gives to its parts, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_variants import in_numpy

from agent_cases import (
    SPEC,
    HandActor,
    HandCritic,
    compiled,
    hand_agent,
    learn,
    recording,
    transitions,
)
from preqn_jax import agents, networks, ntk, steps


def test_a_critics_metrics_are_those_of_the_values_before_its_step():
    network, batch = HandCritic(2.0), transitions(n=8)
    critic = agents.critic(network, steps.gradient(network.apply, optax.sgd(1e-3)))
    policy = agents.deterministic(HandActor(0.5), optax.sgd(0.0))

    @jax.jit
    def update():
        state = critic.init(jax.random.key(0), batch.obs[0], batch.action[0])
        acting = policy.init(jax.random.key(0), batch.obs[0])
        upcoming = policy.upcoming(acting, batch.next_obs, jax.random.key(1))
        return critic.update(state, batch, upcoming, 0.5)[1]

    did = update()
    obs, action, reward, going, next_obs = (np.asarray(x, np.float64) for x in batch)
    ahead = np.clip(0.5 * next_obs[:, :2], -1, 1)
    values = 2 * (obs.sum(axis=1) + 10 * action.sum(axis=1))
    targets = reward + 0.5 * going * 2 * (next_obs.sum(axis=1) + 10 * ahead.sum(axis=1))
    delta = targets - values
    assert delta.min() < 0 < delta.max()
    np.testing.assert_allclose(did.targets, targets, rtol=1e-5)
    for name, expected in (
        ("critic/q_mean", values.mean()),
        ("critic/td_abs", np.abs(delta).mean()),
        ("critic/target_mean", targets.mean()),
    ):
        np.testing.assert_allclose(did.metrics[name], expected, rtol=1e-5)


def test_norms_are_those_of_all_critics_and_of_the_policy():
    agent, state = hand_agent([], members=3)
    norms = agent.summary(state)
    np.testing.assert_allclose(norms["critic/norm"], np.sqrt(3 * 2.0**2), rtol=1e-6)
    np.testing.assert_allclose(norms["actor/norm"], 0.5, rtol=1e-6)


def test_the_entropy_reported_is_that_of_the_bonus():
    network = networks.GaussianActor(2, (8,), "relu")
    policy = agents.gaussian(network, optax.sgd(0.0), temperature=0.2)
    obs = transitions().next_obs
    start = lambda: policy.init(jax.random.key(0), obs[0])
    upcoming = jax.jit(lambda: policy.upcoming(start(), obs, jax.random.key(1)))()
    entropy = np.mean(np.asarray(upcoming.bonus)) / 0.2
    assert abs(entropy) > 0.1
    np.testing.assert_allclose(upcoming.metrics["actor/entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(upcoming.metrics["actor/temperature"], 0.2, rtol=1e-6)


@pytest.mark.parametrize("explores", [True, False])
def test_only_exploring_is_noisy_and_it_stays_in_the_box(explores):
    policy = agents.deterministic(HandActor(0.5), optax.sgd(0.0), noise=3.0)
    obs = jnp.asarray([1.0, -1.0, 0.0])
    act = policy.explore if explores else lambda params, obs, key: policy.act(params, obs)
    drawn = np.stack([act({"w": 0.5}, obs, jax.random.key(i)) for i in range(20)])
    assert np.abs(drawn).max() <= 1
    assert (len(np.unique(drawn, axis=0)) > 1) == explores
    if explores:
        assert (np.abs(drawn) == 1).any()


def test_policy_and_critic_start_from_keys_of_their_own():
    given = []

    def keyed(part):
        def init(key, *examples):
            given.append(jax.random.key_data(key).tolist())
            return part.init(key, *examples)

        return part._replace(init=init)

    policy = agents.deterministic(HandActor(0.5), optax.sgd(0.0))
    critic = agents.critic(HandCritic(2.0), recording([]))
    agent = agents.actor_critic(SPEC, keyed(policy), keyed(critic), discount=0.5)
    agent.init(jax.random.key(0))
    assert len(given) == 2 and given[0] != given[1]


@pytest.mark.parametrize("algorithm", [pytest.param("td3", marks=pytest.mark.slow), "sac"])
def test_an_inspection_sees_the_targets_and_the_move_of_the_update_with_its_key(algorithm):
    agent, batch, key = compiled({"algorithm": algorithm}), transitions(), jax.random.key(5)
    state = agent.init(jax.random.key(0))
    seen = agent.inspect(state, batch, key)
    after, metrics = agent.update(state, batch, key, jnp.int32(0))
    np.testing.assert_allclose(metrics["critic/target_mean"], np.mean(seen.targets), rtol=1e-6)
    for mine, moved in zip(
        jax.tree.leaves(agent.critic(after)), jax.tree.leaves(seen[1]), strict=True
    ):
        np.testing.assert_allclose(mine, moved, rtol=1e-5, atol=1e-7)


def test_what_is_measured_is_of_the_target_networks_where_they_bootstrap():
    net, batch = networks.Critic((8,)), transitions()
    critic = agents.critic(net, recording([]), members=3, target=0.9, pessimism=None)
    first = np.asarray(batch.obs)[0], np.asarray(batch.action)[0]
    start = jax.jit(critic.init)
    target = start(jax.random.key(1), *first).params
    state = start(jax.random.key(0), *first).replace(target=target)
    upcoming = agents.Upcoming(batch.action, None, {})
    did = jax.jit(lambda state: critic.update(state, batch, upcoming, 0.9)[1])(state)
    of_one = lambda params, obs: ntk.linearize(net.apply, params, (obs, batch.action)).values
    of_each = jax.jit(jax.vmap(of_one, in_axes=(0, None)))
    ahead, here = (np.asarray(of_each(target, obs)) for obs in (batch.next_obs, batch.obs))
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
