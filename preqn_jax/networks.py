"""Actor and critic networks, written for one example.

A network is a Flax module; agents and steps take its `apply`, the pure function
`(params, *inputs) -> output`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import actions, sine
from preqn_jax.options import choose
from preqn_jax.types import Array, Key, Params, wide

Activation = Callable[[Array], Array]
Initializer = Callable[..., Array]

BiasRule = Callable[..., Array]
"""`(key, shape, fan_in, dtype) -> Array`."""

ACTIVATIONS: dict[str, Activation] = {"sin": sine.sin, "relu": nn.relu, "tanh": jnp.tanh}


def _uniform(gain: float) -> BiasRule:
    """A rule that draws uniformly from [-sqrt(gain / fan-in), sqrt(gain / fan-in)]."""

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
NORMS = ("none", "layer", "batch")
BATCH = "batch"
"""The `vmap` axis over which batch statistics are taken: `jax.vmap(..., axis_name=BATCH)`."""

_STATISTICS = "batch_stats"


class BatchRenorm(nn.Module):
    """Batch renormalization (Ioffe 2017, Algorithm 1) of one example's features.

    In training mode y = gamma ((x - mu_B) / sigma_B r + d) + beta, with the mean mu_B and the
    standard deviation sigma_B = sqrt(epsilon + var_B) over the axis `BATCH`. r = sigma_B / sigma,
    clipped to [1 / 3, 3], and d = (mu_B - mu) / sigma, clipped to [-5, 5], are constants to every
    derivative. mu and sigma^2 are running statistics, which each batch moves by 0.01 of the way to
    its own (as in CrossQ; Ioffe averages sigma). For the first `warmup` batches r = 1 and d = 0,
    which is batch normalization (Ioffe and Szegedy 2015), as in CrossQ's code (Bhatt et al. 2024;
    Ioffe lets the bounds grow instead). In evaluation mode y = gamma (x - mu) / sigma + beta, where
    the statistics are constants to every derivative, too.
    """

    train: bool = False
    warmup: int = 100_000  # CrossQ's values, here and below
    momentum: float = 0.99
    epsilon: float = 1e-3
    r_max: float = 3.0
    d_max: float = 5.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[features] -> [features]`."""
        x = wide(x)
        scale = self.param("scale", nn.initializers.ones, x.shape)
        bias = self.param("bias", nn.initializers.zeros, x.shape)
        kept = [
            self.variable(_STATISTICS, "mean", jnp.zeros, x.shape),
            self.variable(_STATISTICS, "var", jnp.ones, x.shape),
            self.variable(_STATISTICS, "count", jnp.zeros, ()),  # batches so far, up to `warmup`
        ]
        running, variance, count = jax.lax.stop_gradient([one.value for one in kept])
        sigma = jnp.sqrt(self.epsilon + variance)
        if not self.train or self.is_initializing():
            return scale * (x - running) / sigma + bias
        mean = jax.lax.pmean(x, BATCH)
        var = jax.lax.pmean(jnp.square(x - mean), BATCH)
        std, late = jnp.sqrt(self.epsilon + var), count >= self.warmup
        r = jnp.clip(jax.lax.stop_gradient(std / sigma), 1 / self.r_max, self.r_max)
        d = jnp.clip(jax.lax.stop_gradient(mean - running) / sigma, -self.d_max, self.d_max)
        share = 1 - self.momentum
        moved = (running + share * (mean - running), variance + share * (var - variance))
        for one, value in zip(kept, (*moved, jnp.minimum(count + 1, self.warmup)), strict=True):
            one.value = value
        y = (x - mean) / std * jnp.where(late, r, 1) + jnp.where(late, d, 0)
        return scale * y + bias


class Fourier(NamedTuple):
    """Learned Fourier features of the inputs, sin(pi (W x + b)). W starts from N(0, (bandwidth /
    number of inputs)^2) and b from N(0, 1), and both are trained with the rest of the network
    (Yang, Ajay and Agrawal 2022; the initial values are those of their code).
    """

    ratio: int = 40  # features for each input
    bandwidth: float | Array = 1e-3


