"""Wrong arguments for a kernel, and the messages they get."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from preqn_jax import networks, ntk
from preqn_jax.batching import batched
from zoo import ZOO
from zoo_base import draw


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
        with pytest.raises(
            ValueError, match="unknown method 'fast'; choose one of jacobian, structured"
        ):
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


@pytest.mark.parametrize("method", ntk.METHODS)
def test_elsewhere_refuses_what_shares_no_batch_axis(method):
    q, params, inputs = ZOO["critic"]("float32")
    others = (jnp.zeros((4, 4)), jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match="same batch axis"):
        jax.eval_shape(
            lambda p: ntk.linearize(q, p, inputs, method=method).elsewhere(others), params
        )


@pytest.mark.parametrize("call", [ntk.linearize, ntk.kernel, lambda q, p, x: batched(q)(p, x)])
def test_inputs_are_a_tuple(call):
    """A bare array would be taken for as many inputs as it has rows."""
    q, params, (x,) = _critic_of(lambda y: y)
    for inputs, kind in ((x, "ArrayImpl"), ([x], "list"), ({"x": x}, "dict")):
        with pytest.raises(ValueError, match=rf"^inputs is of the type {kind}, expected a tuple"):
            call(q, params, inputs)


def test_batched_is_a_loop_over_examples():
    q = lambda params, x, tree: params * x.sum() + tree["y"]
    x, y = jnp.arange(6.0).reshape(3, 2), jnp.asarray([10.0, 20.0, 30.0])
    found = batched(q)(2.0, (x, {"y": y}))
    assert found.tolist() == [q(2.0, x[i], {"y": y[i]}) for i in range(3)]


# --- what is no parameter -------------------------------------------------------------------------

CLOSE_OVER, SPLIT = "let q close over it", "its real and its imaginary part two leaves"
NO_PARAMETERS = {  # leaf -> its type as text, and the advice
    "a counter": (jnp.arange(3), "int32", CLOSE_OVER),
    "NumPy's integer": (np.int64(3), "int64", CLOSE_OVER),
    "a Python integer": (3, "int", CLOSE_OVER),
    "a mask": (jnp.ones(3, bool), "bool", CLOSE_OVER),
    "a flag": (True, "bool", CLOSE_OVER),
    "a random key": (jax.random.key(0), "key<fry>", CLOSE_OVER),
    "a word": ("relu", "str", CLOSE_OVER),
    "complex": (jnp.ones(3, jnp.complex64), "complex64", SPLIT),
    "a Python complex": (1j, "complex", SPLIT),
}


@pytest.mark.parametrize("call", [ntk.linearize, ntk.kernel])
@pytest.mark.parametrize("name", NO_PARAMETERS)
def test_a_leaf_that_is_no_real_parameter_is_named(name, call):
    leaf, kind, cure = NO_PARAMETERS[name]
    q, params, inputs = _critic_of(lambda y: y)
    words = rf"^params\['odd'\]\[1\] is of the type {kind}, expected real floating.*{cure}"
    with pytest.raises(ValueError, match=words):
        call(lambda p, x: q(p["q"], x), {"odd": [0.5, leaf], "q": params}, inputs)
    with pytest.raises(ValueError, match=rf"^params is of the type {kind}"):
        call(lambda p, x: jnp.sum(x), leaf, inputs)


def test_of_an_nnx_model_the_parameters_are_split_off():
    """The error names its counters and keys. What is split off as it advises has the K of a plain
    function.
    """

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 1, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs, deterministic=True)

        def __call__(self, x):
            return self.last(self.dropout(jnp.tanh(self.first(x))))[0]

    model, inputs = Model(nnx.Rngs(0)), (jnp.asarray(draw(0, 4, 5), jnp.float32),)
    graph, everything = nnx.split(model)
    with pytest.raises(ValueError, match=r"rngs.* is of the type uint32, expected real"):
        ntk.linearize(lambda p, x: nnx.merge(graph, p)(x), everything, inputs)

    graph, params, rest = nnx.split(model, nnx.Param, ...)
    gram = ntk.kernel(lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), params, inputs)
    leaves = {
        "first": {**nnx.to_pure_dict(params)["first"]},
        "last": nnx.to_pure_dict(params)["last"],
    }

    def plain(p, x):
        h = jnp.tanh(x @ p["first"]["kernel"] + p["first"]["bias"])
        return (h @ p["last"]["kernel"] + p["last"]["bias"])[0]

    expected = ntk.kernel(plain, leaves, inputs, method="jacobian")
    np.testing.assert_allclose(gram, expected, rtol=1e-5)


def test_python_floats_are_parameters():
    """Q is `gain sin(x.w)`, whose derivative by the gain is sin(x.w)."""
    w, x = draw(1, 5), draw(2, 4, 5)
    params, inputs = {"gain": 0.5, "w": jnp.asarray(w, jnp.float32)}, (jnp.float32(x),)
    phi = np.vstack([np.sin(x @ w), 0.5 * np.cos(x @ w) * x.T])
    for method in ntk.METHODS:
        lin = ntk.linearize(
            lambda p, x: p["gain"] * jnp.sin(x @ p["w"]), params, inputs, method=method
        )
        np.testing.assert_allclose(lin.gram, phi.T @ phi, rtol=1e-5)
        pulled = lin.pullback(jnp.ones(4))
        np.testing.assert_allclose(pulled["gain"], phi[0].sum(), rtol=1e-5)
        change = {"gain": 2.0, "w": jnp.ones(5)}
        np.testing.assert_allclose(
            lin.pushforward(change), phi.T @ [2, 1, 1, 1, 1, 1], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("kind", ["int32", "complex64", "bool"])
def test_q_must_return_a_real_number(kind):
    q, params, inputs = _critic_of(lambda y: y.astype(kind))
    for call in (ntk.linearize, ntk.kernel):
        with pytest.raises(ValueError, match=f"^q returns a number of the type {kind}, expected a"):
            call(q, params, inputs)


def test_batched_refuses_complex_values():
    with pytest.raises(ValueError, match="complex64, expected real"):
        batched(lambda p, x: p * x)(1j, (jnp.ones(3),))


# --- no examples, and others than those at hand ---------------------------------------------------


@pytest.mark.parametrize("method", ntk.METHODS)
def test_no_examples_give_empty_results(method):
    q, params, (x,) = _critic_of(lambda y: y)
    x = np.asarray(x)
    some, none = (x[:3],), (x[:0],)
    pairs = (none, some), (some, none), (none, none)

    @jax.jit
    def run(params):
        lin = ntk.linearize(q, params, none, method=method)
        pulled, pushed = lin.pullback(jnp.zeros(0)), lin.pushforward(params)
        places = lin.elsewhere(some), ntk.linearize(q, params, some, method=method).elsewhere(none)
        kernels = [ntk.kernel(q, params, *pair, method=method, block=2) for pair in pairs]
        return lin.values, lin.gram, pulled, pushed, places, kernels

    values, gram, pulled, pushed, places, kernels = run(params)
    assert values.shape == (0,) and gram.shape == (0, 0)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(pulled))
    assert jax.tree.map(jnp.shape, pulled) == jax.tree.map(jnp.shape, params)
    assert pushed.shape == (0,)
    assert [place.values.shape for place in places] == [(3,), (0,)]
    assert [place.kernel.shape for place in places] == [(3, 0), (0, 3)]
    for found, (xs, ys) in zip(kernels, pairs, strict=True):
        assert found.shape == (len(xs[0]), len(ys[0])) and found.dtype == jnp.float32


@pytest.mark.parametrize("method", ntk.METHODS)
def test_inputs_and_weights_without_features(method):
    """`[B, 0]` observations: K is that of the biases, ones."""
    q = lambda p, x: jnp.sum(x @ p["w"]) + p["b"]
    params, inputs = {"w": jnp.ones((0, 4)), "b": jnp.ones(())}, (jnp.ones((3, 0)),)
    assert jnp.all(ntk.kernel(q, params, inputs, method=method) == jnp.ones((3, 3)))
    pulled = ntk.linearize(q, params, inputs, method=method).pullback(jnp.ones(3))
    assert pulled["w"].shape == (0, 4) and pulled["b"] == 3


@pytest.mark.parametrize(
    "other, words",
    [
        (jnp.ones((4, 2, 3), jnp.uint8), "(uint8[2, 3],), one of the others is (float32[2, 3],)"),
        (jnp.ones((4, 5, 3)), "(float32[5, 3],), one of the others is (float32[2, 3],)"),
        ({"x": jnp.ones((4, 2, 3))}, "({x: float32[2, 3]},), one of the others is (float32[2, 3]"),
    ],
)
def test_inputs_elsewhere_have_the_form_of_the_others(other, words):
    """Else the mean over q's 2 rows would silently become one over 5 rows, divided by 2."""
    q, params = (lambda p, x: jnp.tanh(jnp.mean(x, axis=0) @ p)), jnp.ones(3)
    inputs = (jnp.ones((4, 2, 3)),)
    with pytest.raises(ValueError, match=re.escape(words)):
        ntk.linearize(q, params, inputs).elsewhere((other,))
    with pytest.raises(ValueError, match=re.escape(words)):
        ntk.kernel(q, params, inputs, (other,))


