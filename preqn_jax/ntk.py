"""The neural tangent kernel of a Q-function, K_ij = grad Q(x_i) . grad Q(x_j)  (Eq. 9).

Two exact ways to the same K:

* ``method="jacobian"``: per-example gradients by ``jax.vmap(jax.jacrev(q))``, then Phi^T Phi. The
  reference. For d parameters it holds ``B*d`` numbers and spends about ``B^2*d`` multiply-adds.
* ``method="structured"``: a weight matrix W that enters only as ``x @ W`` has per-example gradient
  x (outer) D, where D is the gradient of Q with respect to that product. Two such gradients have
  the inner product (x.x')(D.D'), so the layer's share of K is (X X^T) * (D D^T), elementwise:
  ``B^2*(in + out)`` multiply-adds where the Jacobian spends ``B^2*in*out``, and no per-example
  gradient exists at any time.

How a weight is used is read off the jaxpr of ``q``: every weight whose uses are all ``dot_general``
with the same layout is taken apart in this way (dense layers with any number of axes, layers used
several times, stacked ensembles), and every other leaf (biases, LayerNorm scales, convolutions,
tied or transposed weights) goes through the per-example Jacobian of that leaf alone. Both parts are
exact, so the sum is, for any pure function; a matrix that has to take the slow way is named in a
warning.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from preqn_jax.types import Array, Inputs, Params, QFunction

Method = Literal["structured", "jacobian"]
METHODS: tuple[Method, ...] = ("structured", "jacobian")

# TF32 products put errors of 1e-3 into K and the solve amplifies them by its condition: never leave
# this to a default.
_dot = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


_SMALL_LEAF = (
    1024  # stacked biases and the like: their Jacobian is cheap, and no reason for a warning
)


class Linearization(NamedTuple):
    """Q on a minibatch and its first-order behaviour around `params`."""

    values: Array  # `[B]`, Q_theta(x_i)
    gram: Array  # `[B, B]`, K of Eq. 9
    pullback: Callable[
        [Array], Params
    ]  # z `[B]` -> sum_i z_i grad Q(x_i), shaped as params (Eq. 23)
    pushforward: Callable[
        [Params], Array
    ]  # a change of params -> grad Q(x_i) . change, `[B]` (Eq. 6's first order)
    elsewhere: Callable[
        [Inputs], "Elsewhere"
    ]  # other inputs `[M]`, for one more forward and backward pass
    layers: list[
        Array
    ]  # what enters each weight matrix, in the order of evaluation, `[B, in]`; see `_layers`


class Elsewhere(NamedTuple):
    """Q at other inputs, and how the gradients there meet those of the minibatch."""

    values: Array  # `[M]`
    kernel: Array  # `[M, B]`, k(y_i, x_j)
    layers: list[Array]  # `[M, in]` each


class Features(NamedTuple):
    """Per-example gradients of Q in factored form; an inner product of two of these is an entry of
    K.
    """

    values: Array  # `[B]`
    dense: list[
        tuple[Array, Array]
    ]  # a weight each: X `[B, G, U, in]` and D `[B, G, U, out]`, U uses, G stacked members
    direct: list[Array]  # every other leaf: its per-example Jacobian, `[B, leaf size]`


def linearize(
    q: QFunction, params: Params, inputs: Inputs, *, method: Method = "structured"
) -> Linearization:
    """Values, kernel and pullback of `q` on a minibatch, from one forward and one backward pass.

    Args:
      q: `q(params, *inputs) -> scalar`, for one example.
      params: theta, any pytree of floating-point arrays.
      inputs: the arguments after `params`, each with a leading `[B]`.
      method: "structured" or "jacobian", see the module's docstring.

    Returns:
      `Linearization`; its fields may be used any number of times, inside or outside of `jax.jit`.

    Raises:
      ValueError: unknown `method`, or `q` does not return a scalar for one example.
    """
    layout = _layout(q, params, inputs, method)
    feats = _features(layout, params, inputs)

    def pullback(z: Array) -> Params:
        return _pullback(layout, feats, z)

    def pushforward(change: Params) -> Array:
        return _pushforward(layout, feats, change)

    def elsewhere(ys: Inputs) -> Elsewhere:
        batch_size(ys)
        others = _features(layout, params, ys)
        return Elsewhere(others.values, _gram(others, feats), _layers(layout, others))

    return Linearization(
        feats.values, _gram(feats, feats), pullback, pushforward, elsewhere, _layers(layout, feats)
    )


def kernel(
    q: QFunction,
    params: Params,
    xs: Inputs,
    ys: Inputs | None = None,
    *,
    method: Method = "structured",
    block: int = 256,
) -> Array:
    """K between two sets of inputs, in memory bounded by `block`.

    Args:
      q: `q(params, *inputs) -> scalar`, for one example.
      params: theta.
      xs: rows, arrays leading with `[N]`.
      ys: columns, arrays leading with `[M]`; the rows again if None.
      method: "structured" or "jacobian".
      block: examples held at a time: peak memory is O(block) gradients and O(N*M) entries.

    Returns:
      `[N, M]`, entries k(x_i, y_j) of Eq. 9.

    Raises:
      ValueError: as `linearize`, or `block` below 1.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    ys = xs if ys is None else ys
    layout = _layout(q, params, xs, method)
    rows, columns = _blocks(xs, block), _blocks(ys, block)

    def row(x: Inputs) -> Array:
        left = _features(layout, params, x)
        strips = jax.lax.map(
            lambda y: _gram(left, _features(layout, params, y)), columns
        )  # `[m, block, block]`
        return jnp.moveaxis(strips, 0, 1).reshape(strips.shape[1], -1)

    full = jax.lax.map(row, rows)
    return full.reshape(-1, full.shape[-1])[: batch_size(xs), : batch_size(ys)]


