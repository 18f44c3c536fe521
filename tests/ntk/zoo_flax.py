"""The Flax networks of the zoo."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from preqn_jax import networks
from zoo_base import ZOO, Net, flax_case, zoo

MLP = partial(networks.MLP, activation="tanh")


def _mlp(depth, use_bias, act):
    def body(x):
        for i in range(depth):
            x = act(nn.Dense(9 + i, use_bias=use_bias)(x))
        return nn.Dense(1, use_bias=use_bias)(x)

    return lambda dtype: flax_case(Net(body), dtype, (5,))


for _depth, _use_bias, _act in [
    (1, True, "sin"), (1, False, "relu"), (2, True, "tanh"), (2, False, "sin"),
    (3, True, "relu"), (3, False, "tanh"), (4, True, "sin"), (4, False, "relu"),
]:  # fmt: skip
    _name = f"mlp_{_depth}_{_act}_{'bias' if _use_bias else 'no_bias'}"
    ZOO[_name] = _mlp(_depth, _use_bias, {"sin": jnp.sin, "relu": nn.relu, "tanh": jnp.tanh}[_act])


@zoo
def _critic(dtype):
    return flax_case(networks.Critic((8, 9)), dtype, (4,), (3,), out=lambda y: y)


@zoo
def _layer_norm(dtype):
    def body(x):
        x = jnp.tanh(nn.LayerNorm()(nn.Dense(9)(x)))
        return nn.Dense(1)(nn.LayerNorm()(nn.Dense(8)(x)))

    return flax_case(Net(body), dtype, (5,))


@zoo
def _critic_layer_norm(dtype):
    critic = networks.Critic((8, 9), "tanh", norm="layer")
    return flax_case(critic, dtype, (4,), (3,), out=lambda y: y)


@zoo
def _critic_fourier(dtype):
    critic = networks.Critic((8, 9), "tanh", fourier=networks.Fourier(2))
    return flax_case(critic, dtype, (4,), (3,), out=lambda y: y)


@zoo
def _critic_batch_norm(dtype):
    critic = networks.Critic((8, 9), "tanh", norm="batch")
    q, params, inputs = flax_case(critic, dtype, (4,), (3,), out=lambda y: y)
    positive = jax.tree.map(jnp.exp, params["batch_stats"])  # as variances are
    return q, {**params, "batch_stats": positive}, inputs


@zoo
def _residual(dtype):
    def body(x):
        x = nn.Dense(9)(x)
        x = x + nn.Dense(9)(jnp.sin(nn.Dense(7)(x)))
        return nn.Dense(1)(jnp.sin(x))

    return flax_case(Net(body), dtype, (5,))


@zoo
def _layer_used_twice(dtype):
    def body(x):
        x, layer = jnp.tanh(nn.Dense(9)(x)), nn.Dense(9)
        return nn.Dense(1)(jnp.tanh(layer(jnp.sin(layer(x)))))

    return flax_case(Net(body), dtype, (5,))


@zoo
def _layer_used_on_different_shapes(dtype):
    def body(x, ys):
        layer = nn.Dense(9)
        return nn.Dense(1)(jnp.tanh(layer(x)) + jnp.sum(jnp.sin(layer(ys)), axis=0))

    return flax_case(Net(body), dtype, (5,), (3, 5))


def _set(
    positions,
):  # the kernel sums over pairs of uses for few positions, over the weight for many: test both
    def body(x):
        return nn.Dense(1)(jnp.mean(jnp.tanh(nn.Dense(8)(jnp.sin(nn.Dense(9)(x)))), axis=0))

    return lambda dtype: flax_case(Net(body), dtype, (positions, 5))


ZOO["set_of_2"], ZOO["set_of_11"] = _set(2), _set(11)


@zoo
def _attention(dtype):
    def body(x):
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, out_features=7)(x, x)
        return nn.Dense(1)(jnp.tanh(x).sum(axis=0))

    return flax_case(Net(body), dtype, (3, 5))


@zoo
def _dense_over_two_axes(dtype):
    def body(x):
        return nn.Dense(1)(jnp.tanh(nn.DenseGeneral((2, 4), axis=(-1, -2))(x)).reshape(-1))

    return flax_case(Net(body), dtype, (3, 5))


def _ensemble(in_axes, reduce):
    def body(x):
        members = nn.vmap(
            MLP,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=in_axes,
            axis_size=3,
        )
        return reduce(members((8, 9), 1)(x)[:, 0])

    shape = (5,) if in_axes is None else (3, 5)
    return lambda dtype: flax_case(Net(body), dtype, shape, out=lambda y: y)


ZOO["ensemble_mean"], ZOO["ensemble_min"] = _ensemble(None, jnp.mean), _ensemble(None, jnp.min)
ZOO["ensemble_each_its_input"] = _ensemble(0, jnp.sum)


@zoo
def _ensemble_over_positions(dtype):  # stacked members, each used several times
    def body(x):
        members = nn.vmap(
            MLP, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0, axis_size=3
        )
        return jnp.sum(members((8,), 2)(x) ** 2)

    return flax_case(Net(body), dtype, (3, 2, 5), out=lambda y: y)


@zoo
def _remat(dtype):
    return flax_case(nn.remat(MLP)((8, 9), 1), dtype, (5,))


@zoo
def _jitted(dtype):
    return flax_case(nn.jit(MLP)((8, 9), 1), dtype, (5,))


@zoo
def _convolutions(dtype):
    def body(x):
        x = jnp.tanh(nn.Conv(3, (2, 2))(x))
        return nn.Dense(1)(jnp.tanh(nn.Conv(4, (2, 2), strides=2)(x)).reshape(-1))

    return flax_case(Net(body), dtype, (4, 5, 2))


@zoo
def _flax_scan(dtype):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.Dense(6)(x)), None

    def body(x):
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )()
        return nn.Dense(1)(layers(nn.Dense(6)(x), None)[0])

    return flax_case(Net(body), dtype, (5,))