def test_arrays_of_numpy_are_taken_as_jax_takes_them():
    """Float64 arrays become float32, as always in JAX here; lists are refused."""
    q, params, (x,) = _critic_of(lambda y: y)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x))
    gram = ntk.kernel(q, wide[0], (wide[1],), (x,))
    np.testing.assert_allclose(gram, ntk.kernel(q, params, (x,)), rtol=1e-6)
    with pytest.raises(ValueError, match="same batch axis"):
        ntk.linearize(q, params, ([[1.0] * 5],))


def test_a_network_in_training_mode_has_no_kernel():
    critic = networks.Critic((5,), norm="batch")
    obs, action = jnp.ones((4, 3)), jnp.ones((4, 2))
    start = jax.jit(critic.init)(jax.random.key(0), obs[0], action[0])
    module = critic.clone(train=True)
    mean_of_batch = lambda params, x: jax.lax.pmean(params * x, "other")
    for q, params, inputs in (
        (lambda p, *x: module.apply(p, *x, mutable=["batch_stats"])[0], start, (obs, action)),
        (mean_of_batch, jnp.float32(2), (jnp.ones(3),)),
    ):
        for function in (ntk.linearize, ntk.kernel):
            with pytest.raises(ValueError, match="depends on its batch .*in evaluation mode$"):
                function(q, params, inputs)