def batch_size(inputs: Inputs) -> int:
    """The B shared by all arrays of `inputs`. Raises ValueError where they disagree."""
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or -1 in sizes:
        shapes = [leaf.shape for leaf in jax.tree.leaves(inputs)]
        raise ValueError(
            f"every array of inputs must lead with the same batch axis, got shapes {shapes}"
        )
    return sizes.pop()


def _blocks(inputs: Inputs, block: int) -> Inputs:
    """Split `[N, ...]` into `[n, block, ...]`, the last block filled up with copies of the last
    row.
    """
    size = batch_size(inputs)
    block = min(block, size)
    padding = -size % block

    def split(leaf: Array) -> Array:
        padded = jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")
        return padded.reshape(-1, block, *leaf.shape[1:])

    return jax.tree.map(split, inputs)


# --- how q uses its parameters, read off its jaxpr ------------------------------------------------


class _Use(NamedTuple):
    """One `dot_general` of data with a weight, as seen from the weight. Axes are paired in the
    weight's order.
    """

    on_left: bool  # the weight is the left operand
    weight_batch: tuple[int, ...]
    weight_contract: tuple[int, ...]
    data_batch: tuple[int, ...]
    data_contract: tuple[int, ...]

    @property
    def weight_axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.weight_batch, self.weight_contract

    def canonical_data(self, x: Array) -> Array:
        """The data operand as `[G, U, in]`: stacked members, uses, contracted features."""
        free = tuple(a for a in range(x.ndim) if a not in self.data_batch + self.data_contract)
        groups, uses = (math.prod(x.shape[a] for a in axes) for axes in (self.data_batch, free))
        return x.transpose(self.data_batch + free + self.data_contract).reshape(groups, uses, -1)

    def canonical_product(self, z: Array, weight_ndim: int) -> Array:
        """The product (or a gradient shaped like it) as `[G, U, out]`."""
        batch, weight_free = (
            len(self.weight_batch),
            weight_ndim - len(self.weight_batch) - len(self.weight_contract),
        )
        groups = math.prod(z.shape[:batch])
        if self.on_left:
            weight_shape, data_shape = (
                z.shape[batch : batch + weight_free],
                z.shape[batch + weight_free :],
            )
            return z.reshape(groups, math.prod(weight_shape), math.prod(data_shape)).swapaxes(1, 2)
        data_shape = z.shape[batch : z.ndim - weight_free]
        return z.reshape(groups, math.prod(data_shape), -1)


