"""What a person may get wrong when asking for a kernel."""

import jax
import jax.numpy as jnp
import pytest

from preqn_jax import ntk
from preqn_jax.batching import batched
from zoo import ZOO


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
    """An array alone would be taken for as many inputs as it has rows."""
    q, params, (x,) = _critic_of(lambda y: y)
    for inputs, kind in ((x, "ArrayImpl"), ([x], "list"), ({"x": x}, "dict")):
        with pytest.raises(ValueError, match=rf"^inputs is of the type {kind}, expected a tuple"):
            call(q, params, inputs)


def test_batched_is_a_loop_over_examples():
    q = lambda params, x, tree: params * x.sum() + tree["y"]
    x, y = jnp.arange(6.0).reshape(3, 2), jnp.asarray([10.0, 20.0, 30.0])
    found = batched(q)(2.0, (x, {"y": y}))
    assert found.tolist() == [q(2.0, x[i], {"y": y[i]}) for i in range(3)]
