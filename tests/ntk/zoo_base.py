"""What the zoo of networks is built from: its register, random numbers, and Flax modules as q."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import oracles

ZOO = {}
BATCH = 6

jit = partial(jax.jit, compiler_options=oracles.QUICK)


def zoo(build):
    """Registers a builder of a network: `(dtype) -> (q, params, inputs)`. All its sizes should
    differ, so that axes that are mixed up do not fit.
    """
    ZOO[build.__name__.removeprefix("_")] = build
    return build


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def arrays(dtype, tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def weights(seed, *shape):
    """Normal weights of about unit gain: their variance is 1 over the size of the axis before the
    last, or of the only axis.
    """
    return draw(seed, *shape) / np.sqrt((shape[-2:] or (1,))[0])


def flax_case(module, dtype, *shapes, out=lambda y: y[0]):
    """A Flax module as q. All its parameters are normal, so that no bias or scale has its special
    initial value.
    """
    inputs = tuple(
        jnp.asarray(draw(10 + i, BATCH, *shape), dtype) for i, shape in enumerate(shapes)
    )
    leaves, treedef = jax.tree.flatten(
        jax.eval_shape(module.init, jax.random.key(0), *(x[0] for x in inputs))
    )
    leaves = [jnp.asarray(weights(i, *leaf.shape), dtype) for i, leaf in enumerate(leaves)]
    return lambda p, *xs: out(module.apply(p, *xs)), jax.tree.unflatten(treedef, leaves), inputs


class Net(nn.Module):
    """A module from a function `(x) -> y` that builds its layers as it runs."""

    body: Any

    @nn.compact
    def __call__(self, *xs):
        return self.body(*xs)


def loop_of_gradients(q, params, inputs):
    """Q `[B]` and the columns grad Q(x_i), one `jax.grad` after the other."""
    one = jit(jax.value_and_grad(q))
    values, columns = [], []
    for i in range(jax.tree.leaves(inputs)[0].shape[0]):
        value, grad = one(params, *jax.tree.map(lambda leaf, i=i: leaf[i], inputs))
        values.append(float(value))
        columns.append(oracles.theta(jax.tree.leaves(grad)))
    return np.array(values), np.stack(columns, axis=1)
