"""What there is to call: `linearize` for a minibatch, `kernel` for any two sets of inputs."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.batching import batch_size
from preqn_jax.ntk import factored, usage
from preqn_jax.types import Array, Inputs, Params, QFunction

Method = Literal["structured", "jacobian"]
METHODS: tuple[Method, ...] = ("structured", "jacobian")


class Linearization(NamedTuple):
    """Q on a minibatch and its first-order behaviour around `params`."""

    values: Array  # `[B]`, Q_theta(x_i)
    gram: Array  # `[B, B]`, K of Eq. 9
    pullback: Callable[[Array], Params]
    """z `[B]` -> sum_i z_i grad Q(x_i), shaped as params (Eq. 23)."""
    pushforward: Callable[[Params], Array]
    """A change of params -> grad Q(x_i) . change, `[B]` (Eq. 6's first order)."""
    elsewhere: Callable[[Inputs], "Elsewhere"]
    """Other inputs `[M]`, for one more forward and backward pass."""
    layers: list[Array]
    """What enters each weight matrix, in the order of evaluation, `[B, in]`: the inputs first, then
    the hidden layers; see `factored.layers`.
    """


class Elsewhere(NamedTuple):
    """Q at other inputs, and how the gradients there meet those of the minibatch."""

    values: Array  # `[M]`
    kernel: Array  # `[M, B]`, k(y_i, x_j)
    layers: list[Array]  # `[M, in]` each


def linearize(
    q: QFunction, params: Params, inputs: Inputs, *, method: Method = "structured"
) -> Linearization:
    """Values, kernel and pullback of `q` on a minibatch, from one forward and one backward pass.

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
      params: theta, any pytree of floating-point arrays.
      inputs: the arguments after `params`, each with a leading `[B]`.
      method: "structured" or "jacobian", see the package's docstring.

    Returns:
      `Linearization`; its fields may be used any number of times, inside or outside of `jax.jit`.

    Raises:
      ValueError: unknown `method`, `q` does not return a scalar for one example, or `inputs` is no
        tuple of arrays with one batch axis.
    """
    program = usage.read(q, params, inputs, apart=check_method(method) == "structured")
    here = factored.gradients(program, params, inputs)

    def pullback(z: Array) -> Params:
        return factored.pullback(program, here, z)

    def pushforward(change: Params) -> Array:
        return factored.pushforward(program, here, change)

    def elsewhere(ys: Inputs) -> Elsewhere:
        batch_size(ys)
        there = factored.gradients(program, params, ys)
        return Elsewhere(there.values, factored.gram(there, here), factored.layers(program, there))

    return Linearization(
        here.values,
        factored.gram(here, here),
        pullback,
        pushforward,
        elsewhere,
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

    >>> from preqn_jax import ntk
    >>> q = lambda params, x: jnp.sin(x @ params)
    >>> params, xs, ys = jnp.ones((3,)), jnp.zeros((5, 3)), jnp.ones((2, 3))
    >>> ntk.kernel(q, params, (xs,), (ys,)).shape
    (5, 2)

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
    program = usage.read(q, params, xs, apart=check_method(method) == "structured")
    rows, columns = _blocks(xs, block), _blocks(ys, block)

    def row(x: Inputs) -> Array:
        left = factored.gradients(program, params, x)
        strips = jax.lax.map(
            lambda y: factored.gram(left, factored.gradients(program, params, y)), columns
        )  # `[m, block, block]`
        return jnp.moveaxis(strips, 0, 1).reshape(strips.shape[1], -1)

    full = jax.lax.map(row, rows)
    return full.reshape(-1, full.shape[-1])[: batch_size(xs), : batch_size(ys)]


def check_method(method: str) -> str:
    """`method`, if it is one of `METHODS`. Raises ValueError otherwise."""
    if method not in METHODS:
        raise ValueError(f'method must be "structured" or "jacobian", got {method!r}')
    return method


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
