"""From one example to a batch: the conventions of all modules that take `params` and `inputs`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from preqn_jax.types import Array, Inputs, Params, QFunction, wide


def batched(q: QFunction) -> Callable[[Params, Inputs], Array]:
    """The batched form, `(params, inputs) -> values [B]`, of a `q` that is written for one example.

    >>> import jax.numpy as jnp
    >>> from preqn_jax.batching import batched
    >>> values = batched(lambda params, obs, action: params * (obs @ action))
    >>> values(2.0, (jnp.ones((4, 3)), jnp.ones((4, 3)))).tolist()
    [6.0, 6.0, 6.0, 6.0]

    Values are `wide` whatever type q computes in, and matrix products have `full_precision`,
    because all that follows is computed from small differences of values. Calls raise ValueError
    where the inputs are not a tuple, or q does not return a scalar.

    Raises ValueError where q is a network itself.
    """
    check_q(q)

    def values(params: Params, inputs: Inputs) -> Array:
        _check_tuple(inputs)
        with full_precision():
            each = jax.vmap(q, in_axes=(None, *[0] * len(inputs)))(params, *inputs)
        check_scalar([leaf.shape[1:] for leaf in jax.tree.leaves(each)])
        return wide(each)

    return values


def check_q(q: Any) -> None:
    """Raises ValueError where q is a network instead of its `apply`: one of Flax can be called, but
    not with parameters.
    """
    if hasattr(q, "init") and hasattr(q, "apply"):
        raise ValueError(
            f"q is a network, {type(q).__name__}, expected its function, as `net.apply`"
        )


def full_precision() -> Any:
    """A context in which matrix products are computed in float32 on every device, unless they name
    a precision themselves.

    TF32 keeps 10 bits and a TPU 8: for a Q of 300 that is an error of a third, or of more than one,
    as large as the change of Q that a linesearch has to resolve.
    """
    return jax.default_matmul_precision("highest")


def precise(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, always called within `full_precision`."""

    def call(*given: Any, **named: Any) -> Any:
        with full_precision():
            return function(*given, **named)

    return call


def check_scalar(shapes: list[tuple[int, ...]]) -> None:
    """Raises ValueError unless `shapes`, those of q's output for one example, are of one scalar."""
    if shapes != [()]:
        raise ValueError(
            f"q must return one scalar for one example, got shapes {shapes}; index the last axis, "
            f"as in out[0]"
        )


def batch_size(inputs: Inputs) -> int:
    """The B shared by all arrays of `inputs`. Raises ValueError where they disagree, or where
    `inputs` is no tuple.
    """
    _check_tuple(inputs)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    sizes = {shape[0] if shape else -1 for shape in shapes}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            f"every array of inputs must lead with the same batch axis, got shapes {shapes}"
        )
    return sizes.pop()


def one_example(inputs: Inputs) -> Inputs:
    """Shapes and types of one of the examples. Raises ValueError as `batch_size`."""
    batch_size(inputs)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)


def arrays(inputs: Inputs) -> Inputs:
    """`inputs` as JAX arrays, each in its own type. Raises ValueError as `batch_size`."""
    batch_size(inputs)
    return jax.tree.map(jnp.asarray, inputs)


def parameters(params: Params) -> Params:
    """theta as JAX arrays. Every leaf of `params` must be a real floating-point array or a Python
    float.

    Raises ValueError with the name of a leaf that is anything else (a counter, a random key, a
    complex number): q should close over whatever has no gradient.
    """

    def parameter(path: Any, leaf: Any) -> Array:
        kind = jnp.float32 if isinstance(leaf, float) else getattr(leaf, "dtype", type(leaf))
        if jnp.issubdtype(kind, jnp.floating):
            return jnp.asarray(leaf)
        cure = (
            "make its real and its imaginary part two leaves"
            if jnp.issubdtype(kind, jnp.complexfloating)
            else "take it out of params and let q close over it, as nnx.split(model, nnx.Param, "
            "...) does"
        )
        raise ValueError(
            f"params{jax.tree_util.keystr(path)} is of the type {getattr(kind, '__name__', kind)}, "
            f"expected real floating-point numbers: {cure}"
        )

    return jax.tree_util.tree_map_with_path(parameter, params)


def _check_tuple(inputs: Inputs) -> None:
    if not isinstance(inputs, tuple):
        raise ValueError(
            f"inputs is of the type {type(inputs).__name__}, expected a tuple of q's arguments "
            f"after params, as in (obs, action) or (obs,)"
        )
