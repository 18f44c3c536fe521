"""Save and load the state of a Gymnasium environment with all its wrappers.

Exact resume needs the whole state. For MuJoCo this is the integration state; the other arrays of
`MjData`, as Ant's reward reads a body position from the last sub-step, which the integration state
does not determine; and the numbers of the model, which some tasks draw anew for each episode. Plain
attributes of environment and wrappers are saved too, except functions, and so are the generators of
spaces. An environment with state in other objects, callable ones included, or in objects that its
functions hold, cannot be saved.
"""

# MuJoCo's bindings are compiled and carry no types that a checker could read.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import collections
import contextlib
import copy
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np

from preqn_jax.envs import codec, contents, functions

# Objects an environment holds that are the same in every copy of it, or pure machinery.
_CONSTANT = (gymnasium.envs.registration.EnvSpec,)
_CONSTANT_NAMES = {"metadata", "observation_structure", "_saved_kwargs"}
# Objects of these names are left out where their type is of one of these packages.
_PICTURE = {"viewer", "screen", "clock", "surf", "renderer", "mujoco_renderer"}
_DRAWING = {"pygame", "gymnasium", "mujoco", "glfw"}
_SPACES = {"_action_space", "_observation_space"}  # a wrapper's own space, or None
_NAMES, _RNG = "__names__", "_np_random"  # saved for a layer beside its plain attributes
_NEVER = {"env", "render_mode", "_cached_spec", _NAMES, _RNG}
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
    besides = besides | {"env" if isinstance(layer, gymnasium.Wrapper) else _RNG}
    simulation = getattr(base, "model", None), getattr(base, "data", None)
    if strict and isinstance(object.__getstate__(layer), tuple):
        raise TypeError("it has attributes in __slots__")
    for name, value in vars(layer).items():
        if among is not None and name not in among:
            continue
        if name in besides or isinstance(value, _CONSTANT) or functions.is_function(value):
            continue
        if any(value is one for one in simulation if isinstance(one, _SIMULATION)):
            if layer is not base or isinstance(value, mujoco.MjData):
                continue
            state[name] = _settings(value)
            continue
        if isinstance(value, np.ndarray) and not value.flags.owndata and _within(value, base):
            continue
        if isinstance(value, gymnasium.Space):
            value = [vars(one).get(_RNG) for one in _spaces(value)]
        elif name in _SPACES:
            continue
        try:
            codec.encode(value)
        except (TypeError, RecursionError) as error:
            picture = name in _PICTURE and type(value).__module__.split(".")[0] in _DRAWING
            if picture or not strict:
                continue
            raise TypeError(f"its attribute {name}: {error}") from error
        state[name] = value
    return state


def _check_functions(env: gymnasium.Env) -> None:
    """Raises TypeError for a function among the attributes that holds an object with state, which
    would be lost, unless this is a layer or an attribute itself.
    """
    known = {id(one) for layer in layers(env) for one in (layer, *vars(layer).values())}
    for layer in layers(env):
        for name, value in vars(layer).items():
            for one in functions.held(value) if functions.is_function(value) else ():
                if isinstance(one, gymnasium.Space):
                    state = any(vars(part).get(_RNG) is not None for part in _spaces(one))
                else:
                    state = functions.has_state(one)
                if state and id(one) not in known:
                    kind = type(one).__name__
                    raise TypeError(f"its attribute {name}: the {kind} it holds may have state")


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
        _check_functions(env)
        self._objects = [dict(vars(layer)) for layer in layers(env)]
        self._settings = [
            copy.deepcopy(plain.pop(name))
            for plain, objects in zip(self._plain, self._objects, strict=True)
            for name in list(plain)
            if isinstance(objects[name], mujoco.MjModel)
        ]
        self._held: dict[int, tuple[Any, Any]] = {}
        for plain in self._plain:
            contents.hold(list(plain.values()), self._held, held)
        _copies.update(self._held.keys())
        weakref.finalize(self, _copies.subtract, list(self._held))

    def restore(self, env: gymnasium.Env) -> bool:
        """Set the plain attributes of `env` to what they were, and delete those added since. False
        if it has come to hold what cannot be saved, such as a simulator that its first reset
        opened: then it stays as it is, as what its attributes say of that must stay true.
        """
        changed = [
            (one, contents.content(one))
            for one, old in self._held.values()
            if not contents.same(one, old)
        ]
        try:
            _check_functions(env)
            codec.encode([one for one, _ in changed if type(one) is not np.ndarray])
            for layer, objects in zip(layers(env), self._objects, strict=True):
                _plain(layer, among=_moved(layer, objects))
        except (TypeError, RecursionError):
            return False
        for one, _ in changed:
            contents.put_back(one, self._held[id(one)][1])
        apart = None
        if any(_copies[id(one)] > 1 for one, _ in changed):
            apart = codec.decode(codec.encode(self._plain))
            for one, content in changed:
                contents.put_back(one, content)
        for i, layer in enumerate(layers(env)):
            self._restore(layer, self._plain[i], self._objects[i], apart and apart[i])
        model: Any = getattr(env.unwrapped, "model", None)
        if self._settings and any(model is one for one in self._objects[-1].values()):
            _set(model, self._settings[0])  # but no model that was made since
        return True

    def _restore(
        self, layer: gymnasium.Env, plain: dict[str, Any], objects: dict[str, Any], apart: Any
    ) -> None:
        """Restore one layer, with its original objects, or with the copies in `apart`."""
        now, new = vars(layer), objects if apart is None else apart
        other = now.keys() if apart is not None else _moved(layer, objects)
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


