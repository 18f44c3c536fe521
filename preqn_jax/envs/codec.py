"""A JSON form that holds arrays exactly: as dtype, shape and bytes in hexadecimal. An object in two
places, or memory shared by two arrays, is shared again after decoding.

Decoding makes only dicts, lists, tuples, deques, strings, numbers, None, arrays of numbers, of
NumPy and of JAX, and NumPy's random generators, and runs no code from its input.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ARRAY, _TUPLE, _FLOAT, _DEQUE = "__array__", "__tuple__", "__float__", "__deque__"
_DICT, _JAX = "__dict__", "__jax__"
_GENERATOR, _VIEW, _FIRST, _AGAIN = "__generator__", "__view__", "__first__", "__again__"
_LATER = {"seen"}  # entries that older saved states lack
MUTABLE = (np.ndarray, np.random.Generator, dict, list, deque)


def encode(tree: Any) -> Any:
    """Dicts, lists, tuples, deques, strings, numbers, None, arrays and NumPy's random generators to
    plain JSON. Raises TypeError for anything else, also for objects of subclasses of these types:
    they may hold more, and would come back as another type. Of JAX's arrays it takes those that are
    bound to no device; weakly typed ones only if they are scalars.
    """
    seen = Counter(_objects(tree, ()))
    return _encode(tree, {key: None for key, times in seen.items() if times > 1})


def _objects(tree: Any, within: tuple[int, ...]) -> Iterable[int]:
    """The id of every mutable object in a tree, as often as the object occurs there; for an array
    that is a view, the id of the array that owns the memory.
    """
    kind = type(tree)
    if kind not in MUTABLE and kind is not tuple:
        return
    if id(tree) in within:
        raise TypeError(f"a {kind.__name__} that holds itself has no exact JSON form")
    if kind is not tuple:
        yield id(_root(tree) if kind is np.ndarray else tree)
    parts = tree.values() if kind is dict else tree if kind in (list, tuple, deque) else ()
    for part in parts:
        yield from _objects(part, (*within, id(tree)))


def _root(array: np.ndarray) -> np.ndarray:
    """The array whose memory `array` shows, if offset and strides describe how; else `array`."""
    root = array
    while type(root.base) is np.ndarray:
        root = root.base
    return root if root.flags.c_contiguous or root.flags.f_contiguous else array


def _encode(tree: Any, shared: dict[int, int | None]) -> Any:
    """`shared`: id of each object that occurs repeatedly -> its number, None until it is met."""
    kind = type(tree)
    if kind is np.ndarray and (root := _root(tree)) is not tree and id(root) in shared:
        place = tree.__array_interface__["data"][0] - root.__array_interface__["data"][0]
        look = {"shape": list(tree.shape), "strides": list(tree.strides), "place": place}
        return {_VIEW: _dtype(tree), **look, "of": _encode(root, shared)}
    if kind in MUTABLE and id(tree) in shared:
        number = shared[id(tree)]
        if number is not None:
            return {_AGAIN: number}
        number = shared[id(tree)] = sum(one is not None for one in shared.values())
        return {_FIRST: number, "is": _parts(tree, shared)}
    return _parts(tree, shared)


def _parts(tree: Any, shared: dict[int, int | None]) -> Any:
    kind = type(tree)
    if kind is np.ndarray or isinstance(tree, np.generic):
        return _array(tree)
    if kind is np.random.Generator and _bits(type(tree.bit_generator).__name__):
        return {_GENERATOR: encode(tree.bit_generator.state)}
    if kind is dict:
        if all(isinstance(key, str) for key in tree):
            return {key: _encode(value, shared) for key, value in tree.items()}
        return {_DICT: [[encode(key), _encode(value, shared)] for key, value in tree.items()]}
    if kind is list:
        return [_encode(value, shared) for value in tree]
    if kind is tuple:
        return {_TUPLE: [_encode(value, shared) for value in tree]}
    if kind is deque:
        return {_DEQUE: [_encode(value, shared) for value in tree], "most": tree.maxlen}
    if tree is None or kind in (bool, int, str):
        return tree
    if kind is float:
        return {_FLOAT: tree.hex()}  # NaN and infinity are not JSON
    if isinstance(tree, jax.Array):
        numbers = _array(np.asarray(tree))  # a TypeError for keys
        if tree.committed or (tree.weak_type and tree.ndim):
            raise TypeError("a JAX array that is bound or weakly typed has no exact JSON form")
        return {_JAX: numbers, "weak": tree.weak_type}
    raise TypeError(f"{kind.__name__} has no exact JSON form")


def _array(array: np.ndarray | np.generic) -> dict[str, Any]:
    """An array, or a NumPy scalar: without "order", its memory is in C order, and what has no
    dimensions is a scalar. Products of arrays in another order round otherwise.
    """
    form = {_ARRAY: _dtype(array), "shape": list(array.shape), "hex": array.tobytes("A").hex()}
    fortran = not array.flags.c_contiguous and array.flags.f_contiguous
    if fortran or (isinstance(array, np.ndarray) and not array.ndim):
        form["order"] = "F"
    return form


def _dtype(array: np.ndarray | np.generic) -> str:
    """The dtype as text for `np.dtype`. Raises TypeError for an array of objects or records."""
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects has no exact JSON form")
    if array.dtype.names:
        raise TypeError("an array of records has no exact JSON form")
    # `np.dtype` knows bfloat16 and the like only by name.
    return array.dtype.name if array.dtype.kind == "V" else array.dtype.str


def _bits(name: str) -> Callable[[], np.random.BitGenerator] | None:
    """NumPy's bit generator with that name; None if there is none."""
    kind = getattr(np.random, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, np.random.BitGenerator) else None


