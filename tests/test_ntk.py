"""The kernel, the values and the pullback of every kind of network: structured, by Jacobians, and
by a loop of `jax.grad`.
"""

import math
import warnings
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex

import oracles
from preqn_jax import networks, ntk

ZOO = {}
BATCH = 6

jit = partial(jax.jit, compiler_options=oracles.QUICK)


def zoo(build):
    """Registers a builder: `(dtype) -> (q, params, inputs)`. Sizes differ from one another, so that
    no mixed-up axis fits.
    """
    ZOO[build.__name__.removeprefix("_")] = build
    return build


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def arrays(dtype, tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def weights(seed, *shape):
    """Normal weights of about unit gain: variance 1 / (the axis before the last, or the only
    one).
    """
    return draw(seed, *shape) / np.sqrt(shape[-2:][0])


def flax_case(module, dtype, *shapes, out=lambda y: y[0]):
    """A module as q, with normal parameters throughout: no bias or scale sits at its special
    initial value.
    """
    inputs = tuple(
        jnp.asarray(draw(10 + i, BATCH, *shape), dtype) for i, shape in enumerate(shapes)
    )
    leaves, treedef = jax.tree.flatten(
        jax.eval_shape(module.init, jax.random.key(0), *(x[0] for x in inputs))
    )
    leaves = [jnp.asarray(weights(i, *leaf.shape), dtype) for i, leaf in enumerate(leaves)]
    return lambda p, *xs: out(module.apply(p, *xs)), jax.tree.unflatten(treedef, leaves), inputs


class Net(nn.Module):
    """A module from a function `(x) -> y` that builds its layers as it runs."""

    body: Any

    @nn.compact
    def __call__(self, *xs):
        return self.body(*xs)


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
):  # few positions are summed over pairs of uses, many over the weight: both branches of the kernel
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
def _ensemble_over_positions(dtype):  # stacked members and several uses of each at once
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
def _nested_calls(dtype):  # jit in remat in jit, the same weight passed twice
    @jax.jit
    def twice(w, v, x):
        return jnp.tanh(jax.checkpoint(lambda w, x: jax.jit(jnp.dot)(x, w))(w, x)) @ v

    params = {"w": weights(1, 6, 6), "out": weights(2, 6)}
    return (
        lambda p, x: twice(p["w"], p["w"], x) @ p["out"],
        arrays(dtype, params),
        arrays(dtype, (draw(3, BATCH, 6),)),
    )


@zoo
def _call_that_returns_its_weight(dtype):
    def q(p, x):
        w, y = jax.checkpoint(lambda w: (w, jnp.sin(x) @ w))(p["w"])
        return jnp.sum(jnp.tanh(x @ w) * y)

    return q, arrays(dtype, {"w": weights(1, 5, 7)}), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _nested_calls_that_return_their_weight(dtype):
    def q(p, x):
        inner = jax.checkpoint(lambda w: (w, jnp.sum(jnp.sin(x))))
        w, y = jax.checkpoint(lambda w: inner(w))(p["w"])
        return jnp.sum(jnp.tanh(x @ w)) * y

    return q, arrays(dtype, {"w": weights(1, 5, 7)}), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _convolutions(dtype):
    def body(x):
        x = jnp.tanh(nn.Conv(3, (2, 2))(x))
        return nn.Dense(1)(jnp.tanh(nn.Conv(4, (2, 2), strides=2)(x)).reshape(-1))

    return flax_case(Net(body), dtype, (4, 5, 2))


