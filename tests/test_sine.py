"""The fast sine and cosine: their errors on every range, what has no fast way, and every JAX
transformation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import sine

PAIRS = {"sin": (sine.sin, jnp.sin, np.sin), "cos": (sine.cos, jnp.cos, np.cos)}


def points(kind):
    """float32 numbers within LIMIT, random or right beside the zeros of sin and cos, where a range
    reduction shows its errors.
    """
    rng = np.random.default_rng(0)
    if kind == "multiples of pi/2":
        largest = int(sine.LIMIT / (np.pi / 2))
        x = (np.arange(-largest, largest + 1) * (np.pi / 2)).astype(np.float32)
        x = np.concatenate(
            [x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))]
        )
    elif kind == "logarithmic":
        x = (
            10 ** rng.uniform(-30, np.log10(sine.LIMIT), size=50_000)
            * rng.choice([-1, 1], size=50_000)
        ).astype(np.float32)
    else:
        x = rng.uniform(-kind, kind, size=100_000).astype(np.float32)
    return x[np.abs(x) <= sine.LIMIT]


@pytest.mark.parametrize("kind", [4.0, 100.0, sine.LIMIT, "multiples of pi/2", "logarithmic"])
def test_errors_on_the_fast_range(kind):
    """sin is within 4 units in the last place everywhere; cos is within a relative error of 2.5e-7
    (it is not made for its zeros).
    """
    x = points(kind)
    exact_sin, exact_cos = np.sin(x.astype(np.float64)), np.cos(x.astype(np.float64))
    got_sin, got_cos = (
        np.asarray(jax.jit(f)(jnp.asarray(x)), np.float64) for f in (sine.sin, sine.cos)
    )
    ulp = np.spacing(np.abs(exact_sin).astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(got_sin - exact_sin) / ulp) <= 4
    assert np.max(np.abs(got_cos - exact_cos)) <= 2.5e-7


def test_the_slope_is_as_good_as_the_cosine():
    """Even next to the zeros of cos, where a sine's slope changes sign."""
    x = points("multiples of pi/2")
    slope = jax.jit(lambda x: jax.jvp(sine.sin, (x,), (jnp.ones_like(x),))[1])(jnp.asarray(x))
    assert np.max(np.abs(np.asarray(slope, np.float64) - np.cos(x.astype(np.float64)))) <= 2.5e-7


def test_the_fast_way_is_taken():
    """On a CPU some numbers differ from XLA's own; else the module would have no use."""
    x = points(100.0)
    differ = np.asarray(jax.jit(sine.sin)(x)) != np.asarray(jax.jit(jnp.sin)(x))
    assert differ.any() == (jax.default_backend() == "cpu")


def test_errors_up_to_the_largest_float():
    """2,000 numbers for every exponent beyond LIMIT, of both signs, and the ends of the range."""
    rng = np.random.default_rng(3)
    limit, infinity = (int(np.float32(v).view(np.uint32)) for v in (sine.LIMIT, np.inf))
    exponents = np.arange(limit >> 23, infinity >> 23, dtype=np.uint32)[:, None] << 23
    bits = (
        exponents | rng.integers(0, 2**23, size=(len(exponents), 2000), dtype=np.uint32)
    ).ravel()
    bits = np.concatenate([bits[bits > limit], [limit, limit + 1, infinity - 1]]).astype(np.uint32)
    x = bits.view(np.float32) * rng.choice(np.float32([-1, 1]), size=bits.size)
    for name, (fast, _, exact) in PAIRS.items():
        got = np.asarray(jax.jit(fast)(jnp.asarray(x)), np.float64)
        assert np.max(np.abs(got - exact(x.astype(np.float64)))) <= 2.5e-7, name


OFF = {
    "inf": np.array([0.5, np.inf], np.float32),
    "-inf": np.array([0.5, -np.inf], np.float32),
    "nan": np.array([0.5, np.nan], np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "float16": np.array([0.5, 100.0], np.float16),
    "int32": np.array([1, 2, 3], np.int32),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("what", OFF)
def test_what_has_no_fast_way_is_as_jnp(name, what):
    x = OFF[what]
    fast, own, _ = PAIRS[name]
    got, expected = jax.jit(fast)(jnp.asarray(x)), jax.jit(own)(jnp.asarray(x))
    assert got.dtype == expected.dtype and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", PAIRS)
def test_float64_is_the_same_as_jnp(name, x64):
    fast, own, exact = PAIRS[name]
    x = jnp.asarray(np.random.default_rng(0).uniform(-100, 100, size=1000))
    np.testing.assert_array_equal(jax.jit(fast)(x), jax.jit(own)(x))
    np.testing.assert_allclose(fast(x), exact(np.asarray(x)), atol=1e-15)
    value, slope = jax.jvp(fast, (x,), (jnp.ones_like(x),))
    assert value.dtype == slope.dtype == jnp.float64


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("x", [2.0, np.float32(2.0), np.asarray(2.0, np.float32), -0.0, 2])
def test_scalars(name, x):
    fast, own, exact = PAIRS[name]
    got = fast(x)
    assert got.shape == () and got.dtype == own(x).dtype
    np.testing.assert_allclose(got, exact(float(x)), atol=2.5e-7)
    np.testing.assert_allclose(
        jax.grad(fast)(jnp.float32(x)),
        {"sin": np.cos, "cos": lambda x: -np.sin(x)}[name](x),
        atol=2.5e-7,
    )


X = np.random.default_rng(1).uniform(-10, 10, size=(3, 4)).astype(np.float32)
S, C = np.sin(X.astype(np.float64)), np.cos(X.astype(np.float64))
DERIVATIVES = {  # of sin and of cos, from the zeroth
    "sin": [S, C, -S, -C],
    "cos": [C, -S, -C, S],
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("order", range(4))
def test_derivatives_of_every_order(name, order):
    """By reverse mode, element by element, and by forward mode on the array."""
    fast = PAIRS[name][0]
    reverse, forward = fast, fast
    for _ in range(order):
        reverse = jax.grad(reverse)
        forward = lambda x, f=forward: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.vmap(reverse)))(X), DERIVATIVES[name][order], atol=3e-7
    )
    np.testing.assert_allclose(jax.jit(forward)(X), DERIVATIVES[name][order], atol=3e-7)


