"""Save and load the state of a Gymnasium environment with all its wrappers.

Exact resume needs the whole state. For MuJoCo this is the integration state; the other arrays of
`MjData`, as Ant's reward reads a body position from the last sub-step, which the integration state
does not determine; and the numbers of the model, which some tasks draw anew for each episode. Plain
attributes of environment and wrappers are saved too, except functions, and so are the generators of
spaces. An environment with state in other objects, callable ones included, cannot be saved.
"""

# MuJoCo's bindings are compiled and carry no types that a checker could read.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import collections
import contextlib
import copy
import functools
import operator
import types
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np

from preqn_jax.envs import codec

# Objects an environment holds that are the same in every copy of it, or pure machinery.
_CONSTANT = (gymnasium.envs.registration.EnvSpec,)
_CONSTANT_NAMES = {"metadata", "observation_structure"}
_PICTURE = {"viewer", "screen", "clock", "surf", "renderer", "mujoco_renderer"}
_SPACES = {"_action_space", "_observation_space"}  # a wrapper's own space, or None
_NEVER = {"env", "render_mode", "_cached_spec"}
_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
_SIMULATION = (mujoco.MjModel, mujoco.MjData)
_OPTIONS = "opt."  # before the names of a model's options


def layers(env: gymnasium.Env) -> list[gymnasium.Env]:
    """The wrappers from the outside in, and the environment itself."""
    found = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


def _plain(
    layer: gymnasium.Env, strict: bool = True, among: Collection[str] | None = None
) -> dict[str, Any]:
    """The attributes that make up the state of one layer (a wrapper or the environment), except
    what `save` takes separately; only those in `among`, if given. Raises TypeError for an attribute
    that cannot be saved, or leaves it out if not `strict`.
    """
    state, base, besides = {}, layer.unwrapped, _CONSTANT_NAMES
    besides = besides | {"env" if isinstance(layer, gymnasium.Wrapper) else "_np_random"}
    simulation = getattr(base, "model", None), getattr(base, "data", None)
    for name, value in vars(layer).items():
        if among is not None and name not in among:
            continue
        if name in besides or isinstance(value, _CONSTANT) or _function(value):
            continue
        if any(value is one for one in simulation if isinstance(one, _SIMULATION)):
            if layer is not base or isinstance(value, mujoco.MjData):
                continue
            state[name] = _settings(value)
            continue
        if isinstance(value, np.ndarray) and not value.flags.owndata and _within(value, base):
            continue
        if isinstance(value, gymnasium.Space):
            value = [vars(one).get("_np_random") for one in _spaces(value)]
        elif name in _SPACES:
            continue
        try:
            codec.encode(value)
        except (TypeError, RecursionError) as error:
            if name in _PICTURE or not strict:
                continue
            raise TypeError(f"its attribute {name}: {error}") from error
        state[name] = value
    return state


def _function(value: Any) -> bool:
    """Whether `value` is a function, or another callable without state: without attributes, except
    `__name__` and the like. A wrapped function, as from `jax.jit`, counts as a function.
    """
    kinds = (types.FunctionType, types.MethodType, functools.partial, type)
    own = (name for name in getattr(value, "__dict__", ()) if not name.startswith("__"))
    plain = isinstance(value, kinds) or hasattr(value, "__wrapped__") or not any(own)
    return callable(value) and plain