@zoo
def _tied_by_transpose(dtype):
    def q(p, x):
        return jnp.sum(jnp.sin(jnp.tanh(x @ p["w"]) @ p["w"].T))

    return q, arrays(dtype, {"w": weights(1, 5, 7)}), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _tied_by_contraction(
    dtype,
):  # two products with different layouts, and no transpose to give it away
    def q(p, x):
        return jnp.sum(
            jnp.sin(jnp.einsum("o,io->i", jnp.tanh(jnp.einsum("i,io->o", x, p["w"])), p["w"]))
        )

    return q, arrays(dtype, {"w": weights(1, 5, 7)}), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _product_and_penalty(dtype):
    def q(p, x):
        return jnp.tanh(x @ p["w"]) @ p["out"] - 0.1 * jnp.sum(p["w"] ** 2) * jnp.sum(x)

    params = {"w": weights(1, 5, 7), "out": weights(2, 7)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _both_operands_are_weights(dtype):
    def q(p, x):
        return jnp.sum(jnp.tanh(x @ (p["u"] @ p["v"])) * (x @ (p["w"] @ p["w"])))

    params = {"u": weights(1, 5, 7), "v": weights(2, 7, 5), "w": weights(4, 5, 5)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _weight_that_is_the_data(dtype):  # x @ u is data to v, and u has a product of its own
    def q(p, x):
        return (jnp.sin(x @ p["u"]) @ p["v"]) @ jnp.tanh(x @ p["u"]) + x @ p["u"] @ p["v"] @ p[
            "out"
        ]

    params = {"u": weights(1, 5, 7), "v": weights(2, 7, 7), "out": weights(4, 7)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _closes_over_arrays(dtype):
    basis, scale = jnp.asarray(draw(4, 5, 6), dtype), jnp.asarray(1.5, dtype)
    params = {"w": weights(1, 6, 7), "out": weights(2, 7)}
    inputs = arrays(dtype, (draw(3, BATCH, 5),))
    return (
        lambda p, x: scale * jnp.tanh(jnp.sin(x @ basis) @ p["w"]) @ p["out"],
        arrays(dtype, params),
        inputs,
    )


@zoo
def _unused_neighbours(dtype):
    def q(p, x):
        return jnp.sum(jnp.tanh(x @ p["critics"]["first"]["w"]))

    params = {
        "actor": {"w": weights(1, 5, 2), "b": draw(2, 2)},
        "critics": {"first": {"w": weights(3, 5, 7)}, "second": [weights(4, 5, 7)]},
        "log_alpha": np.asarray(0.5),
    }
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _weights_on_the_left(dtype):
    def q(p, x):
        for w, b in p[:-1]:
            x = jnp.tanh(w @ x + b)
        return p[-1] @ x

    params = [(weights(1, 7, 5), draw(2, 7)), (weights(3, 6, 7), draw(4, 6)), weights(5, 6)]
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _weights_on_the_left_of_matrices(dtype):
    def q(p, x):
        return jnp.sum(jnp.tanh(p["v"] @ jnp.sin(p["w"] @ x)))

    return (
        q,
        arrays(dtype, {"w": weights(1, 7, 5), "v": weights(2, 6, 7)}),
        arrays(dtype, (draw(3, BATCH, 5, 3),)),
    )


@zoo
def _one_weight_on_either_side(dtype):
    def q(p, x, ys):
        left, right = jnp.einsum("oi,i->o", p["w"], x), jnp.einsum("ti,oi->to", ys, p["w"])
        return jnp.sum(jnp.tanh(right) @ jnp.sin(left))

    return (
        q,
        arrays(dtype, {"w": weights(1, 7, 5)}),
        arrays(dtype, (draw(3, BATCH, 5), draw(4, BATCH, 3, 5))),
    )


@zoo
def _square_weight_on_either_side(
    dtype,
):  # x @ w and w @ x, the same shapes but not the same layout
    def q(p, x):
        return jnp.sum(jnp.sin(x @ p["w"]) * jnp.tanh(p["w"] @ x))

    return q, arrays(dtype, {"w": weights(1, 5, 5)}), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _batched_einsum(dtype):
    def q(p, x):
        return jnp.sum(jnp.tanh(jnp.einsum("gti,gio->gto", x, p["w"])) * p["out"][:, None])

    return (
        q,
        arrays(dtype, {"w": weights(1, 3, 5, 7), "out": draw(2, 3, 7)}),
        arrays(dtype, (draw(3, BATCH, 3, 2, 5),)),
    )


@zoo
def _batched_einsum_on_the_left(dtype):
    def q(p, x):
        return jnp.sum(jnp.tanh(jax.vmap(jnp.matmul)(p["w"], jax.vmap(jnp.matmul)(p["v"], x))))

    params = {"w": weights(1, 3, 6, 7), "v": weights(2, 3, 7, 5)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 3, 5, 2),))


@zoo
def _two_batch_axes(dtype):
    def q(p, x):
        return jnp.sum(jnp.tanh(jnp.einsum("ghi,ghio->gho", x, p["w"])))

    return (
        q,
        arrays(dtype, {"w": weights(1, 3, 2, 5, 4)}),
        arrays(dtype, (draw(3, BATCH, 3, 2, 5),)),
    )


@zoo
def _two_batch_axes_permuted(dtype):
    def q(p, x):
        y = jax.lax.dot_general(
            x, p["w"], (((2,), (2,)), ((0, 1), (1, 0)))
        )  # `[h, g, i], [g, h, i, o] -> [h, g, o]`
        return jnp.sum(jnp.tanh(y) * jnp.arange(24, dtype=x.dtype).reshape(2, 3, 4))

    return (
        q,
        arrays(dtype, {"w": weights(1, 3, 2, 5, 4)}),
        arrays(dtype, (draw(3, BATCH, 2, 3, 5),)),
    )


@zoo
def _contraction_in_another_order(dtype):
    def q(p, x):
        y = jax.lax.dot_general(
            x, p["w"], (((2, 0), (0, 1)), ((), ()))
        )  # `[t, u, i], [i, t, o] -> [u, o]`
        return jnp.sum(jnp.tanh(y) * jnp.arange(12, dtype=x.dtype).reshape(3, 4))

    return q, arrays(dtype, {"w": weights(1, 5, 2, 4)}), arrays(dtype, (draw(3, BATCH, 2, 3, 5),))


@zoo
def _contracted_and_free_axes_interleaved(dtype):
    def q(p, x):
        return jnp.sum(
            jnp.tanh(jnp.einsum("ik,aibk->ab", x, p["w"]))
            * jnp.arange(6, dtype=x.dtype).reshape(2, 3)
        )

    return q, arrays(dtype, {"w": weights(1, 2, 5, 3, 4)}), arrays(dtype, (draw(3, BATCH, 5, 4),))


@zoo
def _vectors_and_scalars(dtype):
    def q(p, x):
        return p["gain"] * jnp.tanh(x @ p["w"]) + jnp.sum(jnp.outer(jnp.sin(x), p["v"]) ** 2)

    params = {"w": weights(1, 5), "v": draw(2, 3), "gain": np.asarray(0.7)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _returns_a_parameter(dtype):  # which a product takes too, for nothing
    def q(p, x):
        jnp.tensordot(x, p["c"], axes=0)
        return p["c"]

    return q, arrays(dtype, {"c": np.asarray(0.7)}), arrays(dtype, (draw(3, BATCH, 5),))


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


@zoo
def _lax_scan(dtype):
    def q(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x @ p["in"], p["layers"])
        y, _ = jax.lax.scan(lambda y, _: (jnp.sin(y @ p["shared"]), None), x, None, length=2)
        return jnp.sum(y * x)

    params = {"in": weights(1, 5, 6), "layers": weights(2, 3, 6, 6), "shared": weights(3, 6, 6)}
    return q, arrays(dtype, params), arrays(dtype, (draw(4, BATCH, 5),))


@zoo
def _branches(dtype):
    def q(p, x):
        return jax.lax.cond(
            x[0] > 0,
            lambda: jnp.sum(jnp.tanh(x @ p["w"])),
            lambda: jnp.sum(jnp.sin(x @ p["w"]) ** 2),
        )

    return q, arrays(dtype, {"w": weights(1, 5, 7)}), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _custom_derivative(
    dtype,
):  # a wrong derivative on purpose: the kernel is of the gradients that `jax.grad` gives
    @jax.custom_jvp
    def layer(w, x):
        return jnp.tanh(x @ w)

    layer.defjvp(
        lambda primals, tangents: (
            layer(*primals),
            2 * (primals[1] @ tangents[0]) + tangents[1] @ primals[0],
        )
    )
    return (
        lambda p, x: jnp.sum(layer(p["w"], x)),
        arrays(dtype, {"w": weights(1, 5, 7)}),
        arrays(dtype, (draw(3, BATCH, 5),)),
    )


@zoo
def _stopped_gradient(dtype):
    def q(p, x):
        return jnp.sum(jnp.tanh(x @ p["w"]) * jnp.sin(x @ jax.lax.stop_gradient(p["w"]))) + jnp.sum(
            x @ p["v"]
        )

    return (
        q,
        arrays(dtype, {"w": weights(1, 5, 7), "v": weights(2, 5, 3)}),
        arrays(dtype, (draw(3, BATCH, 5),)),
    )


@zoo
def _tree_of_inputs(dtype):
    def q(p, obs, action):
        return jnp.sum(
            jnp.tanh(obs["image"].reshape(-1) @ p["w"] + obs["state"] @ p["u"]) * (action @ p["v"])
        )

    params = {"w": weights(1, 6, 7), "u": weights(2, 5, 7), "v": weights(3, 2, 7)}
    obs = {"image": draw(4, BATCH, 3, 2), "state": draw(5, BATCH, 5)}
    return q, arrays(dtype, params), arrays(dtype, (obs, draw(6, BATCH, 2)))


@zoo
def _embedding(dtype):
    def q(p, index, x):
        return jnp.sum(jnp.tanh(p["table"][index] @ p["w"]) * x)

    params = arrays(dtype, {"table": weights(1, 4, 5), "w": weights(2, 5, 7)})
    return q, params, (jnp.asarray([0, 3, 1, 1, 2, 0]), jnp.asarray(draw(3, BATCH, 7), dtype))


# Of the exotic layouts only the algebra is in question, and float64 shows it; float32 is for the
# networks that people train.
TRAINED = [name for name in ZOO if name.startswith("mlp") and not name.endswith("no_bias")]
TRAINED += [
    "critic",
    "layer_norm",
    "residual",
    "layer_used_twice",
    "set_of_2",
    "set_of_11",
    "attention",
    "ensemble_mean",
]
TRAINED += [
    "ensemble_min",
    "ensemble_each_its_input",
    "remat",
    "jitted",
    "convolutions",
    "tied_by_transpose",
]
TRAINED += [
    "product_and_penalty",
    "closes_over_arrays",
    "weights_on_the_left",
    "batched_einsum",
    "flax_scan",
    "lax_scan",
]


def by_both_methods(name, dtype):
    """`{method: (values, gram, pullback(z))}` under jit, with the case and z."""
    q, params, inputs = ZOO[name](dtype)
    z = jnp.asarray(draw(99, BATCH), dtype)

    @jit
    def run(params, inputs, z):
        found = {}
        for method in ntk.METHODS:
            lin = ntk.linearize(q, params, inputs, method=method)
            found[method] = (lin.values, lin.gram, lin.pullback(z))
        return found

    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # every leaf of the zoo is small: no reason for a warning
        return run(params, inputs, z), q, params, inputs, z


def check_gram(gram, tolerance):
    assert oracles.relative_error(gram, gram.T) < tolerance
    spectrum = np.linalg.eigvalsh(np.asarray(gram, np.float64))
    assert spectrum[0] > -tolerance * spectrum[-1]


def loop_of_gradients(q, params, inputs):
    """Q `[B]` and the columns grad Q(x_i), one `jax.grad` after the other."""
    one = jit(jax.value_and_grad(q))
    values, columns = [], []
    for i in range(jax.tree.leaves(inputs)[0].shape[0]):
        value, grad = one(params, *jax.tree.map(lambda leaf, i=i: leaf[i], inputs))
        values.append(float(value))
        columns.append(oracles.theta(jax.tree.leaves(grad)))
    return np.array(values), np.stack(columns, axis=1)


@pytest.mark.parametrize("name", ZOO)
def test_values_kernel_and_pullback_equal_a_loop_of_gradients(name, x64):
    found, q, params, inputs, z = by_both_methods(name, "float64")
    values, phi = loop_of_gradients(q, params, inputs)
    for method, (got_values, gram, pulled) in found.items():
        assert oracles.relative_error(got_values, values) < 1e-10, method
        assert oracles.relative_error(gram, oracles.kernel(phi)) < 1e-10, method
        assert (
            oracles.relative_error(oracles.theta(jax.tree.leaves(pulled)), phi @ np.asarray(z))
            < 1e-10
        ), method
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), pulled) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), params
        )
        check_gram(gram, 1e-10)
    assert oracles.relative_error(found["structured"][1], found["jacobian"][1]) < 1e-10


