"""Float64 NumPy oracles, written from the paper's formulas: no JAX, no automatic differentiation.

A network is a list of layers ``(W [in, out], b [out] or None)``. Its parameters as one vector theta
`[d]` are, layer by layer, the bias and then the weights; this is also the order of
`jax.tree.leaves` for Flax's `Dense_0`, `Dense_1`, ... Phi is `[d, B]` as in section 4: a column is
grad Q of one example.
"""

import importlib.metadata
import itertools

import numpy as np

# For `jax.jit(..., compiler_options=QUICK)`: compiling is most of a test's time. Without the
# optimiser it takes a fifth, and the algebra that is tested does not depend on it.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if importlib.metadata.version("jaxlib") < "0.11":  # XLA refuses an option that it does not have
    QUICK["xla_cpu_use_fusion_emitters"] = False

# An eigenvalue below this share of the largest is zero up to rounding: eps * d is about 1e-14, and
# the batches of the tests stay above 1e-9.
RCOND = 1e-12

ACTIVATIONS = {  # name -> (function, its derivative)
    "sin": (np.sin, np.cos),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(np.float64)),
}


def random_layers(seed, sizes):
    """Layers of the given sizes, input and output included, with normal weights of unit gain and
    normal biases.
    """
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(sizes)
    return [(rng.normal(size=(a, b)) / np.sqrt(a), 0.5 * rng.normal(size=b)) for a, b in pairs]


def critic_params(layers):
    """The parameters of `networks.Critic` with these layers."""
    return {
        "params": {
            "mlp": {f"Dense_{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(layers)}
        }
    }


def layers_of(params):
    """The layers of a Flax MLP's parameters (a dict of `Dense_i`, possibly nested in dicts of one
    entry).
    """
    while len(params) == 1 and not any(name.startswith("Dense_") for name in params):
        (params,) = params.values()
    names = sorted(params, key=lambda name: int(name.removeprefix("Dense_")))
    layers = []
    for name in names:
        bias = params[name].get("bias")
        layers.append(
            (
                np.asarray(params[name]["kernel"], np.float64),
                None if bias is None else np.asarray(bias, np.float64),
            )
        )
    return layers


def theta(leaves):
    """Arrays joined to one float64 vector `[d]`."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def mlp(layers, activation, x):
    """Q `[B]` and Phi `[d, B]` of an MLP with one linear output, by backpropagation written out."""
    act, slope = ACTIVATIONS[activation]
    x = np.asarray(x, np.float64)
    inputs, before = (
        [],
        [],
    )  # of each layer: its input `[B, in]`, and its result before the activation `[B, out]`
    for i, (weights, bias) in enumerate(layers):
        z = x @ weights + (0 if bias is None else bias)
        inputs.append(x)
        before.append(z)
        x = z if i == len(layers) - 1 else act(z)
    assert x.shape[1] == 1
    blocks = []
    error = np.ones_like(x)  # dQ / dz of the current layer
    for i in reversed(range(len(layers))):
        weights, bias = layers[i]
        parts = [] if bias is None else [error]
        parts.append(
            np.stack([np.outer(a, e).ravel() for a, e in zip(inputs[i], error, strict=True)])
        )
        blocks.append(np.concatenate(parts, axis=1))
        if i:
            error = (error @ weights.T) * slope(before[i - 1])
    return x[:, 0], np.concatenate(blocks[::-1], axis=1).T


def kernel(phi, other=None):
    """Eq. 9: K_ij = grad Q(x_i) . grad Q(y_j)."""
    return phi.T @ (phi if other is None else other)


def gradient_step(theta, phi, delta, alpha):
    """Eq. 5: theta' = theta + alpha E[delta grad Q], the expectation over the minibatch."""
    return theta + alpha * np.mean([d * g for d, g in zip(delta, phi.T, strict=True)], axis=0)


def preqn_step(theta, phi, delta, alpha):
    """Eqs. 22 and 23, as Eq. 28: theta' = theta + alpha Phi (Phi^T Phi)^+ Delta."""
    return theta + alpha * phi @ (np.linalg.pinv(phi.T @ phi, RCOND, hermitian=True) @ delta)


def natural_gradient_step(theta, phi, delta, alpha):
    """Eq. 27: theta' = theta + alpha (Phi Phi^T)^+ Phi Delta, with the d x d matrix itself."""
    return theta + alpha * np.linalg.pinv(phi @ phi.T, RCOND, hermitian=True) @ (phi @ delta)


def cosine(a, b):
    """cos(a, b), Eq. 24; scaled first, so that nothing overflows."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    return a @ b / np.sqrt((a @ a) * (b @ b))


def row_ratio(gram):
    """Section 5.1: R_i(K) = (1/N) sum_{j != i} |K_ij| / K_ii."""
    n = len(gram)
    return np.array(
        [sum(abs(gram[i, j]) for j in range(n) if j != i) / gram[i, i] / n for i in range(n)]
    )


def tanh_gaussian_log_prob(mean, log_std, noise):
    """log pi(tanh(u)|s) `[...]` at u = mean + std noise, `[..., act]`: a change of variables, 1 -
    tanh(u)^2 = 1 / cosh(u)^2.
    """
    mean, log_std, noise = (np.asarray(v, np.float64) for v in (mean, log_std, noise))
    u = mean + np.exp(log_std) * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    log_cosh = np.abs(u) + np.log1p(np.exp(-2 * np.abs(u))) - np.log(2)
    return np.sum(log_normal + 2 * log_cosh, axis=-1)


def relative_error(got, expected):
    """The largest difference, divided by the largest expected entry unless all expected entries are
    zero.
    """
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    if expected.size == 0:
        return 0.0
    size = np.abs(expected).max()
    return np.abs(got - expected).max() / (size if size > 0 else 1)
