"""JSON that holds arrays exactly: an array is its dtype, shape and bytes in hexadecimal. Nothing in
it is executable.
"""

from typing import Any

import numpy as np

_ARRAY, _TUPLE, _FLOAT = "__array__", "__tuple__", "__float__"


def encode(tree: Any) -> Any:
    """Dicts, lists, tuples, strings, numbers, None and arrays to plain JSON. Raises TypeError for
    anything else.
    """
    if isinstance(tree, np.ndarray | np.generic):
        if tree.dtype.hasobject:
            raise TypeError("an array of Python objects has no exact JSON form")
        return {_ARRAY: tree.dtype.str, "shape": list(tree.shape), "hex": tree.tobytes().hex()}
    if isinstance(tree, dict):
        if not all(isinstance(key, str) for key in tree):
            raise TypeError("keys must be strings")
        return {key: encode(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [encode(value) for value in tree]
    if isinstance(tree, tuple):
        return {_TUPLE: [encode(value) for value in tree]}
    if tree is None or isinstance(tree, bool | int | str):
        return tree
    if isinstance(tree, float):
        return {_FLOAT: tree.hex()}  # NaN and infinity are not JSON
    raise TypeError(f"{type(tree).__name__} has no exact JSON form")


def decode(tree: Any) -> Any:
    """The inverse of `encode`; a zero-dimensional array comes back as a NumPy scalar."""
    if isinstance(tree, list):
        return [decode(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if _ARRAY in tree:
        return (
            np.frombuffer(bytes.fromhex(tree["hex"]), np.dtype(tree[_ARRAY]))
            .reshape(tree["shape"])
            .copy()[()]
        )
    if _TUPLE in tree:
        return tuple(decode(value) for value in tree[_TUPLE])
    if _FLOAT in tree:
        return float.fromhex(tree[_FLOAT])
    return {key: decode(value) for key, value in tree.items()}