@pytest.mark.parametrize("name", TRAINED)
def test_structured_equals_jacobian_in_float32(name):
    found, _, params, _, _ = by_both_methods(name, "float32")
    for got, expected in zip(found["structured"][:2], found["jacobian"][:2], strict=True):
        assert got.dtype == expected.dtype == jnp.float32
        assert oracles.relative_error(got, expected) < 1e-5
    pulled, expected = (jax.tree.leaves(found[method][2]) for method in ntk.METHODS)
    assert [leaf.dtype for leaf in pulled] == [leaf.dtype for leaf in jax.tree.leaves(params)]
    assert oracles.relative_error(oracles.theta(pulled), oracles.theta(expected)) < 1e-5
    check_gram(found["structured"][1], 1e-5)


@pytest.mark.parametrize("name", ["mlp_2_tanh_bias", "set_of_11", "batched_einsum", "convolutions"])
def test_vmap_over_seeds_equals_a_loop(name):
    q, params, inputs = ZOO[name]("float32")
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf, leaf + 0.2]), params)
    z = jnp.asarray(draw(99, BATCH), jnp.float32)

    def run(params):
        lin = ntk.linearize(q, params, inputs)
        return lin.values, lin.gram, lin.pullback(z)

    together = jit(jax.vmap(run))(stacked)
    one = jit(run)
    for seed in range(3):
        alone = one(jax.tree.map(lambda leaf, seed=seed: leaf[seed], stacked))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert oracles.relative_error(a[seed], b) < 1e-5


