"""Targets and the policy's step, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from agent_cases import (
    HAND_BATCH,
    SPEC,
    HandActor,
    HandCritic,
    HandGaussian,
    compiled,
    hand_agent,
    learn,
    leaves,
    recording,
    targets_of,
    transitions,
)
from preqn_jax import agents, networks, steps
from preqn_jax.agents import target
from preqn_jax.batching import batched


def test_targets_by_hand_at_a_terminal_and_at_a_time_limit():
    """As DDPG's, from target networks."""
    agent, state = hand_agent(seen := [], target_weights=[3.0])
    # mu(s') = 0.5 * (1, 0.4) = (0.5, 0.2); the target critic gives 3 * (3.4 + 10 * 0.7) = 31.2
    np.testing.assert_allclose(targets_of(agent, state, seen)[0], [1.0, 1 + 0.5 * 31.2], rtol=1e-6)


def test_without_target_networks_the_online_ones_bootstrap():
    """As in PreQN."""
    agent, state = hand_agent(seen := [])
    assert state.critic.target is None and state.policy.target is None
    # the online critic gives 2 * (3.4 + 7) = 20.8
    np.testing.assert_allclose(targets_of(agent, state, seen)[0], [1.0, 11.4], rtol=1e-6)


@pytest.mark.parametrize("algorithm", [pytest.param("ddpg", marks=pytest.mark.slow), "td3"])
def test_the_next_action_is_the_target_policys(algorithm):
    """Moving the online policy alone leaves the targets as they are."""
    agent, batch = compiled({"algorithm": algorithm}), transitions()
    state, key = agent.init(jax.random.key(0)), jax.random.key(1)
    targets = lambda state: np.asarray(agent.inspect(state, batch, key).targets)
    away = lambda params: jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.3), params)
    policy = state.policy
    online = state.replace(policy=policy.replace(params=away(policy.params)))
    moved = state.replace(policy=policy.replace(target=away(policy.target)))
    np.testing.assert_array_equal(targets(online), targets(state))
    assert np.abs(targets(moved) - targets(state)).max() > 1e-3


def test_target_networks_follow_what_the_update_made():
    """The policy takes its step first, and then its target network follows."""
    agent = compiled({"algorithm": "ddpg"})
    start = agent.init(jax.random.key(0))
    end, _ = agent.update(start, transitions(), jax.random.key(1), jnp.int32(0))
    for part in ("policy", "critic"):
        before, after = getattr(start, part), getattr(end, part)
        for slow, old, new in zip(
            *map(leaves, (after.target, before.target, after.params)), strict=True
        ):
            assert np.abs(new - old).max() > 5e-4
            np.testing.assert_allclose(slow, 0.995 * old + 0.005 * new, rtol=3e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("polyak", [0.995, jnp.float32(0.995)])
def test_a_slow_copy_moves_also_where_parameters_are_narrow(dtype, polyak):
    """Of a bfloat16 at 1, a 200th of .25 is rounded away."""
    params = {"w": jnp.full(3, 1.25, dtype)}
    copy = target.start({"w": jnp.ones(3, dtype)}, polyak)
    for _ in range(200):
        copy = target.follow(copy, params, polyak)
    np.testing.assert_allclose(copy["w"], 1.25 - 0.25 * 0.995**200, rtol=1e-5)
    assert copy["w"].dtype == jnp.float32
    assert target.bootstrap(copy, params)["w"].dtype == dtype


def test_smoothed_targets_by_hand_take_the_minimum_and_clipped_noise():
    """As in TD3."""
    smoothing = agents.Smoothing(noise=100.0, clip=0.25)
    agent, state = hand_agent(seen := [], target_weights=[3.0, 2.0], members=2, smoothing=smoothing)
    first, second = targets_of(agent, state, seen)[0]
    # noise of deviation 100 is clipped to +-0.25 in each of the two actions: (0.5 +- 0.25) + (0.2
    # +- 0.25) is 0.2, 0.7 or 1.2; the minimum of w = 3 and w = 2 is 2 times 3.4 + 10 * that
    assert first == 1
    assert min(abs(second - (1 + 0.5 * 2 * (3.4 + 10 * a))) for a in (0.2, 0.7, 1.2)) < 1e-3


def test_smoothed_actions_stay_in_the_box():
    agent, state = hand_agent(seen := [], smoothing=agents.Smoothing(noise=100.0, clip=50.0))
    second = targets_of(agent, state, seen)[0][1]
    total = (second - 1) / 0.5 / 2 - 3.4  # 10 * (a1 + a2), each a at an edge of the box
    assert min(abs(total - 10 * s) for s in (-2, 0, 2)) < 1e-3


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_target_noise_is_gaussian_of_its_size(noise):
    smoothing = agents.Smoothing(noise, clip=10.0)
    policy = agents.deterministic(HandActor(0.0), optax.sgd(0.0), smoothing=smoothing)
    state = policy.init(jax.random.key(0), jnp.ones(3))
    upcoming = policy.upcoming(state, jnp.ones((20_000, 3)), jax.random.key(3))
    drawn = np.asarray(upcoming.action)[:, 0] / noise
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, 1], atol=0.03)
    np.testing.assert_allclose(np.mean(np.abs(drawn) > 2), 0.0455, atol=0.006)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_exploration_noise_is_gaussian_of_its_size(noise):
    agent = agents.actor_critic(
        SPEC,
        agents.deterministic(HandActor(0.0), optax.sgd(0.0), noise=noise),
        agents.critic(HandCritic(2.0), recording([])),
    )
    keys = jax.random.split(jax.random.key(3), 20_000)
    explore = jax.jit(jax.vmap(agent.explore, in_axes=(None, None, 0)))
    drawn = np.asarray(explore({"w": jnp.float32(0)}, jnp.ones(3), keys))[:, 0] / noise
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, 1], atol=0.03)
    np.testing.assert_allclose(np.mean(np.abs(drawn) > 2), 0.0455, atol=0.006)  # 0 if uniform