class _Layout(NamedTuple):
    """Which leaves of the parameters are taken apart, and where."""

    jaxpr: jex.ClosedJaxpr
    treedef: Any  # of the parameters
    dense: dict[int, list[int]]  # leaf -> positions of its uses in `uses`
    uses: list[_Use]
    direct: tuple[int, ...]  # leaves that go through per-example Jacobians

    def canonical(self, leaf: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The order in which a leaf's axes are those of `[G, in, out]`, and its shape."""
        shape = self.jaxpr.jaxpr.invars[leaf].aval.shape
        axes = sum(self.uses[self.dense[leaf][0]].weight_axes, ()) if leaf in self.dense else ()
        return axes + tuple(a for a in range(len(shape)) if a not in axes), shape


def _layout(q: QFunction, params: Params, inputs: Inputs, method: str) -> _Layout:
    if method not in METHODS:
        raise ValueError(f'method must be "structured" or "jacobian", got {method!r}')
    batch_size(inputs)
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    jaxpr = jax.make_jaxpr(q)(params, *example)
    if [out.shape for out in jaxpr.out_avals] != [()]:
        shapes = [out.shape for out in jaxpr.out_avals]
        raise ValueError(
            f"q must return one scalar for one example, got shapes {shapes}; index the last axis, "
            f"as in out[0]"
        )
    leaves, treedef = jax.tree.flatten(params)
    if method == "jacobian":
        return _Layout(jaxpr, treedef, {}, [], tuple(range(len(leaves))))
    scan = _Scan(dict(zip(jaxpr.jaxpr.invars, range(len(leaves)), strict=False)))
    outputs = scan.visit(jaxpr.jaxpr, scan.top)
    scan.give_up(outputs, "the output")
    dense = scan.dense_leaves()
    _warn_of_slow_leaves(params, scan, dense)
    kept = [use for use, leaf in zip(scan.uses, scan.use_leaf, strict=True) if leaf in dense]
    kept_leaf = [leaf for leaf in scan.use_leaf if leaf in dense]
    positions = {leaf: [i for i, owner in enumerate(kept_leaf) if owner == leaf] for leaf in dense}
    return _Layout(
        jaxpr, treedef, positions, kept, tuple(i for i in range(len(leaves)) if i not in dense)
    )


class _Scan:
    """Walks a jaxpr and notes every use of every parameter leaf; calls are entered only where they
    take a leaf.
    """

    def __init__(self, top: dict[Any, int]):
        self.top = top
        self.uses: list[_Use] = []
        self.use_leaf: list[int] = []
        self.other: dict[int, str] = {}  # leaf -> what it is used by besides products

    def visit(self, jaxpr: jex.Jaxpr, leaf_of: dict[Any, int]) -> list[int | None]:
        """Note the uses inside `jaxpr`; returns, for each output, the leaf it is (or None)."""
        leaf_of = dict(leaf_of)
        for eqn in jaxpr.eqns:
            operands = [_lookup(leaf_of, v) for v in eqn.invars]
            if all(leaf is None for leaf in operands):
                continue
            inner = _inner(eqn)
            if inner is not None:
                inside = {
                    v: leaf
                    for v, leaf in zip(inner.jaxpr.invars, operands, strict=True)
                    if leaf is not None
                }
                results = self.visit(inner.jaxpr, inside)
                leaf_of.update(
                    {
                        v: leaf
                        for v, leaf in zip(eqn.outvars, results, strict=True)
                        if leaf is not None
                    }
                )
            elif _is_product(eqn, operands):
                self.note(eqn, operands)
            else:
                self.give_up(operands, str(eqn.primitive))
        return [_lookup(leaf_of, v) for v in jaxpr.outvars]

    def note(self, eqn: jex.JaxprEqn, operands: Sequence[int | None]) -> None:
        on_left = operands[0] is not None
        (contract, batch) = eqn.params["dimension_numbers"]
        order = (0, 1) if on_left else (1, 0)
        batch_pairs = sorted(zip(batch[order[0]], batch[order[1]], strict=True))
        contract_pairs = sorted(zip(contract[order[0]], contract[order[1]], strict=True))
        # The product lists its batch axes in dot_general's order: only the weight's own order keeps
        # D and X aligned.
        if [pair[0] for pair in batch_pairs] != list(batch[order[0]]):
            self.give_up(operands, "a product with permuted batch axes")
            return
        self.uses.append(
            _Use(
                on_left,
                tuple(w for w, _ in batch_pairs),
                tuple(w for w, _ in contract_pairs),
                tuple(x for _, x in batch_pairs),
                tuple(x for _, x in contract_pairs),
            )
        )
        leaf = operands[0] if on_left else operands[1]
        self.use_leaf.append(leaf)  # pyright: ignore[reportArgumentType]

    def give_up(self, operands: Sequence[int | None], why: str) -> None:
        self.other.update({leaf: why for leaf in operands if leaf is not None})

    def dense_leaves(self) -> list[int]:
        """Leaves used by products alone, all with the same layout."""
        layouts: dict[int, set] = {}
        for use, leaf in zip(self.uses, self.use_leaf, strict=True):
            layouts.setdefault(leaf, set()).add(use.weight_axes)
        for leaf, axes in layouts.items():
            if len(axes) > 1:
                self.other.setdefault(
                    leaf, "products with different layouts (a tied, transposed weight)"
                )
        return sorted(leaf for leaf in layouts if leaf not in self.other)


def _lookup(leaf_of: dict[Any, int], v: Any) -> int | None:
    return None if isinstance(v, jex.Literal) else leaf_of.get(v)


def _inner(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr | None:
    """The body of a call that may be replaced by its body: jit and remat, but not a custom
    derivative or a loop.
    """
    if eqn.primitive.name not in ("jit", "pjit", "closed_call", "remat", "remat2", "checkpoint"):
        return None
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(body, jex.ClosedJaxpr):
        return body
    return jex.ClosedJaxpr(body, ())  # pyright: ignore[reportArgumentType]


def _is_product(eqn: jex.JaxprEqn, operands: Sequence[int | None]) -> bool:
    return eqn.primitive.name == "dot_general" and sum(leaf is not None for leaf in operands) == 1


def _warn_of_slow_leaves(params: Params, scan: _Scan, dense: Sequence[int]) -> None:
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    slow = [
        f"{jax.tree_util.keystr(path)} {leaf.shape} (used by {scan.other[i]})"
        for i, (path, leaf) in enumerate(paths)
        if i not in dense and i in scan.other and leaf.ndim >= 2 and leaf.size > _SMALL_LEAF
    ]
    if slow:
        warnings.warn(
            "the structured kernel takes the per-example Jacobian of these parameters, exact but "
            "slow: " + ", ".join(slow),
            stacklevel=4,
        )


# --- evaluation -----------------------------------------------------------------------------------


def _features(layout: _Layout, params: Params, inputs: Inputs) -> Features:
    """Per-example gradients in factored form: one forward and one backward pass through `q`."""
    leaves = jax.tree.leaves(params)
    direct = [leaves[i] for i in layout.direct]

    def one(example: Inputs) -> tuple[Array, list[Array], list[Array], list[Array]]:
        def value(shifts: list[Array], direct: list[Array]) -> tuple[Array, list[Array]]:
            full = list(leaves)
            for i, leaf in zip(layout.direct, direct, strict=True):
                full[i] = leaf
            return _evaluate(layout, [*full, *jax.tree.leaves(example)], shifts)

        shapes = jax.eval_shape(
            lambda: _evaluate(layout, [*leaves, *jax.tree.leaves(example)], None)[1]
        )
        zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        (out, data), (grads, direct_grads) = jax.value_and_grad(
            value, argnums=(0, 1), has_aux=True
        )(zeros, direct)
        return out, data, grads, direct_grads

    values, data, grads, direct_grads = jax.vmap(one)(inputs)
    dense, flat = [], [g.reshape(g.shape[0], -1) for g in direct_grads]
    for leaf, positions in layout.dense.items():
        uses = [layout.uses[p] for p in positions]
        x = jnp.concatenate(
            [jax.vmap(u.canonical_data)(data[p]) for u, p in zip(uses, positions, strict=True)],
            axis=2,
        )
        product = partial(_Use.canonical_product, weight_ndim=leaves[leaf].ndim)
        d = jnp.concatenate(
            [jax.vmap(partial(product, u))(grads[p]) for u, p in zip(uses, positions, strict=True)],
            axis=2,
        )
        dense.append((x, d))
    return Features(values, dense, flat)


def _evaluate(layout: _Layout, args: list[Array], shifts: list[Array] | None) -> tuple[Array, Any]:
    """Run q's jaxpr on one example, adding `shifts` to the products of dense leaves.

    Returns the value and the data operand of each product; the products themselves if `shifts` is
    None.
    """
    recorded: list[Array] = []
    dense = set(layout.dense)

    def run(
        closed: jex.ClosedJaxpr, args: Sequence[Array], leaf_of: dict[Any, int]
    ) -> tuple[list[Array], list[int | None]]:
        """The outputs, and for each the leaf it is, as in `_Scan.visit`."""
        jaxpr = closed.jaxpr
        env: dict[Any, Any] = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True)
        )
        leaf_of = dict(leaf_of)
        for eqn in jaxpr.eqns:
            values = [v.val if isinstance(v, jex.Literal) else env[v] for v in eqn.invars]
            operands = [_lookup(leaf_of, v) for v in eqn.invars]
            used = any(leaf is not None for leaf in operands)
            inner = _inner(eqn) if used else None
            if inner is not None:
                inside = {
                    v: leaf
                    for v, leaf in zip(inner.jaxpr.invars, operands, strict=True)
                    if leaf is not None
                }
                results, passed = run(inner, values, inside)
                leaf_of.update(
                    {
                        v: leaf
                        for v, leaf in zip(eqn.outvars, passed, strict=True)
                        if leaf is not None
                    }
                )
            else:
                results = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
                results = list(results) if eqn.primitive.multiple_results else [results]
                if used and any(leaf in dense for leaf in operands):
                    if shifts is None:
                        recorded.append(results[0])
                    else:
                        results[0] = results[0] + shifts[len(recorded)]
                        recorded.append(values[1] if operands[0] is not None else values[0])
            env.update(zip(eqn.outvars, results, strict=True))
        outputs = [v.val if isinstance(v, jex.Literal) else env[v] for v in jaxpr.outvars]
        return outputs, [_lookup(leaf_of, v) for v in jaxpr.outvars]

    top = dict(zip(layout.jaxpr.jaxpr.invars, range(layout.treedef.num_leaves), strict=False))
    ((value,), _) = run(layout.jaxpr, args, top)
    return value, recorded


