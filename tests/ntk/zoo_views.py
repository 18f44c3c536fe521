"""Networks of the zoo whose products use a weight through transposes, reshapes and casts, or seem
to.
"""

import jax
import jax.numpy as jnp
import numpy as np

from zoo_base import BATCH, arrays, draw, weights, zoo


@zoo
def _transposed(dtype):  # as in PyTorch, `[out, in]`
    def q(p, x):
        return p["v"].T @ jnp.sin(jnp.tanh(x @ p["w"].T) @ p["u"].transpose(2, 0, 1).reshape(7, -1))

    params = {"w": weights(1, 7, 5), "u": weights(2, 3, 2, 7), "v": weights(3, 6)}
    return q, arrays(dtype, params), arrays(dtype, (draw(4, BATCH, 5),))


@zoo
def _reshaped(dtype):  # heads stored apart and computed together; axes of size 1 that come and go
    @jax.jit
    def layer(w, x):
        return jnp.tanh(x @ w.reshape(5, 6))

    def q(p, x):
        h = jnp.einsum("i,ijo->jo", layer(p["w"], x), p["u"][:, :, None])
        return jnp.sum(jnp.sin(h)) * jnp.sum(x @ jnp.squeeze(p["v"], 0))

    params = {"w": weights(1, 5, 2, 3), "u": weights(2, 6, 4), "v": weights(3, 1, 5, 2)}
    return q, arrays(dtype, params), arrays(dtype, (draw(4, BATCH, 5),))


@zoo
def _reshaped_by_columns(dtype):  # no view by rows: its axes are transposed first
    def q(p, x):
        by_rows, by_columns = p["w"].reshape(5, 6), jnp.reshape(p["w"], (5, 6), order="F")
        turned = jax.lax.reshape(p["v"], (5, 6), dimensions=(1, 0))
        return jnp.sum(jnp.tanh(x @ by_rows) * jnp.sin(x @ by_columns) + jnp.cos(x @ turned))

    params = {"w": weights(1, 5, 2, 3), "v": weights(2, 3, 10)}
    return q, arrays(dtype, params), arrays(dtype, (draw(4, BATCH, 5),))


@zoo
def _members_in_the_middle(dtype):  # `[in, members, out]`, brought to the front before a product
    def q(p, x):
        w = jnp.moveaxis(p["w"], 1, 0)
        return jnp.sum(jnp.tanh(jnp.einsum("gti,gio->gto", x, w)) * p["out"][:, None])

    params = {"w": weights(1, 5, 3, 7), "out": draw(2, 3, 7)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 3, 2, 5),))


@zoo
def _seen_in_two_ways(dtype):  # the same axes meet the data, and the others come in another order
    def q(p, x):
        plain, swapped = p["w"].reshape(5, 6), p["w"].transpose(0, 2, 1).reshape(5, 6)
        return jnp.sum(jnp.tanh(x @ plain) * jnp.sin(x @ swapped))

    return q, arrays(dtype, {"w": weights(1, 5, 2, 3)}), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _views_besides_products(dtype):  # a transpose in a product and in a penalty
    def q(p, x):
        return jnp.tanh(x @ p["w"].T) @ p["v"].reshape(7) - 0.1 * jnp.sum(p["w"].T ** 2)

    params = {"w": weights(1, 7, 5), "v": weights(2, 7, 1)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _broadcast(
    dtype,
):  # one row for all features: its gradient is a sum, not a view of a product's
    def q(p, x):
        return jnp.sum(jnp.tanh(x @ jnp.broadcast_to(p["w"], (5, 7)))) + x @ jnp.full(5, p["c"])

    params = {"w": weights(1, 7), "c": np.asarray(0.7)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _cast_to_integers(dtype):  # the cast weight has no gradient
    def q(p, x):
        return jnp.sum(jnp.tanh(x @ p["w"].astype(jnp.int32)) * (x @ p["v"]))

    params = {"w": 3 * weights(1, 5, 7), "v": weights(2, 5, 7)}
    return q, arrays(dtype, params), arrays(dtype, (draw(3, BATCH, 5),))


@zoo
def _returns_a_view(dtype):
    def q(p, x):
        jnp.tensordot(x, p["c"].reshape(()), axes=0)
        return p["c"].reshape(())

    return q, arrays(dtype, {"c": np.asarray([0.7])}), arrays(dtype, (draw(3, BATCH, 5),))
