"""The rules for environments, which are checked at every call, and the messages for breaking them.

A check that passes costs a microsecond or less: environments are stepped millions of times.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from preqn_jax.envs.base import EnvError

RAISED = (Exception, SystemExit)  # a sys.exit() there must not look like the end of a run
_NUMBERS, _FLAGS = "biuf", "biu"  # kinds of dtypes
_USUAL_NUMBERS, _USUAL_FLAGS = {float, int, np.float64, np.float32}, {bool, np.bool_}
_STARTS = "(observation, info)"
_STEPS = "(observation, reward, terminated, truncated, info)"


def raised(name: str, call: str, error: BaseException) -> EnvError:
    """The EnvError to raise `from error`, for an environment that raised `error` in `call`."""
    return EnvError(f"environment {name!r}, in {call}, raised {said(error)}")


def ask(name: str, call: str, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What a call of an environment returns. If it raises, raises EnvError from that."""
    try:
        return function(*given, **named)
    except EnvError:
        raise
    except RAISED as error:
        raise raised(name, call, error) from error


@contextlib.contextmanager
def closed_on_error(close: Callable[[], None]) -> Iterator[None]:
    """A context that calls `close` if an exception leaves it. What `close` itself raises is
    dropped: the first exception says more.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(*RAISED):
            close()
        raise


def said(error: BaseException) -> str:
    """The type of an exception and the first line of what it says."""
    lines = str(error).strip().replace("`", "'").splitlines()  # in messages, backticks mark options
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def first_obs(name: str, out: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The observation in what `reset` returned. Raises EnvError if `out` has another form."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise _returned(name, "reset", "", out, _STARTS)
    return _observation(name, "reset", out[0], shape)


def outcome(name: str, out: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, Any, Any, Any]:
    """(observation, reward, terminated, truncated) of what `step` returned. Raises EnvError if
    `out` has another form.
    """
    if not isinstance(out, (tuple, list)) or len(out) != 5:
        raise _returned(name, "step", "", out, _STEPS)
    obs, reward, terminated, truncated, _ = out
    if type(reward) not in _USUAL_NUMBERS and not _scalar(reward, _NUMBERS):
        raise _returned(name, "step", "the reward ", reward, "a number")
    try:
        reward = float(reward)
    except OverflowError as error:  # of an int
        raise _returned(name, "step", "the reward ", reward, "one that a float holds") from error
    if type(terminated) not in _USUAL_FLAGS and not _scalar(terminated, _FLAGS):
        raise _returned(name, "step", "terminated as ", terminated, "True or False")
    if type(truncated) not in _USUAL_FLAGS and not _scalar(truncated, _FLAGS):
        raise _returned(name, "step", "truncated as ", truncated, "True or False")
    return _observation(name, "step", obs, shape), reward, terminated, truncated


def check_shapes(name: str, call: str, **arrays: tuple[Any, tuple[int, ...]]) -> None:
    """Raises EnvError for an array of an environment that does not have the shape in its pair."""
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
    """Whether `value` is one number, of Python, NumPy or JAX, whose dtype is of these kinds."""
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
