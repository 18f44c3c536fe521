"""The pushforward, the kernel at other inputs, and the hidden layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import networks, ntk
from zoo import ZOO
from zoo_base import BATCH, arrays, draw, jit, weights


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
    """The library's critic on inputs x `[B, 5]` split in two, and its layers for the oracle."""
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
    """Phi^T v; and Q and k(y_i, x_j) at 4 other inputs, which `kernel` gives too."""
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
        ),  # the inputs of dense layers are normalised; scales are no layers
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
        ("transposed", [5, 7, 6]),
        ("reshaped", [5, 6, 5]),
        ("members_in_the_middle", []),  # at 2 positions
        ("seen_in_two_ways", []),
        ("views_besides_products", [7]),
        ("complex_products", [5]),
        ("weights_on_the_left", [5, 7, 6]),
        ("remat", [5, 8, 9]),
        ("residual", [5, 9, 7, 9]),
    ],
)
def test_layers_are_of_weights_taken_apart_and_used_once(name, widths):
    q, params, inputs = ZOO[name]("float32")
    found = jax.eval_shape(lambda p: ntk.linearize(q, p, inputs).layers, params)
    assert [layer.shape for layer in found] == [(BATCH, width) for width in widths]


def test_pushforward_and_elsewhere_without_jit_and_after_it_the_same():
    q, params, inputs = ZOO["mlp_1_sin_bias"]("float32")
    lin = ntk.linearize(q, params, inputs)
    some = jax.tree.map(lambda leaf: leaf[:2], inputs)
    assert oracles.relative_error(jax.jit(lin.pushforward)(params), lin.pushforward(params)) < 1e-5
    assert (
        oracles.relative_error(jax.jit(lambda y: lin.elsewhere(y).kernel)(some), lin.gram[:2])
        < 1e-5
    )