def test_vmap_may_close_over_what_it_batches():
    """A q that closes over one seed's own arrays (a tracer under vmap) keeps to that seed."""
    bases = jnp.asarray(draw(0, 3, 5, 6), jnp.float32)
    params, inputs = (
        arrays("float32", {"w": weights(1, 6, 7)}),
        arrays("float32", (draw(2, BATCH, 5),)),
    )

    def gram(basis):
        return ntk.linearize(
            lambda p, x: jnp.sum(jnp.tanh(jnp.sin(x @ basis) @ p["w"])), params, inputs
        ).gram

    together, gram = jit(jax.vmap(gram))(bases), jit(gram)
    for seed in range(3):
        assert oracles.relative_error(together[seed], gram(bases[seed])) < 1e-5


def test_without_jit_and_after_it_the_same():
    q, params, inputs = ZOO["mlp_1_sin_bias"]("float32")
    lin = ntk.linearize(q, params, inputs)
    again = jit(lambda p, x: ntk.linearize(q, p, x)[:2])(params, inputs)
    assert oracles.relative_error(lin.values, again[0]) < 1e-5
    assert oracles.relative_error(lin.gram, again[1]) < 1e-5
    _, phi = loop_of_gradients(q, params, inputs)
    for i in range(2):  # a pullback is a function: any z, any number of times, inside of jit too
        z = jnp.zeros(BATCH).at[i].set(1.0)
        for pull in (lin.pullback, jax.jit(lin.pullback)):
            assert oracles.relative_error(oracles.theta(jax.tree.leaves(pull(z))), phi[:, i]) < 1e-5


