"""The kernel for data and weights of every type, and for networks that compute in a lower precision
than that of their parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import ntk
from zoo_base import BATCH, Net, arrays, draw, flax_case, jit, weights

# Types of data, and the largest number drawn in each: products of these overflow the type.
DATA = {
    "bool": 1,
    "int8": 127,
    "uint8": 255,
    "int32": 60_000,
    "float16": 2_000,
    "bfloat16": 10,
    "float32": 10,
    "float64": 10,
}
# Types of weights, and the error of K: that of the kernel's own products where q computes in
# float32 or more, else that of q's values and slopes, which have 11 or 8 bits.
WEIGHTS = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
LARGEST = {"float16": 1_000}  # for weights whose products with more would overflow in q itself


def drawn(dtype, seed, *shape, largest):
    low = -largest if np.issubdtype(jnp.dtype(dtype), np.signedinteger) or "float" in dtype else 0
    numbers = np.random.default_rng(seed).uniform(low, largest, size=shape)
    return jnp.asarray(np.round(numbers) if "float" not in dtype else numbers).astype(dtype)


def two_layers(p, x):
    return jnp.sin(x @ p["w"]) @ p["v"]


def gradients(params, x):
    """Q `[B]` and Phi `[d, B]` of `two_layers`, example by example, in float64."""
    v, w = (np.asarray(params[name], np.float64) for name in ("v", "w"))
    values, columns = [], []
    for row in np.asarray(x, np.float64):
        z = row @ w
        values.append(np.sin(z) @ v)
        columns.append(oracles.theta([np.sin(z), np.outer(row, np.cos(z) * v)]))
    return np.array(values), np.stack(columns, axis=1)


# For weights in other types than float32, some types of data; the rest is in the slow tier.
SOME = {"float64": ("uint8",), "float16": ("float16",), "bfloat16": ("int8", "bfloat16")}
PAIRS = [
    pytest.param(data, held, marks=[pytest.mark.slow] * (data not in SOME.get(held, DATA)))
    for held in WEIGHTS
    for data in DATA
]


@pytest.mark.parametrize("data, held", PAIRS)
def test_everything_equals_the_formula_whatever_the_types(data, held, x64):
    """Values, K, K at other inputs and in blocks, pullback and pushforward, and the layers, by both
    methods.
    """
    largest = min(DATA[data], LARGEST.get(held, np.inf))
    x, y = (
        drawn(data, seed, size, 5, largest=largest) for seed, size in ((1, BATCH), (2, BATCH - 2))
    )
    params = arrays(held, {"w": weights(3, 5, 7) / largest, "v": weights(4, 7)})
    z, change = draw(5, BATCH), arrays("float64", {"w": draw(6, 5, 7), "v": draw(7, 7)})
    (values, phi), (values_there, phi_there) = (gradients(params, rows) for rows in (x, y))

    @jit
    def run(params, x, y):
        found = {}
        for method in ntk.METHODS:
            lin = ntk.linearize(two_layers, params, (x,), method=method)
            there, pulled = lin.elsewhere((y,)), lin.pullback(jnp.asarray(z, lin.gram.dtype))
            blocks = ntk.kernel(two_layers, params, (y,), (x,), method=method, block=4)
            found[method] = (
                (lin.values, lin.gram, lin.pushforward(change), there[:2], blocks, pulled),
                lin.layers,
            )
        return found

    cross = oracles.kernel(phi_there, phi)
    v = oracles.theta(jax.tree.leaves(change))
    for method, (found, layers) in run(params, x, y).items():
        got_values, gram, pushed, there, blocks, pulled = found
        kernels = (gram, there[1], blocks, *layers, *jax.tree.leaves(pulled))
        assert {leaf.dtype for leaf in kernels} == {jnp.promote_types(held, jnp.float32)}
        assert min(leaf.dtype.itemsize for leaf in (got_values, pushed, there[0])) >= 4
        expected = (values, oracles.kernel(phi), phi.T @ v, values_there, cross, cross, phi @ z)
        got = (got_values, gram, pushed, *there, blocks, oracles.theta(jax.tree.leaves(pulled)))
        for a, b in zip(got, expected, strict=True):
            assert oracles.relative_error(a, b) < WEIGHTS[held], method
        hidden = np.sin(np.asarray(x, np.float64) @ np.asarray(params["w"], np.float64))
        for layer, rows in zip(layers, (x, hidden) if method == "structured" else (), strict=True):
            assert oracles.relative_error(layer, rows) < WEIGHTS[held]


def whole_numbers(dtype):
    """relu(x W) v of integers so small that every gradient is exact in 8 bits, but no product of
    two gradients is.
    """
    rng = np.random.default_rng(0)
    params = {"w": rng.integers(-3, 4, size=(5, 7)), "v": rng.integers(-3, 4, size=7)}
    x, z = rng.integers(-15, 16, size=(BATCH, 5)), rng.integers(-99, 100, size=BATCH)
    hidden = np.maximum(x @ params["w"], 0)
    slopes = (hidden > 0) * params["v"]
    columns = [
        oracles.theta([h, np.outer(row, d)]) for h, row, d in zip(hidden, x, slopes, strict=True)
    ]
    phi = np.stack(columns, axis=1)
    assert np.abs(phi).max() < 256 < oracles.kernel(phi).max() < 2**24
    return arrays(dtype, params), x, z, phi


def check_exactly(q, params, x, z, phi):
    """Compares K, Phi z and Phi^T Phi z bit by bit: they are integers below 2^24."""

    def run(params, x, z):
        lins = [ntk.linearize(q, params, (x,), method=method) for method in ntk.METHODS]
        return [(lin.gram, lin.pullback(z), lin.pushforward(lin.pullback(z))) for lin in lins]

    for gram, pulled, back in jit(run)(params, x, jnp.asarray(z, jnp.float32)):
        pulled = jax.tree.leaves(pulled)
        assert {leaf.dtype for leaf in (gram, back, *pulled)} == {jnp.dtype("float32")}
        assert np.array_equal(gram, oracles.kernel(phi))
        assert np.array_equal(oracles.theta(pulled), phi @ z)
        assert np.array_equal(back, np.float32(phi.T @ (phi @ z)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_narrow_numbers_are_taken_in_float32(dtype):
    params, x, z, phi = whole_numbers(dtype)
    q = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"]
    check_exactly(q, params, jnp.asarray(x, dtype), z, phi)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layers_that_compute_in_less_than_they_hold(dtype):
    """Flax's mixed precision, `Dense(dtype=...)` with float32 parameters."""
    dense = lambda size: nn.Dense(size, use_bias=False, dtype=dtype)
    net = Net(lambda x: dense(1)(jax.nn.relu(dense(7)(x))))
    params, x, z, phi = whole_numbers("float32")
    named = {"Dense_0": {"kernel": params["v"][:, None]}, "Dense_1": {"kernel": params["w"]}}
    assert jax.tree.map(jnp.shape, net.init(jax.random.key(0), x[0])["params"]) == jax.tree.map(
        jnp.shape, named
    )
    check_exactly(lambda p, x: net.apply(p, x)[0], {"params": named}, jnp.float32(x), z, phi)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_equals_the_jacobian_and_is_near_the_full_one(dtype):
    """With LayerNorm, biases and tanh as well; the only difference is the rounding of q itself."""

    def net(dtype):
        def body(x):
            x = nn.LayerNorm(dtype=dtype)(jnp.tanh(nn.Dense(9, dtype=dtype)(x)))
            return nn.Dense(1, dtype=dtype)(jnp.tanh(nn.Dense(8, dtype=dtype)(x)))

        return flax_case(Net(body), "float32", (5,))

    (q, params, inputs), (full, _, _) = net(dtype), net(None)

    @jit
    def run(params):
        grams = [ntk.linearize(q, params, inputs, method=method).gram for method in ntk.METHODS]
        return *grams, ntk.linearize(full, params, inputs).gram

    structured, jacobian, exact = run(params)
    bits = {"float16": 11, "bfloat16": 8}[dtype]
    assert structured.dtype == jacobian.dtype == jnp.float32
    assert oracles.relative_error(structured, jacobian) < 2.0**-bits
    assert oracles.relative_error(structured, exact) < 10 * 2.0**-bits


def test_one_parameter_in_float64_makes_a_kernel_in_float64(x64):
    x = np.round(5 * draw(1, BATCH, 5))
    params = {"w": jnp.asarray(weights(2, 5)), "v": jnp.float32(0.5)}
    q = lambda p, x: jnp.sin(x @ p["w"]) + p["v"] * x[0]
    phi = np.vstack([x[:, 0], np.cos(x @ np.asarray(params["w"])) * x.T])
    for method in ntk.METHODS:
        gram = ntk.kernel(q, params, (jnp.asarray(x),), method=method)
        assert gram.dtype == jnp.float64 and oracles.relative_error(gram, phi.T @ phi) < 1e-12
