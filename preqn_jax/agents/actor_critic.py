"""The skeleton of every actor-critic here: critics, policy and target networks take turns.

A kind of policy brings the targets its critics should meet and its own step; `deterministic` and
`stochastic` are the two.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from preqn_jax import networks, steps
from preqn_jax.agents import base
from preqn_jax.types import Array, Key, Metrics, Params, QFunction, Spec, Transition


@flax.struct.dataclass
class State:
    """All that learning changes."""

    actor: Params  # phi
    critic: Params  # theta, leaves `[M, ...]` for M critics
    target_critic: Params | None  # None without target networks: the online ones bootstrap
    actor_optimizer: Any
    critic_step: Any
    target_actor: Params | None = None  # deterministic policies with target networks
    temperature: Any = None  # stochastic policies that tune theirs


Act = Callable[[Params, Array], Array]
Explore = Callable[[Params, Array, Key], Array]
"""As in `base.Agent`."""

Prepare = Callable[[State], State]
"""Adds to the first state what a kind of policy keeps beside actor and critics."""

Targets = Callable[[State, Transition, Key], tuple[Array, Metrics]]
"""`(state, batch [B], key) -> (y [B], metrics)`."""

Improve = Callable[[State, Transition, Key], State]
"""The policy's step. It gets the key that the targets got: what draws from it folds in a number of
its own.
"""


def network_fields(config: base.AgentConfig) -> dict[str, Any]:
    """The arguments that actor and critic share."""
    return {
        "hidden_sizes": config.hidden_sizes,
        "activation": config.activation,
        "initializer": config.initializer,
    }


def make(
    config: base.AgentConfig,
    spec: Spec,
    actor: Any,
    critic: networks.Critic,
    act: Act,
    explore: Explore,
    prepare: Prepare,
    targets: Targets,
    improve: Improve,
) -> base.Agent:
    """An agent from a resolved config, two networks, and what is a kind of policy's own."""
    q: QFunction = critic.apply
    step = steps.ensemble(base.critic_step(config, q))
    optimizer, members, delay = (
        actor_optimizer(config),
        config.num_critics or 1,
        config.policy_delay or 1,
    )

    def init(key: Key) -> State:
        actor_key, critic_key = jax.random.split(key)
        obs, action = jnp.zeros(spec.obs_size), jnp.zeros(spec.action_size)
        phi = actor.init(actor_key, obs)
        theta = jax.vmap(critic.init, in_axes=(0, None, None))(
            jax.random.split(critic_key, members), obs, action
        )
        slow = jax.tree.map(jnp.copy, theta) if config.target_networks else None
        return prepare(State(phi, theta, slow, optimizer.init(phi), step.init(theta)))

    def follow(slow: Any, online: Params) -> Any:
        return None if slow is None else optax.incremental_update(online, slow, 1 - config.polyak)

    def turn(state: State, batch: Transition, key: Key) -> State:
        state = improve(state, batch, key)
        return replace(
            state,
            target_actor=follow(state.target_actor, state.actor),
            target_critic=follow(state.target_critic, state.critic),
        )

    def update(state: State, batch: Transition, key: Key, count: Array) -> tuple[State, Metrics]:
        y, metrics = targets(state, batch, key)
        theta, step_state, info = step.update(
            state.critic, state.critic_step, (batch.obs, batch.action), y
        )
        state = replace(state, critic=theta, critic_step=step_state)
        if delay == 1:
            state = turn(state, batch, key)
        else:
            state = jax.lax.cond(
                (count + 1) % delay == 0, turn, lambda state, *_: state, state, batch, key
            )
        metrics = {
            "critic/q_mean": jnp.mean(info.values),
            "critic/td_abs": jnp.mean(jnp.abs(info.delta)),
            "critic/target_mean": jnp.mean(y),
            **metrics,
            **info.metrics,
        }
        return state, metrics

    def propose(state: State, batch: Transition, key: Key) -> base.Proposal:
        y, _ = targets(state, batch, key)
        moved, _, _ = step.update(state.critic, state.critic_step, (batch.obs, batch.action), y)
        first, moved = (
            jax.tree.map(lambda leaf: leaf[0], theta) for theta in (state.critic, moved)
        )
        return base.Proposal(
            first,
            moved,
            y,
            jax.vmap(act, in_axes=(None, 0))(state.actor, jnp.asarray(batch.next_obs)),
        )

    return base.Agent(init, act, explore, update, q, propose)


def actor_optimizer(config: base.AgentConfig) -> optax.GradientTransformation:
    """Appendix B's "actor optimizer"."""
    return optax.adam(config.actor_learning_rate)


def descend(
    config: base.AgentConfig, loss: Callable[[Params], tuple[Array, Any]], state: State
) -> tuple[State, Any]:
    """One step of the policy down `loss`, which returns (scalar, aux), and the aux."""
    grads, aux = jax.grad(loss, has_aux=True)(state.actor)
    updates, moments = actor_optimizer(config).update(grads, state.actor_optimizer, state.actor)
    return replace(
        state, actor=optax.apply_updates(state.actor, updates), actor_optimizer=moments
    ), aux


def least(q: QFunction, theta: Params, obs: Array, action: Array) -> Array:
    """min over M critics of Q `[B]` (Fujimoto et al. 2018b's clipped double Q-learning); theta
    leads with `[M]`.
    """
    return jnp.min(
        jax.vmap(jax.vmap(q, in_axes=(None, 0, 0)), in_axes=(0, None, None))(theta, obs, action),
        axis=0,
    )


def bootstrap(config: base.AgentConfig, batch: Transition, value: Array) -> Array:
    """y = r + gamma * d * value `[B]`, d = 0 at a terminal (Algorithm 1, line 10)."""
    return jnp.asarray(batch.reward) + config.discount * batch.discount * value
