"""Actor and critic networks, written for one example; the only room that knows Flax.

A network is a Flax module; what agents and steps take is its `apply`, the pure function `(params,
*inputs) -> output`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from preqn_jax import actions, sine
from preqn_jax.options import choose
from preqn_jax.types import Array, Key

Activation = Callable[[Array], Array]
Initializer = Callable[..., Array]

BiasRule = Callable[..., Array]
"""`(key, shape, fan_in, dtype) -> Array`."""

ACTIVATIONS: dict[str, Activation] = {"sin": sine.sin, "relu": nn.relu, "tanh": jnp.tanh}


def _uniform(gain: float) -> BiasRule:
    """Uniform within sqrt(gain / fan-in)."""

    def rule(key: Key, shape: Sequence[int], fan_in: int, dtype=jnp.float32) -> Array:
        bound = math.sqrt(gain / fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return rule


def _zeros(key: Key, shape: Sequence[int], fan_in: int, dtype=jnp.float32) -> Array:
    return jnp.zeros(shape, dtype)


def _weights(rule: BiasRule) -> Initializer:
    return lambda key, shape, dtype=jnp.float32: rule(key, shape, shape[0], dtype)


# name -> (weights, biases)
INITIALIZERS: dict[str, tuple[Initializer, BiasRule]] = {
    # Glorot and Bengio 2010, with zero biases: the Spinning Up (TensorFlow) default that the
    # paper's code base used.
    "glorot": (nn.initializers.glorot_uniform(), _zeros),
    # LeCun et al. 1998: variance 1 / fan-in, zero biases; Flax's own default.
    "lecun": (nn.initializers.lecun_normal(), _zeros),
    # torch.nn.Linear: weights and biases uniform within 1 / sqrt(fan-in).
    "pytorch": (_weights(_uniform(1)), _uniform(1)),
    # Sitzmann et al. 2020, without its omega_0 = 30, which is for images: weights uniform within
    # sqrt(6 / fan-in).
    "siren": (_weights(_uniform(6)), _uniform(1)),
}


DTYPES = ("float32", "bfloat16")


class MLP(nn.Module):
    """`hidden_sizes` layers with `activation`, then a linear layer of `output_size`.

    Hidden layers compute in `dtype`, "float32" or "bfloat16"; parameters and the last layer are in
    float32.
    """

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str = "sin"
    initializer: str = "glorot"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[in] -> [output_size]`."""
        act = ACTIVATIONS[choose("activation", self.activation, ACTIVATIONS)]
        weights, biases = INITIALIZERS[choose("initializer", self.initializer, INITIALIZERS)]
        for i, size in enumerate((*self.hidden_sizes, self.output_size)):
            fan_in, last = x.shape[-1], i == len(self.hidden_sizes)
            layer = nn.Dense(
                size,
                dtype=_computing(self.dtype) if not last else None,
                kernel_init=weights,
                bias_init=lambda key, shape, dtype, n=fan_in: biases(key, shape, n, dtype),
            )
            x = layer(x) if last else act(layer(x))
        return x


def _computing(dtype: str) -> Any:
    """What a hidden layer computes in; None is what its numbers are."""
    return jnp.bfloat16 if choose("dtype", dtype, DTYPES) == "bfloat16" else None


def _mlp(network: Any, output_size: int) -> MLP:
    """The MLP of a network with an MLP's fields."""
    return MLP(
        network.hidden_sizes,
        output_size,
        network.activation,
        network.initializer,
        network.dtype,
        name="mlp",
    )


class Critic(nn.Module):
    """Q(s, a), an MLP on the two joined."""

    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "sin"
    initializer: str = "glorot"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        """`[obs], [act] -> []`."""
        joined = jnp.concatenate([obs, action])
        return _mlp(self, 1)(joined)[0]


class ActionValues(nn.Module):
    """Q(s, a) of finitely many actions: an MLP on s, with an output for each of them."""

    num_actions: int
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "sin"
    initializer: str = "glorot"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        """`[obs], [1] -> []`, the action as the number that stands for it (`preqn_jax.actions`)."""
        values = _mlp(self, self.num_actions)(obs)
        return values[actions.index(action[0], self.num_actions)]


class Actor(nn.Module):
    """mu(s) in [-1, 1], an MLP with a tanh at its end."""

    action_size: int
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "sin"
    initializer: str = "glorot"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """`[obs] -> [act]`."""
        return jnp.tanh(_mlp(self, self.action_size)(obs))


LOG_STD_BOUNDS = (-20.0, 2.0)  # Spinning Up's; the paper names none


class GaussianActor(nn.Module):
    """Mean and logarithm of the standard deviation of a Gaussian over actions before their tanh:
    one MLP, both at its end.
    """

    action_size: int
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "sin"
    initializer: str = "glorot"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        """`[obs] -> ([act], [act])`, the second within `LOG_STD_BOUNDS`."""
        both = _mlp(self, 2 * self.action_size)(obs)
        mean, log_std = jnp.split(both, 2)
        return mean, jnp.clip(log_std, *LOG_STD_BOUNDS)
