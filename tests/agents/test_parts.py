"""Agents whose parts are not the package's own, and settings that are traced by JAX."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import preqn_jax
from preqn_jax import agents, envs, steps
from preqn_jax.options import UserError
from preqn_jax.types import Spec, Transition

SPEC = Spec(3, 2, -np.ones(2), np.ones(2))
FAST = {"start_steps": 100, "update_after": 100, "batch_size": 32, "discount": 0.5}


class Quadratic(NamedTuple):
    """Q = c - w (a - a0(s))^2 with a0 linear in s: a critic without Flax, and without layers."""

    def init(self, key, obs, action):
        del key
        return {
            "c": jnp.zeros(()),
            "w": jnp.ones(()),
            "m": jnp.zeros(obs.shape),
            "b": jnp.zeros(()),
        }

    def apply(self, params, obs, action):
        centre = params["b"] + params["m"] @ obs
        return params["c"] - params["w"] * (action[0] - centre) ** 2


def normalised(q, rate):
    """A user's own step: each example in turn moves Q by its own share of the TD error."""

    def update(params, state, inputs, targets):
        values = jax.vmap(q, (None, 0, 0))(params, *inputs)

        def one(params, example):
            *x, y = example
            value, grad = jax.value_and_grad(q)(params, *x)
            length = sum(jnp.sum(g**2) for g in jax.tree.leaves(grad))
            scale = rate * (y - value) / (1 + length)
            return jax.tree.map(lambda p, g: p + scale * g, params, grad), None

        moved, _ = jax.lax.scan(one, params, (*inputs, targets))
        return (
            moved,
            state + 1,
            steps.StepInfo(values, targets - values, {"own/step": jnp.ones(())}),
        )

    return steps.ValueStep(lambda params: jnp.int32(0), update)


def hill_climber(spec):
    """A user's own policy: one action for all states, moved to where Q is larger."""

    def upcoming(state, next_obs, key):
        action = jnp.broadcast_to(state["a"], (next_obs.shape[0], spec.action_size))
        return agents.Upcoming(action, None, {"own/action": state["a"][0]})

    def improve(state, batch, values, key):
        tried = jnp.clip(state["a"] + 0.05 * jax.random.normal(key, state["a"].shape), -1, 1)
        there = jnp.broadcast_to(jnp.stack([state["a"], tried])[:, None], (2, *batch.action.shape))
        now, then = (jnp.mean(values.first(batch.obs, action)) for action in there)
        return {"a": jnp.where(then > now, tried, state["a"])}

    def explore(params, obs, key):
        return jnp.clip(params["a"] + 0.3 * jax.random.normal(key, params["a"].shape), -1, 1)

    return agents.Policy(
        init=lambda key, obs: {"a": jnp.zeros(spec.action_size)},
        params=lambda state: state,
        act=lambda params, obs: params["a"],
        explore=explore,
        upcoming=upcoming,
        improve=improve,
        follow=lambda state: state,
    )


def own_agent(spec):
    net = Quadratic()
    return agents.actor_critic(
        spec,
        hill_climber(spec),
        agents.critic(net, normalised(net.apply, 0.5), members=2, target=0.9),
        discount=0.5,
    )


def test_an_agent_of_unknown_parts_learns_a_probe():
    """The best action is 0.5, where the reward is 1; no internals of the package are used."""
    training = preqn_jax.train(own_agent, "probe/action", num_steps=1500, eval_every=500, **FAST)
    seen = list(training)
    assert {"own/step", "own/action", "critic/q_mean", "actor/norm"} <= set(seen[-1].metrics)
    action = seen[-1].trained.policy()(np.zeros(1))
    assert abs(float(action[0]) - 0.5) < 0.1
    rewards = seen[-1].evaluations[0].rewards
    assert rewards.min() > 0.95 and [p.step for p in seen if p.evaluations] == [500, 1000, 1500]


@pytest.mark.slow
def test_an_agent_of_unknown_parts_can_be_diagnosed_and_gone_on_with(tmp_path):
    options = {**FAST, "diagnose_every": 100, "logdir": tmp_path / "x"}
    for progress in preqn_jax.train(own_agent, "probe/action", num_steps=300, **options):
        if progress.step == 200:
            break
    steps_left = [
        p.step for p in preqn_jax.train(own_agent, "probe/action", num_steps=300, **options)
    ]
    assert steps_left == [250, 300]
    loaded = preqn_jax.load(tmp_path / "x", agent=own_agent)
    assert loaded.step == 300 and loaded.policy()(np.zeros(1)).shape == (1,)
    with pytest.raises(UserError, match="made by a function, 'own_agent'"):
        preqn_jax.load(tmp_path / "x")


