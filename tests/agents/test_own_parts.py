"""Parts of one's own in `train`: networks that need more of JAX, and those that cannot work."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import preqn_jax
from preqn_jax import agents, networks, replay, steps
from preqn_jax.options import UserError
from preqn_jax.training import loop
from preqn_jax.types import Spec, Transition

SPEC = Spec(3, 1, -np.ones(1), np.ones(1))
SHORT = {"start_steps": 50, "update_after": 50, "batch_size": 8, "eval_every": 100}
Q, MU = networks.Critic((8,)), networks.Actor(1, (8,))
POLICY = agents.deterministic(MU, optax.adam(1e-3))


class Seeing(nn.Module):
    """A critic that sees observations through a convolution."""

    @nn.compact
    def __call__(self, obs, action):
        seen = nn.tanh(nn.Conv(2, (3,))(obs[:, None])).ravel()
        return nn.Dense(1)(jnp.concatenate([seen, action]))[0]


def test_a_critic_may_have_a_convolution():
    """On a mesh, of one device too, JAX has no rule for its gradient for each example, and says so
    in an error without words.
    """

    def algorithm(spec):
        q = Seeing()
        return agents.actor_critic(
            spec, POLICY, agents.critic(q, steps.preconditioned(q.apply, 0.1), members=2)
        )

    *_, done = preqn_jax.train(algorithm, "Pendulum-v1", num_steps=50, **SHORT)
    assert 0.9 < done.metrics["critic/alignment"][0] <= 1.001
    if jax.local_device_count() > 1:
        with pytest.raises(UserError, match="a convolution for each example: train one seed at a"):
            list(preqn_jax.train(algorithm, "Pendulum-v1", num_steps=50, seeds=(0, 1), **SHORT))


@pytest.mark.parametrize("words", ["", "the policy of MyAgent is abstract"])
def test_what_is_not_implemented_keeps_its_own_words(words):
    def fails(x):
        raise NotImplementedError(*filter(None, [words]))

    devices = jax.local_devices()
    mesh = jax.make_mesh((1,), ("members",), (jax.sharding.AxisType.Auto,), devices=devices[:1])
    places = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("members"))
    with pytest.raises(NotImplementedError if words else UserError, match=words or "convolution"):
        loop.by_shares(fails, places, 1, 0)(jnp.ones(1))


def clipped(q, bound):
    """PreQN with its TD errors clipped, as on the page about Python."""
    step = steps.preconditioned(q, 0.1)

    def update(params, memory, inputs, targets):
        values = jax.vmap(q, (None, 0, 0))(params, *inputs)
        near = values + jnp.clip(targets - values, -bound, bound)
        return step.update(params, memory, inputs, near)

    return steps.ValueStep(step.init, update)


@pytest.mark.parametrize("bound", [0.01, 1e6])
def test_a_step_that_changes_its_targets_is_diagnosed_by_those_it_used(bound):
    critic = agents.critic(Q, clipped(Q.apply, bound), members=2)
    agent = agents.actor_critic(SPEC, POLICY, critic)
    state, draw = agent.init(jax.random.key(0)), np.random.default_rng(0)
    obs, action, next_obs = (
        jnp.asarray(draw.uniform(-1, 1, (8, n)), jnp.float32) for n in (3, 1, 3)
    )
    batch = Transition(obs, action, jnp.arange(8.0) - 4, jnp.ones(8), next_obs)
    seen = agent.inspect(state, batch, jax.random.key(1))
    ahead = jax.vmap(MU.apply, (None, 0))(agent.policy(state), next_obs)
    each = jax.vmap(jax.vmap(Q.apply, (None, 0, 0)), (0, None, None))
    values, there = (
        np.asarray(each(state.critic.params, *pair), np.float64)
        for pair in ((obs, action), (next_obs, ahead))
    )
    y = np.asarray(batch.reward) + 0.99 * there.min(axis=0)
    used = values[0] + np.clip(y - values[0], -bound, bound)
    np.testing.assert_allclose(seen.targets, used, atol=1e-5)
    _, metrics = agent.update(state, batch, jax.random.key(1), jnp.int32(0))
    assert float(metrics["critic/target_mean"]) == pytest.approx(used.mean(), abs=1e-5)


def test_a_policy_beyond_its_bounds_is_one_sentence():
    """Exploration clips its actions, but nothing those in the targets: Q is asked beyond them."""

    class Free(nn.Module):
        @nn.compact
        def __call__(self, obs):
            return 3 + nn.Dense(1)(obs)

    policy = agents.deterministic(Free(), optax.adam(1e-3))

    def algorithm(spec):
        step = steps.gradient(Q.apply, optax.adam(1e-3))
        return agents.actor_critic(spec, policy, agents.critic(Q, step))

    for env in ("Pendulum-v1", "probe/delay"):  # on the host, and on the device
        words = r"the policy's actions reach \d.*, but must lie in \[-1, 1\], .* with a tanh$"
        with pytest.raises(UserError, match=words):
            list(preqn_jax.train(algorithm, env, num_steps=100, **SHORT))


class Keyed(NamedTuple):
    """What a step keeps."""

    key: jax.Array


def test_a_random_key_in_a_state_is_refused_before_training():
    plain = steps.gradient(Q.apply, optax.adam(1e-3))
    step = steps.ValueStep(lambda params: Keyed(jax.random.key(0)), plain.update)

    def algorithm(spec):
        return agents.actor_critic(spec, POLICY, agents.critic(Q, step))

    with pytest.raises(UserError, match="state holds a random key, .*: keep jax.random.key_data"):
        next(preqn_jax.train(algorithm, "Pendulum-v1", num_steps=50, **SHORT))


STEP = steps.gradient(Q.apply, optax.adam(1e-3))
MISTAKES = {
    "the two exchanged": (
        lambda: agents.actor_critic(SPEC, agents.critic(Q, STEP), POLICY),  # pyright: ignore
        r"policy is a .*critic.Critic, expected an agents.Policy, as in actor_critic\(spec, pol",
    ),
    "a network for a critic": (
        lambda: agents.actor_critic(SPEC, POLICY, Q),  # pyright: ignore
        "critic is a preqn_jax.networks.Critic, expected an agents.Critic",
    ),
    "choices": (
        lambda: agents.actor_critic(
            Spec(3, 1, np.zeros(1), np.ones(1), num_actions=2), POLICY, agents.critic(Q, STEP)
        ),
        "spec has 2 actions, expected continuous ones: use agents.discrete",
    ),
    "an optimizer for a step": (
        lambda: agents.critic(Q, optax.adam(1e-3)),  # pyright: ignore
        "step is of the type GradientTransformationExtraArgs, expected a ValueStep, as steps.grad",
    ),
    "a rate for an optimizer": (
        lambda: agents.deterministic(MU, 1e-3),  # pyright: ignore
        "optimizer is 0.001, expected one of optax",
    ),
    "a class for an optimizer": (
        lambda: agents.gaussian(networks.GaussianActor(1, (8,)), optax.adam),  # pyright: ignore
        "optimizer is <function adam.*, expected one of optax",
    ),
    "a network for its function": (
        lambda: steps.gradient(Q, optax.adam(1e-3)),  # pyright: ignore
        "q is a network, Critic, expected its function, as `net.apply`",
    ),
    "a network for its function in a kernel": (
        lambda: preqn_jax.linearize(Q, {}, (jnp.ones((2, 3)), jnp.ones((2, 1)))),  # pyright: ignore
        "q is a network, Critic, expected its function",
    ),
    "a spec of two axes": (
        lambda: replay.init(Spec((4, 4), 1, -np.ones(1), np.ones(1)), 10),  # pyright: ignore
        "spec has observations of size",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_part_that_is_none_is_said_as_it_is_made(what):
    make, words = MISTAKES[what]
    with pytest.raises(ValueError, match=words):
        make()
