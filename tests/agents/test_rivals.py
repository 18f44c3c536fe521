"""LayerNorm and learned Fourier features as options: which networks have them, where in these they
are, and that without either the agent is plain DDPG.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agent_cases import SPEC, compiled, leaves, make, same, transitions
from preqn_jax import agents, diagnostics, networks, ntk, steps
from preqn_jax.agents import presets
from preqn_jax.options import UserError

ALGORITHMS = ("preqn", "ngql", "ddpg", "td3", "sac")
LAYER, FOURIER = {"critic_norm": "layer"}, {"critic_features": "fourier"}


def shapes(fields):
    """The shapes of the layers of critic and policy, by their names."""
    agent = make(fields)

    def start(key):
        state = agent.init(key)
        return agent.critic(state), agent.policy(state)

    return [net["params"]["mlp"] for net in jax.eval_shape(start, jax.random.key(0))]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_layers_are_the_critics_alone(algorithm):
    dense = {"Dense_0", "Dense_1", "Dense_2"}
    for fields, more in (
        (LAYER, {"LayerNorm_0", "LayerNorm_1"}),
        (FOURIER, {"fourier"}),
        ({}, set()),
    ):
        critic, policy = shapes({"algorithm": algorithm, **fields})
        assert set(critic) == dense | more and set(policy) == dense


def test_the_widths_of_the_critic_alone():
    critic, policy = shapes({"algorithm": "td3", "critic_hidden_sizes": (6,)})
    assert set(critic) == {"Dense_0", "Dense_1"}
    assert critic["Dense_0"]["kernel"].shape == (5, 6)
    assert policy["Dense_0"]["kernel"].shape == (3, 16)


@pytest.mark.slow
def test_an_agent_without_these_options_is_what_it_was():
    """The control: DDPG without target networks, compared part by part."""
    agent = make({"algorithm": "ddpg", "target_networks": False, "critic_hidden_sizes": None})
    q, mu = networks.Critic((16, 16), "relu"), networks.Actor(2, (16, 16), "relu")
    plain = agents.actor_critic(
        SPEC,
        agents.deterministic(mu, optax.adam(1e-3)),
        agents.critic(q, steps.gradient(q.apply, optax.adam(1e-3))),
    )
    ends = []
    for one in (agent, plain):
        state = jax.jit(one.init)(jax.random.key(0))
        assert state.critic.target is None and state.policy.target is None
        key, count = jax.random.key(1), jnp.int32(0)
        ends.append(jax.jit(one.update)(state, transitions(), key, count)[0])
    assert same(*ends)


def test_adams_b1_reaches_policy_and_critic():
    """After one update Adam's mean of gradients is (1 - b1) g."""
    means = []
    for b1 in (0.9, 0.5):
        agent = compiled({"algorithm": "ddpg", "adam_b1": b1})
        state = agent.init(jax.random.key(0))
        end, _ = agent.update(state, transitions(), jax.random.key(1), jnp.int32(0))
        means.append((end.policy.optimizer[0].mu, end.critic.step[0].mu))
    for a, b in zip(*map(leaves, means), strict=True):
        np.testing.assert_allclose(5 * a, b, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("fields", [LAYER, FOURIER])
def test_the_structured_kernel_at_full_width_has_nothing_to_warn_of(fields):
    """The kernel's own tests show that it is exact."""
    made = agents.resolve(agents.AgentConfig(algorithm="td3", **fields))
    q, batch = networks.Critic(**made.critic), transitions(n=8)
    params = jax.eval_shape(q.init, jax.random.key(0), batch.obs[0], batch.action[0])
    gram = lambda params: ntk.linearize(q.apply, params, (batch.obs, batch.action)).gram
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jax.eval_shape(gram, params).shape == (8, 8)


@pytest.mark.slow
def test_a_diagnosis_of_a_critic_with_layer_norm():
    agent = compiled({"algorithm": "td3", "target_networks": False, **LAYER})
    batch = transitions(5)
    seen = jax.jit(agent.inspect)(agent.init(jax.random.key(0)), batch, jax.random.key(0))
    case = diagnostics.Case(seen.params, batch, seen.next_action, seen.targets, seen.moved)
    measured = diagnostics.diagnose(agent.q, case)
    values = jax.vmap(agent.q, in_axes=(None, 0, 0))(seen.params, batch.obs, batch.action)
    np.testing.assert_allclose(measured["q_mean"], values.mean(), rtol=1e-4)
    assert {"feature_rank", "dormant_share", "self_excitation"} <= set(measured)


def test_the_bandwidth_may_be_swept():
    """Initial weights depend on it, also under `vmap`."""

    def start(bandwidth):
        fields = {"fourier_bandwidth": bandwidth, "fourier_ratio": 3, **FOURIER}
        agent = agents.ddpg(SPEC, hidden_sizes=(4,), **fields)
        return agent.critic(agent.init(jax.random.key(0)))["params"]["mlp"]["fourier"]["kernel"]

    small, large = np.asarray(jax.jit(jax.vmap(start))(np.float32([0.1, 0.7])))
    assert small.shape == (5, 15)
    np.testing.assert_allclose(7 * small, large, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fourier_bandwidth": 0.0}, "fourier_bandwidth is 0.0, but it must be above 0"),
        ({"fourier_ratio": 0}, "fourier_ratio is 0, but it must be at least 1"),
        ({"critic_features": "sine"}, "unknown critic_features 'sine'.*fourier, none"),
        ({"adam_b1": 1.0}, "adam_b1 is 1.0, but it must be at least 0 and below 1"),
        ({"critic_hidden_sizes": (0,)}, "critic_hidden_sizes is 0, but it must be at least 1"),
    ],
)
def test_a_wrong_option_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        agents.resolve(agents.AgentConfig(algorithm="ddpg", **fields))


def test_presets_are_remembered_with_their_critics():
    """Two configurations that differ only in the critic's network have an agent each."""
    configs = [agents.AgentConfig(algorithm="ddpg", **fields) for fields in ({}, LAYER, FOURIER)]
    made = [presets.make(config, SPEC) for config in configs]
    assert len({id(agent.q) for agent in made}) == 3
    assert presets.make(agents.AgentConfig(algorithm="ddpg", **LAYER), SPEC).q is made[1].q