@pytest.mark.parametrize("name", PAIRS)
def test_a_tangent_is_scaled_by_the_slope(name):
    tangent = np.random.default_rng(2).normal(size=X.shape).astype(np.float32)
    value, slope = jax.jit(lambda x, t: jax.jvp(PAIRS[name][0], (x,), (t,)))(X, tangent)
    np.testing.assert_allclose(value, DERIVATIVES[name][0], atol=3e-7)
    np.testing.assert_allclose(slope, DERIVATIVES[name][1] * tangent, atol=1e-6)  # |t| below 3
    pull = jax.jit(lambda x, t: jax.vjp(PAIRS[name][0], x)[1](t))
    np.testing.assert_allclose(pull(X, tangent)[0], slope, atol=1e-6)


def test_hessian_is_diagonal():
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(sine.sin(x))))(X[0])
    np.testing.assert_allclose(hessian, np.diag(-S[0]), atol=3e-7)


def test_inside_of_scan_and_vmap():
    """A batch of loops, with the gradient through all of them."""

    def run(x):
        return jax.lax.scan(lambda x, _: (sine.sin(2 * x), x), x, None, length=3)[0]

    def exact(x):
        slope = np.ones_like(x)
        for _ in range(3):
            x, slope = np.sin(2 * x), slope * 2 * np.cos(2 * x)
        return x, slope

    values, slopes = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(run))))(X)
    expected, expected_slopes = exact(X.astype(np.float64))
    # Each of the three loops doubles an error and adds one of its own.
    np.testing.assert_allclose(values, expected, atol=5e-6)
    np.testing.assert_allclose(slopes, expected_slopes, atol=5e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_one_large_element_changes_no_other(name):
    fast = jax.jit(PAIRS[name][0])
    x = jnp.asarray(points(100.0)[:300].reshape(3, 100))
    changed = np.array(fast(x.at[1, 0].set(1e6)))
    np.testing.assert_allclose(changed[1, 0], PAIRS[name][2](1e6), atol=2.5e-7)
    changed[1, 0] = fast(x)[1, 0]
    np.testing.assert_array_equal(changed, fast(x))
    np.testing.assert_array_equal(jax.jit(jax.vmap(PAIRS[name][0]))(x), fast(x))


@pytest.mark.parametrize(
    "f",
    [sine.sin, jax.grad(sine.sin), jax.grad(jax.grad(sine.sin)), sine.cos],
    ids=["sin", "slope", "curvature", "cos"],
)
def test_nothing_stands_between_it_and_its_neighbours(f):
    """A branch, a reduction or a call would keep XLA from fusing it, and make it much slower."""
    compiled = (
        jax.jit(jax.vmap(jax.vmap(lambda x: 2 * f(x + 1))))
        .lower(jnp.asarray(X))
        .compile()
        .as_text()
    )
    assert compiled
    for what in ("conditional(", "while(", "reduce(", "custom-call("):
        assert f" {what}" not in compiled
    if jax.default_backend() == "cpu":
        assert not any(f" {own}(" in compiled for own in ("sine", "cosine"))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends have their own sine")
@pytest.mark.parametrize(
    "f", [sine.sin, jax.vmap(jax.vmap(jax.grad(sine.sin)))], ids=["sin", "slope"]
)
def test_a_broadcast_does_not_compute_it_anew_for_every_use(f):
    """As in a per-example Jacobian, whose entries are products of all pairs: recomputing made it
    four times slower.
    """
    compiled = (
        jax.jit(lambda x, y: f(x)[:, :, None] * y[:, None, :])
        .lower(jnp.asarray(X), jnp.asarray(X))
        .compile()
        .as_text()
    )
    assert compiled
    blocks = compiled.split("\n}\n")
    rounding, product = (
        [b for b in blocks if what in b]
        for what in ("round-nearest-even", "f32[3,4,4]{2,1,0} multiply(")
    )
    assert rounding and product and not set(rounding) & set(product)