def decode(tree: Any) -> Any:
    """The inverse of `encode`. Raises ValueError, or any other exception if the tree has an
    unexpected form.
    """
    return _decode(tree, {})


def _decode(tree: Any, made: dict[int, Any]) -> Any:
    if isinstance(tree, list):
        return [_decode(value, made) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if _AGAIN in tree:
        return made[tree[_AGAIN]]
    if _FIRST in tree:
        made[tree[_FIRST]] = _decode(tree["is"], made)
        return made[tree[_FIRST]]
    if _VIEW in tree:
        memory, kind = _decode(tree["of"], made), np.dtype(tree[_VIEW])
        if kind.hasobject:  # its bytes would be taken for addresses
            raise ValueError(f"a view of the type {kind}")
        memory = memory if memory.flags.c_contiguous else memory.T  # NumPy wants C order here
        return np.ndarray(tree["shape"], kind, memory, tree["place"], tree["strides"])
    if _ARRAY in tree:
        numbers = np.frombuffer(bytes.fromhex(tree["hex"]), np.dtype(tree[_ARRAY]))
        array = numbers.reshape(tree["shape"], order=tree.get("order", "C")).copy("K")
        return array if array.ndim or "order" in tree else array[()]
    if _JAX in tree:
        array = _decode(tree[_JAX], made)
        return jnp.array(array.item() if tree["weak"] else array)
    if _DICT in tree:
        return {_decode(key, made): _decode(value, made) for key, value in tree[_DICT]}
    if _TUPLE in tree:
        return tuple(_decode(value, made) for value in tree[_TUPLE])
    if _DEQUE in tree:
        return deque((_decode(value, made) for value in tree[_DEQUE]), tree["most"])
    if _FLOAT in tree:
        return float.fromhex(tree[_FLOAT])
    if _GENERATOR in tree:
        return _generator(decode(tree[_GENERATOR]))
    return {key: _decode(value, made) for key, value in tree.items()}


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    make = _bits(state["bit_generator"])
    if make is None:
        raise ValueError(f"there is no bit generator {state['bit_generator']!r}")
    made = np.random.Generator(make())
    made.bit_generator.state = state  # NumPy checks it
    return made


# --- checks of a saved state ----------------------------------------------------------------------


def check_form(like: Any, tree: Any, where: str = "it") -> None:
    """Raises ValueError, or what `decode` raises, if the encoded state `tree` has other keys,
    types, dtypes or shapes than `like`, the state of a fresh environment of the same kind.

    These differences are allowed: the attributes of an environment ("layers") may change their
    types as it is stepped, an environment that could not be saved is None in either, and older
    states lack "seen". Seeds must be equal.
    """
    if isinstance(like, dict) and _ARRAY in like:
        old, new = decode(like), decode(tree) if isinstance(tree, dict) else None
        if [getattr(new, name, None) for name in ("dtype", "shape")] != [old.dtype, old.shape]:
            raise ValueError(f"{where} is no array {old.dtype}{list(old.shape)}")
    elif type(tree) is not type(like):
        raise ValueError(f"{where} is of the type {type(tree).__name__}")
    elif isinstance(like, dict):
        if not set(like) - _LATER <= set(tree) <= set(like):
            raise ValueError(f"{where} does not have the entries {', '.join(sorted(like))}")
        for name in tree:
            _check_entry(name, like[name], tree[name], f"{where}/{name}")
    elif isinstance(like, list):
        if len(tree) != len(like):
            raise ValueError(f"{where} has {len(tree)} entries instead of {len(like)}")
        for i, value in enumerate(like):
            check_form(value, tree[i], f"{where}/{i}")


def _check_entry(name: str, like: Any, tree: Any, where: str) -> None:
    if name == "seeds" and tree != like:
        raise ValueError(f"{where} is not {like}")
    if name == "envs" and isinstance(tree, list):
        # One that could not be saved, then or as it begins, has no form, and is not loaded.
        gone = {i for i, pair in enumerate(zip(like, tree, strict=False)) if None in pair}
        like, tree = (
            [None if i in gone else x for i, x in enumerate(all_)] for all_ in (like, tree)
        )
    if name == "layers":
        if [type(layer) for layer in decode(tree)] != [dict] * len(like):
            raise ValueError(f"{where} are not the attributes of {len(like)} layers")
        return
    check_form(like, tree, where)
    if name == "rng" and _bits(like["bit_generator"]):
        _generator(decode(tree))


def restorable(
    holder: Any, plain: Mapping[str, Any], saved: Mapping[str, Any], never: Collection[str]
) -> dict[str, Any]:
    """The saved attributes that may be set on a fresh `holder`: those in `plain`, its own plain
    attributes, and new ones that stepping may have added. Left out are those in `never`, and any
    that would replace a method, a property or an object that is not plain.
    """

    def good(name: str) -> bool:
        if name in plain or name in vars(holder):
            return name in plain
        try:
            encode(getattr(type(holder), name, None))
        except TypeError:
            return False
        return True

    return {k: v for k, v in saved.items() if k not in never and good(k)}
