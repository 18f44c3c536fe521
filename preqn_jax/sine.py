"""`sin` and its derivative for float32 networks on the CPU, at the cost of `tanh`.

XLA's `sin` on the CPU costs some 13 ns an element, 16 times as much as a polynomial, and a network
with `sin` activations would spend half of its update there. Here the argument is reduced to [-pi/2,
pi/2] and the rest is a polynomial, elementwise and without a branch, so that XLA fuses it with its
neighbours. There are two reductions, and each element takes the one for its size:

* up to `LIMIT`, multiples of pi in four exact parts (Cody and Waite, "Software manual for the
  elementary functions", 1980): correct to a few units in the last place, also next to the zeros;
* beyond, the fraction of x / (2 pi) in fixed point, from the bits of 1 / (2 pi) that matter for the
  exponent of x (Payne and Hanek, "Radian reduction for trigonometric functions", SIGNUM Newsletter
  18(1), 1983): absolute error 2e-7 everywhere.

Other types and other backends use XLA's own `sin` and `cos`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.types import Array

LIMIT = 3.0e4  # beyond it a multiple of pi's parts is no longer exact in float32

# pi to 9 + 9 + 9 + 24 bits: n times a part is exact in float32 for |n| < 2^15.
_PI_PARTS = (3.140625, 9.670257568359375e-4, 6.277114152908325e-7, 1.215419986877464e-10)
# The binary digits of 1 / (2 pi) behind nine zeros, 32 to a word; 2^-9 is the last digit of a float
# just below LIMIT.
_DIGITS = (0x00145F30, 0x6DC9C882, 0xA53F84EA, 0xFA3EA69B, 0xB81B6C52, 0xB3278872)
# Minimax fits on [-pi/2, pi/2]: sin r = r + r^3 P(r^2), cos r = 1 - r^2/2 + r^4 P(r^2); errors 6e-9
# and 4e-10.
_SIN = (-0.166666595, 8.33306543e-3, -1.98095389e-4, 2.60563097e-6)
_COS = (0.041666656732559204, -1.3888569083064795e-3, 2.4769291485426947e-5, -2.619354688704334e-7)


@jax.custom_jvp
def sin(x: Array) -> Array:
    """sin x, elementwise, any shape; float32 on the CPU takes the fast way, everything else
    `jnp.sin`.
    """
    return _choose(_fast_sin, jnp.sin, x)


@jax.custom_jvp
def cos(x: Array) -> Array:
    """cos x, in the same way as `sin`; absolute error below 2.5e-7 on the fast way."""
    return _choose(_fast_cos, jnp.cos, x)


@sin.defjvp
def _sin_jvp(primals, tangents):
    return sin(*primals), cos(*primals) * tangents[0]


@cos.defjvp
def _cos_jvp(primals, tangents):
    return cos(*primals), -sin(*primals) * tangents[0]


def _choose(fast: Callable, own: Callable, x: Array) -> Array:
    x = jnp.asarray(x)
    return jax.lax.platform_dependent(x, cpu=fast, default=own) if x.dtype == np.float32 else own(x)


# Both end in a division by the sign, because XLA counts divisions as expensive: where an array is
# broadcast, as for a per-example Jacobian, it keeps an expensive one and computes a cheap one anew
# for every use. The divider is idle otherwise.


def _fast_sin(x: Array) -> Array:
    r, sign = _reduce(x)
    u = r * r
    return (r + r * u * _polynomial(_SIN, u)) / sign


def _fast_cos(x: Array) -> Array:
    r, sign = _reduce(x)
    u = r * r
    return (1 - u / 2 + u * u * _polynomial(_COS, u)) / sign


def _polynomial(coefficients: tuple[float, ...], u: Array) -> Array:
    total = jnp.full_like(u, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * u + np.float32(c)
    return total


def _reduce(x: Array) -> tuple[Array, Array]:
    """x = n pi + r: returns r in [-pi/2, pi/2] and the sign (-1)^n."""
    magnitude = _bits(x) & np.uint32(0x7FFFFFFF)
    limit, infinity = (int(np.float32(v).view(np.uint32)) for v in (LIMIT, np.inf))
    large = magnitude - np.uint32(limit + 1) < np.uint32(
        infinity - limit - 1
    )  # inf and NaN take the other reduction, and come out NaN
    (r, odd), (large_r, large_odd) = _reduce_small(x), _reduce_large(x, magnitude)
    sign = _float(jnp.where(large, large_odd, odd) & np.uint32(0x80000000) | np.uint32(0x3F800000))
    return jnp.where(large, large_r, r), sign


def _reduce_small(x: Array) -> tuple[Array, Array]:
    n = jnp.round(x * np.float32(1 / math.pi))
    r = x
    for part in _PI_PARTS:
        r = r - n * np.float32(part)
    # 1.5 * 2^23 + n has n itself in its low bits: cheaper than a conversion, which would have to
    # saturate.
    return r, _bits(n + np.float32(1.5 * 2**23)) << np.uint32(31)


def _reduce_large(x: Array, magnitude: Array) -> tuple[Array, Array]:
    """As `_reduce_small`, for LIMIT < |x| < inf; elsewhere the result is meaningless."""
    digits = [np.uint32(word) for word in _DIGITS]
    # |x| = mantissa * 2^(first - 9), and digits before `first` make whole turns.
    mantissa = (magnitude & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
    first = (magnitude >> np.uint32(23)) - np.uint32(127 + 23 - 9)
    two, one, shift = (
        (first & np.uint32(64)) != 0,
        (first & np.uint32(32)) != 0,
        first & np.uint32(31),
    )
    pairs = [jnp.where(two, digits[i + 2], digits[i]) for i in range(4)]
    words = [jnp.where(one, pairs[i + 1], pairs[i]) for i in range(3)]
    rest = shift ^ np.uint32(31)
    high, low = (
        (words[i] << shift)
        | ((words[i + 1] >> np.uint32(1)) >> rest)  # >> (32 - shift), which may be 32
        for i in range(2)
    )
    # turn = mantissa * high.low mod 2^32: 2^32 is a full turn. The share of the low word, below
    # 2^24, is computed in float32: half of it, added to 2^23, is read from the bits of the sum.
    halves = _signed(low >> np.uint32(1)).astype(jnp.float32) * np.float32(2.0**-32)
    share = _bits(_signed(mantissa).astype(jnp.float32) * halves + np.float32(2**23)) & np.uint32(
        0x7FFFFF
    )
    turn = mantissa * high + (share << np.uint32(1))
    # Twice that, as a signed number, is the angle modulo pi. With a quarter turn added, the top bit
    # says in which half of the circle it lies.
    r = _signed(turn << np.uint32(1)).astype(jnp.float32) * np.float32(math.pi * 2**-32)
    return _float(_bits(r) ^ (_bits(x) ^ magnitude)), turn + np.uint32(1 << 30)


def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _signed(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _float(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
