"""Policies: how they act, which action the targets use, and how they are trained.

PreQN, NGQL, DDPG and TD3 use the deterministic one; SAC, CrossQ and preqn_soft the Gaussian one.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import target as targets
from preqn_jax.agents.critic import Upcoming, Values
from preqn_jax.options import require
from preqn_jax.steps.base import check_optimizer
from preqn_jax.types import Array, Key, Network, Params, Transition


class Policy(NamedTuple):
    """A policy that learns, as pure functions.

    init: `(key, obs [obs]) -> state`, from an example observation.
    params: `state -> params`, those that `act` and `explore` take.
    act: `(params, obs [obs]) -> action [act]` in [-1, 1], without noise.
    explore: `(params, obs [obs], key) -> action [act]` in [-1, 1], with exploration noise.
    upcoming: `(state, next_obs [B, obs], key) -> Upcoming`: its actions at s', for the targets.
    improve: `(state, batch, Values, key) -> state`: one gradient step of the policy.
    follow: `state -> state`, one update of the target network.
    """

    init: Callable[[Key, Array], Any]
    params: Callable[[Any], Params]
    act: Callable[[Params, Array], Array]
    explore: Callable[[Params, Array, Key], Array]
    upcoming: Callable[[Any, Array, Key], Upcoming]
    improve: Callable[[Any, Transition, Values, Key], Any]
    follow: Callable[[Any], Any]


class Smoothing(NamedTuple):
    """Target policy smoothing (Fujimoto et al. 2018b, section 5.3)."""

    noise: float | Array = 0.2  # standard deviation
    clip: float | Array = 0.5  # bound on the noise


@flax.struct.dataclass
class DeterministicState:
    """The state of a deterministic policy."""

    params: Params  # phi
    optimizer: Any
    target: Params | None  # the target network; None where targets use phi itself


def deterministic(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    noise: float | Array = 0.1,
    smoothing: Smoothing | None = None,
    target: targets.Polyak = None,
) -> Policy:
    """A policy mu(s), trained to maximize the first critic (Algorithm 1, lines 4 and 14).

    Args:
      network: a Flax module, or anything with its `init(key, obs)` and
        `apply(params, obs) -> action` in [-1, 1].
      optimizer: of phi.
      noise: standard deviation of the action noise in data collection.
      smoothing: noise on the action in the targets; None for none.
      target: share of the target network that an update keeps (`polyak`); None for none.

    Raises ValueError: an optimizer that is none, noise or target out of range.
    """
    require(noise, lambda x: x >= 0, "noise must not be negative")
    targets.check(target)
    check_optimizer(optimizer)
    mu = network.apply
    batched = jax.vmap(mu, in_axes=(None, 0))

    def init(key: Key, obs: Array) -> DeterministicState:
        params = network.init(key, obs)
        return DeterministicState(params, optimizer.init(params), targets.start(params, target))

    def explore(params: Params, obs: Array, key: Key) -> Array:
        action = mu(params, obs)
        return jnp.clip(action + noise * jax.random.normal(key, action.shape), -1, 1)

    def upcoming(state: DeterministicState, next_obs: Array, key: Key) -> Upcoming:
        action = batched(targets.bootstrap(state.target, state.params), next_obs)
        if smoothing is not None:
            shift = smoothing.noise * jax.random.normal(key, action.shape)
            action = jnp.clip(action + jnp.clip(shift, -smoothing.clip, smoothing.clip), -1, 1)
        return Upcoming(action, None, {})

    def improve(
        state: DeterministicState, batch: Transition, values: Values, key: Key
    ) -> DeterministicState:
        def loss(params: Params) -> Array:
            return -jnp.mean(values.first(batch.obs, batched(params, batch.obs)))

        grads = jax.grad(loss)(state.params)
        params, moments = _descend(optimizer, grads, state.params, state.optimizer)
        return replace(state, params=params, optimizer=moments)

    def follow(state: DeterministicState) -> DeterministicState:
        return replace(state, target=targets.follow(state.target, state.params, target))

    return Policy(init, lambda state: state.params, mu, explore, upcoming, improve, follow)


def tanh_gaussian(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """An action a = tanh(u) with u = mean + exp(log_std) noise, and log pi(a|s).

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
    density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    squash = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
    return jnp.tanh(u), jnp.sum(density - squash)


class Tuning(NamedTuple):
    """How a temperature is tuned (Haarnoja et al. 2018b, section 5)."""

    optimizer: optax.GradientTransformation  # of log alpha
    target_entropy: float | Array


@flax.struct.dataclass
class GaussianState:
    """The state of a Gaussian policy."""

    params: Params  # phi
    optimizer: Any
    log_temperature: Any  # `[]`, log alpha, so that alpha stays positive; None if it is fixed
    tuner: Any


