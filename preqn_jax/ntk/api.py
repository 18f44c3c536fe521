"""The public functions: `linearize` for a minibatch, `kernel` for any two sets of inputs."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.tree_util import Partial

from preqn_jax.batching import arrays, batch_size, one_example, parameters
from preqn_jax.ntk import factored, usage
from preqn_jax.options import choose
from preqn_jax.types import Array, Inputs, Params, QFunction

Method = Literal["structured", "jacobian"]
METHODS: tuple[Method, ...] = ("structured", "jacobian")


class Linearization(NamedTuple):
    """Q on a minibatch and its first-order behaviour around `params`."""

    values: Array  # `[B]`, Q_theta(x_i), in float32 at least
    gram: Array  # `[B, B]`, K of Eq. 9, in float32, or in float64 where a parameter is
    pullback: Callable[[Array], Params]
    """z `[B]` -> sum_i z_i grad Q(x_i), shaped as params (Eq. 23)."""
    pushforward: Callable[[Params], Array]
    """A change of params -> grad Q(x_i) . change, `[B]` (Eq. 6's first order)."""
    elsewhere: Callable[[Inputs], "Elsewhere"]
    """Other inputs `[M]` -> `Elsewhere`, by one more forward and backward pass. One example of them
    must have the same shapes and types as here.
    """
    layers: list[Array]
    """The input `[B, in]` of each weight matrix, in the order of evaluation: the inputs of q first,
    then the hidden layers; see `factored.layers`.
    """


class Elsewhere(NamedTuple):
    """Q at other inputs y, and the kernel between them and the minibatch."""

    values: Array  # `[M]`
    kernel: Array  # `[M, B]`, k(y_i, x_j)
    layers: list[Array]  # `[M, in]` each, as in `Linearization`


def linearize(
    q: QFunction, params: Params, inputs: Inputs, *, method: Method = "structured"
) -> Linearization:
    """Values, kernel and pullback of `q` on a minibatch, from one forward and one backward pass.

    >>> import jax.numpy as jnp
    >>> from preqn_jax import ntk
    >>> q = lambda params, obs, action: jnp.concatenate([obs, action]) @ params
    >>> obs, action = jnp.asarray([[1.0, 0.0], [0.0, 2.0]]), jnp.ones((2, 1))
    >>> lin = ntk.linearize(q, jnp.asarray([1.0, 2.0, 3.0]), (obs, action))
    >>> lin.values.tolist()
    [4.0, 7.0]
    >>> lin.gram.tolist()
    [[2.0, 1.0], [1.0, 5.0]]
    >>> lin.pullback(jnp.asarray([1.0, 1.0])).tolist()
    [1.0, 2.0, 2.0]

    Args:
      q: `q(params, *inputs) -> scalar`, for one example.
      params: theta, any pytree of real floating-point arrays, of any precision. Whatever has no
        gradient (counters, random keys) must be closed over by `q`.
      inputs: the arguments after `params`, each with a leading `[B]`; B may be 0. They may have any
        dtype that `q` takes; uint8 images are cast before the kernel's products.
      method: "structured" or "jacobian", see the package's docstring.

    Returns:
      `Linearization`; its fields may be used any number of times, inside or outside of `jax.jit`,
      and a jitted function may return it.

    Raises:
      ValueError: unknown `method`; `q` does not return a real scalar for one example, or is in
        training mode, where batch normalization makes it depend on the other examples; a leaf of
        `params` is no real floating-point array; `inputs` is no tuple of arrays with one batch
        axis; or either varies over a mesh in a `jax.shard_map` without check_vma=False.
    """
    params, inputs = parameters(params), arrays(inputs)
    _check_whole(params, inputs)
    program = usage.read(q, params, inputs, apart=choose("method", method, METHODS) == "structured")
    here = factored.gradients(program, params, inputs)

    # The constants of q are passed as arguments, so that the result may leave `jit` and `vmap`.
    layout = program._replace(operations=[], constants={})
    bare, example = program._replace(constants={}), one_example(inputs)

    def elsewhere(constants: dict, params: Params, here: factored.Gradients, ys: Inputs):
        ys = _like(arrays(ys), example)
        there = factored.gradients(bare._replace(constants=constants), params, ys)
        return Elsewhere(there.values, factored.gram(there, here), factored.layers(bare, there))

    return Linearization(
        here.values,
        factored.gram(here, here),
        Partial(partial(factored.pullback, layout), here),
        Partial(partial(factored.pushforward, layout), here),
        Partial(elsewhere, program.constants, params, here),
        factored.layers(program, here),
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

    >>> import jax.numpy as jnp
    >>> from preqn_jax import ntk
    >>> q = lambda params, x: jnp.sin(x @ params)
    >>> params, xs, ys = jnp.ones((3,)), jnp.zeros((5, 3)), jnp.ones((2, 3))
    >>> ntk.kernel(q, params, (xs,), (ys,)).shape
    (5, 2)

    Args:
      q: `q(params, *inputs) -> scalar`, for one example.
      params: theta.
      xs: rows, arrays with a leading `[N]`.
      ys: columns, arrays with a leading `[M]`; an example has the same shapes and types as in `xs`.
        If None, `xs`.
      method: "structured" or "jacobian".
      block: examples held at a time: peak memory is O(block) gradients and O(N*M) entries.

    Returns:
      `[N, M]`, entries k(x_i, y_j) of Eq. 9, in float32, or in float64 where a parameter is.

    Raises:
      ValueError: as `linearize`, `block` below 1, or examples of `xs` and `ys` that differ.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    params, xs = parameters(params), arrays(xs)
    ys = xs if ys is None else _like(arrays(ys), one_example(xs))
    _check_whole(params, xs, ys)
    program = usage.read(q, params, xs, apart=choose("method", method, METHODS) == "structured")
    rows, columns = _blocks(xs, block), _blocks(ys, block)

    def row(x: Inputs) -> Array:
        left = factored.gradients(program, params, x)
        strips = _each(
            lambda y: factored.gram(left, factored.gradients(program, params, y)), columns
        )  # `[m, block, block]`
        columns_, rows_, width = strips.shape
        return jnp.moveaxis(strips, 0, 1).reshape(rows_, columns_ * width)

    full = _each(row, rows)  # `[n, block, m * block]`
    full = full.reshape(full.shape[0] * full.shape[1], full.shape[2])
    return full[: batch_size(xs), : batch_size(ys)]


def _each(function: Callable[[Inputs], Array], blocks: Inputs) -> Array:
    """`jax.lax.map`; but outside of `jit`, where every `lax.map` is compiled anew and its program
    stays in memory, and for a single block, `function` is called directly.
    """
    count = batch_size(blocks)
    if not count or (count > 1 and isinstance(jnp.zeros(()), jax.core.Tracer)):
        return jax.lax.map(function, blocks)
    # Not leaf[i], which is one program for each i.
    take = lambda i: jax.tree.map(partial(_row, i), blocks)  # noqa: E731
    return jnp.stack([function(take(i)) for i in range(count)])


def _row(i: int, leaf: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False)


def _check_whole(*trees: Any) -> None:
    """Raises ValueError in a `shard_map` that tracks what varies over its mesh. K would be wrong
    there: JAX sums, over the devices, gradients with respect to values that do not vary, such as
    the zeros in `factored`.
    """
    if axes := usage.varying(trees):
        raise ValueError(
            f"params or inputs vary over {', '.join(sorted(axes))} of the mesh, in a shard_map "
            "that tracks this, where K would be wrong: give it check_vma=False"
        )


def _like(ys: Inputs, expected: Inputs) -> Inputs:
    """`ys`, if one of its examples has the shapes and types of `expected`. Raises ValueError
    otherwise: what q computes depends on them (the size under a mean, a quotient of integers).
    """
    seen = one_example(ys)
    if seen != expected:
        raise ValueError(
            f"one example of these inputs is {_form(seen)}, one of the others is "
            f"{_form(expected)}: give both the same shapes and types"
        )
    return ys


def _form(example: Inputs) -> str:
    forms = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", example)
    return str(forms).replace("'", "")


def _blocks(inputs: Inputs, block: int) -> Inputs:
    """Split `[N, ...]` into `[n, block, ...]`, the last block filled up with copies of the last
    row.
    """
    size = batch_size(inputs)
    block = max(1, min(block, size))
    padding = -size % block

    def split(leaf: Array) -> Array:
        padded = jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")
        return padded.reshape((size + padding) // block, block, *leaf.shape[1:])

    return jax.tree.map(split, inputs)
