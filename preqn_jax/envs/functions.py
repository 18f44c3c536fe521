"""What the functions among an environment's attributes hold, which is not saved with them."""

import contextlib
import enum
import functools
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

_KINDS = (types.FunctionType, types.MethodType, functools.partial, type)
_RANDOM = (np.random.Generator, np.random.RandomState)


def is_function(value: Any) -> bool:
    """Whether `value` is a function, or another callable without attributes, except `__name__` and
    the like. A wrapped function, as from `jax.jit`, counts as a function.
    """
    plain = isinstance(value, _KINDS) or hasattr(value, "__wrapped__") or not _attributes(value)
    return callable(value) and plain


def held(function: Any) -> list[Any]:
    """The function, and all objects that it holds: the object of a method, the arguments of a
    partial, what a closure and default arguments refer to, and what functions among these hold.
    """
    found, todo = {}, [function]
    while todo:
        one = todo.pop()
        if id(one) in found:
            continue
        found[id(one)] = one
        if not is_function(one) or isinstance(one, type):
            continue
        todo += [getattr(one, name, None) for name in ("__self__", "__wrapped__")]
        todo += getattr(one, "__defaults__", None) or ()
        todo += (getattr(one, "__kwdefaults__", None) or {}).values()
        for cell in getattr(one, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # an empty cell
                todo.append(cell.cell_contents)
        if isinstance(one, functools.partial):
            todo += [one.func, *one.args, *one.keywords.values()]
    return list(found.values())


def has_state(value: Any) -> bool:
    """Whether using an object, as a function may, can change it: one with attributes, a random
    generator or an iterator. Lists, dicts and arrays are taken for constants.
    """
    if is_function(value) or isinstance(value, types.ModuleType | enum.Enum):
        return False
    return isinstance(value, (*_RANDOM, Iterator)) or _attributes(value)


def _attributes(value: Any) -> bool:
    return any(not name.startswith("__") for name in getattr(value, "__dict__", ()))
