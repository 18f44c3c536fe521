"""The networks of the zoo that are plain functions: every way to use, or misuse, a weight."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo_base import BATCH, arrays, draw, weights, zoo


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
def _tied_by_transpose(dtype):
    def q(p, x):
        return jnp.sum(jnp.sin(jnp.tanh(x @ p["w"]) @ p["w"].T))

    return q, arrays(dtype, {"w": weights(1, 5, 7)}), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _complex_products(dtype):  # waves: real weights and real Q, with complex numbers in between
    def q(p, x):
        wave = jnp.exp(1j * (x @ p["u"])) @ p["w"]
        return jnp.real(wave @ jnp.conj(wave)) + jnp.imag(jnp.sum(wave))

    params = {"u": weights(1, 5, 7), "w": weights(2, 7, 3)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


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
def _weight_that_is_the_data(dtype):  # x @ u is the input of v, and u has a product of its own
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
def _returns_a_parameter(dtype):  # which is also in a product that is not used
    def q(p, x):
        jnp.tensordot(x, p["c"], axes=0)
        return p["c"]

    return q, arrays(dtype, {"c": np.asarray(0.7)}), arrays(dtype, (draw(3, BATCH, 5),))


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
):  # wrong on purpose: the kernel is that of the gradients that `jax.grad` gives
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
