"""Kernel, values and pullback of every kind of network: by the structured kernel, by Jacobians, and
by a loop of `jax.grad`.
"""

import functools
import warnings
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import networks, ntk
from zoo import TRAINED, ZOO
from zoo_base import BATCH, Net, arrays, draw, flax_case, jit, loop_of_gradients, weights


@functools.cache  # two tests use it, and compiling is what takes time
def by_both_methods(name, dtype):
    """`{method: (values, gram, pullback(z), pushforward of that, pushforward(v))}` under jit, with
    the case, z and v; the pushforwards by the structured kernel alone.
    """
    q, params, inputs = ZOO[name](dtype)
    z = jnp.asarray(draw(99, BATCH), dtype)
    leaves, treedef = jax.tree.flatten(params)
    v = treedef.unflatten(
        [jnp.asarray(draw(200 + i, *leaf.shape), leaf.dtype) for i, leaf in enumerate(leaves)]
    )

    @jit
    def run(params, inputs, z, v):
        found = {}
        for method in ntk.METHODS:
            lin = ntk.linearize(q, params, inputs, method=method)
            pulled = lin.pullback(z)
            found[method] = (lin.values, lin.gram, pulled)
            if method == "structured":
                found[method] += (lin.pushforward(pulled), lin.pushforward(v))
        return found

    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # every leaf of the zoo is small, so that nothing warns
        return run(params, inputs, z, v), q, params, inputs, z, v


def check_gram(gram, tolerance):
    assert oracles.relative_error(gram, gram.T) < tolerance
    spectrum = np.linalg.eigvalsh(np.asarray(gram, np.float64))
    assert spectrum[0] > -tolerance * spectrum[-1]


MLPS = ("mlp_2_tanh_bias", "mlp_4_relu_no_bias")
# The fast tests take one or two of each kind; NumPy's backpropagation is tested on more MLPs.
LONG = {name for name in ZOO if name.startswith("mlp_")} - {*MLPS} | {
    *("ensemble_mean", "ensemble_each_its_input", "ensemble_over_positions", "lax_scan", "remat"),
    *("set_of_11", "layer_used_on_different_shapes", "weights_on_the_left", "critic_fourier"),
    *("batched_einsum_on_the_left", "jitted", "residual", "reshaped", "unused_neighbours"),
    *("ensemble_min", "set_of_2", "tree_of_inputs", "transposed", "nested_calls", "batched_einsum"),
    *("weights_on_the_left_of_matrices", "members_in_the_middle", "weight_that_is_the_data"),
    *("contraction_in_another_order", "dense_over_two_axes", "two_batch_axes_permuted"),
    *("layer_used_twice", "both_operands_are_weights", "two_batch_axes", "product_and_penalty"),
    *("views_besides_products", "vectors_and_scalars", "one_weight_on_either_side"),
}
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in ZOO]


@pytest.mark.parametrize("name", EACH)
def test_values_kernel_and_pullback_equal_a_loop_of_gradients(name, x64):
    found, q, params, inputs, z, _ = by_both_methods(name, "float64")
    values, phi = loop_of_gradients(q, params, inputs)
    for method, (got_values, gram, pulled, *_) in found.items():
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


@pytest.mark.parametrize("name", EACH)
def test_pushforward_is_the_adjoint_of_pullback(name, x64):
    """<pushforward(v), z> = <v, pullback(z)>; and the pushforward of a pullback is K z."""
    found, _, _, _, z, v = by_both_methods(name, "float64")
    _, gram, pulled, back, forward = found["structured"]
    assert forward.shape == back.shape == (BATCH,)
    v, pulled = (oracles.theta(jax.tree.leaves(tree)) for tree in (v, pulled))
    found, z = np.asarray(forward), np.asarray(z)
    assert abs(found @ z - v @ pulled) <= 1e-12 * np.linalg.norm(v) * np.linalg.norm(pulled)
    assert oracles.relative_error(back, np.asarray(gram) @ z) < 1e-12


# The fast tests take one of each kind of layer; those of the paper and the rivals come first.
FAST = ("critic", "critic_batch_norm", "critic_layer_norm", "convolutions")
IN_FLOAT32 = [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in TRAINED]


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_structured_equals_jacobian_in_float32(name):
    found, _, params, *_ = by_both_methods(name, "float32")
    for got, expected in zip(found["structured"][:2], found["jacobian"][:2], strict=True):
        assert got.dtype == expected.dtype == jnp.float32
        assert oracles.relative_error(got, expected) < 1e-5
    pulled, expected = (jax.tree.leaves(found[method][2]) for method in ntk.METHODS)
    assert [leaf.dtype for leaf in pulled] == [leaf.dtype for leaf in jax.tree.leaves(params)]
    assert oracles.relative_error(oracles.theta(pulled), oracles.theta(expected)) < 1e-5
    check_gram(found["structured"][1], 1e-5)


@pytest.mark.parametrize(
    "name",
    ["mlp_2_tanh_bias", "convolutions"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("set_of_11", "batched_einsum")],
)
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
    """A q that closes over one seed's own arrays (a tracer under vmap) uses that seed's arrays
    alone.
    """
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
    for i in range(2):  # a pullback is a function: for any z, any number of times, also inside jit
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


@pytest.mark.parametrize("method", ntk.METHODS)
def test_a_linearization_may_leave_jit_and_vmap(method):
    """Even that of a q that closes over something jit traces."""
    x, w, z = (jnp.asarray(draw(i, *n), jnp.float32) for i, n in enumerate([(4, 5), (5, 3), (4,)]))
    params = {"w": w, "v": jnp.asarray(draw(3, 3), jnp.float32)}

    def make(params, scale):
        q = lambda p, x: scale * (jnp.tanh(x @ p["w"]) @ p["v"])
        return ntk.linearize(q, params, (x,), method=method)

    def parts(lin, params):
        there = lin.elsewhere((2 * x,))
        return lin.pullback(z), lin.pushforward(params), there.values, there.kernel

    here, out = make(params, 2.0), jit(make)(params, 2.0)
    assert jax.tree.map(jnp.shape, parts(out, params)) == jax.tree.map(
        jnp.shape, parts(here, params)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        parts(out, params),
        parts(here, params),
    )
    many = jax.vmap(make, in_axes=(None, 0))(params, jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(many.gram[1], here.gram, rtol=1e-4, atol=1e-4)
    each = jax.vmap(lambda lin: lin.pullback(z))(many)
    np.testing.assert_allclose(each["w"][1], here.pullback(z)["w"], rtol=1e-4, atol=1e-4)