def test_unused_parameters_have_zero_gradients():
    q, params, inputs = ZOO["unused_neighbours"]("float32")

    def pull(params, inputs, method: Any):
        return ntk.linearize(q, params, inputs, method=method).pullback(jnp.ones(BATCH))

    for method in ntk.METHODS:
        pulled = jit(partial(pull, method=method))(params, inputs)
        used = pulled["critics"].pop("first")
        assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(pulled))
        assert jnp.any(used["w"] != 0)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", sorted(oracles.ACTIVATIONS))
def test_equals_backpropagation_in_numpy(activation, use_bias, x64):
    sizes = {"sin": (8, 9), "tanh": (7,), "relu": (8, 9, 7)}[activation]
    act = networks.ACTIVATIONS[activation]

    def body(x):
        for size in sizes:
            x = act(nn.Dense(size, use_bias=use_bias)(x))
        return nn.Dense(1, use_bias=use_bias)(x)

    q, params, (x,) = flax_case(Net(body), "float64", (5,))
    values, phi = oracles.mlp(oracles.layers_of(params), activation, x)
    z = draw(99, BATCH)

    def run(params, x, z, method):
        lin = ntk.linearize(q, params, (x,), method=method)
        return lin.values, lin.gram, lin.pullback(z)

    for method in ntk.METHODS:
        got_values, gram, pulled = jit(partial(run, method=method))(params, x, jnp.asarray(z))
        assert oracles.relative_error(got_values, values) < 1e-12
        assert oracles.relative_error(gram, oracles.kernel(phi)) < 1e-12
        assert oracles.relative_error(oracles.theta(jax.tree.leaves(pulled)), phi @ z) < 1e-12


@pytest.mark.parametrize(
    "method, block", [("structured", 1), ("structured", 3), ("jacobian", 4), ("structured", 100)]
)
def test_rectangular_kernel_does_not_depend_on_the_block(method, block, x64):
    """7 rows and 5 columns: 3 divides neither, 4 neither, 100 is more than both."""
    q, params, (x,) = ZOO["mlp_2_tanh_bias"]("float64")
    x, y = jnp.asarray(draw(1, 7, 5)), x[:5]
    phi_rows, phi_columns = (
        oracles.mlp(oracles.layers_of(params), "tanh", rows)[1] for rows in (x, y)
    )

    @jit
    def run(params, x, y):
        options = {"method": method, "block": block}
        return ntk.kernel(q, params, (x,), (y,), **options), ntk.kernel(q, params, (x,), **options)

    rectangle, square = run(params, x, y)
    assert rectangle.shape == (7, 5)
    assert oracles.relative_error(rectangle, oracles.kernel(phi_rows, phi_columns)) < 1e-12
    assert oracles.relative_error(square, oracles.kernel(phi_rows)) < 1e-12


@pytest.mark.parametrize(
    "name", ["set_of_11", "ensemble_over_positions", "tree_of_inputs", "convolutions"]
)
def test_kernel_equals_the_gram_of_linearize(name):
    q, params, inputs = ZOO[name]("float32")
    columns = jax.tree.map(lambda leaf: leaf[1:5], inputs)

    @jit
    def run(params):
        gram = ntk.linearize(q, params, inputs, method="jacobian").gram
        return gram, ntk.kernel(q, params, inputs, columns, block=4)

    gram, got = run(params)
    assert oracles.relative_error(got, gram[:, 1:5]) < 1e-5


def test_kernel_under_vmap_over_seeds_equals_a_loop():
    q, params, inputs = ZOO["mlp_2_tanh_bias"]("float32")
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    one = partial(ntk.kernel, q, xs=inputs, block=4)
    together, one = jit(jax.vmap(lambda p: one(p)))(stacked), jit(one)
    for seed in range(2):
        alone = one(jax.tree.map(lambda leaf, seed=seed: leaf[seed], stacked))
        assert oracles.relative_error(together[seed], alone) < 1e-5


def test_duplicate_rows_have_equal_rows_of_the_kernel():
    q, params, inputs = ZOO["mlp_2_tanh_bias"]("float32")
    doubled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), inputs)
    gram = jit(lambda p, x: ntk.linearize(q, p, x).gram)(params, doubled)
    assert oracles.relative_error(gram[:BATCH], gram[BATCH:]) < 1e-6
    assert (
        np.linalg.matrix_rank(np.asarray(gram, np.float64), tol=1e-5 * float(gram.max())) <= BATCH
    )


def _either_side(w, x):
    return jnp.tanh(x @ w) * jnp.sin(jnp.einsum("io,i->o", w, x))


BIG = {
    "either side": (_either_side, (50, 60)),
    "jit": (jax.jit(_either_side), (50, 60)),
    "remat": (jax.checkpoint(_either_side), (50, 60)),
    "jit in remat in jit": (jax.jit(jax.checkpoint(jax.jit(_either_side))), (50, 60)),
    "members": (lambda w, x: jnp.einsum("i,gio->go", x, w), (3, 50, 20)),
    "members with inputs": (lambda w, x: jax.vmap(jnp.matmul)(x.reshape(2, 25), w), (2, 25, 30)),
    "two axes": (lambda w, x: jnp.einsum("ij,ijo->o", x.reshape(2, 25), w), (2, 25, 30)),
}


