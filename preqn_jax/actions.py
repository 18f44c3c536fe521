"""Actions as numbers in [-1, 1], which is how replay, agents and loops hold them, and as their
environment takes them.

Of finitely many, a number stands for the nearest of A actions, which lie at the centres of A equal
parts: uniform numbers are uniform actions, and nothing between environment and agent has to know of
them.

>>> import numpy as np
>>> from preqn_jax import actions
>>> actions.number(np.arange(4), 4).tolist()
[-0.75, -0.25, 0.25, 0.75]
>>> actions.index(np.array([-1, -0.1, 0.1, 1]), 4).tolist()
[0, 1, 2, 3]
"""

import numbers
from functools import lru_cache
from typing import Any

import numpy as np

from preqn_jax.options import UserError
from preqn_jax.types import Spec


def index(number: Any, count: int) -> Any:
    """Which of `count` actions, 0 to count - 1 in int32, a number in [-1, 1] stands for; arrays of
    any shape, NumPy's or JAX's. Beyond [-1, 1] it is the first or the last.
    """
    return ((number + 1) / 2 * count).clip(0, count - 1).astype(np.int32)


def number(index: Any, count: int) -> Any:
    """The number in the middle of those that stand for action `index`: `index` undoes it."""
    return (2 * _int32(index) + 1) / count - 1


def own(spec: Spec, number: Any) -> Any:
    """The environment's own actions of numbers `[..., act]`: float32 within its bounds, the same
    numbers where these are [-1, 1]; of finitely many, integers from `action_low` on, int32.
    """
    if spec.num_actions is not None:
        return index(number, spec.num_actions) + _first(spec)
    centre, half = _middle(spec)
    return (centre + half * number.clip(-1, 1)).astype(np.float32).clip(*_float32_bounds(spec))


def inside(spec: Spec, own: Any) -> Any:
    """What `own` came from; of finitely many, up to its part."""
    if spec.num_actions is not None:
        return number(_int32(own) - _first(spec), spec.num_actions)
    centre, half = _middle(spec)
    return (own - centre) / half


def spec(obs_size: int, count: int, first: int = 0) -> Spec:
    """Of an environment with `count` actions, the integers from `first` on."""
    low = np.array([float(first)])
    return Spec(obs_size, 1, low, low + count - 1, num_actions=count)


def check(spec: Spec, whose: str, how: str = "") -> None:
    """Raises UserError for sizes of zero, and for bounds of actions that [-1, 1] cannot be scaled
    to; `whose` they are, and `how` to give others, in words.
    """
    for what, size in (("observations", spec.obs_size), ("actions", spec.action_size)):
        if not isinstance(size, numbers.Integral):
            raise UserError(
                f"{whose} has {what} of size {size!r}, expected how many numbers "
                "there are in one, as observation_space.shape[0]"
            )
        if size < 1:
            raise UserError(
                f"{whose} has {what} of size {size}, but these algorithms need at "
                "least one number in each"
            )
    words = f"{whose} has"
    if spec.num_actions is not None and (spec.num_actions < 1 or spec.action_size != 1):
        raise UserError(
            f"{words} num_actions={spec.num_actions} and action_size={spec.action_size}, but of "
            "finitely many actions there is one at least, and one is chosen at a time"
        )
    low, high = spec.bounds
    if low.shape != (spec.action_size,) or high.shape != low.shape:
        raise UserError(
            f"{words} action bounds of the shapes {low.shape} and {high.shape}, expected "
            f"({spec.action_size},)"
        )
    with np.errstate(invalid="ignore"):
        ranges = high.astype(np.float64) - low
    if not (ranges <= np.finfo(np.float32).max).all():  # what stands for no bound goes beyond
        raise UserError(
            f"{words} unbounded actions, from {low.min():g} to {high.max():g}, but actions are "
            f"scaled from [-1, 1] to their bounds: give finite ones{how}"
        )
    if spec.num_actions is not None:
        if high[0] - low[0] != spec.num_actions - 1 or low[0] != int(low[0]):
            raise UserError(
                f"{words} {spec.num_actions} actions, from {low[0]:g} to {high[0]:g}, but they are "
                "successive integers"
            )
        return
    if not (low < high).all():
        i = int(np.argmin(low < high))
        raise UserError(
            f"{words} an action whose number {i} goes from {low[i]:g} to {high[i]:g}, but the "
            "first must be below the second"
        )


def _int32(index: Any) -> Any:
    """Narrower ones would wrap around."""
    return index.astype(np.int32) if hasattr(index, "astype") else index


def _first(spec: Spec) -> int:
    return int(spec.bounds[0][0])


@lru_cache(maxsize=64)
def _float32_bounds(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Those of `Spec.bounds` `[act]`, rounded inwards."""
    low, high = (bound.astype(np.float32) for bound in spec.bounds)
    low = np.where(low < spec.bounds[0], np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > spec.bounds[1], np.nextafter(high, np.float32(-np.inf)), high)


def _middle(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half the width `[act]` of the actions."""
    low, high = spec.bounds
    return (high + low) / 2, (high - low) / 2
