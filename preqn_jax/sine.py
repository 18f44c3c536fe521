"""`sin` and its derivative for float32 networks on the CPU, at the price of `tanh`.

XLA's `sin` on the CPU costs some 13 ns an element, 16 times a polynomial, and a sin network spends half of its
update there. Here the argument is reduced by multiples of pi in four exact parts (Cody and Waite, "Software manual for the
elementary functions", 1980), and sine and cosine share the reduction; both are polynomials on [-pi/2, pi/2].
Correct to a few units in the last place up to `LIMIT`; arrays with a larger element, other types and other backends
take XLA's own `sin` and `cos`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.types import Array

LIMIT = 3.0e4  # beyond it a multiple of pi's parts is no longer exact in float32

# pi to 9 + 9 + 9 + 24 bits: n times a part is exact in float32 for |n| < 2^15.
_PI_PARTS = (3.140625, 9.670257568359375e-4, 6.277114152908325e-7, 1.215419986877464e-10)
# Minimax fits on [-pi/2, pi/2]: sin r = r + r^3 P(r^2), cos r = 1 - r^2/2 + r^4 P(r^2); errors 2e-11 and 4e-10.
_SIN = (-0.1666666716337204, 8.333330973982811e-3, -1.984086848096922e-4, 2.7525370569492225e-6, -2.388867947900053e-8)
_COS = (0.041666656732559204, -1.3888569083064795e-3, 2.4769291485426947e-5, -2.619354688704334e-7)


@jax.custom_jvp
def sin(x: Array) -> Array:
    """sin x, elementwise, any shape; float32 on the CPU takes the fast way, everything else `jnp.sin`."""
    return _elementwise(_fast_sin, jnp.sin)(x)


@jax.custom_jvp
def cos(x: Array) -> Array:
    """cos x, as `sin`; absolute error below 2e-7 on the fast way."""
    return _elementwise(_fast_cos, jnp.cos)(x)


@jax.custom_jvp
def _sincos(x: Array) -> tuple[Array, Array]:
    return _elementwise(_fast_sincos, lambda x: (jnp.sin(x), jnp.cos(x)))(x)


@sin.defjvp
def _sin_jvp(primals, tangents):
    value, slope = _sincos(*primals)
    return value, slope * tangents[0]


@cos.defjvp
def _cos_jvp(primals, tangents):
    slope, value = _sincos(*primals)
    return value, -slope * tangents[0]


@_sincos.defjvp
def _sincos_jvp(primals, tangents):
    s, c = _sincos(*primals)
    return (s, c), (c * tangents[0], -s * tangents[0])


def _elementwise(fast, exact):
    """`fast` where it is right, else `exact`, decided once for the whole array: a select would compute both.

    Under `vmap` the decision must not become one per example, hence `custom_vmap`: the batched function is the function.
    """

    @jax.custom_batching.custom_vmap
    def on_cpu(x: Array):
        return jax.lax.cond(jnp.max(jnp.abs(x), initial=0) <= LIMIT, fast, exact, x)

    @on_cpu.def_vmap
    def _(axis_size, in_batched, x):
        out = on_cpu(x)
        return out, jax.tree.map(lambda _: True, out)

    def apply(x: Array):
        x = jnp.asarray(x)
        if x.dtype != np.float32:
            return exact(x)
        return jax.lax.platform_dependent(x, cpu=on_cpu, default=exact)

    return apply


def _reduce(x: Array) -> tuple[Array, Array]:
    """x = n pi + r: returns r in [-pi/2, pi/2] and (-1)^n."""
    n = jnp.round(x * np.float32(1 / math.pi))
    r = x
    for part in _PI_PARTS:
        r = r - n * np.float32(part)
    half = n * np.float32(0.5)
    return r, 1 - 4 * jnp.abs(half - jnp.round(half))  # n odd: |half - round(half)| is 1/2


def _polynomial(coefficients: tuple[float, ...], u: Array) -> Array:
    total = jnp.full_like(u, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * u + np.float32(c)
    return total


def _fast_sincos(x: Array) -> tuple[Array, Array]:
    r, sign = _reduce(x)
    u = r * r
    s = r + r * u * _polynomial(_SIN, u)
    c = 1 - u / 2 + u * u * _polynomial(_COS, u)
    return sign * s, sign * c


def _fast_sin(x: Array) -> Array:
    return _fast_sincos(x)[0]


def _fast_cos(x: Array) -> Array:
    return _fast_sincos(x)[1]