def _layers(layout: _Layout, feats: Features) -> list[Array]:
    """What enters each weight that is taken apart and used once an example: the inputs first, then
    the hidden layers.

    Of stacked members the first one's; nothing where K goes through Jacobians.
    """
    order = sorted(
        zip((positions[0] for positions in layout.dense.values()), feats.dense, strict=True),
        key=lambda pair: pair[0],
    )
    return [x[:, 0, 0] for _, (x, _) in order if x.shape[2] == 1]


def _gram(left: Features, right: Features) -> Array:
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
    if (
        uses * uses * (width + d.shape[-1]) > width * d.shape[-1]
    ):  # many uses: their sum is the smaller thing to hold
        return _dot("igcf,jgcf->ij", _dot("iguc,iguf->igcf", x, d), _dot("jguc,jguf->jgcf", y, e))
    return jnp.sum(_dot("iguc,jgvc->ijguv", x, y) * _dot("iguf,jgvf->ijguv", d, e), axis=(2, 3, 4))


def _dense_pullback(x: Array, d: Array, z: Array) -> Array:
    """`[G, in, out]`: the sum of z_i x_i (outer) d_i over examples and uses, of one weight."""
    if (
        x.shape[1] == x.shape[2] == 1
    ):  # a plain product, which XLA's CPU backend would not make of the general one
        return _dot("ic,if->cf", x[:, 0, 0] * z[:, None], d[:, 0, 0])[None]
    return _dot("iguc,iguf->gcf", x * z[:, None, None, None], d)


