"""Deterministic-policy agents: PreQN, NGQL, DDPG and TD3 are this one with other arguments.

The paper: "these two algorithms [PreQN and TD3] are equivalent except for the Q-learning
  component".
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from preqn_jax import networks
from preqn_jax.agents import actor_critic, base
from preqn_jax.agents.actor_critic import State
from preqn_jax.types import Array, Key, Metrics, Params, QFunction, Spec, Transition


def make(config: base.AgentConfig, spec: Spec) -> base.Agent:
    """The agent a resolved config describes."""
    fields = actor_critic.network_fields(config)
    return deterministic(
        config,
        spec,
        actor=networks.Actor(spec.action_size, **fields),
        critic=networks.Critic(**fields),
    )


def deterministic(
    config: base.AgentConfig, spec: Spec, actor: networks.Actor, critic: networks.Critic
) -> base.Agent:
    """An agent from a resolved config and two networks."""
    policy: Callable[..., Any] = actor.apply
    q: QFunction = critic.apply

    def act(phi: Params, obs: Array) -> Array:
        return policy(phi, obs)

    def explore(phi: Params, obs: Array, key: Key) -> Array:
        noise = config.exploration_noise * jax.random.normal(key, (spec.action_size,))
        return jnp.clip(policy(phi, obs) + noise, -1, 1)

    def prepare(state: State) -> State:
        return (
            replace(state, target_actor=jax.tree.map(jnp.copy, state.actor))
            if config.target_networks
            else state
        )

    def targets(state: State, batch: Transition, key: Key) -> tuple[Array, Metrics]:
        """y `[B]` (Algorithm 1, line 10; with smoothing and the least of the critics, Fujimoto et
        al. 2018b, Algorithm 1).
        """
        phi = state.actor if state.target_actor is None else state.target_actor
        theta = state.critic if state.target_critic is None else state.target_critic
        action = jax.vmap(policy, in_axes=(None, 0))(phi, batch.next_obs)
        if config.target_noise:
            noise = config.target_noise * jax.random.normal(key, action.shape)
            action = jnp.clip(
                action + jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip), -1, 1
            )
        return actor_critic.bootstrap(
            config, batch, actor_critic.least(q, theta, jnp.asarray(batch.next_obs), action)
        ), {}

    def improve(state: State, batch: Transition, key: Key) -> State:
        """The policy's ascent (Algorithm 1, line 14), on the first critic."""
        first = jax.tree.map(lambda leaf: leaf[0], state.critic)

        def loss(phi: Params) -> tuple[Array, None]:
            action = jax.vmap(policy, in_axes=(None, 0))(phi, batch.obs)
            return -jnp.mean(jax.vmap(q, in_axes=(None, 0, 0))(first, batch.obs, action)), None

        return actor_critic.descend(config, loss, state)[0]

    return actor_critic.make(config, spec, actor, critic, act, explore, prepare, targets, improve)