def _moved(layer: gymnasium.Env, objects: dict[str, Any]) -> set[str]:
    """The names of the attributes that are no longer the same objects."""
    return {name for name, one in vars(layer).items() if one is not objects.get(name, layer)}


def save(env: gymnasium.Env) -> dict[str, Any]:
    """The whole state, for `codec.encode`. Raises TypeError if it cannot be saved."""
    base = env.unwrapped
    if not isinstance(base.np_random, np.random.Generator):
        raise TypeError("its np_random is no numpy.random.Generator")
    _check_functions(env)
    plain = [{**_plain(layer), _NAMES: list(vars(layer))} for layer in layers(env)]
    with contextlib.suppress(TypeError):  # for one that is not NumPy's
        codec.encode(base.np_random)
        plain[-1][_RNG] = base.np_random  # attributes may hold it too
    state = {"layers": plain, "rng": base.np_random.bit_generator.state}
    data = getattr(base, "data", None)
    if isinstance(data, mujoco.MjData):
        state["integration"] = np.zeros(mujoco.mj_stateSize(data.model, _INTEGRATION))
        mujoco.mj_getState(data.model, data, state["integration"], _INTEGRATION)
        state["derived"] = {name: getattr(data, name) for name in _derived(data)}
    return state


def _restore(env: gymnasium.Env, attributes: Sequence[dict[str, Any]]) -> None:
    """Set the plain attributes of all layers to the saved ones, and delete those that were gone."""
    good, rng = [], attributes[-1].get(_RNG)
    for layer, saved in zip(layers(env), attributes, strict=True):
        plain = _plain(layer, strict=False)
        never = _NEVER | _CONSTANT_NAMES | (_PICTURE - plain.keys())
        good.append(codec.restorable(layer, plain, saved, never))
        names = saved.get(_NAMES, plain)  # older states have none
        for name in [name for name in plain.keys() - never if name not in names]:
            delattr(layer, name)
    found = {id(rng): env.unwrapped.np_random} if isinstance(rng, np.random.Generator) else {}
    _put_in_place(env, good, found)
    for layer, saved in zip(layers(env), contents.exchanged(good, found), strict=True):
        for name, value in saved.items():
            there = vars(layer).get(name)
            if isinstance(there, gymnasium.Space):
                _reseed(there, value)
            elif isinstance(there, mujoco.MjModel):
                _set(there, value)
            else:
                setattr(layer, name, value)


def _put_in_place(
    env: gymnasium.Env, attributes: Sequence[dict[str, Any]], found: dict[int, Any]
) -> None:
    """Write what was saved of generators, and of the objects that functions hold, into those that
    the environment has, as others may hold them too. `found` collects, and may have, those that
    stand for a saved object, by its id; none stands for two.
    """
    values = [value for layer in layers(env) for value in vars(layer).values()]
    held = {id(one) for f in filter(functions.is_function, values) for one in functions.held(f)}
    taken = {id(one) for one in found.values()}
    for layer, saved in zip(layers(env), attributes, strict=True):
        for name, value in saved.items():
            there: Any = vars(layer).get(name)
            kind = type(there)
            stays = kind is np.random.Generator or (kind in codec.MUTABLE and id(there) in held)
            if not stays or id(value) in found or id(there) in taken:
                continue
            if kind is type(value) and contents.fits(there, value):
                contents.put_back(there, value)
                found[id(value)] = there
                taken.add(id(there))


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
