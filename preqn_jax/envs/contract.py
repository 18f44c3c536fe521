"""What an environment must hold to, checked at every call, and the sentences for one that does not.

A check that passes costs a microsecond or less: environments are stepped millions of times.
"""

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from preqn_jax.envs.base import EnvError
from preqn_jax.options import UserError
from preqn_jax.types import Spec

RAISED = (Exception, SystemExit)  # one that calls sys.exit() must not end a run as if it were whole
_NUMBERS, _FLAGS = "fiu", "biu"  # kinds of dtypes
_USUAL_NUMBERS, _USUAL_FLAGS = {float, int, np.float64, np.float32}, {bool, np.bool_}
_STARTS = "(observation, info)"
_STEPS = "(observation, reward, terminated, truncated, info)"


def raised(name: str, call: str, error: BaseException) -> EnvError:
    """The sentence on an environment that raised `error` in `call`; raise it from that."""
    return EnvError(f"environment {name!r}, in {call}, raised {said(error)}")


def ask(name: str, call: str, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What a call of an environment returns; what it raises comes as EnvError."""
    try:
        return function(*given, **named)
    except EnvError:
        raise
    except RAISED as error:
        raise raised(name, call, error) from error


def said(error: BaseException) -> str:
    """The type of an exception and the first line of what it says."""
    lines = str(error).strip().replace("`", "'").splitlines()  # what we quote so are our options
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def first_obs(name: str, out: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The observation of what `reset` returned. Raises EnvError if that is not it."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise _returned(name, "reset", "", out, _STARTS)
    return _observation(name, "reset", out[0], shape)


def outcome(name: str, out: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, Any, Any, Any]:
    """(observation, reward, terminated, truncated) of what `step` returned. Raises EnvError if that
    is not it.
    """
    if not isinstance(out, (tuple, list)) or len(out) != 5:
        raise _returned(name, "step", "", out, _STEPS)
    obs, reward, terminated, truncated, _ = out
    if type(reward) not in _USUAL_NUMBERS and not _scalar(reward, _NUMBERS):
        raise _returned(name, "step", "the reward ", reward, "a number")
    if type(terminated) not in _USUAL_FLAGS and not _scalar(terminated, _FLAGS):
        raise _returned(name, "step", "terminated as ", terminated, "True or False")
    if type(truncated) not in _USUAL_FLAGS and not _scalar(truncated, _FLAGS):
        raise _returned(name, "step", "truncated as ", truncated, "True or False")
    return _observation(name, "step", obs, shape), reward, terminated, truncated


def check_spec(name: str, spec: Spec, how: str = "") -> None:
    """Raises UserError for sizes of zero, and for bounds of actions that [-1, 1] cannot be scaled
    to; `how` are words on how to give others.
    """
    for what, size in (("observations", spec.obs_size), ("actions", spec.action_size)):
        if not isinstance(size, numbers.Integral):
            raise UserError(
                f"environment {name!r} has {what} of size {size!r}, expected how many numbers "
                "there are in one, as observation_space.shape[0]"
            )
        if size < 1:
            raise UserError(
                f"environment {name!r} has {what} of size {size}, but these algorithms need at "
                "least one number in each"
            )
    words = f"environment {name!r} has"
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


def check_shapes(name: str, call: str, **arrays: tuple[Any, tuple[int, ...]]) -> None:
    """Raises EnvError for an array of one environment that has not the shape it stands with."""
    for what, (value, shape) in arrays.items():
        if np.shape(value) != shape:
            raise EnvError(
                f"environment {name!r}, in {call}, returned {what} of the shape "
                f"{np.shape(value)}, expected {shape}"
            )


def _observation(name: str, call: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if type(value) is not np.ndarray and hasattr(value, "dtype"):
        value = np.asarray(value)
    if type(value) is np.ndarray and value.shape == shape and value.dtype.kind in "fiub":
        return value
    expected = f"numbers of the shape {shape}, as its observation space says"
    raise _returned(name, call, "the observation ", value, expected)


def _scalar(value: Any, kinds: str) -> bool:
    """Whether it is one number of these kinds, Python's, NumPy's or JAX's."""
    one = isinstance(value, (int, float)) or getattr(value, "shape", None) == ()
    return one and np.asarray(value).dtype.kind in kinds


def _returned(name: str, call: str, what: str, value: Any, expected: str) -> EnvError:
    return EnvError(
        f"environment {name!r}, in {call}, returned {what}{_shown(value)}, expected {expected}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and the shape {value.shape}"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"{value!r:.60} ({type(value).__name__})"