@pytest.mark.slow
def test_a_critic_may_own_its_whole_update():
    """Targets and values come from one pass, as batch normalisation needs; there is no step."""
    spec = envs.spec("probe/delay")

    def update(state, batch, upcoming, discount):
        table = state["table"]
        joint = jnp.concatenate([batch.obs, batch.next_obs])  # one pass over both
        values = table[joint[:, 0].astype(int)]
        now, then = jnp.split(values, 2)
        y = batch.reward + discount * batch.discount * then
        table = table.at[batch.obs[:, 0].astype(int)].add(0.5 * (y - now) / len(y))
        return {"table": table}, agents.Update(y, {"critic/td_abs": jnp.mean(jnp.abs(y - now))})

    def values(state):
        look = lambda obs, action: state["table"][obs[:, 0].astype(int)] + 0 * action[:, 0]
        return agents.Values(look, look)

    critic = agents.Critic(
        q=lambda params, obs, action: params["table"][obs[0].astype(int)] + 0 * action[0],
        init=lambda key, obs, action: {"table": jnp.zeros(3)},
        first=lambda state: state,
        values=values,
        update=update,
        follow=lambda state: state,
        params=lambda state: state,
    )
    make = lambda spec: agents.actor_critic(spec, hill_climber(spec), critic, discount=0.5)
    *_, last = preqn_jax.train(make, "probe/delay", num_steps=1000, **FAST)
    table = last.trained.agent.critic(last.trained.state())["table"]
    np.testing.assert_allclose(table[:2], [0.5, 1.0], atol=0.05)
    assert spec.obs_size == 1


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ({"obs": jnp.zeros((4, 2))}, r"\(4, 2\).*\(4, 3\)"),
        ({"action": jnp.zeros((4, 1))}, r"\(4, 1\).*\(4, 2\)"),
        ({"reward": jnp.zeros((4, 1))}, r"\(4, 1\).*\(4\)"),
        ({"discount": jnp.zeros(3)}, r"\(3,\).*\(4\)"),
    ],
)
def test_a_batch_of_the_wrong_shape_is_refused_with_both_shapes(spoilt, words):
    agent = agents.preqn(SPEC, hidden_sizes=(4,))
    state = jax.eval_shape(agent.init, jax.random.key(0))
    zeros = lambda *shape: jnp.zeros((4, *shape))
    batch = Transition(zeros(3), zeros(2), zeros(), zeros(), zeros(3))._replace(**spoilt)
    with pytest.raises(AssertionError, match=words):
        jax.eval_shape(agent.update, state, batch, jax.random.key(0), jnp.int32(0))


def test_a_policy_of_the_wrong_shape_is_refused():
    policy = hill_climber(SPEC)._replace(
        upcoming=lambda state, obs, key: agents.Upcoming(jnp.zeros((4, 1)), None, {})
    )
    net = Quadratic()
    critic = agents.critic(net, normalised(net.apply, 0.5))
    agent = agents.actor_critic(SPEC, policy, critic)
    zeros = lambda *shape: jnp.zeros((4, *shape))
    batch = Transition(zeros(3), zeros(2), zeros(), zeros(), zeros(3))
    with pytest.raises(AssertionError, match=r"\(4, 1\).*\(4, 2\)"):
        agent.update(agent.init(jax.random.key(0)), batch, jax.random.key(0), jnp.int32(0))


NUMBERS = {
    "preqn": {"critic_learning_rate": 0.05, "eta": 0.9, "damping": 1e-2, "discount": 0.9},
    "ngql": {"critic_learning_rate": 0.05, "damping": 1e-2, "actor_learning_rate": 3e-3},
    "ddpg": {"critic_learning_rate": 3e-3, "polyak": 0.9, "exploration_noise": 0.3},
    "td3": {"target_noise": 0.4, "target_noise_clip": 0.3, "actor_learning_rate": 3e-3},
    "sac": {"temperature": 0.3, "discount": 0.9, "critic_learning_rate": 3e-3},
    "crossq": {"adam_b1": 0.8, "critic_learning_rate": 3e-3, "temperature": 0.3},
}
TUNED = {"automatic_temperature": True, "temperature": 0.3, "target_entropy": -3.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "numbers", "fixed"),
    [
        *((name, numbers, {}) for name, numbers in NUMBERS.items()),
        ("sac", {"temperature_learning_rate": 1e-2, "target_entropy": -3.0}, TUNED),
        ("preqn", {"rcond": 1e-3, "linesearch_decay": 0.7}, {"solver": "eigh"}),
    ],
)
def test_numbers_may_be_traced_and_a_vmap_over_them_is_a_loop(algorithm, numbers, fixed):
    """Sweeps depend on this."""
    config = agents.AgentConfig(algorithm, None, (8, 8), (8, 8), **fixed)
    plain = agents.resolve(config).config
    usual = {"rcond": 1e-5, "target_entropy": -2.0}
    for name in set(numbers) - set(usual):
        usual[name] = getattr(plain, name)
    both = {name: jnp.array([usual[name], value]) for name, value in numbers.items()}
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=(16, *shape)).astype(np.float32)
    ones = np.ones(16, np.float32)
    batch = Transition(normal(3), np.tanh(normal(2)), normal(), ones, normal(3))

    start = jax.jit(agents.make(config, SPEC).init)(jax.random.key(0))

    def learn(numbers, state):
        agent = agents.make(replace(config, **numbers), SPEC)
        state, metrics = agent.update(state, batch, jax.random.key(1), jnp.int32(1))
        explored = agent.explore(agent.policy(state), jnp.ones(3), jax.random.key(5))
        return state, metrics["critic/target_mean"], explored

    swept = jax.jit(jax.vmap(learn, in_axes=(0, None)))(both, start)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3)
    for i in range(2):
        one = {name: float(values[i]) for name, values in both.items()}
        alone = jax.jit(partial(learn, one))(start)
        jax.tree.map(lambda a, b, i=i: close(a, b[i]), alone, swept)
    differ = [np.abs(leaf[0] - leaf[1]).max() > 1e-4 for leaf in jax.tree.leaves(swept)]
    assert any(differ)
