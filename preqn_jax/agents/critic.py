"""Critics: M value functions, the step that updates them, and the networks they bootstrap from."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from preqn_jax import steps
from preqn_jax.agents import target as targets
from preqn_jax.batching import batched, precise
from preqn_jax.options import require
from preqn_jax.types import Array, Key, Metrics, Network, Number, Params, QFunction, Transition


@flax.struct.dataclass
class CriticState:
    """The state of a critic."""

    params: Params  # theta, with leaves `[M, ...]`
    step: Any  # the step's own memory
    target: Params | None  # the target network; None where targets use theta itself


class Upcoming(NamedTuple):
    """The policy's action at s' and its bonus, as the targets need them."""

    action: Array  # `[B, act]`, a'
    bonus: Array | None  # `[B]`, added to Q(s', a') (an entropy term); None for none
    metrics: Metrics


class Values(NamedTuple):
    """The values that a policy may maximize, each `(obs [B, obs], action [B, act]) -> [B]`."""

    first: Callable[[Array, Array], Array]  # of the first critic
    minimum: Callable[[Array, Array], Array]  # the minimum over all critics


class Update(NamedTuple):
    """The targets and metrics of one update of a critic."""

    targets: Array  # `[B]`, y as the first member's step used it
    metrics: Metrics


class Critic(NamedTuple):
    """A value function that learns, as pure functions.

    q: `(params, obs [obs], action [act]) -> []`, the value function of one member; its matrix
      products have full float32 precision on every device (`batching.precise`).
    init: `(key, obs [obs], action [act]) -> state`, from examples.
    first: `state -> params` of the first member, for `q`.
    values: `state -> Values` of the online networks.
    update: `(state, batch, Upcoming, discount) -> (state, Update)`. Usually it computes targets and
      then steps towards them; with batch normalization both may come from one forward pass.
    follow: `state -> state`, one update of the target network.
    params: `state -> parameters` of all members, to log their norm.
    target_values: `state -> Values` of the networks used in targets; where it is None, `values` is
      used.
    """

    q: QFunction
    init: Callable[[Key, Array, Array], Any]
    first: Callable[[Any], Params]
    values: Callable[[Any], Values]
    update: Callable[[Any, Transition, Upcoming, Any], tuple[Any, Update]]
    follow: Callable[[Any], Any]
    params: Callable[[Any], Params]
    target_values: Callable[[Any], Values] | None = None


def critic(
    network: Network,
    step: steps.ValueStep,
    *,
    members: int = 1,
    target: targets.Polyak = None,
    pessimism: Number | None = 1.0,
) -> Critic:
    """`members` value functions that take `step` towards y = r + gamma (1 - d) min_i
    Q_i(s', a').

    The minimum over members is the clipped double Q-learning of Fujimoto et al. 2018b; with one
    member, y is that of Algorithm 1, line 10.

    Args:
      network: a Flax module, or anything with its `init(key, obs, action)` and
        `apply(params, obs, action) -> []`.
      step: how one member is updated, from `steps` or your own.
      members: M.
      target: share of the target network that an update keeps (`polyak`); None for none.
      pessimism: beta in the value at s', mean_i Q_i + beta (min_i Q_i - mean_i Q_i): 1 for the
        minimum. None measures it in each minibatch by `exploitation`, and logs it as
        "critic/pessimism"; this needs at least two members, and a policy that maximizes the first
        critic.

    Raises:
      ValueError: a step that is none, no member, a measured pessimism with one, a target out of
        range, or a network with batch normalization, whose running statistics no such step moves.

    Example:
      >>> from preqn_jax import agents, networks, steps
      >>> net = networks.Critic(hidden_sizes=(64, 64))
      >>> critic = agents.critic(net, steps.preconditioned(net.apply, 0.1))
    """
    if not isinstance(step, steps.ValueStep):
        raise ValueError(
            f"step is of the type {type(step).__name__}, expected a ValueStep, as "
            "steps.gradient(network.apply, optax.adam(1e-3))"
        )
    if getattr(network, "norm", None) == "batch":
        raise ValueError(
            "network has norm='batch', whose running statistics only agents.crossq_critic moves: "
            "use that, or norm='layer'"
        )
    return plain(network, step, members, target, pessimism)


def plain(
    network: Network,
    step: steps.ValueStep,
    members: int,
    target: targets.Polyak = None,
    pessimism: Number | None = 1.0,
) -> Critic:
    """As `critic`, for a network of any norm."""
    require(members, lambda m: m >= 1, "members must be at least 1")
    if pessimism is None and members < 2:
        raise ValueError(
            "pessimism=None measures it by comparing critics, expected members of at least 2"
        )
    targets.check(target)
    q: QFunction = precise(network.apply)
    together = steps.ensemble(step)
    each = jax.vmap(batched(q), in_axes=(0, None))  # `[M, B]`

    def init(key: Key, obs: Array, action: Array) -> CriticState:
        keys = jax.random.split(key, members)
        params = jax.vmap(network.init, in_axes=(0, None, None))(keys, obs, action)
        return CriticState(params, together.init(params), targets.start(params, target))

    def values(state: CriticState) -> Values:
        first, everyone = _first(state), state.params
        return Values(
            first=lambda obs, action: batched(q)(first, (obs, action)),
            minimum=lambda obs, action: jnp.min(each(everyone, (obs, action)), axis=0),
        )

    def update(
        state: CriticState, batch: Transition, upcoming: Upcoming, discount: Any
    ) -> tuple[CriticState, Update]:
        target_params = targets.bootstrap(state.target, state.params)
        inputs, extra = (batch.obs, batch.action), {}
        ahead = each(target_params, (batch.next_obs, upcoming.action))
        beta = pessimism
        if beta is None:
            beta = exploitation(ahead, each(target_params, inputs))
            extra = {"critic/pessimism": beta}
        y = bootstrapped(batch, upcoming, _between(ahead, beta), discount)
        params, memory, info = together.update(state.params, state.step, inputs, y)
        # A step may have changed its targets, as by clipping them.
        values, delta = info.values[0], info.delta[0]
        y = jnp.where(delta == y - values, y, values + delta)
        metrics = {**means(info.values, info.delta, y), **info.metrics, **extra}
        return replace(state, params=params, step=memory), Update(y, metrics)

    def follow(state: CriticState) -> CriticState:
        return replace(state, target=targets.follow(state.target, state.params, target))

    def target_values(state: CriticState) -> Values:
        return values(replace(state, params=targets.bootstrap(state.target, state.params)))

    return Critic(q, init, _first, values, update, follow, _params, target_values)


def bootstrapped(batch: Transition, upcoming: Upcoming, value: Array, discount: Any) -> Array:
    """Targets y `[B]` (Algorithm 1, line 10) from the `value` `[B]` of (s', a') without bonus."""
    if upcoming.bonus is not None:
        value = value + upcoming.bonus
    # What is not finite beyond a terminal has no part in y, as 0 times it would have.
    ahead = jnp.where(batch.discount > 0, batch.discount * value, 0)
    return batch.reward + discount * ahead


def means(values: Array, delta: Array, y: Array) -> Metrics:
    """Metrics: means of Q and |TD error|, `[M, B]` before the step, and of the targets `[B]`."""
    return {
        "critic/q_mean": jnp.mean(values),
        "critic/td_abs": jnp.mean(jnp.abs(delta)),
        "critic/target_mean": jnp.mean(y),
    }


def exploitation(ahead: Array, here: Array) -> Array:
    """How far a policy exploits the errors of the critic that it maximizes, `[]` in [0, 1].

    The policy chooses its action at s' by Q_1 alone; the other critics only judge it, as in double
    estimation (van Hasselt 2010). Let g be Q_1 - mean of the others at (s', a'), minus the mean of
    this difference at the data's (s, a), where the policy did not choose. The result is E[g] /
    E|g|, or 0 if that is negative. Critics that differ by chance give 0, and targets use their
    mean. If g is positive everywhere, the result is 1: choosing by Q_1 explains the whole
    difference, and targets use the minimum.

    Args:
      ahead: `[M, B]`, Q of the members at (s', a').
      here: `[M, B]`, Q of the members at (s, a).

    Example:
      >>> import jax.numpy as jnp
      >>> from preqn_jax.agents.critic import exploitation
      >>> here = jnp.zeros((2, 4))
      >>> above, by_chance = jnp.asarray([1.0, 2.0, 1.0, 2.0]), jnp.asarray([1.0, -1.0, 1.0, -1.0])
      >>> [float(exploitation(here.at[0].add(g), here)) for g in (above, by_chance, -above)]
      [1.0, 0.0, 0.0]
    """
    gap = ahead[0] - jnp.mean(ahead[1:], axis=0)
    gap = gap - jnp.mean(here[0] - jnp.mean(here[1:], axis=0))
    size = jnp.mean(jnp.abs(gap))
    return jnp.clip(jnp.mean(gap) / jnp.where(size > 0, size, 1), 0, 1)


def _between(values: Array, beta: Number) -> Array:
    """`[M, B] -> [B]`: the minimum over members for beta = 1, their mean for beta = 0."""
    return beta * jnp.min(values, axis=0) + (1 - beta) * jnp.mean(values, axis=0)


def _params(state: CriticState) -> Params:
    return state.params


def _first(state: CriticState) -> Params:
    return jax.tree.map(lambda leaf: leaf[0], state.params)
