"""The types that all modules share.

Letters of shapes in docstrings: B is the size of a batch, N of a data set; E is the number of
environments of one seed, S of seeds, M of members (a member is a seed or, in a sweep, a seed with
its settings) and P that of rows for them, padded to equal shares for all devices. In `agents` and
`steps` M is the number of critics of an ensemble; in `tabular` S is that of states and A of
actions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Key = jax.Array
"""A typed key of `jax.random.key`. A function that takes one consumes it."""

Number = Array | float
"""A scalar. Python numbers are checked; arrays, which may be traced, are not."""

Params = Any
"""A pytree of parameters: theta for a critic, phi for an actor. A critic's leaves must all be real
floating-point arrays, of any precision; `batching.parameters` raises ValueError otherwise.
"""

Inputs = tuple[Any, ...]
"""Arguments of a Q-function after `params`, each a pytree whose arrays lead with `[B]`. Their
types are whatever q takes.
"""

Metrics = dict[str, Array]
"""Scalars by their name in `metrics.jsonl`, as `"critic/td_abs"`."""

QFunction = Callable[..., Any]
"""`q(params, *inputs) -> scalar`, pure, written for ONE example, as a Flax module's `apply`.
Batches are `jax.vmap`'s work.
"""


class Network(Protocol):
    """A function with parameters, written for ONE example: a Flax module is one.

    init: `(key, *inputs) -> params`, from an example. The key is consumed.
    apply: `(params, *inputs) -> output`, pure.
    """

    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def apply(self) -> Callable[..., Any]: ...


class Transition(NamedTuple):
    """One step of experience, `(s, a, r, d, s')`; arrays may carry leading axes, `[B]` in a
    minibatch. Arrays are JAX's, or NumPy's on the host.
    """

    obs: Any  # `[obs]`, s
    # `[act]`, a in [-1, 1]; only the environment uses its own units, also where there are finitely
    # many actions (`preqn_jax.actions`)
    action: Any
    reward: Any  # `[]`, r
    # `[]`, 1 - d of Algorithm 1, 1 - terminated, by which gamma is multiplied: a time limit is not
    # a terminal, and leaves 1 here. For n steps in one, `reward` is r_1 + gamma r_2 + ..., this
    # gamma^(n-1) (1 - d), and `next_obs` the observation after n steps
    discount: Any
    next_obs: Any  # `[obs]`, the true successor s', also where an episode ends


class Spec(NamedTuple):
    """What an agent must know of an environment: sizes, and the physical range of actions."""

    obs_size: int
    action_size: int
    action_low: Any  # `[act]`, finite; see `bounds`
    action_high: Any  # `[act]`, finite
    # The number A of actions where there are finitely many, the integers from `action_low` to
    # `action_high`; then `action_size` is 1 (`preqn_jax.actions`). None where they are a box.
    num_actions: int | None = None

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self._key() == other._key()

    def __ne__(self, other: object) -> bool:  # a tuple has one of its own
        return not self == other

    def _key(self) -> tuple[Any, ...]:
        return (*self[:2], self.num_actions, *(tuple(bound.tolist()) for bound in self.bounds))

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of actions, NumPy arrays `[act]`, also where they were given as lists or JAX
        arrays.
        """
        return np.asarray(self.action_low), np.asarray(self.action_high)


Settings = dict[str, Any]
"""Numeric hyper-parameters by name, as fields of a config: `[]` each of one member, `[M]` of all.
"""


def power_of_two(x: Array) -> Array:
    """A power of two near the largest |x|, `[]`. x can be divided by it without losing a digit, and
    then its square neither overflows nor vanishes. It is 1 where x is 0, or not finite.
    """
    largest = jnp.max(jnp.abs(x))
    good = (largest > 0) & jnp.isfinite(largest)
    _, exponent = jnp.frexp(jnp.where(good, largest, 1))
    most = jnp.finfo(x.dtype).maxexp - 2  # its reciprocal would be subnormal, which devices flush
    return jnp.ldexp(jnp.ones((), x.dtype), jnp.minimum(exponent - 1, most))


def scaled(x: Array) -> tuple[Array, Array]:
    """x divided by its largest |x|, and that largest |x|. Squares of float32 overflow beyond 2e19,
    which a diverging Q passes. Where x is 0, or holds a NaN, it is not divided.
    """
    largest = jnp.max(jnp.abs(x))
    unit = jnp.where(largest > 0, largest, 1)
    # Devices multiply by the reciprocal, and flush it to 0 where it is subnormal.
    less = jnp.where(unit > 1e30, 0.5**64, 1.0).astype(x.dtype)
    return x * less / (unit * less), largest


def wide(x: Any) -> Array:
    """`x` in float32, or unchanged where it is float64: in a narrower type sums of products would
    lose digits, and as integers they would wrap around.

    Raises ValueError where x is complex.
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"got numbers of the type {x.dtype}, expected real ones")
    return x if x.dtype in (jnp.float32, jnp.float64) else x.astype(jnp.float32)


def dot(a: Any, b: Any) -> Array:
    """`jnp.dot` in the arrays' own precision, also where a device multiplies in a lower one."""
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def holds_key(tree: Any) -> bool:
    """Whether a leaf of `tree` is a random key, which a checkpoint cannot hold."""
    kinds = map(jnp.result_type, jax.tree.leaves(tree))
    return any(jnp.issubdtype(kind, jax.dtypes.prng_key) for kind in kinds)


KEEP_KEY_DATA = "keep jax.random.key_data(key), and turn it into a key by jax.random.wrap_key_data"
"""What to do where `holds_key`, for a message."""


def inexact(x: Any) -> Array:
    """`x` as an array of floats: a table of integers could not move by a fraction."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)
