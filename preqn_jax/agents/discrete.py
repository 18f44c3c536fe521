"""Agents for finitely many actions: a critic without a policy, with targets from max_a Q(s', a).

The targets are the paper's T* (Eq. 2) with the exact maximum; the other agents use the action of a
policy that is trained to maximize Q.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from preqn_jax import actions, networks
from preqn_jax.agents.base import Agent, Inspection, check_batch, delayed
from preqn_jax.agents.critic import Critic, Upcoming, Update, Values
from preqn_jax.batching import precise
from preqn_jax.options import require
from preqn_jax.types import Array, Key, Metrics, Params, QFunction, Spec, Transition


class Epsilon(NamedTuple):
    """The probability of a random action in data collection: it goes from `start` to `end`,
    linearly over the first `decay` updates (Mnih et al. 2015).
    """

    start: float | Array = 1.0
    end: float | Array = 0.05
    decay: int | Array = 10_000

    def after(self, updates: Array) -> Array:
        """epsilon `[]` after this number of updates.

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
    """The state of the agent: everything that training changes."""

    critic: Any
    updates: Array  # [] int32, so far


class Greedy(NamedTuple):
    """The parameters that `act` and `explore` take."""

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
    """An agent that acts greedily by its critic. With a gradient step and a target network it is
    DQN (Mnih et al. 2015); with a preconditioned step and no target network it is PreQN.

    Targets are y = r + gamma (1 - d) max_a Q(s', a), with Q of the target network, or of the critic
    itself where there is none. The agent acts by the first critic. With several critics, the action
    in the targets maximizes their minimum, and its value is computed as `critic` describes.

    Args:
      spec: of an environment with `num_actions`.
      critic: from this package or your own, with a q of `(params, obs [obs], action [1])`, such as
        `networks.ActionValues` has.
      discount: gamma.
      epsilon: the share of actions drawn uniformly in data collection.
      double: whether the critic itself chooses the action in the targets, and the target network
        only evaluates it (van Hasselt et al. 2016).
      delay: updates for each update of the target network. With `critic(target=0.0)` each of these
        copies the whole critic, as in Mnih et al.

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
            "spec.num_actions is None, expected the number of actions: for continuous actions use "
            "agents.actor_critic"
        )
    require(delay, lambda x: x >= 1, "delay must be at least 1")
    require(discount, lambda x: 0 <= x < 1, "discount must lie in [0, 1)")
    choices = _numbers(spec.num_actions)
    chosen_by = critic.values if double else critic.target_values or critic.values
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
        best = _best(chosen_by(state.critic), choices, batch.next_obs)
        return critic.update(state.critic, batch, Upcoming(best, None, {}), discount)

    def update(
        state: DiscreteState, batch: Transition, key: Key, count: Array
    ) -> tuple[DiscreteState, Metrics]:
        moved, did = learn(state, batch)
        moved = delayed(delay, count, critic.follow, moved)
        return DiscreteState(moved, state.updates + 1), did.metrics

    def summary(state: DiscreteState) -> Metrics:
        return {
            "actor/epsilon": epsilon.after(state.updates),
            "critic/norm": optax.tree.norm(networks.weights(critic.params(state.critic))),
        }

    def inspect(state: DiscreteState, batch: Transition, key: Key) -> Inspection:
        moved, did = learn(state, batch)
        ahead = jax.vmap(act, in_axes=(None, 0))(acting(state), batch.next_obs)
        params = first(state)
        after = networks.stepped(params, critic.first(moved))
        return Inspection(params, after, did.targets, ahead)

    return Agent(init, acting, act, explore, update, summary, critic.q, first, inspect)


def _numbers(count: int) -> np.ndarray:
    """The numbers that stand for the actions, `[A]`. They are NumPy's, because an agent that is
    made while JAX traces may outlive the trace.
    """
    return actions.number(np.arange(count, dtype=np.float32), count)


def _acts(q: QFunction, choices: Any) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """`Agent.act` and `Agent.explore`; `choices` `[A]` are the numbers of the actions."""
    q = precise(q)  # also a user's own

    def act(params: Greedy, obs: Array) -> Array:
        value = jax.vmap(lambda choice: q(params.params, obs, choice[None]))(choices)
        return jnp.asarray(choices)[jnp.argmax(value)][None]

    def explore(params: Greedy, obs: Array, key: Key) -> Array:
        whether, which = jax.random.split(key)
        random = jnp.asarray(choices)[jax.random.randint(which, (1,), 0, len(choices))]
        return jnp.where(jax.random.bernoulli(whether, params.epsilon), random, act(params, obs))

    return act, explore


def _best(values: Values, choices: Any, obs: Array) -> Array:
    """The actions `[B, 1]` that maximize the minimum over critics at obs `[B, obs]`."""

    def of(choice: Array) -> Array:
        return values.minimum(obs, jnp.broadcast_to(choice, (len(obs), 1)))

    return jnp.asarray(choices)[jnp.argmax(jax.vmap(of)(choices), axis=0)][:, None]
