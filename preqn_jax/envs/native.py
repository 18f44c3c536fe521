"""Environments written in JAX, for the device: `native/pendulum`."""

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.envs.functional import FunctionalEnv, Outcome
from preqn_jax.types import Array, Key, Spec

_GRAVITY, _MASS, _LENGTH, _DT = 10.0, 1.0, 1.0, 0.05
_MAX_SPEED, _MAX_TORQUE = 8.0, 2.0


def pendulum() -> FunctionalEnv:
    """Gymnasium's Pendulum-v1: swing a pendulum up, and hold it there.

    A state is (angle from upright, angular velocity), an observation (cos, sin, velocity). An
    episode starts anywhere, at a speed of at most 1, and is cut off after 200 steps.

    >>> import jax, jax.numpy as jnp
    >>> from preqn_jax.envs.native import pendulum
    >>> env, level = pendulum(), jnp.array([jnp.pi / 2, 0.0])
    >>> state, outcome = env.step(level, jnp.array([2.0]), jax.random.key(0))
    >>> round(float(state[1]), 2), round(float(outcome.reward), 4)
    (1.05, -2.4714)
    """
    start = np.array([np.pi, 1.0], np.float32)

    def reset(key: Key) -> Array:
        return jax.random.uniform(key, (2,), jnp.float32, -start, start)

    def step(state: Array, action: Array, key: Key) -> tuple[Array, Outcome]:
        angle, speed = state[0], state[1]
        torque = jnp.clip(action[0], -_MAX_TORQUE, _MAX_TORQUE)
        off = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        cost = off**2 + 0.1 * speed**2 + 0.001 * torque**2
        pull = 3 * _GRAVITY / (2 * _LENGTH) * jnp.sin(angle)
        speed = speed + (pull + 3 / (_MASS * _LENGTH**2) * torque) * _DT
        speed = jnp.clip(speed, -_MAX_SPEED, _MAX_SPEED)
        after = jnp.stack([angle + speed * _DT, speed])
        return after, Outcome(-cost, np.False_)

    def observe(state: Array) -> Array:
        return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])

    bound = np.full(1, _MAX_TORQUE)
    return FunctionalEnv(Spec(3, 1, -bound, bound), reset, step, observe, time_limit=200)


NATIVE = {"native/pendulum": pendulum}
