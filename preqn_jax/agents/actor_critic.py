"""`actor_critic`: an agent made of a critic and a policy, which are updated in turn.

Example:
>>> import numpy as np, optax
>>> from preqn_jax import agents, networks, steps
>>> from preqn_jax.types import Spec
>>> spec = Spec(3, 1, -np.ones(1), np.ones(1))
>>> q, mu = networks.Critic((64, 64)), networks.Actor(1, (64, 64))
>>> agent = agents.actor_critic(
...     spec,
...     agents.deterministic(mu, optax.adam(1e-3)),
...     agents.critic(q, steps.preconditioned(q.apply, 0.1)),
... )
"""

from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from preqn_jax import networks
from preqn_jax.agents.base import Agent, Inspection, check_batch, delayed
from preqn_jax.agents.critic import Critic, Upcoming, Update
from preqn_jax.agents.policies import Policy
from preqn_jax.options import require
from preqn_jax.types import Array, Key, Metrics, Params, Spec, Transition


@flax.struct.dataclass
class ActorCriticState:
    """The state of the agent: everything that training changes."""

    policy: Any
    critic: Any


def actor_critic(
    spec: Spec, policy: Policy, critic: Critic, *, discount: float | Array = 0.99, delay: int = 1
) -> Agent:
    """An agent made of a policy and a critic, updated as in Algorithm 1, lines 9 to 14.

    Args:
      spec: sizes of observations and actions.
      policy, critic: from this package, or `Policy` and `Critic` records of your own.
      discount: gamma.
      delay: critic updates for each update of the policy and of the target networks, at least 1.

    Raises ValueError: a policy or a critic of another kind, a spec of finitely many actions, a
    delay or a discount out of range.
    """
    _check(spec, policy, critic)
    require(delay, lambda x: x >= 1, "delay must be at least 1")
    require(discount, lambda x: 0 <= x < 1, "discount must lie in [0, 1)")

    def init(key: Key) -> ActorCriticState:
        policy_key, critic_key = jax.random.split(key)
        obs, action = jnp.zeros(spec.obs_size), jnp.zeros(spec.action_size)
        return ActorCriticState(policy.init(policy_key, obs), critic.init(critic_key, obs, action))

    def acting(state: ActorCriticState) -> Params:
        return policy.params(state.policy)

    def learn(state: ActorCriticState, batch: Transition, key: Key) -> tuple[Any, Update, Upcoming]:
        """The critic's half of an update."""
        check_batch(batch, spec)
        upcoming = policy.upcoming(state.policy, batch.next_obs, key)
        chex.assert_equal_shape([upcoming.action, batch.action])
        moved, did = critic.update(state.critic, batch, upcoming, discount)
        chex.assert_equal_shape([did.targets, batch.reward])
        return moved, did, upcoming

    def turn(state: ActorCriticState, batch: Transition, key: Key) -> ActorCriticState:
        improved = policy.improve(state.policy, batch, critic.values(state.critic), key)
        return ActorCriticState(policy.follow(improved), critic.follow(state.critic))

    def update(
        state: ActorCriticState, batch: Transition, key: Key, count: Array
    ) -> tuple[ActorCriticState, Metrics]:
        target_key, policy_key = jax.random.split(key)
        moved, did, upcoming = learn(state, batch, target_key)
        state = ActorCriticState(state.policy, moved)
        state = delayed(delay, count, turn, state, batch, policy_key)
        return state, {**did.metrics, **upcoming.metrics}

    def summary(state: ActorCriticState) -> Metrics:
        return {
            "actor/norm": optax.tree.norm(networks.weights(acting(state))),
            "critic/norm": optax.tree.norm(networks.weights(critic.params(state.critic))),
        }

    def inspect(state: ActorCriticState, batch: Transition, key: Key) -> Inspection:
        moved, did, upcoming = learn(state, batch, jax.random.split(key)[0])
        ahead = jax.vmap(policy.act, in_axes=(None, 0))(acting(state), batch.next_obs)
        params = first(state)
        after = networks.stepped(params, critic.first(moved))
        return Inspection(params, after, did.targets, ahead, upcoming.bonus)

    def first(state: ActorCriticState) -> Params:
        return critic.first(state.critic)

    acts = (policy.act, policy.explore)
    return Agent(init, acting, *acts, update, summary, critic.q, first, inspect)


def _check(spec: Spec, policy: Any, critic: Any) -> None:
    """Raises ValueError for parts of another kind, and finitely many actions."""
    for what, part, kind in (("policy", policy, Policy), ("critic", critic, Critic)):
        if not isinstance(part, kind):
            raise ValueError(
                f"{what} is a {type(part).__module__}.{type(part).__name__}, expected an "
                f"agents.{kind.__name__}, as in actor_critic(spec, policy, critic)"
            )
    if spec.num_actions is not None:
        raise ValueError(
            f"spec has {spec.num_actions} actions, expected continuous ones: use agents.discrete"
        )
