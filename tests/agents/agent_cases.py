"""Small agents, batches for them, and networks so simple that values are worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from preqn_jax import agents, steps
from preqn_jax.types import Spec, Transition

SPEC = Spec(3, 2, -np.ones(2), np.ones(2))
SMALL = {"hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 16)}


CHOICES = Spec(3, 1, np.zeros(1), np.full(1, 3.0), num_actions=4)


def make(fields):
    """A small agent of this config. One with finitely many actions is trained on the first number
    of each action alone.
    """
    config = agents.AgentConfig(**{**SMALL, **fields})
    if config.algorithm not in agents.DISCRETE:
        return agents.make(config, SPEC)
    agent = agents.make(config, CHOICES)

    def update(state, batch, key, count):
        return agent.update(state, batch._replace(action=batch.action[:, :1]), key, count)

    return agent._replace(update=update)


def jitted(agent):
    """The agent with each of its functions compiled as one program, not operation by operation."""
    names = ("init", "act", "explore", "update", "inspect")
    return agent._replace(**{name: jax.jit(getattr(agent, name)) for name in names})


_made = {}


def compiled(fields):
    """A small agent whose functions are compiled, shared by all tests that ask for it."""
    key = str(fields)
    if key not in _made:
        _made[key] = jitted(make(fields))
    return _made[key]


def transitions(seed=0, n=32):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=(n, *shape))
    drawn = normal(3), np.tanh(normal(2)), normal(), rng.random(n) < 0.8, normal(3)
    return Transition(*(jnp.asarray(np.float32(leaf)) for leaf in drawn))


def learn(agent, state, updates=4, key=0):
    for i in range(updates):
        state, metrics = agent.update(
            state, transitions(i), jax.random.fold_in(jax.random.key(key), i), jnp.int32(i)
        )
    return state, metrics


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same(a, b):
    return all((x == y).all() for x, y in zip(leaves(a), leaves(b), strict=True))


class Affine:
    """A stand-in for a network, with one weight w: Q = w * (sum obs + 10 * sum action), or mu =
    clip(w * obs[:2]), for values worked out by hand.
    """

    def __init__(self, value):
        self.value = value

    def init(self, key, *inputs):
        return {"w": jnp.float32(self.value)}


class HandCritic(Affine):
    def apply(self, params, obs, action):
        return params["w"] * (jnp.sum(obs) + 10 * jnp.sum(action))


class HandActor(Affine):
    def apply(self, params, obs):
        return jnp.clip(params["w"] * obs[:2], -1, 1)


def recording(seen):
    """A critic's step that records its targets in `seen`, and leaves the parameters as they are."""

    def update(params, state, inputs, targets):
        seen.append(targets)
        info = steps.StepInfo(targets * 0, targets, {"critic/alignment": jnp.float32(1)})
        return params, state, info

    return steps.ValueStep(lambda params: (), update)


def hand_agent(seen, actor=None, target_weights=None, members=1, **policy):
    """An agent of hand-made networks; `target_weights` are those of the target critics."""
    kind = agents.gaussian if isinstance(actor, HandGaussian) else agents.deterministic
    target = None if target_weights is None else 0.995
    if kind is agents.deterministic:
        policy["target"] = target
    agent = agents.actor_critic(
        SPEC,
        kind(actor or HandActor(0.5), optax.sgd(0.0), **policy),
        agents.critic(HandCritic(2.0), recording(seen), members=members, target=target),
        discount=0.5,
    )
    state = jax.jit(agent.init)(jax.random.key(0))
    if target_weights is not None:
        weights = {"w": jnp.asarray(target_weights, jnp.float32)}
        state = state.replace(critic=state.critic.replace(target=weights))
    return agent, state


def targets_of(agent, state, seen):
    @jax.jit
    def update(state):
        _, metrics = agent.update(state, HAND_BATCH, jax.random.key(1), jnp.int32(0))
        return seen[0], metrics

    targets, metrics = update(state)
    return np.ravel(targets)[:2], metrics


HAND_BATCH = Transition(
    obs=jnp.zeros((2, 3)),
    action=jnp.zeros((2, 2)),
    reward=jnp.array([1.0, 1.0]),
    discount=jnp.array([0.0, 1.0]),  # a terminal state, and a time limit, which bootstraps
    next_obs=jnp.array([[1.0, 0.0, 0.0], [1.0, 0.4, 2.0]]),
)


class HandGaussian(Affine):
    """A policy of mean w * obs[:2], and a standard deviation of nearly zero: the action is tanh of
    the mean, up to 1e-6.
    """

    def apply(self, params, obs):
        return params["w"] * obs[:2], jnp.full(2, -14.0)
