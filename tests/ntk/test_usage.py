"""For which weights the structured kernel is used, at what cost, and in which precision."""

import math
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.extend import core as jex

from preqn_jax import ntk
from zoo_base import BATCH, Net, flax_case


def _either_side(w, x):
    return jnp.tanh(x @ w) * jnp.sin(jnp.einsum("io,i->o", w, x))


def _narrow(w, x):
    return jnp.tanh(x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16))


def _cast_outside(w, x):  # and used by a call
    return jax.checkpoint(jnp.matmul)(x.astype(jnp.float16), w.astype(jnp.float16))


BIG = {
    "cast": (_narrow, (50, 60)),
    "cast in jit": (jax.jit(_narrow), (50, 60)),
    "cast outside": (_cast_outside, (50, 60)),
    "cast or not": (lambda w, x: _narrow(w, x) * _either_side(w, x), (50, 60)),
    "transposed": (lambda w, x: x @ w.T, (60, 50)),
    "transposed outside": (lambda w, x: jax.jit(jnp.matmul)(x, w.T), (60, 50)),
    "cast and transposed": (lambda w, x: _narrow(w.T, x), (60, 50)),
    "heads": (lambda w, x: x @ w.reshape(50, 60), (50, 6, 10)),
    "heads first": (lambda w, x: x @ w.transpose(1, 0, 2).reshape(50, 60), (6, 50, 10)),
    "unit axes": (
        lambda w, x: jnp.einsum("i,iuo->uo", x, jnp.squeeze(w[None], 0)[:, None]),
        (50, 60),
    ),
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_is_taken_apart(dtype):
    """Float32 parameters, and layers that compute in less: no weight has a Jacobian, and nothing
    warns.
    """

    def body(x):
        x = nn.LayerNorm(dtype=dtype)(nn.Dense(48, dtype=dtype)(x))
        heads = nn.DenseGeneral((4, 10), dtype=dtype)(jnp.tanh(x))
        return nn.Dense(1, dtype=dtype)(jnp.tanh(heads).reshape(-1))

    q, params, inputs = flax_case(Net(body), "float32", (40,))

    def run(params):
        lin = ntk.linearize(q, params, inputs)
        return lin.gram, lin.layers

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        jaxpr, (_, layers) = jax.make_jaxpr(run, return_shape=True)(params)
    assert [layer.shape[1] for layer in layers] == [40, 48, 40]
    assert largest_intermediate(jaxpr.jaxpr) <= 40 * 48  # a weight, as its cast makes it


def equations(jaxpr):
    """All equations of a jaxpr, including those of inner jaxprs."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jex.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def largest_intermediate(jaxpr):
    """The number of entries of the largest array that any equation makes."""
    return max(math.prod(v.aval.shape) for eqn in equations(jaxpr) for v in eqn.outvars)


@pytest.mark.parametrize("method", ntk.METHODS)
@pytest.mark.parametrize("positions", [1, 2, 11])
def test_no_product_leaves_its_precision_to_a_default(positions, method):
    """The default of an accelerator would put errors of 1e-3 into K. Here the network asks for
    HIGH, and the kernel for HIGHEST.
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
    """For 16 x 32 weights and a batch of 8 the smallest Jacobian has 8 * 16 * 32 entries; all
    arrays are much smaller.
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


def test_many_uses_are_summed_and_small_inputs_not_filled_up_to_a_block():
    """There are no arrays of all pairs of 32 positions of 6 examples, nor of 256 rows for 6."""
    q = lambda p, x: jnp.sum(jnp.tanh(jnp.sin(x @ p["w"]) @ p["v"]))
    params, x = {"w": jnp.zeros((4, 5)), "v": jnp.zeros((5, 3))}, jnp.zeros((6, 32, 4))
    for call in (lambda p: ntk.linearize(q, p, (x,)).gram, lambda p: ntk.kernel(q, p, (x,))):
        assert largest_intermediate(jax.make_jaxpr(call)(params).jaxpr) <= 6 * 32 * 5


@pytest.mark.parametrize("method", ntk.METHODS)
def test_a_leaf_that_q_does_not_read_has_no_jacobian(method):
    """Such as the policy's parameters, where those of a whole agent are passed."""
    q = lambda p, x: jnp.sum(jnp.tanh(x @ p["w"]))
    params, x = {"w": jnp.ones((4, 5)), "policy": jnp.ones((50, 50))}, jnp.ones((6, 4))

    def run(params):
        lin = ntk.linearize(q, params, (x,), method=method)
        return lin.gram, lin.pullback(lin.values), lin.pushforward(params)

    assert largest_intermediate(jax.make_jaxpr(run)(params).jaxpr) <= 50 * 50
    assert not jax.jit(run)(params)[1]["policy"].any()


def test_the_kernel_of_a_q_that_reads_nothing_is_zero():
    lin = ntk.linearize(lambda p, x: jnp.sum(x), jnp.ones(3), (jnp.ones((4, 2)),))
    assert not lin.gram.any() and lin.gram.shape == (4, 4)
    assert not lin.pushforward(jnp.ones(3)).any() and not lin.pullback(jnp.ones(4)).any()
