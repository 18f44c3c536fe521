"""From one example to a batch: what every room that takes `inputs` agrees on."""

from collections.abc import Callable

import jax

from preqn_jax.types import Array, Inputs, Params, QFunction


def batched(q: QFunction) -> Callable[[Params, Inputs], Array]:
    """`(params, inputs) -> values [B]` of a `q` that is written for one example.

    >>> import jax.numpy as jnp
    >>> from preqn_jax.batching import batched
    >>> values = batched(lambda params, obs, action: params * (obs @ action))
    >>> values(2.0, (jnp.ones((4, 3)), jnp.ones((4, 3)))).tolist()
    [6.0, 6.0, 6.0, 6.0]

    Calls raise ValueError where the inputs are no tuple.
    """

    def values(params: Params, inputs: Inputs) -> Array:
        _check_tuple(inputs)
        return jax.vmap(q, in_axes=(None, *[0] * len(inputs)))(params, *inputs)

    return values


def batch_size(inputs: Inputs) -> int:
    """The B shared by all arrays of `inputs`. Raises ValueError where they disagree, or where
    `inputs` is no tuple.
    """
    _check_tuple(inputs)
    shapes = [leaf.shape for leaf in jax.tree.leaves(inputs)]
    sizes = {shape[0] if shape else -1 for shape in shapes}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            f"every array of inputs must lead with the same batch axis, got shapes {shapes}"
        )
    return sizes.pop()


def _check_tuple(inputs: Inputs) -> None:
    if not isinstance(inputs, tuple):
        raise ValueError(
            f"inputs is of the type {type(inputs).__name__}, expected a tuple of q's arguments "
            f"after params, as in (obs, action) or (obs,)"
        )
