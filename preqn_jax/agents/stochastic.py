"""Stochastic-policy agents: SAC (Haarnoja et al. 2018b), with a fixed temperature as in the paper's
benchmark, or a tuned one.

Appendix B gives SAC the temperature 0.1, polyak 0.995 and Adam at 1e-3 for policy and critics.
Where it is silent, Haarnoja et al. 2018b is followed: two critics, whose least is in the targets
and in the policy's loss; no delay of the policy; the next action is the online policy's; the
entropy to reach, where the temperature is tuned, is minus the number of actions.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from preqn_jax import networks
from preqn_jax.agents import actor_critic, base
from preqn_jax.agents.actor_critic import State
from preqn_jax.types import Array, Key, Metrics, Params, QFunction, Spec, Transition

_TARGETS, _IMPROVE = range(2)  # purposes of an update's keys


@flax.struct.dataclass
class Temperature:
    """A temperature that learns; its logarithm does, so that it stays positive."""

    log: Array  # `[]`, log alpha
    optimizer: Any


def tanh_gaussian(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """An action of the policy, a = tanh(u) with u = mean + exp(log_std) noise, and log pi(a|s).

    Haarnoja et al. 2018b, Appendix C: log pi(a|s) = log N(u; mean, std) - sum log(1 - tanh(u)^2).
    The last logarithm is taken as 2 (log 2 - u - softplus(-2u)), which is exact where tanh(u)
    rounds to 1, and has a finite gradient there.

    Args:
      mean, log_std: `[act]`.
      noise: `[act]`, drawn from the standard normal distribution.

    Returns:
      `[act]` in [-1, 1], and `[]`.
    """
    u = mean + jnp.exp(log_std) * noise
    gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    squash = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
    return jnp.tanh(u), jnp.sum(gaussian - squash)


def make(config: base.AgentConfig, spec: Spec) -> base.Agent:
    """The agent a resolved config describes."""
    fields = actor_critic.network_fields(config)
    return stochastic(
        config,
        spec,
        actor=networks.GaussianActor(spec.action_size, **fields),
        critic=networks.Critic(**fields),
    )


def stochastic(
    config: base.AgentConfig, spec: Spec, actor: networks.GaussianActor, critic: networks.Critic
) -> base.Agent:
    """An agent from a resolved config and two networks."""
    policy: Callable[..., Any] = actor.apply
    q: QFunction = critic.apply
    fixed = config.temperature
    assert fixed is not None
    wanted = -spec.action_size if config.target_entropy is None else config.target_entropy
    tuner = (
        optax.adam(config.temperature_learning_rate) if config.temperature_learning_rate else None
    )

    def sample(phi: Params, obs: Array, noise: Array) -> tuple[Array, Array]:
        mean, log_std = policy(phi, obs)
        return tanh_gaussian(mean, log_std, noise)

    def samples(phi: Params, obs: Array, key: Key) -> tuple[Array, Array]:
        """Actions `[B, act]` and their log pi `[B]`."""
        noise = jax.random.normal(key, (obs.shape[0], spec.action_size))
        return jax.vmap(sample, in_axes=(None, 0, 0))(phi, obs, noise)

    def alpha(state: State) -> Array | float:
        return fixed if state.temperature is None else jnp.exp(state.temperature.log)

    def act(phi: Params, obs: Array) -> Array:
        return jnp.tanh(policy(phi, obs)[0])

    def explore(phi: Params, obs: Array, key: Key) -> Array:
        return sample(phi, obs, jax.random.normal(key, (spec.action_size,)))[0]

    def prepare(state: State) -> State:
        if tuner is None:
            return state
        log = jnp.asarray(math.log(fixed), dtype=float)
        return replace(state, temperature=Temperature(log, tuner.init(log)))

    def targets(state: State, batch: Transition, key: Key) -> tuple[Array, Metrics]:
        """y = r + gamma d (min_i Q_i(s', a') - alpha log pi(a'|s')), a' ~ pi(.|s') (Haarnoja et al.
        2018b, Eqs. 5 and 6).
        """
        theta = state.critic if state.target_critic is None else state.target_critic
        next_obs = jnp.asarray(batch.next_obs)
        action, log_prob = samples(state.actor, next_obs, jax.random.fold_in(key, _TARGETS))
        value = actor_critic.least(q, theta, next_obs, action) - alpha(state) * log_prob
        metrics = {
            "actor/entropy": -jnp.mean(log_prob),
            "actor/temperature": jnp.asarray(alpha(state), log_prob.dtype),
        }
        return actor_critic.bootstrap(config, batch, value), metrics

    def improve(state: State, batch: Transition, key: Key) -> State:
        """Down E[alpha log pi(a|s) - min_i Q_i(s, a)], a ~ pi(.|s) (Haarnoja et al. 2018b, Eq. 9);
        alpha follows.
        """
        obs = jnp.asarray(batch.obs)

        def loss(phi: Params) -> tuple[Array, Array]:
            action, log_prob = samples(phi, obs, jax.random.fold_in(key, _IMPROVE))
            value = actor_critic.least(q, state.critic, obs, action)
            return jnp.mean(alpha(state) * log_prob - value), jnp.mean(log_prob)

        moved, log_prob = actor_critic.descend(config, loss, state)
        return (
            moved
            if tuner is None
            else replace(moved, temperature=tune(tuner, state.temperature, log_prob))
        )

    def tune(
        tuner: optax.GradientTransformation, temperature: Temperature, log_prob: Array
    ) -> Temperature:
        """Down -alpha (E[log pi(a|s)] + target entropy) (Haarnoja et al. 2018b, Eq. 18): up while
        the entropy is too low.
        """
        grad = jax.grad(lambda log: -jnp.exp(log) * (log_prob + wanted))(temperature.log)
        update, optimizer = tuner.update(grad, temperature.optimizer)
        log = optax.apply_updates(temperature.log, update)
        return Temperature(log, optimizer)  # pyright: ignore[reportArgumentType]

    return actor_critic.make(config, spec, actor, critic, act, explore, prepare, targets, improve)