@pytest.mark.parametrize("name", BIG)
def test_a_weight_used_by_products_alone_is_taken_apart_without_a_warning(name):
    layer, shape = BIG[name]
    q = lambda p, x: jnp.sum(jnp.tanh(layer(p["w"], x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = jax.eval_shape(
            lambda p, x: ntk.linearize(q, p, (x,)).gram, {"w": jnp.zeros(shape)}, jnp.zeros((2, 50))
        )
    assert found.shape == (2, 2)


@pytest.mark.parametrize("width, warns", [(16, False), (80, True)])
def test_only_a_big_leaf_on_the_slow_way_is_named_in_a_warning(width, warns):
    def body(x):
        return nn.Dense(1)(jnp.tanh(nn.Conv(width, (3, 3), name="filters")(x)).mean(axis=(0, 1)))

    q, params, inputs = flax_case(Net(body), "float32", (4, 4, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.eval_shape(lambda p: ntk.linearize(q, p, inputs).gram, params)
        jax.eval_shape(
            lambda p: ntk.linearize(q, p, inputs, method="jacobian").gram, params
        )  # asked for: no complaint
    texts = [
        str(w.message)
        for w in caught
        if issubclass(w.category, UserWarning) and "structured" in str(w.message)
    ]
    assert len(texts) == warns
    if warns:
        assert (
            "filters" in texts[0] and "conv_general_dilated" in texts[0] and "Dense" not in texts[0]
        )


def equations(jaxpr):
    """Every equation of a jaxpr, inner ones included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jex.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def largest_intermediate(jaxpr):
    """Entries of the largest array that any equation makes."""
    return max(math.prod(v.aval.shape) for eqn in equations(jaxpr) for v in eqn.outvars)


@pytest.mark.parametrize("method", ntk.METHODS)
@pytest.mark.parametrize("positions", [1, 2, 11])
def test_no_product_leaves_its_precision_to_a_default(positions, method):
    """An accelerator's default puts errors of 1e-3 into K. The network here asks for HIGH, the
    kernel for HIGHEST.
    """
    high, highest = jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST

    def body(x):
        return nn.Dense(1, precision=high)(
            jnp.mean(jnp.tanh(nn.Dense(8, precision=high)(x)), axis=0)
        )

    q, params, inputs = flax_case(Net(body), "float32", (positions, 5))

    def run(params, z):
        lin = ntk.linearize(q, params, inputs, method=method)
        return lin.gram, lin.pullback(z), ntk.kernel(q, params, inputs, method=method)

    products = [
        e
        for e in equations(jax.make_jaxpr(run)(params, jnp.ones(BATCH)).jaxpr)
        if e.primitive.name == "dot_general"
    ]
    assert {e.params["precision"] for e in products} == {(high, high), (highest, highest)}


@pytest.mark.parametrize("what", ["gram and pullback", "kernel"])
def test_no_per_example_gradient_of_a_weight_exists_on_the_structured_way(what):
    """For 16 x 32 weights and a batch of 8 the smallest Jacobian has 8 * 16 * 32 entries; nothing
    else comes near.
    """
    batch, size_in, size_out = 8, 16, 32

    def body(x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(size_in)(jnp.tanh(nn.Dense(size_out)(x)))))

    q, params, _ = flax_case(Net(body), "float32", (size_in,))
    x = jnp.zeros((batch, size_in))

    def run(params, x, method):
        if what == "kernel":
            return ntk.kernel(q, params, (x,), block=batch, method=method)
        lin = ntk.linearize(q, params, (x,), method=method)
        return lin.values, lin.gram, lin.pullback(lin.values)

    largest = {
        m: largest_intermediate(jax.make_jaxpr(lambda p, x, m=m: run(p, x, m))(params, x).jaxpr)
        for m in ntk.METHODS
    }
    assert largest["structured"] <= size_in * size_out  # a weight itself, as the pullback makes it
    assert largest["jacobian"] >= batch * size_in * size_out


def _critic_of(out):
    q, params, inputs = ZOO["mlp_1_sin_bias"]("float32")
    return (lambda p, x: out(q(p, x))), params, inputs


@pytest.mark.parametrize("method", ntk.METHODS)
@pytest.mark.parametrize(
    "out, shape", [(lambda y: y[None], r"\(1,\)"), (lambda y: (y, y), r"\(\), \(\)")]
)
def test_q_must_return_a_scalar(out, shape, method):
    q, params, inputs = _critic_of(out)
    with pytest.raises(ValueError, match=rf"scalar.*{shape}"):
        ntk.linearize(q, params, inputs, method=method)
    with pytest.raises(ValueError, match=rf"scalar.*{shape}"):
        ntk.kernel(q, params, inputs, method=method)


def test_an_unknown_method_is_named():
    q, params, inputs = _critic_of(lambda y: y)
    for call in (ntk.linearize, ntk.kernel):
        with pytest.raises(ValueError, match=r'"structured" or "jacobian", got \'fast\''):
            call(q, params, inputs, method="fast")  # pyright: ignore


@pytest.mark.parametrize("block", [0, -3])
def test_block_must_be_positive(block):
    q, params, inputs = _critic_of(lambda y: y)
    with pytest.raises(ValueError, match=f"block must be at least 1, got {block}"):
        ntk.kernel(q, params, inputs, block=block)


@pytest.mark.parametrize("shapes", [((6, 5), (4, 5)), ((6, 5), ()), ((), ()), ()])
def test_inputs_must_share_their_batch_axis(shapes):
    q, params, _ = _critic_of(lambda y: y)
    inputs = tuple(jnp.zeros(shape) for shape in shapes)
    for call in (ntk.linearize, ntk.kernel):
        with pytest.raises(ValueError, match="same batch axis"):
            call(lambda p, *xs: q(p, xs[0]), params, inputs)
    with pytest.raises(ValueError, match="same batch axis"):
        ntk.kernel(
            lambda p, *xs: q(p, xs[0]), params, (jnp.zeros((6, 5)), jnp.zeros((6, 5))), inputs
        )


# --- the other way, other places, and the layers in between ---------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_pushforward_is_the_adjoint_of_pullback(name, x64):
    """<pushforward(v), z> = <v, pullback(z)>, and there and back is K z."""
    q, params, inputs = ZOO[name]("float64")
    leaves, treedef = jax.tree.flatten(params)
    v = treedef.unflatten(
        [jnp.asarray(draw(200 + i, *leaf.shape)) for i, leaf in enumerate(leaves)]
    )
    z = jnp.asarray(draw(99, BATCH))

    @jit
    def run(params, inputs, v, z):
        lin = ntk.linearize(q, params, inputs)
        pulled = lin.pullback(z)
        return lin.gram, pulled, lin.pushforward(pulled), lin.pushforward(v)

    gram, pulled, back, forward = run(params, inputs, v, z)
    assert forward.shape == back.shape == (BATCH,)
    v, pulled = (oracles.theta(jax.tree.leaves(tree)) for tree in (v, pulled))
    assert abs(forward @ z - v @ pulled) <= 1e-12 * np.linalg.norm(v) * np.linalg.norm(pulled)
    assert oracles.relative_error(back, np.asarray(gram) @ np.asarray(z)) < 1e-12


@pytest.mark.parametrize(
    "name",
    [
        "layer_norm",
        "set_of_11",
        "ensemble_over_positions",
        "tree_of_inputs",
        "convolutions",
        "embedding",
    ],
)
def test_elsewhere_at_rows_of_the_batch_are_rows_of_the_kernel(name, x64):
    q, params, inputs = ZOO[name]("float64")
    rows = np.array([4, 0, 1])

    @jit
    def run(params, inputs):
        lin = ntk.linearize(q, params, inputs)
        return (
            lin.values,
            lin.gram,
            *lin.elsewhere(jax.tree.map(lambda leaf: leaf[rows], inputs))[:2],
        )

    values, gram, values_there, kernel_there = run(params, inputs)
    assert oracles.relative_error(values_there, np.asarray(values)[rows]) < 1e-12
    assert oracles.relative_error(kernel_there, np.asarray(gram)[rows]) < 1e-12


def mlp_case(activation, x):
    """The library's critic on x `[B, 5]` split in two, with the oracle's layers."""
    layers = oracles.random_layers(7, (5, 8, 9, 1))
    inputs = (jnp.asarray(x[:, :3]), jnp.asarray(x[:, 3:]))
    return (
        networks.Critic((8, 9), activation).apply,
        arrays("float64", oracles.critic_params(layers)),
        inputs,
        layers,
    )


@pytest.mark.parametrize("method", ntk.METHODS)
@pytest.mark.parametrize("activation", sorted(oracles.ACTIVATIONS))
def test_pushforward_and_elsewhere_equal_backpropagation_in_numpy(activation, method, x64):
    """Phi^T v, and Q and k(y_i, x_j) at 4 other inputs, as `kernel` has them too."""
    x, y = draw(1, BATCH, 5), draw(2, 4, 5)
    q, params, inputs, layers = mlp_case(activation, x)
    _, _, others, _ = mlp_case(activation, y)
    (_, phi), (values, phi_y) = (oracles.mlp(layers, activation, rows) for rows in (x, y))
    leaves, treedef = jax.tree.flatten(params)
    v = [draw(200 + i, *leaf.shape) for i, leaf in enumerate(leaves)]

    @jit
    def run(params, inputs, others, v):
        lin = ntk.linearize(q, params, inputs, method=method)
        there = lin.elsewhere(others)
        return (
            lin.pushforward(v),
            there.values,
            there.kernel,
            ntk.kernel(q, params, others, inputs, method=method),
        )

    forward, values_there, kernel_there, kernel = run(
        params, inputs, others, treedef.unflatten(arrays("float64", v))
    )
    assert oracles.relative_error(forward, phi.T @ oracles.theta(v)) < 1e-12
    assert oracles.relative_error(values_there, values) < 1e-12
    assert oracles.relative_error(kernel_there, oracles.kernel(phi_y, phi)) < 1e-12
    assert oracles.relative_error(kernel_there, kernel) < 1e-12


@pytest.mark.parametrize("activation", sorted(oracles.ACTIVATIONS))
def test_layers_are_the_joined_input_and_the_activations(activation, x64):
    act = oracles.ACTIVATIONS[activation][0]
    x, y = draw(1, BATCH, 5), draw(2, 4, 5)
    q, params, inputs, layers = mlp_case(activation, x)
    _, _, others, _ = mlp_case(activation, y)

    @jit
    def run(params, inputs, others):
        lin = ntk.linearize(q, params, inputs)
        return lin.layers, lin.elsewhere(others).layers

    for found, rows in zip(run(params, inputs, others), (x, y), strict=True):
        assert len(found) == 3
        for got, (w, b) in zip(found, layers, strict=True):
            assert oracles.relative_error(got, rows) < 1e-12
            rows = act(rows @ w + b)


def test_without_products_taken_apart_there_are_no_layers():
    q, params, inputs = ZOO["critic"]("float32")

    def run(params):
        lin = ntk.linearize(q, params, inputs, method="jacobian")
        return lin.layers, lin.elsewhere(inputs).layers

    assert jax.eval_shape(run, params) == ([], [])


def test_layers_come_in_the_order_of_evaluation_not_of_parameters(x64):
    def q(p, x):
        return jnp.sin(jnp.tanh(x @ p["last"] + p["bias"]) @ p["middle"]) @ p["first"]

    params = {
        "last": weights(1, 5, 7),
        "middle": weights(2, 7, 6),
        "first": weights(3, 6),
        "bias": draw(4, 7),
    }
    x = draw(5, BATCH, 5)
    found = jit(lambda p, x: ntk.linearize(q, p, (x,)).layers)(arrays("float64", params), x)
    h = np.tanh(x @ params["last"] + params["bias"])
    for got, wanted in zip(found, (x, h, np.sin(h @ params["middle"])), strict=True):
        assert oracles.relative_error(got, wanted) < 1e-12


def test_layers_of_stacked_members_are_the_first_ones(x64):
    params = {"w": weights(1, 3, 5, 7), "v": weights(2, 3, 7, 6), "out": weights(3, 3, 6)}
    x = draw(5, BATCH, 5)

    def q(p, x):
        return jnp.min(
            jax.vmap(lambda w, v, out: jnp.sin(jnp.tanh(x @ w) @ v) @ out)(p["w"], p["v"], p["out"])
        )

    found = jit(lambda p, x: ntk.linearize(q, p, (x,)).layers)(arrays("float64", params), x)
    h = np.tanh(x @ params["w"][0])
    for got, wanted in zip(found, (x, h, np.sin(h @ params["v"][0])), strict=True):
        assert oracles.relative_error(got, wanted) < 1e-12


@pytest.mark.parametrize(
    "name, widths",
    [
        (
            "layer_norm",
            [5, 9, 8],
        ),  # what enters a dense layer is normalised; the scales are no layers
        ("layer_used_twice", [5, 9]),  # the layer in between has two inputs an example
        (
            "set_of_11",
            [8],
        ),  # at 11 positions a layer has as many inputs an example; their mean is one
        ("convolutions", [24]),
        (
            "product_and_penalty",
            [7],
        ),  # the first weight enters a penalty too, and goes through its Jacobian
        ("tied_by_transpose", []),
        ("weights_on_the_left", [5, 7, 6]),
        ("remat", [5, 8, 9]),
        ("residual", [5, 9, 7, 9]),
    ],
)
def test_layers_are_of_weights_taken_apart_and_used_once(name, widths):
    q, params, inputs = ZOO[name]("float32")
    found = jax.eval_shape(lambda p: ntk.linearize(q, p, inputs).layers, params)
    assert [layer.shape for layer in found] == [(BATCH, width) for width in widths]


@pytest.mark.parametrize("method", ntk.METHODS)
def test_elsewhere_refuses_what_shares_no_batch_axis(method):
    q, params, inputs = ZOO["critic"]("float32")
    others = (jnp.zeros((4, 4)), jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match="same batch axis"):
        jax.eval_shape(
            lambda p: ntk.linearize(q, p, inputs, method=method).elsewhere(others), params
        )


def test_pushforward_and_elsewhere_without_jit_and_after_it_the_same():
    q, params, inputs = ZOO["mlp_1_sin_bias"]("float32")
    lin = ntk.linearize(q, params, inputs)
    some = jax.tree.map(lambda leaf: leaf[:2], inputs)
    assert oracles.relative_error(jax.jit(lin.pushforward)(params), lin.pushforward(params)) < 1e-5
    assert (
        oracles.relative_error(jax.jit(lambda y: lin.elsewhere(y).kernel)(some), lin.gram[:2])
        < 1e-5
    )