def test_other_names_that_are_missing_are_said_as_they_are():
    with pytest.raises(NameError, match="no_such_name"):
        ntk.linearize(lambda p, x: p * x * no_such_name, jnp.float32(1), (jnp.ones(3),))  # noqa: F821  # pyright: ignore


# --- how it is called -----------------------------------------------------------------------------


def test_a_kernel_outside_of_jit_is_compiled_once(compiled):
    q, params, inputs = ZOO["mlp_1_sin_bias"]("float32")
    calls = lambda: (ntk.kernel(q, params, inputs), ntk.linearize(q, params, inputs))
    calls()
    compiled.clear()
    (kernel, lin), _ = calls(), calls()
    assert not compiled
    np.testing.assert_allclose(kernel, lin.gram, rtol=1e-5)


@pytest.mark.parametrize("varies", ["params", "inputs"])
def test_a_shard_map_that_keeps_book_is_refused(varies):
    """It would sum over devices what belongs to each alone, and K would be wrong without a word."""
    q, params, inputs = ZOO["mlp_1_sin_bias"]("float32")
    axis = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("device",), axis, devices=jax.devices()[:1])
    split, same = jax.sharding.PartitionSpec("device"), jax.sharding.PartitionSpec()
    ways = (split, same) if varies == "params" else (same, split)

    def rows(params, inputs):
        params = jax.tree.map(lambda leaf: leaf[0], params)
        return ntk.linearize(q, params, inputs).gram, ntk.kernel(q, params, inputs)

    def call(**options):
        there = jax.tree.map(lambda leaf: leaf[None], params), inputs
        shares = jax.shard_map(rows, mesh=mesh, in_specs=ways, out_specs=split, **options)
        return jax.jit(shares)(*there)

    with pytest.raises(ValueError, match="vary over device of the mesh.* give it check_vma=False"):
        call()
    for found in call(check_vma=False):
        np.testing.assert_allclose(found, ntk.linearize(q, params, inputs).gram, rtol=1e-5)