class MLP(nn.Module):
    """`hidden_sizes` layers with `activation`, then a linear layer of `output_size`.

    Hidden layers compute in `dtype`, "float32" or "bfloat16"; parameters and the last layer are in
    float32. `norm` is "none", "layer" (LayerNorm, Ba et al. 2016, of each hidden layer before its
    activation, as in Ball et al. 2023) or "batch" (`BatchRenorm` of the inputs and of each hidden
    layer after its activation, as in Bhatt et al. 2024; `train` selects its mode). `fourier` adds a
    layer of Fourier features before the hidden layers.
    """

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str = "sin"
    initializer: str = "glorot"
    dtype: str = "float32"
    norm: str = "none"
    fourier: Fourier | None = None
    train: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[in] -> [output_size]`."""
        act = ACTIVATIONS[choose("activation", self.activation, ACTIVATIONS)]
        weights, biases = INITIALIZERS[choose("initializer", self.initializer, INITIALIZERS)]
        norm = choose("norm", self.norm, NORMS)
        if norm == "batch":
            x = BatchRenorm(self.train)(x)
        if self.fourier is not None:
            x = _features(self.fourier, x)
        for i, size in enumerate((*self.hidden_sizes, self.output_size)):
            fan_in, last = x.shape[-1], i == len(self.hidden_sizes)
            layer = nn.Dense(
                size,
                dtype=_computing(self.dtype) if not last else None,
                kernel_init=weights,
                bias_init=lambda key, shape, dtype, n=fan_in: biases(key, shape, n, dtype),
            )
            x = layer(x)
            if not last:
                x = nn.LayerNorm(dtype=_computing(self.dtype))(x) if norm == "layer" else x
                x = act(x)
                x = BatchRenorm(self.train)(x) if norm == "batch" else x
        return x


def _features(fourier: Fourier, x: Array) -> Array:
    """The Fourier features `[in] -> [ratio in]` of an MLP's inputs."""
    size = x.shape[-1]
    scale = fourier.bandwidth / size
    layer = nn.Dense(
        fourier.ratio * size,
        kernel_init=lambda *shape: scale * jax.random.normal(*shape),
        bias_init=nn.initializers.normal(1.0),
        name="fourier",
    )
    return sine.sin(math.pi * layer(x))


def _computing(dtype: str) -> Any:
    """The type in which a hidden layer computes; None is the type of its inputs and parameters."""
    return jnp.bfloat16 if choose("dtype", dtype, DTYPES) == "bfloat16" else None


def _mlp(network: Any, output_size: int) -> MLP:
    """The MLP inside a network, which gets the values of the fields that the two have in common."""
    names = {field.name for field in dataclasses.fields(MLP)} - {"name", "parent"}
    sizes = network.hidden_sizes
    if not isinstance(sizes, Sequence) or not all(
        isinstance(n, int | np.integer) and n > 0 for n in sizes
    ):
        raise ValueError(f"hidden_sizes is {sizes!r}, expected positive integers, as (256, 256)")
    if output_size < 1:
        raise ValueError(
            f"a network has {output_size} outputs, expected at least 1, as for one action"
        )
    shared = {name: getattr(network, name) for name in names if hasattr(network, name)}
    return MLP(output_size=output_size, name="mlp", **shared)


def _check_one(network: nn.Module, **given: Array) -> None:
    """Raises ValueError for a batch, which would be taken for one example."""
    for name, value in given.items():
        if jnp.ndim(value) != 1:
            raise ValueError(
                f"{type(network).__name__} got {name} of the shape {jnp.shape(value)}, expected "
                f"[{name}], of one example; for a batch use jax.vmap"
            )


class Critic(nn.Module):
    """Q(s, a): an MLP on the concatenation of s and a, with the fields of `MLP`.

    `activation` is one of `ACTIVATIONS` ("sin", "relu", "tanh"), `initializer` one of
    `INITIALIZERS` ("glorot", "lecun", "pytorch", "siren").

    When `init` or `apply` is called, raises ValueError for sizes that are not positive or for a
    batch in place of one example, and UserError for unknown names. So do all networks here.

    >>> import jax, jax.numpy as jnp
    >>> from preqn_jax import networks
    >>> q = networks.Critic((64, 64))
    >>> params = q.init(jax.random.key(0), jnp.zeros(3), jnp.zeros(1))
    >>> q.apply(params, jnp.zeros(3), jnp.zeros(1)).shape
    ()
    """

    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "sin"
    initializer: str = "glorot"
    dtype: str = "float32"
    norm: str = "none"
    fourier: Fourier | None = None
    train: bool = False

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        """`[obs], [act] -> []`."""
        _check_one(self, obs=obs, action=action)
        joined = jnp.concatenate([obs, action])
        return _mlp(self, 1)(joined)[0]


class ActionValues(nn.Module):
    """Q(s, a) for finitely many actions: an MLP on s with one output for each action."""

    num_actions: int
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "sin"
    initializer: str = "glorot"
    dtype: str = "float32"
    norm: str = "none"
    fourier: Fourier | None = None

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        """`[obs], [1] -> []`, where the action is a number in [-1, 1] (`preqn_jax.actions`). Raises
        ValueError for an integer.
        """
        _check_one(self, obs=obs, action=action)
        actions.refuse_integers(action)
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
        _check_one(self, obs=obs)
        return jnp.tanh(_mlp(self, self.action_size)(obs))


LOG_STD_BOUNDS = (-20.0, 2.0)  # Spinning Up's; the paper names none


class GaussianActor(nn.Module):
    """The mean and the log standard deviation of a Gaussian over actions before the tanh, as two
    halves of one MLP's output.
    """

    action_size: int
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "sin"
    initializer: str = "glorot"
    dtype: str = "float32"
    norm: str = "none"
    train: bool = False

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        """`[obs] -> ([act], [act])`, the second within `LOG_STD_BOUNDS`."""
        _check_one(self, obs=obs)
        both = _mlp(self, 2 * self.action_size)(obs)
        mean, log_std = jnp.split(both, 2)
        return mean, jnp.clip(log_std, *LOG_STD_BOUNDS)


def training(network: nn.Module) -> Callable[..., tuple[Any, Params]]:
    """A network with `norm="batch"` in training mode: `(params, *inputs [B]) -> (outputs [B],
    {"batch_stats": the updated running statistics})`.

    In this mode an example's output depends on the whole batch, so it has no gradient and no kernel
    of its own. Steps and `ntk` therefore use the network's `apply`, which is in evaluation mode.

    >>> import jax, jax.numpy as jnp
    >>> from preqn_jax import networks
    >>> q = networks.Critic((8,), norm="batch")
    >>> obs, action = jnp.ones((4, 3)), jnp.ones((4, 2))
    >>> params = q.init(jax.random.key(0), obs[0], action[0])
    >>> values, statistics = networks.training(q)(params, obs, action)
    >>> mean = statistics["batch_stats"]["mlp"]["BatchRenorm_0"]["mean"]
    >>> values.shape, mean.shape, round(float(mean[0]), 2)
    ((4,), (5,), 0.01)
    """
    module: Any = network.clone(train=True)

    def apply(params: Params, *inputs: Array) -> tuple[Any, Params]:
        def one(*example: Array) -> tuple[Any, Params]:
            return module.apply(params, *example, mutable=[_STATISTICS])

        return jax.vmap(one, axis_name=BATCH, out_axes=(0, None))(*inputs)

    return apply


def weights(params: Params) -> Params:
    """`params` without running statistics, which no gradient moves."""
    if isinstance(params, Mapping) and _STATISTICS in params:
        return {name: leaf for name, leaf in params.items() if name != _STATISTICS}
    return params


def stepped(params: Params, moved: Params) -> Params:
    """The parameters `moved` by an update, but with the running statistics of `params`: so that the
    difference is what the step did, without what the batch did to the statistics.
    """
    if isinstance(moved, Mapping) and _STATISTICS in moved:
        return {**moved, _STATISTICS: params[_STATISTICS]}
    return moved
