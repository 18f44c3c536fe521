"""Actions as numbers in [-1, 1], the form that replay buffers, agents and training loops use, and
their conversion to and from the form that an environment takes.

Where an environment has finitely many actions, A of them, [-1, 1] is cut into A equal parts, and a
number stands for the action whose part it lies in. So uniform numbers are uniform actions, and no
code between environment and agent has to know that actions are discrete.

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
    """The index, 0 to count - 1 in int32, of the action that a number in [-1, 1] stands for. Takes
    arrays of any shape, NumPy's or JAX's. Below -1 it is the first action, above 1 the last.
    """
    return ((number + 1) / 2 * count).clip(0, count - 1).astype(np.int32)


def number(index: Any, count: int) -> Any:
    """The number at the centre of the part that stands for action `index`; the function `index` is
    its inverse.
    """
    return (2 * _int32(index) + 1) / count - 1


def to_environment(spec: Spec, number: Any) -> Any:
    """The environment's own actions for numbers `[..., act]` in [-1, 1]: float32, scaled to its
    bounds (the same numbers where these are [-1, 1]). Finitely many actions are int32 integers from
    `action_low` on.
    """
    if spec.num_actions is not None:
        return index(number, spec.num_actions) + _first(spec)
    centre, half = _middle(spec)
    return (centre + half * number.clip(-1, 1)).astype(np.float32).clip(*_float32_bounds(spec))


def from_environment(spec: Spec, action: Any) -> Any:
    """The inverse of `to_environment`: numbers in [-1, 1] for the environment's own actions. For
    finitely many actions it is the centre of each action's part.
    """
    if spec.num_actions is not None:
        return number(_int32(action) - _first(spec), spec.num_actions)
    centre, half = _middle(spec)
    return (action - centre) / half


def refuse_integers(action: Any) -> None:
    """Raises ValueError for actions that are integers, as environments take them: as numbers in
    [-1, 1] most would be the last one.
    """
    kind = action.dtype if hasattr(action, "dtype") else np.asarray(action).dtype
    if np.issubdtype(kind, np.integer):
        raise ValueError(
            f"actions are of the type {kind}, expected numbers in [-1, 1], as "
            "actions.from_environment(spec, action) makes of an environment's own"
        )


def spec(obs_size: int, count: int, first: int = 0) -> Spec:
    """The Spec of an environment whose actions are `count` integers, from `first` on."""
    low = np.array([float(first)])
    return Spec(obs_size, 1, low, low + count - 1, num_actions=count)


def check(spec: Spec, whose: str, how: str = "") -> None:
    """Raises UserError for sizes that are not positive integers, and for action bounds that [-1, 1]
    cannot be scaled to. For the message, `whose` names the environment, and `how` says how to give
    other bounds.
    """
    for what, size in (("observations", spec.obs_size), ("actions", spec.action_size)):
        if not isinstance(size, numbers.Integral):
            raise UserError(
                f"{whose} has {what} of size {size!r}, expected an integer, such "
                "as observation_space.shape[0]"
            )
        if size < 1:
            raise UserError(
                f"{whose} has {what} of size {size}, but these algorithms need at "
                "least one number in each"
            )
    words = f"{whose} has"
    if spec.num_actions is not None and (spec.num_actions < 1 or spec.action_size != 1):
        raise UserError(
            f"{words} num_actions={spec.num_actions} and action_size={spec.action_size}, but "
            "num_actions must be at least 1 and action_size 1"
        )
    low, high = spec.bounds
    if low.shape != (spec.action_size,) or high.shape != low.shape:
        raise UserError(
            f"{words} action bounds of the shapes {low.shape} and {high.shape}, expected "
            f"({spec.action_size},)"
        )
    with np.errstate(invalid="ignore"):
        ranges = high.astype(np.float64) - low
    if not (ranges <= np.finfo(np.float32).max).all():  # numbers that mean "no bound" are larger
        raise UserError(
            f"{words} unbounded actions, from {low.min():g} to {high.max():g}, but actions are "
            f"scaled from [-1, 1] to their bounds: give finite bounds{how}"
        )
    if spec.num_actions is not None:
        if high[0] - low[0] != spec.num_actions - 1 or low[0] != int(low[0]):
            raise UserError(
                f"{words} {spec.num_actions} actions, from {low[0]:g} to {high[0]:g}, but they "
                "must be successive integers"
            )
        return
    if not (low < high).all():
        i = int(np.argmin(low < high))
        raise UserError(
            f"{words} actions whose entry {i} goes from {low[i]:g} to {high[i]:g}, but the lower "
            "bound must be below the upper"
        )


def _int32(index: Any) -> Any:
    """`index` in int32; a narrower integer type would wrap around."""
    return index.astype(np.int32) if hasattr(index, "astype") else index


def _first(spec: Spec) -> int:
    return int(spec.bounds[0][0])


@lru_cache(maxsize=64)
def _float32_bounds(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """`Spec.bounds` `[act]` in float32, rounded inwards so that no action lies outside of them."""
    low, high = (bound.astype(np.float32) for bound in spec.bounds)
    low = np.where(low < spec.bounds[0], np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > spec.bounds[1], np.nextafter(high, np.float32(-np.inf)), high)


def _middle(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """The centre and half the width `[act]` of the action bounds."""
    low, high = spec.bounds
    return (high + low) / 2, (high - low) / 2
