"""Critics to be diagnosed, each in NumPy and in JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import oracles
from preqn_jax.networks import Critic

OBS, ACT, BATCH = 5, 3, 12


class Make(NamedTuple):
    """A kind of critic. Its parameters as one vector theta `[d]` are the leaves of `treedef`, in
    their order.
    """

    q: Callable[..., Any]  # in JAX, for one example
    treedef: Any
    shapes: list[tuple[int, ...]]
    numpy: Callable[[list[np.ndarray], np.ndarray], tuple[np.ndarray, np.ndarray, list[np.ndarray]]]
    """(leaves, x `[N, OBS + ACT]`) -> Q `[N]`, Phi `[d, N]`, and what each layer after the first
    takes `[N, width]`.
    """

    def leaves(self, theta):
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        parts = np.split(theta, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def params(self, theta, dtype="float64"):
        return self.treedef.unflatten([jnp.asarray(leaf, dtype) for leaf in self.leaves(theta)])

    def __call__(self, theta, x):
        return self.numpy(self.leaves(theta), x)


def mlp(hidden, activation):
    sizes = (OBS + ACT, *hidden, 1)
    layers = oracles.random_layers(0, sizes)

    def critic(leaves, x):
        layers, h = list(zip(leaves[1::2], leaves[::2], strict=True)), []
        for w, b in layers[:-1]:
            h.append(oracles.ACTIVATIONS[activation][0]((h[-1] if h else x) @ w + b))
        return *oracles.mlp(layers, activation, x), h

    shapes = [leaf.shape for w, b in layers for leaf in (b, w)]
    return Make(
        Critic(hidden, activation).apply,
        jax.tree.structure(oracles.critic_params(layers)),
        shapes,
        critic,
    )


class LayerNormCritic(nn.Module):
    """A critic that is not the project's own: two hidden layers, normalised before their
    activation, and no layer has a name.
    """

    @nn.compact
    def __call__(self, obs, action):
        h = jnp.concatenate([obs, action])
        for width in (6, 7):
            h = jnp.tanh(nn.LayerNorm()(nn.Dense(width)(h)))
        return nn.Dense(1)(h)[0]


def layer_norm():
    dense = {f"Dense_{i}": {"bias": 0, "kernel": 0} for i in range(3)}
    norms = {f"LayerNorm_{i}": {"bias": 0, "scale": 0} for i in range(2)}
    sizes = [(6,), (OBS + ACT, 6), (7,), (6, 7), (1,), (7, 1), (6,), (6,), (7,), (7,)]

    def forward(leaves, x):
        biases, kernels, h = leaves[:6:2], leaves[1:6:2], [x]
        for i in range(2):
            z = h[-1] @ kernels[i] + biases[i]
            z = z - z.mean(axis=1, keepdims=True)
            z = z / np.sqrt((z**2).mean(axis=1, keepdims=True) + 1e-6)
            h.append(np.tanh(z * leaves[7 + 2 * i] + leaves[6 + 2 * i]))
        return (h[-1] @ kernels[2] + biases[2])[:, 0], h[1:]

    make = Make(
        LayerNormCritic().apply,
        jax.tree.structure({"params": {**dense, **norms}}),
        sizes,
        lambda *_: None,
    )

    def critic(leaves, x):
        """Gradients by complex steps: exact to rounding for anything analytic."""
        theta = oracles.theta(leaves)
        phi = [
            forward(make.leaves(theta + 1e-30j * unit), x)[0].imag / 1e-30
            for unit in np.eye(theta.size)
        ]
        values, h = forward(leaves, x)
        return values, np.stack(phi), h

    return make._replace(numpy=critic)


def linear():
    q = lambda p, obs, action: jnp.concatenate([obs, action]) @ p["w"]
    return Make(
        q, jax.tree.structure({"w": 0}), [(OBS + ACT,)], lambda leaves, x: (x @ leaves[0], x.T, [])
    )


MAKES = {
    "sin": mlp((8, 9), "sin"),
    "tanh": mlp((8, 9), "tanh"),
    "relu": mlp((8, 9), "relu"),
    "one hidden layer": mlp((9,), "sin"),
    "LayerNorm": layer_norm(),
    "linear": linear(),
}
