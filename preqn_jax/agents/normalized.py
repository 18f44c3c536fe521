"""Normalized observations: minus the running mean, divided by the running standard deviation, of
all observations that a member has collected.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from preqn_jax.agents.base import Agent, Inspection
from preqn_jax.types import Array, Key, Metrics, Params, Spec, Transition

_LEAST = 1e-8  # added to the variance


@flax.struct.dataclass
class Moments:
    """Running count, mean and sum of squared deviations of vectors.

    Mean and sum are pairs of float32, the rounded value and its rounding error: after 20,000
    rounds, what a round adds would be lost in the last digit of a single float32.
    """

    count: Array  # [] int32, vectors seen
    mean: Array  # `[2, obs]`
    squares: Array  # `[2, obs]`, sum of the squared deviations from the mean

    def look(self) -> tuple[Array, Array]:
        """Mean and standard deviation `[obs]`; 0 and 1 before the first observation."""
        variance = self.squares.sum(0) / jnp.maximum(self.count, 1)
        return self.mean.sum(0), jnp.where(self.count > 0, jnp.sqrt(variance + _LEAST), 1.0)


def empty(size: int) -> Moments:
    """The moments of no vectors, where each would have `size` entries."""
    return Moments(jnp.int32(0), jnp.zeros((2, size)), jnp.zeros((2, size)))


def seen(moments: Moments, obs: Array) -> Moments:
    """The moments with `obs [n, obs]` added, by the formula of Chan, Golub and LeVeque (1983).

    >>> import numpy as np
    >>> from preqn_jax.agents.normalized import empty, seen
    >>> data = np.random.default_rng(0).normal(5, 3, (40, 2)).astype(np.float32)
    >>> moments = seen(seen(empty(2), data[:10]), data[10:])
    >>> bool(np.allclose(moments.look(), [data.mean(0), data.std(0)], rtol=1e-5))
    True
    """
    n, total = obs.shape[0], moments.count + obs.shape[0]
    high, low = moments.mean[:, None]
    off = (obs - high) - low
    shift = off.mean(0)
    within = jnp.square(off - shift[None]).sum(0)
    share = n / total.astype(jnp.float32)
    between = jnp.square(shift) * share * moments.count
    return Moments(
        total, _added(moments.mean, shift * share), _added(moments.squares, within + between)
    )


def _added(pair: Array, x: Array) -> Array:
    """`pair + x`; the second number holds the rounding error of the first (Knuth's two-sum)."""
    high, low = pair
    total = high + x
    back = total - high
    low = low + ((high - (total - back)) + (x - back))
    whole = total + low
    return jnp.stack([whole, low - (whole - total)])


@flax.struct.dataclass
class NormalizedState:
    """The state of an agent, and the moments of the observations that it has seen."""

    moments: Moments
    inner: Any


class Seen(NamedTuple):
    """The parameters of a policy or a critic, and the moments that normalize its observations."""

    params: Params
    mean: Array  # `[obs]`
    std: Array  # `[obs]`


def normalized(agent: Agent, spec: Spec) -> Agent:
    """`agent`, with observations (s - mean) / std in place of s.

    Mean and std are taken over all observations collected so far, those of random steps included.
    They change once a round, before its updates. The replay buffer holds raw observations, so that
    Q and policy see old and new ones in the same, current units, and Q of a stored transition
    changes when mean and std do. Acting, evaluation and exported policies use mean and std of that
    moment. Both are constants to every derivative: K (Eq. 9) is that of the network as a function
    of normalized observations. Nothing is clipped. If a member is frozen during the updates of a
    round, its mean and std still include that round's observations, as its replay buffer does.

    Args:
      agent: any agent.
      spec: sizes of observations and actions.

    Example:
      >>> import numpy as np
      >>> from preqn_jax import agents
      >>> from preqn_jax.types import Spec
      >>> spec = Spec(3, 1, -np.ones(1), np.ones(1))
      >>> agent = agents.normalized(agents.preqn(spec, hidden_sizes=(16, 16)), spec)
    """

    def init(key: Key) -> NormalizedState:
        return NormalizedState(empty(spec.obs_size), agent.init(key))

    def through(state: NormalizedState, params: Params) -> Seen:
        return Seen(params, *state.moments.look())

    def batched(state: NormalizedState, batch: Transition) -> Transition:
        units = through(state, None)
        each = jax.vmap(lambda obs: _normal(units, obs))
        return batch._replace(obs=each(batch.obs), next_obs=each(batch.next_obs))

    def update(
        state: NormalizedState, batch: Transition, key: Key, count: Array
    ) -> tuple[NormalizedState, Metrics]:
        inner, metrics = agent.update(state.inner, batched(state, batch), key, count)
        return NormalizedState(state.moments, inner), metrics

    def inspect(state: NormalizedState, batch: Transition, key: Key) -> Inspection:
        found = agent.inspect(state.inner, batched(state, batch), key)
        params, moved = (through(state, one) for one in (found.params, found.moved))
        return found._replace(params=params, moved=moved)

    def observe(state: NormalizedState, obs: Array) -> NormalizedState:
        if jnp.ndim(obs) != 2 or jnp.shape(obs)[1] != spec.obs_size:
            raise ValueError(
                f"obs has the shape {jnp.shape(obs)}, expected [n, {spec.obs_size}]: "
                "one observation in each row"
            )
        if not len(obs):
            return state
        inner = state.inner if agent.observe is None else agent.observe(state.inner, obs)
        return NormalizedState(seen(state.moments, obs), inner)

    return Agent(
        init=init,
        policy=lambda state: through(state, agent.policy(state.inner)),
        act=lambda params, obs: agent.act(params.params, _normal(params, obs)),
        explore=lambda params, obs, key: agent.explore(params.params, _normal(params, obs), key),
        update=update,
        summary=lambda state: agent.summary(state.inner),
        q=lambda params, obs, action: agent.q(params.params, _normal(params, obs), action),
        critic=lambda state: through(state, agent.critic(state.inner)),
        inspect=inspect,
        observe=observe,
    )


def _normal(units: Seen, obs: Array) -> Array:
    """One observation `[obs]`, normalized by moments that are constants to every derivative."""
    mean, std = jax.lax.stop_gradient((units.mean, units.std))
    return (obs - mean) / std