def _pullback(layout: _Layout, feats: Features, z: Array) -> Params:
    """sum_i z_i grad Q(x_i), one product a layer."""
    leaves: dict[int, Array] = {}
    for leaf, (x, d) in zip(layout.dense, feats.dense, strict=True):
        axes, shape = layout.canonical(leaf)
        total = _dense_pullback(x, d, z)
        leaves[leaf] = total.reshape([shape[a] for a in axes]).transpose(
            [axes.index(a) for a in range(len(axes))]
        )
    for leaf, jacobian in zip(layout.direct, feats.direct, strict=True):
        leaves[leaf] = _dot("i,id->d", z, jacobian).reshape(layout.canonical(leaf)[1])
    return jax.tree.unflatten(layout.treedef, [leaves[i] for i in range(layout.treedef.num_leaves)])


def _pushforward(layout: _Layout, feats: Features, change: Params) -> Array:
    """grad Q(x_i) . change, one product a layer."""
    leaves = jax.tree.leaves(change)
    shares = [
        _dot("id,d->i", jacobian, leaves[leaf].ravel())
        for leaf, jacobian in zip(layout.direct, feats.direct, strict=True)
    ]
    for leaf, (x, d) in zip(layout.dense, feats.dense, strict=True):
        weight = (
            leaves[leaf]
            .transpose(layout.canonical(leaf)[0])
            .reshape(x.shape[1], x.shape[3], d.shape[3])
        )
        if x.shape[1] == x.shape[2] == 1:  # a plain product, as in `_dense_pullback`
            shares.append(jnp.sum(_dot("ic,cf->if", x[:, 0, 0], weight[0]) * d[:, 0, 0], axis=1))
        else:
            shares.append(jnp.sum(_dot("iguc,gcf->iguf", x, weight) * d, axis=(1, 2, 3)))
    return jnp.asarray(sum(shares))
