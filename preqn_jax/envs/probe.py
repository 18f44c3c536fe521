"""Probe environments: problems so small that the right values are known by hand, each of which
catches one kind of bug.

With discount gamma and the greedy policy:

| id | task | right values |
|---|---|---|
| probe/constant | one step, reward 1 | Q = 1 |
| probe/observation | one step, reward equal to the observation, -1 or 1 | Q(s) = s |
| probe/delay | two steps, reward 1 after the second | Q(first) = gamma, Q(second) = 1 |
| probe/action | one step, reward 1 - (a - 0.5)^2 | mu = 0.5, Q(mu) = 1 |
| probe/context | one step, s in [-1, 1]^2, reward 1 - (a - s_1)^2 | mu(s) = s_1, Q(mu) = 1 |
| probe/time-limit | reward 1 at every step, cut off after 5 | Q = 1 / (1 - gamma), no less |
| probe/nan | as probe/constant, until the reward turns to NaN | a run must stop and say so |
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.envs.functional import FunctionalEnv, Outcome
from preqn_jax.types import Array, Key, Spec

_SPEC = Spec(1, 1, np.full(1, -1.0), np.full(1, 1.0))
_TRUE = np.True_


def _observe(state: Array) -> Array:
    return jnp.atleast_1d(state).astype(jnp.float32)


def _zero(key: Key) -> Array:
    return jnp.float32(0)


def _sign(key: Key) -> Array:
    return jax.random.rademacher(key, (), jnp.float32)


def _square(key: Key) -> Array:
    return jax.random.uniform(key, (2,), jnp.float32, -1, 1)


def _one_step(
    reward: Callable[[Array, Array], Any], reset: Callable[[Key], Array] = _zero, size: int = 1
) -> FunctionalEnv:
    """Episodes of one step, with `reward(state [] or [size], action)`."""

    def step(state: Array, action: Array, key: Key) -> tuple[Array, Outcome]:
        return state, Outcome(reward(state, action[0]), _TRUE)

    return FunctionalEnv(_SPEC._replace(obs_size=size), reset, step, _observe)


def delay() -> FunctionalEnv:
    def step(state: Array, action: Array, key: Key) -> tuple[Array, Outcome]:
        return state + 1, Outcome(jnp.where(state > 0, 1.0, 0.0), state > 0)

    return FunctionalEnv(_SPEC, _zero, step, _observe)


def time_limit() -> FunctionalEnv:
    def step(state: Array, action: Array, key: Key) -> tuple[Array, Outcome]:
        return state, Outcome(jnp.float32(1), ~_TRUE)

    return FunctionalEnv(_SPEC, _zero, step, _observe, time_limit=5)


def nan() -> FunctionalEnv:
    def step(state: Array, action: Array, key: Key) -> tuple[Array, Outcome]:
        return state + 1, Outcome(jnp.where(state >= 130, jnp.nan, 1.0), ~_TRUE)

    return FunctionalEnv(_SPEC, _zero, step, lambda state: _observe(state * 0))


PROBES = {
    "probe/constant": lambda: _one_step(lambda s, a: jnp.float32(1)),
    "probe/observation": lambda: _one_step(lambda s, a: s, _sign),
    "probe/delay": delay,
    "probe/action": lambda: _one_step(lambda s, a: 1 - (a - 0.5) ** 2),
    "probe/context": lambda: _one_step(lambda s, a: 1 - (a - s[0]) ** 2, _square, 2),
    "probe/time-limit": time_limit,
    "probe/nan": nan,
}