def _held_by_functions(layer: gymnasium.Env) -> set[int]:
    """The ids of the objects in the closures and partials among a layer's attributes."""
    found = set()
    for value in vars(layer).values():
        for cell in getattr(value, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # an empty cell
                found.add(id(cell.cell_contents))
        if isinstance(value, functools.partial):
            found |= {id(part) for part in (*value.args, *value.keywords.values())}
    return found


def _spaces(space: gymnasium.Space) -> list[gymnasium.Space]:
    """A space, and all spaces that it is made of. Each samples by its own generator, which is None
    before the first sample or seed.
    """
    found = [space]
    for value in vars(space).values():
        parts = value.values() if isinstance(value, dict) else value
        parts = parts if isinstance(value, dict | list | tuple) else [value]
        found += [two for one in parts if isinstance(one, gymnasium.Space) for two in _spaces(one)]
    return found


def _reseed(space: gymnasium.Space, generators: Any) -> None:
    """Set the saved generators of a space and of its parts, if there are as many of both."""
    spaces, kinds = _spaces(space), (np.random.Generator, type(None))
    if isinstance(generators, list) and len(generators) == len(spaces):
        for one, generator in zip(spaces, generators, strict=True):
            if isinstance(generator, kinds):
                one._np_random = generator


def _within(array: np.ndarray, base: gymnasium.Env) -> bool:
    """Whether an array is a view of MuJoCo's memory, which is saved and loaded separately."""
    data = getattr(base, "data", None)
    if not isinstance(data, mujoco.MjData):
        return False
    theirs = [getattr(data, name) for name in _derived(data)]
    theirs += [one for one in _settings(data.model).values() if isinstance(one, np.ndarray)]
    return any(np.may_share_memory(array, one) for one in theirs)


def _settings(model: mujoco.MjModel) -> dict[str, Any]:
    """The arrays of a model, except textures, and the arrays and numbers of its options. Arrays are
    not copies.
    """
    found = {}
    for prefix, holder in (("", model), (_OPTIONS, model.opt)):
        for name in dir(type(holder)):
            value = None if name.startswith("_") else getattr(holder, name, None)
            if isinstance(value, np.ndarray):
                if value.dtype.kind in "fib" and value.size and value.flags.writeable:
                    found[prefix + name] = value
            elif prefix and isinstance(value, int | float):
                found[prefix + name] = value
    return found


def _set(model: mujoco.MjModel, saved: Any) -> None:
    """Write what `_settings` found into a model, where names, shapes and types are the same."""
    for name, value in saved.items() if isinstance(saved, dict) else ():
        holder = model.opt if name.startswith(_OPTIONS) else model
        name = name.removeprefix(_OPTIONS)
        there = getattr(holder, name, None)
        if isinstance(there, np.ndarray):
            if np.shape(value) == there.shape and not np.array_equal(there, value):
                there[...] = value
        elif isinstance(there, int | float) and isinstance(value, int | float) and there != value:
            setattr(holder, name, value)


def initial_attributes(envs: Sequence[gymnasium.Env]) -> list["InitialAttributes | None"]:
    """The `InitialAttributes` of each environment; None for one with state that cannot be saved."""
    found: list[InitialAttributes | None] = []
    held: dict[int, Any] = {}
    for env in envs:
        try:
            found.append(InitialAttributes(env, held))
        except TypeError:
            found.append(None)
    return found


_copies: collections.Counter[int] = collections.Counter()  # object id -> number of its holders


class InitialAttributes:
    """What an environment was made with: the objects in its plain attributes, and their contents.

    `restore` puts the contents back into these same objects, so that other references to them in
    the environment stay valid. If a changed object is shared with other copies of the environment,
    this one gets its own copies of the objects instead, so that it does not change the others.
    """

    def __init__(self, env: gymnasium.Env, held: dict[int, tuple[Any, Any]]):
        """`held` collects the contents of objects for all copies of one environment, which may have
        objects in common. Raises TypeError for state that cannot be saved.
        """
        self._plain = [_plain(layer) for layer in layers(env)]
        self._objects = [dict(vars(layer)) for layer in layers(env)]
        self._settings = [
            copy.deepcopy(plain.pop(name))
            for plain, objects in zip(self._plain, self._objects, strict=True)
            for name in list(plain)
            if isinstance(objects[name], mujoco.MjModel)
        ]
        self._held: dict[int, tuple[Any, Any]] = {}
        for plain in self._plain:
            _hold(list(plain.values()), self._held, held)
        _copies.update(self._held.keys())
        weakref.finalize(self, _copies.subtract, list(self._held))

    def restore(self, env: gymnasium.Env) -> None:
        """Set the plain attributes of `env` to what they were, and delete those added since."""
        changed = [(one, _content(one)) for one, old in self._held.values() if not _same(one, old)]
        for one, _ in changed:
            _put_back(one, self._held[id(one)][1])
        apart = None
        if any(_copies[id(one)] > 1 for one, _ in changed):
            apart = codec.decode(codec.encode(self._plain))
            for one, content in changed:
                _put_back(one, content)
        for i, layer in enumerate(layers(env)):
            self._restore(layer, self._plain[i], self._objects[i], apart and apart[i])
        model: Any = getattr(env.unwrapped, "model", None)
        if self._settings and any(model is one for one in self._objects[-1].values()):
            _set(model, self._settings[0])  # but no model that was made since

    def _restore(
        self, layer: gymnasium.Env, plain: dict[str, Any], objects: dict[str, Any], apart: Any
    ) -> None:
        """Restore one layer, with its original objects, or with the copies in `apart`."""
        now, new = vars(layer), objects if apart is None else apart
        same = () if apart is not None else {n for n in now if now[n] is objects.get(n, now)}
        other = now.keys() - same
        moved = _plain(layer, strict=False, among=other).keys() | (plain.keys() - now.keys())
        for name in moved - _NEVER - _CONSTANT_NAMES:
            if isinstance(now.get(name), _SIMULATION) or isinstance(
                objects.get(name), (*_SIMULATION, gymnasium.Space)
            ):
                continue
            if name in plain:
                setattr(layer, name, new[name])
            elif name not in _PICTURE:
                delattr(layer, name)
        for name, value in plain.items():
            if isinstance(objects[name], gymnasium.Space):
                _reseed(objects[name], value if apart is None else apart[name])


def _hold(value: Any, mine: dict[int, Any], held: dict[int, Any]) -> None:
    """Record the current content of every mutable object in `value`."""
    kind = type(value)
    if kind is tuple:
        parts: Any = value
    elif kind not in codec.MUTABLE or id(value) in mine:
        return
    else:
        parts = () if kind in (np.ndarray, np.random.Generator) else value
        if id(value) not in held:
            held[id(value)] = value, _content(value)
        mine[id(value)] = held[id(value)]
    for part in parts.values() if kind is dict else parts:
        _hold(part, mine, held)


def _content(value: Any) -> Any:
    if type(value) is np.random.Generator:
        return copy.deepcopy(value.bit_generator.state)
    return copy.copy(value)


def _same(value: Any, content: Any) -> bool:
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


def _fits(value: Any, content: Any) -> bool:
    """Whether `content` can be written into `value` in place."""
    if type(value) is not np.ndarray:
        return True
    return (value.shape, value.dtype) == (content.shape, content.dtype) and value.flags.writeable


def _put_back(value: Any, content: Any) -> None:
    if type(value) is np.random.Generator:
        state = content.bit_generator.state if isinstance(content, type(value)) else content
        value.bit_generator.state = state
    elif type(value) is np.ndarray:
        if value.flags.writeable:
            value[...] = content
    else:
        value.clear()
        value.update(content) if type(value) is dict else value.extend(content)


def save(env: gymnasium.Env) -> dict[str, Any]:
    """The whole state, for `codec.encode`. Raises TypeError if it cannot be saved."""
    base = env.unwrapped
    if not isinstance(base.np_random, np.random.Generator):
        raise TypeError("its np_random is no numpy.random.Generator")
    state = {
        "layers": [_plain(layer) for layer in layers(env)],
        "rng": base.np_random.bit_generator.state,
    }
    data = getattr(base, "data", None)
    if isinstance(data, mujoco.MjData):
        state["integration"] = np.zeros(mujoco.mj_stateSize(data.model, _INTEGRATION))
        mujoco.mj_getState(data.model, data, state["integration"], _INTEGRATION)
        state["derived"] = {name: getattr(data, name) for name in _derived(data)}
    return state


def _restore(env: gymnasium.Env, attributes: Sequence[dict[str, Any]]) -> None:
    """Set the plain attributes of all layers to the saved ones."""
    good, in_place = [], {}
    for layer, saved in zip(layers(env), attributes, strict=True):
        plain = _plain(layer, strict=False)
        never = _NEVER | _CONSTANT_NAMES | (_PICTURE - plain.keys())
        good.append(codec.restorable(layer, plain, saved, never))
        held = _held_by_functions(layer)
        for name, value in good[-1].items():
            there = vars(layer).get(name)
            known = id(there) in held and type(there) in codec.MUTABLE
            if known and type(there) is type(value) and _fits(there, value):
                _put_back(there, value)
                in_place[id(value)] = there
    for layer, saved in zip(layers(env), _exchanged(good, in_place), strict=True):
        for name, value in saved.items():
            there = vars(layer).get(name)
            if isinstance(there, gymnasium.Space):
                _reseed(there, copy.deepcopy(value))
            elif isinstance(there, mujoco.MjModel):
                _set(there, value)
            elif isinstance(value, np.random.Generator) and isinstance(there, np.random.Generator):
                # In place: other objects may hold the same generator.
                there.bit_generator.state = value.bit_generator.state
            else:
                setattr(layer, name, value)


def _exchanged(tree: Any, others: dict[int, Any]) -> Any:
    """`tree` with the objects whose ids are in `others` replaced by the entries there."""
    if id(tree) in others:
        return others[id(tree)]
    kind = type(tree)
    if kind is dict:
        tree.update({name: _exchanged(value, others) for name, value in tree.items()})
    elif kind in (list, collections.deque):
        for i, value in enumerate(tree):
            tree[i] = _exchanged(value, others)
    elif kind is tuple:
        return tuple(_exchanged(value, others) for value in tree)
    return tree


def load(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """Load what `save` returned into an environment of the same kind that was reset."""
    _restore(env, state["layers"])
    base: Any = env.unwrapped
    base.np_random.bit_generator.state = state["rng"]
    if "integration" in state:
        mujoco.mj_setState(base.model, base.data, state["integration"], _INTEGRATION)
        for name, value in state["derived"].items():
            getattr(base.data, name)[:] = value


def _derived(data: mujoco.MjData) -> list[str]:
    """The names of the arrays of `MjData` whose size the model fixes; the rest lie in an arena that
    every step lays out anew.
    """
    fresh = mujoco.MjData(data.model)

    def fixed(name: str) -> bool:
        try:
            now, empty = getattr(data, name), getattr(fresh, name)
        except Exception:
            return False
        numbers = isinstance(now, np.ndarray) and now.dtype.kind in "fib" and now.flags.writeable
        return numbers and now.size > 0 and now.shape == empty.shape

    return [name for name in dir(mujoco.MjData) if not name.startswith("_") and fixed(name)]
