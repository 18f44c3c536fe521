"""The contents of mutable objects, as `codec` encodes: recorded, compared and put back in place."""

import copy
import operator
from collections import deque
from typing import Any

import numpy as np

from preqn_jax.envs import codec


def hold(value: Any, mine: dict[int, Any], held: dict[int, Any]) -> None:
    """Record the current content of every mutable object in `value`."""
    kind = type(value)
    if kind is tuple:
        parts: Any = value
    elif kind not in codec.MUTABLE or id(value) in mine:
        return
    else:
        parts = () if kind in (np.ndarray, np.random.Generator) else value
        if id(value) not in held:
            held[id(value)] = value, content(value)
        mine[id(value)] = held[id(value)]
    for part in parts.values() if kind is dict else parts:
        hold(part, mine, held)


def content(value: Any) -> Any:
    if type(value) is np.random.Generator:
        return copy.deepcopy(value.bit_generator.state)
    return copy.copy(value)


def same(value: Any, content: Any) -> bool:
    """Whether an object still has the recorded content."""
    kind = type(value)
    if kind is np.random.Generator:
        return codec.encode(value.bit_generator.state) == codec.encode(content)
    if kind is np.ndarray:
        return np.array_equal(value, content) or value.tobytes() == content.tobytes()  # NaN
    if kind is dict and list(value) != list(content):
        return False
    parts = (value.values(), content.values()) if kind is dict else (value, content)
    return len(value) == len(content) and all(map(operator.is_, *parts))


def fits(value: Any, content: Any) -> bool:
    """Whether `content`, of the same type, can be written into `value` in place."""
    if type(value) is np.random.Generator:
        return type(value.bit_generator) is type(content.bit_generator)
    if type(value) is not np.ndarray:
        return True
    return (value.shape, value.dtype) == (content.shape, content.dtype) and value.flags.writeable


def put_back(value: Any, content: Any) -> None:
    if type(value) is np.random.Generator:
        state = content.bit_generator.state if isinstance(content, type(value)) else content
        value.bit_generator.state = state
    elif type(value) is np.ndarray:
        if value.flags.writeable:
            value[...] = content
    else:
        value.clear()
        value.update(content) if type(value) is dict else value.extend(content)


def exchanged(tree: Any, others: dict[int, Any]) -> Any:
    """`tree` with the objects whose ids are in `others` replaced by the entries there."""
    if id(tree) in others:
        return others[id(tree)]
    kind = type(tree)
    if kind is dict:
        tree.update({name: exchanged(value, others) for name, value in tree.items()})
    elif kind in (list, deque):
        for i, value in enumerate(tree):
            tree[i] = exchanged(value, others)
    elif kind is tuple:
        return tuple(exchanged(value, others) for value in tree)
    return tree
