"""Per-example gradients in factored form, and the three products that the paper takes of them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.ntk import usage
from preqn_jax.types import Array, Inputs, Params

# TF32 products put errors of 1e-3 into K and the solve amplifies them by its condition: never leave
# this to a default.
_dot = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Gradients(NamedTuple):
    """Per-example gradients of Q; an inner product of two of these is an entry of K."""

    values: Array  # `[B]`
    dense: list[tuple[Array, Array]]
    """For each weight that is taken apart: X `[B, G, U, in]` and D `[B, G, U, out]`, U uses and G
    stacked members.
    """
    direct: list[Array]  # of every other leaf its per-example Jacobian, `[B, leaf size]`


def gradients(program: usage.Program, params: Params, inputs: Inputs) -> Gradients:
    """One forward and one backward pass through q."""
    leaves = jax.tree.leaves(params)
    whole = [leaves[i] for i in program.direct]

    def one(example: Inputs) -> tuple[Array, list[Array], list[Array], list[Array]]:
        rest = jax.tree.leaves(example)

        def value(shifts: list[Array], whole: list[Array]) -> tuple[Array, list[Array]]:
            full = list(leaves)
            for i, leaf in zip(program.direct, whole, strict=True):
                full[i] = leaf
            return usage.evaluate(program, [*full, *rest], shifts)

        shapes = jax.eval_shape(lambda: usage.evaluate(program, [*leaves, *rest], None)[1])
        zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        (out, data), (slopes, direct) = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(
            zeros, whole
        )
        return out, data, slopes, direct

    values, data, slopes, direct = jax.vmap(one)(inputs)
    flat, dense = [g.reshape(g.shape[0], -1) for g in direct], []
    for leaf, positions in program.dense.items():
        x, d = [], []
        for p in positions:
            use = program.uses[p]
            x.append(jax.vmap(use.canonical_data)(data[p]))
            d.append(
                jax.vmap(partial(use.canonical_product, weight_ndim=leaves[leaf].ndim))(slopes[p])
            )
        dense.append((jnp.concatenate(x, axis=2), jnp.concatenate(d, axis=2)))
    return Gradients(values, dense, flat)


def layers(program: usage.Program, grads: Gradients) -> list[Array]:
    """What enters each weight that is taken apart and used once an example: the inputs first, then
    the hidden layers.

    Of stacked members the first one's; nothing where K goes through Jacobians.
    """
    firsts = (positions[0] for positions in program.dense.values())
    order = sorted(zip(firsts, grads.dense, strict=True), key=lambda pair: pair[0])
    return [x[:, 0, 0] for _, (x, _) in order if x.shape[2] == 1]


def gram(left: Gradients, right: Gradients) -> Array:
    """`[B, C]`: inner products of every gradient on the left with every one on the right."""
    shares = [_dot("id,jd->ij", a, b) for a, b in zip(left.direct, right.direct, strict=True)]
    for (x, d), (y, e) in zip(left.dense, right.dense, strict=True):
        shares.append(_dense_gram(x, d, y, e))
    return jnp.asarray(sum(shares))


def _dense_gram(x: Array, d: Array, y: Array, e: Array) -> Array:
    """The share of one weight: sum over members and pairs of uses of (x.y)(d.e)."""
    _, groups, uses, width = x.shape
    if groups == uses == 1:  # a plain dense layer: (X X^T) * (D D^T)
        return _dot("ic,jc->ij", x[:, 0, 0], y[:, 0, 0]) * _dot("if,jf->ij", d[:, 0, 0], e[:, 0, 0])
    # Of many uses, their sum is the smaller thing to hold.
    if uses * uses * (width + d.shape[-1]) > width * d.shape[-1]:
        return _dot("igcf,jgcf->ij", _dot("iguc,iguf->igcf", x, d), _dot("jguc,jguf->jgcf", y, e))
    return jnp.sum(_dot("iguc,jgvc->ijguv", x, y) * _dot("iguf,jgvf->ijguv", d, e), axis=(2, 3, 4))


def pullback(program: usage.Program, grads: Gradients, z: Array) -> Params:
    """sum_i z_i grad Q(x_i), one product a layer."""
    leaves: dict[int, Array] = {}
    for leaf, (x, d) in zip(program.dense, grads.dense, strict=True):
        axes, shape = program.canonical(leaf)
        total = _dense_pullback(x, d, z).reshape([shape[a] for a in axes])
        leaves[leaf] = total.transpose([axes.index(a) for a in range(len(axes))])
    for leaf, jacobian in zip(program.direct, grads.direct, strict=True):
        leaves[leaf] = _dot("i,id->d", z, jacobian).reshape(program.shapes[leaf])
    return program.treedef.unflatten([leaves[i] for i in range(len(leaves))])


def _dense_pullback(x: Array, d: Array, z: Array) -> Array:
    """`[G, in, out]`: the sum of z_i x_i (outer) d_i over examples and uses, of one weight."""
    if _plain(x):
        return _dot("ic,if->cf", x[:, 0, 0] * z[:, None], d[:, 0, 0])[None]
    return _dot("iguc,iguf->gcf", x * z[:, None, None, None], d)


def pushforward(program: usage.Program, grads: Gradients, change: Params) -> Array:
    """grad Q(x_i) . change, one product a layer."""
    leaves = jax.tree.leaves(change)
    shares = [
        _dot("id,d->i", jacobian, leaves[leaf].ravel())
        for leaf, jacobian in zip(program.direct, grads.direct, strict=True)
    ]
    for leaf, (x, d) in zip(program.dense, grads.dense, strict=True):
        weight = leaves[leaf].transpose(program.canonical(leaf)[0])
        weight = weight.reshape(x.shape[1], x.shape[3], d.shape[3])
        if _plain(x):
            shares.append(jnp.sum(_dot("ic,cf->if", x[:, 0, 0], weight[0]) * d[:, 0, 0], axis=1))
        else:
            shares.append(jnp.sum(_dot("iguc,gcf->iguf", x, weight) * d, axis=(1, 2, 3)))
    return jnp.asarray(sum(shares))


def _plain(x: Array) -> bool:
    """One member, one use: a plain product, which XLA's CPU backend would not make of the general
    one.
    """
    return x.shape[1] == x.shape[2] == 1
