"""Finitely many actions: a critic alone, which bootstraps from its own largest value.

The targets are the paper's T* (Eq. 2) with its maximum taken exactly, where the other agents take
the action of a policy that climbs Q.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from preqn_jax import actions
from preqn_jax.agents.base import Agent, Inspection, check_batch, every
from preqn_jax.agents.critic import Critic, Upcoming, Update, Values
from preqn_jax.batching import precise
from preqn_jax.options import require
from preqn_jax.types import Array, Key, Metrics, Params, QFunction, Spec, Transition


class Epsilon(NamedTuple):
    """How often data collection acts at random: from `start` to `end`, in a line over the first
    `decay` updates (Mnih et al. 2015).
    """

    start: float | Array = 1.0
    end: float | Array = 0.05
    decay: int | Array = 10_000

    def after(self, updates: Array) -> Array:
        """epsilon `[]` after so many updates.

        >>> import jax.numpy as jnp
        >>> from preqn_jax.agents import Epsilon
        >>> [float(Epsilon(1.0, 0.5, 10).after(jnp.int32(n))) for n in (0, 5, 10, 20)]
        [1.0, 0.75, 0.5, 0.5]
        >>> float(Epsilon(1.0, 0.5, 0).after(jnp.int32(0)))
        0.5
        """
        share = jnp.where(updates < self.decay, updates / jnp.maximum(self.decay, 1), 1.0)
        return jnp.asarray(self.start + (self.end - self.start) * share, jnp.float32)


_USUAL = Epsilon()


@flax.struct.dataclass
class DiscreteState:
    """All that learning changes."""

    critic: Any
    updates: Array  # [] int32, so far


class Greedy(NamedTuple):
    """What acting needs."""

    params: Params  # of the first critic
    epsilon: Array  # []


def discrete(
    spec: Spec,
    critic: Critic,
    *,
    discount: float | Array = 0.99,
    epsilon: Epsilon = _USUAL,
    double: bool = False,
    delay: int = 1,
) -> Agent:
    """The agent that acts greedily in a critic: DQN (Mnih et al. 2015) with a gradient step and a
    slow copy, PreQN with a preconditioned one and none.

    Targets are y = r + gamma (1 - d) max_a Q(s', a) over the slow copy, or over the critic itself
    where there is none. It acts by the first critic; in the targets of several the greedy action is
    that of their least, and `critic` says what bootstraps.

    Args:
      spec: of an environment with `num_actions`.
      critic: of this package or your own, with a q of `(params, obs [obs], action [1])`, as
        `networks.ActionValues` is one.
      discount: gamma.
      epsilon: the share of actions drawn uniformly in data collection.
      double: the critic itself chooses the action, and the slow copy says what it is worth (van
        Hasselt et al. 2016).
      delay: updates for one update of the slow copy. With `critic(target=0.0)` each is a whole
        copy, as Mnih et al. have it.

    Raises ValueError: spec has no finite number of actions, or delay is below 1.

    Example:
      >>> import numpy as np
      >>> from preqn_jax import agents, networks, steps
      >>> from preqn_jax.types import Spec
      >>> spec = Spec(4, 1, np.zeros(1), np.ones(1), num_actions=2)  # CartPole's
      >>> net = networks.ActionValues(2, (64, 64))
      >>> critic = agents.critic(net, steps.preconditioned(net.apply, 0.1))
      >>> agent = agents.discrete(spec, critic)
    """
    if spec.num_actions is None:
        raise ValueError(
            "spec has no num_actions, expected how many there are: an agent for boxes is "
            "agents.actor_critic"
        )
    require(delay, lambda x: x >= 1, "delay must be at least 1")
    require(discount, lambda x: 0 <= x < 1, "discount must lie in [0, 1)")
    choices = _numbers(spec.num_actions)
    slow = critic.values if critic.slow is None else critic.slow
    act, explore = _acts(critic.q, choices)

    def init(key: Key) -> DiscreteState:
        example = jnp.zeros(spec.obs_size), jnp.zeros(spec.action_size)
        return DiscreteState(critic.init(key, *example), jnp.int32(0))

    def first(state: DiscreteState) -> Params:
        return critic.first(state.critic)

    def acting(state: DiscreteState) -> Greedy:
        return Greedy(first(state), epsilon.after(state.updates))

    def learn(state: DiscreteState, batch: Transition) -> tuple[Any, Update]:
        check_batch(batch, spec)
        best = _best((critic.values if double else slow)(state.critic), choices, batch.next_obs)
        return critic.update(state.critic, batch, Upcoming(best, None, {}), discount)

    def update(
        state: DiscreteState, batch: Transition, key: Key, count: Array
    ) -> tuple[DiscreteState, Metrics]:
        moved, did = learn(state, batch)
        moved = every(delay, count, critic.follow, moved)
        return DiscreteState(moved, state.updates + 1), did.metrics

    def summary(state: DiscreteState) -> Metrics:
        return {
            "actor/epsilon": epsilon.after(state.updates),
            "critic/norm": optax.tree.norm(critic.params(state.critic)),
        }

    def inspect(state: DiscreteState, batch: Transition, key: Key) -> Inspection:
        moved, did = learn(state, batch)
        ahead = jax.vmap(act, in_axes=(None, 0))(acting(state), batch.next_obs)
        return Inspection(first(state), critic.first(moved), did.targets, ahead)

    return Agent(init, acting, act, explore, update, summary, critic.q, first, inspect)


def _numbers(count: int) -> np.ndarray:
    """Those that stand for the actions, `[A]`: NumPy's, as an agent that is made while JAX traces
    is kept for longer.
    """
    return actions.number(np.arange(count, dtype=np.float32), count)


def _acts(q: QFunction, choices: Any) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """`Agent.act` and `Agent.explore`, among numbers `[A]`."""
    q = precise(q)  # also one of somebody's own

    def act(params: Greedy, obs: Array) -> Array:
        value = jax.vmap(lambda choice: q(params.params, obs, choice[None]))(choices)
        return jnp.asarray(choices)[jnp.argmax(value)][None]

    def explore(params: Greedy, obs: Array, key: Key) -> Array:
        whether, which = jax.random.split(key)
        random = jnp.asarray(choices)[jax.random.randint(which, (1,), 0, len(choices))]
        return jnp.where(jax.random.bernoulli(whether, params.epsilon), random, act(params, obs))

    return act, explore


def _best(values: Values, choices: Any, obs: Array) -> Array:
    """The action `[B, 1]` with the largest least value at obs `[B, obs]`."""

    def of(choice: Array) -> Array:
        return values.least(obs, jnp.broadcast_to(choice, (len(obs), 1)))

    return jnp.asarray(choices)[jnp.argmax(jax.vmap(of)(choices), axis=0)][:, None]