def test_the_policy_climbs_the_first_critic():
    agent = compiled({"algorithm": "td3", "policy_delay": 1, "actor_learning_rate": 1e-3})
    start = agent.init(jax.random.key(0))
    batch = transitions()
    end, _ = agent.update(start, batch, jax.random.key(1), jnp.int32(0))
    critic = networks.Critic((16, 16), "relu")
    first = agent.critic(end)

    @jax.jit
    @jax.value_and_grad
    def loss(phi):
        action = jax.vmap(agent.act, in_axes=(None, 0))(phi, batch.obs)
        return -jnp.mean(jax.vmap(critic.apply, in_axes=(None, 0, 0))(first, batch.obs, action))

    @jax.jit
    def adam(phi, grads):
        updates, _ = optax.adam(1e-3).update(grads, optax.adam(1e-3).init(phi))
        return optax.apply_updates(phi, updates)

    before, after = agent.policy(start), agent.policy(end)
    assert loss(after)[0] < loss(before)[0]
    for a, b in zip(leaves(adam(before, loss(before)[1])), leaves(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_gaussian_targets_by_hand_take_the_minimum_and_the_entropy():
    """As in SAC."""
    actor = HandGaussian(0.5)
    agent, state = hand_agent(seen := [], actor, [3.0, 2.0], members=2, temperature=0.1)
    (first, second), metrics = targets_of(agent, state, seen)
    # mu(s') = tanh(0.5, 0.2); the minimum of critics is 2 * (3.4 + 10 * sum mu); log pi without the
    # drawn noise's share, which is -noise^2 / 2 in each action, is oracles.tanh_gaussian_log_prob
    # at noise 0
    mean = np.array([0.5, 0.2])
    value = 2 * (3.4 + 10 * np.tanh(mean).sum())
    log_prob = oracles.tanh_gaussian_log_prob(mean, np.full(2, -14.0), np.zeros(2))
    share = (second - (1 + 0.5 * (value - 0.1 * log_prob))) / (0.5 * 0.1)  # sum of noise^2 / 2
    assert first == 1 and 0 < share < 15
    assert float(metrics["actor/temperature"]) == np.float32(0.1)
    np.testing.assert_allclose(-metrics["actor/entropy"], log_prob - share, atol=8)  # of two states


def test_a_gaussian_policy_draws_anew_for_targets_and_for_its_own_step():
    """With equal observations, equal keys would give equal actions: the keys must differ."""
    seen = []
    policy = agents.gaussian(HandGaussian(0.5), optax.sgd(0.0))

    def upcoming(state, obs, key):
        seen.append(key)
        return policy.upcoming(state, obs, key)

    def improve(state, batch, values, key):
        seen.append(key)
        return policy.improve(state, batch, values, key)

    spying = policy._replace(upcoming=upcoming, improve=improve)
    agent = agents.actor_critic(SPEC, spying, agents.critic(HandCritic(2.0), recording([])))

    @jax.jit
    def keys():
        agent.update(agent.init(jax.random.key(0)), HAND_BATCH, jax.random.key(1), jnp.int32(0))
        return [jax.random.key_data(key) for key in seen]

    one, other = (key.tolist() for key in keys())
    assert one != other and jax.random.key_data(jax.random.key(1)).tolist() not in (one, other)


def test_the_policy_climbs_the_critic_as_it_is_after_its_step():
    """Line 14 comes after line 13: the policy climbs the new critic, and not the old one."""
    agent = compiled({"algorithm": "preqn", "critic_learning_rate": 1.0, "eta": 0.0})
    start, batch, seen = agent.init(jax.random.key(0)), transitions(), []
    policy = agents.deterministic(networks.Actor(2, (16, 16)), optax.adam(1e-3))

    def improve(state, batch, values, key):
        seen.append(values.first(batch.obs, batch.action))
        return policy.improve(state, batch, values, key)

    net = networks.Critic((16, 16))
    step = steps.preconditioned(net.apply, 1.0, 0.0)
    spying = agents.actor_critic(SPEC, policy._replace(improve=improve), agents.critic(net, step))

    @jax.jit
    def update(start):
        end, _ = spying.update(start, batch, jax.random.key(1), jnp.int32(0))
        at = lambda state: batched(net.apply)(spying.critic(state), (batch.obs, batch.action))
        return at(start), at(end), seen[0]

    before, after, climbed = map(np.asarray, update(start))
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(climbed, after, rtol=1e-6, atol=1e-6)


def test_sac_policy_climbs_what_its_loss_says():
    """The agent's own step, on average over draws of the noise, raises E[min Q - alpha log pi]."""
    agent = compiled({"algorithm": "sac", "actor_learning_rate": 1e-3})
    start, batch = agent.init(jax.random.key(0)), transitions()
    end, _ = agent.update(start, batch, jax.random.key(1), jnp.int32(0))
    critic, actor = networks.Critic((16, 16), "relu"), networks.GaussianActor(2, (16, 16), "relu")
    noise = jax.random.normal(jax.random.key(5), (64, 32, 2))

    @jax.jit
    def objective(phi):
        def one(obs, noise):
            mean, log_std = actor.apply(phi, obs)  # pyright: ignore
            action, log_prob = agents.tanh_gaussian(mean, log_std, noise)
            return (
                jnp.min(
                    jax.vmap(critic.apply, in_axes=(0, None, None))(end.critic.params, obs, action)
                )
                - 0.1 * log_prob
            )

        return jnp.mean(jax.vmap(jax.vmap(one), in_axes=(None, 0))(batch.obs, noise))

    assert objective(agent.policy(end)) > objective(agent.policy(start))


@pytest.mark.parametrize(
    ("target", "direction"), [(100.0, 1), pytest.param(-100.0, -1, marks=pytest.mark.slow)]
)
def test_the_temperature_moves_towards_the_target_entropy(target, direction):
    """Too low an entropy raises the temperature, too high an entropy lowers it."""
    agent = compiled(
        {
            "algorithm": "sac",
            "automatic_temperature": True,
            "target_entropy": target,
            "temperature": 0.2,
        }
    )
    start = agent.init(jax.random.key(0))
    end, metrics = learn(agent, start)
    np.testing.assert_allclose(np.exp(start.policy.log_temperature), 0.2, rtol=1e-6)
    assert direction * float(end.policy.log_temperature - start.policy.log_temperature) > 0
    # the metric is the temperature that the last update's targets used: one of its steps behind
    assert (
        direction
        * (float(end.policy.log_temperature) - np.log(float(metrics["actor/temperature"])))
        > 0
    )


def test_sac_explores_by_sampling_and_acts_by_the_mean():
    agent = compiled({"algorithm": "sac"})
    phi = agent.policy(agent.init(jax.random.key(0)))
    actor = networks.GaussianActor(2, (16, 16), "relu")
    mean, log_std = jax.jit(actor.apply)(phi, jnp.ones(3))  # pyright: ignore
    np.testing.assert_allclose(agent.act(phi, jnp.ones(3)), jnp.tanh(mean), rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(agent.explore, in_axes=(None, None, 0))(phi, jnp.ones(3), keys)
    before = np.arctanh(np.asarray(drawn, np.float64))
    np.testing.assert_allclose(before.mean(axis=0), mean, atol=0.1)
    np.testing.assert_allclose(before.std(axis=0), jnp.exp(jnp.asarray(log_std)), rtol=0.1)
