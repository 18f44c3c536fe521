"""Deterministic-policy agents: PreQN, NGQL, DDPG and TD3 are this one with other arguments.

The paper: "these two algorithms [PreQN and TD3] are equivalent except for the Q-learning component".
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
    target_actor: Params | None  # None without target networks: the online one bootstraps
    target_critic: Params | None
    actor_optimizer: Any
    critic_step: Any


def make(config: base.AgentConfig, spec: Spec) -> base.Agent:
    """The agent a config describes. Raises UserError where the config makes no sense."""
    config = base.resolve(config)
    network = {"hidden_sizes": config.hidden_sizes, "activation": config.activation, "initializer": config.initializer}
    return deterministic(
        config,
        spec,
        actor=networks.Actor(spec.action_size, **network),
        critic=networks.Critic(**network),
    )


def deterministic(config: base.AgentConfig, spec: Spec, actor: networks.Actor, critic: networks.Critic) -> base.Agent:
    """An agent from a resolved config and two networks."""
    policy: Callable[..., Any] = actor.apply
    q: QFunction = critic.apply
    step = steps.ensemble(base.critic_step(config, q))
    optimizer = optax.adam(config.actor_learning_rate)
    delay, members = config.policy_delay or 1, config.num_critics or 1

    def init(key: Key) -> State:
        actor_key, critic_key = jax.random.split(key)
        obs, action = jnp.zeros(spec.obs_size), jnp.zeros(spec.action_size)
        phi = actor.init(actor_key, obs)
        theta = jax.vmap(critic.init, in_axes=(0, None, None))(jax.random.split(critic_key, members), obs, action)
        slow_phi, slow_theta = jax.tree.map(jnp.copy, (phi, theta)) if config.target_networks else (None, None)
        return State(phi, theta, slow_phi, slow_theta, optimizer.init(phi), step.init(theta))

    def act(phi: Params, obs: Array) -> Array:
        return policy(phi, obs)

    def explore(phi: Params, obs: Array, key: Key) -> Array:
        noise = config.exploration_noise * jax.random.normal(key, (spec.action_size,))
        return jnp.clip(policy(phi, obs) + noise, -1, 1)

    def targets(state: State, batch: Transition, key: Key) -> Array:
        """y `[B]` (Algorithm 1, line 10; with smoothing and the least of the critics, Fujimoto et al. 2018b, Algorithm 1)."""
        phi = state.actor if state.target_actor is None else state.target_actor
        theta = state.critic if state.target_critic is None else state.target_critic
        action = jax.vmap(policy, in_axes=(None, 0))(phi, batch.next_obs)
        if config.target_noise:
            noise = config.target_noise * jax.random.normal(key, action.shape)
            action = jnp.clip(action + jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip), -1, 1)
        values = jax.vmap(jax.vmap(q, in_axes=(None, 0, 0)), in_axes=(0, None, None))(theta, batch.next_obs, action)
        return jnp.asarray(batch.reward) + config.discount * batch.discount * jnp.min(values, axis=0)

    def improve(state: State, batch: Transition) -> State:
        """The policy's ascent (Algorithm 1, line 14), on the first critic, and the target networks' step."""
        first = jax.tree.map(lambda leaf: leaf[0], state.critic)

        def loss(phi: Params) -> Array:
            action = jax.vmap(policy, in_axes=(None, 0))(phi, batch.obs)
            return -jnp.mean(jax.vmap(q, in_axes=(None, 0, 0))(first, batch.obs, action))

        updates, optimizer_state = optimizer.update(jax.grad(loss)(state.actor), state.actor_optimizer, state.actor)
        state = replace(state, actor=optax.apply_updates(state.actor, updates), actor_optimizer=optimizer_state)
        if not config.target_networks:
            return state
        slow: Any = (state.target_actor, state.target_critic)
        slow = optax.incremental_update((state.actor, state.critic), slow, 1 - config.polyak)
        return replace(state, target_actor=slow[0], target_critic=slow[1])

    def update(state: State, batch: Transition, key: Key, count: Array) -> tuple[State, Metrics]:
        y = targets(state, batch, key)
        theta, step_state, info = step.update(state.critic, state.critic_step, (batch.obs, batch.action), y)
        state = replace(state, critic=theta, critic_step=step_state)
        if delay == 1:
            state = improve(state, batch)
        else:
            state = jax.lax.cond((count + 1) % delay == 0, improve, lambda state, _: state, state, batch)
        metrics = {
            "critic/q_mean": jnp.mean(info.values),
            "critic/td_abs": jnp.mean(jnp.abs(info.delta)),
            "critic/target_mean": jnp.mean(y),
            **info.metrics,
        }
        return state, metrics

    return base.Agent(init, act, explore, update)