def gaussian(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    temperature: float | Array = 0.1,
    tuning: Tuning | None = None,
    training: Callable[..., Any] | None = None,
) -> Policy:
    """SAC's policy: tanh of a Gaussian, with an entropy bonus (Haarnoja et al. 2018b).

    It maximizes the minimum over critics and its entropy; targets get the bonus -alpha log
    pi(a'|s') at a' ~ pi(.|s').

    Args:
      network: as for `deterministic`, with `apply(params, obs) -> (mean [act], log_std [act])`.
      optimizer: of phi.
      temperature: alpha, or its initial value if it is tuned.
      tuning: None for a fixed temperature.
      training: for a network with batch normalization, `networks.training(network)`, so that the
        policy's gradient step is in training mode (Bhatt et al. 2024); None for any other.

    Raises ValueError: an optimizer that is none, a negative temperature, or one of 0 that is to be
    tuned.
    """
    check_optimizer(optimizer)
    if tuning is None:
        require(temperature, lambda x: x >= 0, "temperature must not be negative")
    else:
        require(temperature, lambda x: x > 0, "temperature must be positive to be tuned")

    def plain(params: Params, obs: Array) -> tuple[Any, Params]:
        return jax.vmap(network.apply, in_axes=(None, 0))(params, obs), {}

    def alpha(state: GaussianState) -> float | Array:
        return temperature if tuning is None else jnp.exp(state.log_temperature)

    def init(key: Key, obs: Array) -> GaussianState:
        params = network.init(key, obs)
        if tuning is None:
            return GaussianState(params, optimizer.init(params), None, None)
        log = jnp.log(jnp.asarray(temperature, dtype=float))
        return GaussianState(params, optimizer.init(params), log, tuning.optimizer.init(log))

    def act(params: Params, obs: Array) -> Array:
        return jnp.tanh(network.apply(params, obs)[0])

    def explore(params: Params, obs: Array, key: Key) -> Array:
        mean, log_std = network.apply(params, obs)
        return tanh_gaussian(mean, log_std, jax.random.normal(key, mean.shape))[0]

    def upcoming(state: GaussianState, next_obs: Array, key: Key) -> Upcoming:
        """Actions at s' and their entropy bonus (Haarnoja et al. 2018b, Eqs. 5 and 6)."""
        action, log_prob, _ = _samples(plain, state.params, next_obs, key)
        metrics = {
            "actor/entropy": -jnp.mean(log_prob),
            "actor/temperature": jnp.asarray(alpha(state), log_prob.dtype),
        }
        return Upcoming(action, -alpha(state) * log_prob, metrics)

    def improve(state: GaussianState, batch: Transition, values: Values, key: Key) -> GaussianState:
        """Descend E[alpha log pi(a|s) - min_i Q_i(s, a)], a ~ pi(.|s) (Haarnoja et al., Eq. 9)."""

        def loss(params: Params) -> tuple[Array, tuple[Array, Params]]:
            action, log_prob, moved = _samples(training or plain, params, batch.obs, key)
            value = values.minimum(batch.obs, action)
            return jnp.mean(alpha(state) * log_prob - value), (jnp.mean(log_prob), moved)

        grads, (log_prob, moved) = jax.grad(loss, has_aux=True)(state.params)
        params, moments = _descend(optimizer, grads, state.params, state.optimizer)
        params = {**params, **moved} if moved else params  # running statistics
        state = replace(state, params=params, optimizer=moments)
        return state if tuning is None else _tune(tuning, state, log_prob)

    acts = (lambda state: state.params, act, explore)
    return Policy(init, *acts, upcoming, improve, follow=lambda state: state)


def _samples(
    batched: Callable[..., tuple[Any, Params]], params: Params, obs: Array, key: Key
) -> tuple[Array, Array, Params]:
    """Actions `[B, act]`, their log pi `[B]`, and the updated running statistics, if any."""
    (mean, log_std), moved = batched(params, obs)
    noise = jax.random.normal(key, mean.shape)
    return *jax.vmap(tanh_gaussian)(mean, log_std, noise), moved


def _tune(tuning: Tuning, state: GaussianState, log_prob: Array) -> GaussianState:
    """Descend -alpha (E[log pi(a|s)] + target entropy) (Haarnoja et al. 2018b, Eq. 18)."""

    def loss(log: Array) -> Array:
        return -jnp.exp(log) * (log_prob + tuning.target_entropy)

    grads = jax.grad(loss)(state.log_temperature)
    log, tuner = _descend(tuning.optimizer, grads, state.log_temperature, state.tuner)
    return replace(state, log_temperature=log, tuner=tuner)


def _descend(
    optimizer: optax.GradientTransformation, grads: Params, params: Params, moments: Any
) -> tuple[Params, Any]:
    updates, moments = optimizer.update(grads, moments, params)
    return optax.apply_updates(params, updates), moments
