"""Per-example gradients in factored form, and the three products with them that the paper needs.

q and its inputs may have any dtypes: all that is recorded is cast to the kernel's dtype, float32 at
least, before any product.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.ntk import usage
from preqn_jax.types import Array, Inputs, Params, wide

# TF32 products put errors of 1e-3 into K, which the solve amplifies by K's condition number: never
# rely on the default precision.
_dot = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Gradients(NamedTuple):
    """Per-example gradients of Q; an inner product of two of these is an entry of K."""

    values: Array  # `[B]`
    dense: list[tuple[Array, Array]]
    """X `[B, G, U, in]` and D `[B, G, U, out]` for each weight that is taken apart: its inputs, and
    the gradients of Q with respect to its products, in U uses and G stacked members.
    """
    direct: list[Array]  # the per-example Jacobian of every other leaf, `[B, leaf size]`


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

        zeros = [jnp.zeros(s.shape, s.dtype) for s in usage.products(program)]
        (out, data), (slopes, direct) = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(
            zeros, whole
        )
        return out, data, slopes, direct

    values, data, slopes, direct = jax.vmap(one)(inputs)
    flat = [g.reshape(len(g), math.prod(g.shape[1:])).astype(program.dtype) for g in direct]
    dense = []
    for positions in program.dense.values():
        uses = [program.uses[p] for p in positions]
        x = [jax.vmap(use.canonical_data)(data[p]) for p, use in zip(positions, uses, strict=True)]
        d = [
            jax.vmap(use.canonical_product)(slopes[p])
            for p, use in zip(positions, uses, strict=True)
        ]
        dense.append(tuple(_join(parts, program.dtype) for parts in (x, d)))
    return Gradients(wide(values), dense, flat)


def _join(parts: list[Array], dtype: Any) -> Array:
    """Join the uses of one weight, which may differ in dtype, to `[B, G, U, ...]`."""
    return jnp.concatenate([part.astype(dtype) for part in parts], axis=2)


def layers(program: usage.Program, grads: Gradients) -> list[Array]:
    """The input of each weight that is taken apart and used once per example: first the inputs of
    the network, then its hidden layers.

    For stacked members, only those of the first; empty where K is computed by Jacobians.
    """
    firsts = (positions[0] for positions in program.dense.values())
    order = sorted(zip(firsts, grads.dense, strict=True), key=lambda pair: pair[0])
    return [x[:, 0, 0] for _, (x, _) in order if x.shape[2] == 1]


def gram(left: Gradients, right: Gradients) -> Array:
    """`[B, C]`: inner products of every gradient on the left with every one on the right."""
    shares = [_dot("id,jd->ij", a, b) for a, b in zip(left.direct, right.direct, strict=True)]
    for (x, d), (y, e) in zip(left.dense, right.dense, strict=True):
        shares.append(_dense_gram(x, d, y, e))
    nothing = (len(left.values), len(right.values))  # for a q that reads no parameter
    return sum(shares[1:], shares[0]) if shares else jnp.zeros(nothing, left.values.dtype)


def _dense_gram(x: Array, d: Array, y: Array, e: Array) -> Array:
    """The share of one weight: sum over members and pairs of uses of (x.y)(d.e)."""
    _, _, uses, width = x.shape
    if _plain(x):  # a dense layer: (X X^T) * (D D^T)
        return _dot("ic,jc->ij", x[:, 0, 0], y[:, 0, 0]) * _dot("if,jf->ij", d[:, 0, 0], e[:, 0, 0])
    # With many uses, the gradients summed over uses take less memory.
    if uses * uses * (width + d.shape[-1]) > width * d.shape[-1]:
        return _dot("igcf,jgcf->ij", _dot("iguc,iguf->igcf", x, d), _dot("jguc,jguf->jgcf", y, e))
    return jnp.sum(_dot("iguc,jgvc->ijguv", x, y) * _dot("iguf,jgvf->ijguv", d, e), axis=(2, 3, 4))


def pullback(program: usage.Program, grads: Gradients, z: Array) -> Params:
    """sum_i z_i grad Q(x_i), with one product per layer. Raises ValueError if z is not `[B]`."""
    if jnp.shape(z) != grads.values.shape:
        raise ValueError(f"z has the shape {jnp.shape(z)}, expected {grads.values.shape}")
    leaves: dict[int, Array] = {}
    for leaf, (x, d) in zip(program.dense, grads.dense, strict=True):
        total, use = _dense_pullback(x, d, z), _first_use(program, leaf)
        like = jax.ShapeDtypeStruct(program.shapes[leaf], total.dtype)
        (leaves[leaf],) = jax.linear_transpose(use.canonical_weight, like)(total)
    for leaf, jacobian in zip(program.direct, grads.direct, strict=True):
        leaves[leaf] = _dot("i,id->d", z, jacobian).reshape(program.shapes[leaf])
    unread = lambda i: jnp.zeros(program.shapes[i], program.dtype)  # noqa: E731
    return program.treedef.unflatten(
        [leaves[i] if i in leaves else unread(i) for i in range(len(program.shapes))]
    )


def _dense_pullback(x: Array, d: Array, z: Array) -> Array:
    """`[G, in, out]`: the sum of z_i x_i (outer) d_i over examples and uses, of one weight."""
    if _plain(x):
        return _dot("ic,if->cf", x[:, 0, 0] * z[:, None], d[:, 0, 0])[None]
    return _dot("iguc,iguf->gcf", x * z[:, None, None, None], d)


def pushforward(program: usage.Program, grads: Gradients, change: Params) -> Array:
    """grad Q(x_i) . change, by one product per layer. Raises ValueError for other shapes."""
    if jax.tree.structure(change) != program.treedef:
        raise ValueError(
            f"change has the structure {jax.tree.structure(change)}, expected that of params, "
            f"{program.treedef}"
        )
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(change)]
    if shapes != [tuple(shape) for shape in program.shapes]:
        raise ValueError(f"change has the shapes {shapes}, expected {list(program.shapes)}")
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(change)]
    shares = [
        _dot("id,d->i", jacobian, leaves[leaf].ravel())
        for leaf, jacobian in zip(program.direct, grads.direct, strict=True)
    ]
    for leaf, (x, d) in zip(program.dense, grads.dense, strict=True):
        weight = _first_use(program, leaf).canonical_weight(leaves[leaf])
        if _plain(x):
            shares.append(jnp.sum(_dot("ic,cf->if", x[:, 0, 0], weight[0]) * d[:, 0, 0], axis=1))
        else:
            shares.append(jnp.sum(_dot("iguc,gcf->iguf", x, weight) * d, axis=(1, 2, 3)))
    return sum(shares[1:], shares[0]) if shares else jnp.zeros_like(grads.values)


def _first_use(program: usage.Program, leaf: int) -> usage.Use:
    """The first use of a leaf that is taken apart; all its uses have the same layout."""
    return program.uses[program.dense[leaf][0]]


def _plain(x: Array) -> bool:
    """Whether there is one member and one use, so that a plain matrix product will do. XLA's CPU
    backend would not turn the general product into one.
    """
    return x.shape[1] == x.shape[2] == 1
