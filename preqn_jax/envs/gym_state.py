"""The state of a Gymnasium environment, with all its wrappers.

Exact resume needs the whole of it. For MuJoCo that is the integration state, and every array of
`MjData` besides: Ant's reward reads a body position derived in the last sub-step, which the
integration state does not determine. Whatever else wrappers and environments hold in plain
attributes is saved too, but for functions, and the generators that its spaces sample by; an
environment with state in other objects, callable ones among them, cannot be saved.
"""

# MuJoCo's bindings are compiled and carry no types that a checker could read.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import copy
import functools
import types
from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np

from preqn_jax.envs import codec

# Objects an environment holds that are the same in every copy of it, or pure machinery.
_CONSTANT = (gymnasium.envs.registration.EnvSpec,)
_CONSTANT_NAMES = {"metadata", "observation_structure"}
_PICTURE = {"viewer", "screen", "clock", "surf", "renderer", "mujoco_renderer"}
_SPACES = {"_action_space", "_observation_space"}  # a wrapper's own, or None
_NEVER = {"env", "render_mode", "_cached_spec"}
_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION


def layers(env: gymnasium.Env) -> list[gymnasium.Env]:
    """The wrappers from the outside in, and the environment itself."""
    found = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


def _plain(layer: gymnasium.Env, strict: bool = True) -> dict[str, Any]:
    """The attributes of one layer that make up its state, but for what `save` takes besides.
    Raises TypeError for one that cannot be saved; if not `strict`, leaves it out.
    """
    state, base, besides = {}, layer.unwrapped, _CONSTANT_NAMES
    besides = besides | {"env" if isinstance(layer, gymnasium.Wrapper) else "_np_random"}
    data = getattr(base, "data", None)
    for name, value in vars(layer).items():
        if name in besides or isinstance(value, _CONSTANT) or _function(value):
            continue
        if isinstance(value, mujoco.MjData | mujoco.MjModel) and (
            value is data or value is getattr(base, "model", None)
        ):
            continue
        if isinstance(value, np.ndarray) and not value.flags.owndata and _within(value, data):
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
    """Whether there is nothing to a callable but what it does; others have attributes, beside
    `__name__` and the like. What wraps a function, as `jax.jit` does, counts as one.
    """
    kinds = (types.FunctionType, types.MethodType, functools.partial, type)
    own = (name for name in getattr(value, "__dict__", ()) if not name.startswith("__"))
    plain = isinstance(value, kinds) or hasattr(value, "__wrapped__") or not any(own)
    return callable(value) and plain


def _spaces(space: gymnasium.Space) -> list[gymnasium.Space]:
    """It, and those that it is made of; each samples by a generator of its own, None before it was
    first asked or seeded.
    """
    found = [space]
    for value in vars(space).values():
        parts = value.values() if isinstance(value, dict) else value
        parts = parts if isinstance(value, dict | list | tuple) else [value]
        found += [two for one in parts if isinstance(one, gymnasium.Space) for two in _spaces(one)]
    return found


def _reseed(space: gymnasium.Space, generators: Any) -> None:
    """With what was saved of it, if that is of as many spaces."""
    spaces, kinds = _spaces(space), (np.random.Generator, type(None))
    if isinstance(generators, list) and len(generators) == len(spaces):
        for one, generator in zip(spaces, generators, strict=True):
            if isinstance(generator, kinds):
                one._np_random = copy.deepcopy(generator)


def _within(array: np.ndarray, data: Any) -> bool:
    """Whether an array is a view of MuJoCo's, and so moves with it."""
    return isinstance(data, mujoco.MjData) and any(
        np.may_share_memory(array, getattr(data, name)) for name in _derived(data)
    )


def attributes(env: gymnasium.Env) -> Any:
    """What is plain of all layers, encoded; None where one holds what cannot be saved."""
    try:
        return codec.encode([_plain(layer) for layer in layers(env)])
    except TypeError:
        return None


def save(env: gymnasium.Env) -> dict[str, Any]:
    """All of its state, for `codec.encode`. Raises TypeError where it cannot be saved."""
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


def restore(
    env: gymnasium.Env, attributes: Sequence[dict[str, Any]], *, alone: bool = False
) -> None:
    """The plain attributes of all layers, as they were; `alone`, and no others."""
    never = _NEVER | _CONSTANT_NAMES
    for layer, saved in zip(layers(env), attributes, strict=True):
        plain = _plain(layer, strict=False)
        for name in plain.keys() - saved.keys() - never - _PICTURE if alone else ():
            delattr(layer, name)
        no_more = never | (_PICTURE - plain.keys())
        for name, value in codec.restorable(layer, plain, saved, no_more).items():
            there = vars(layer).get(name)
            if isinstance(there, gymnasium.Space):
                _reseed(there, value)
            elif isinstance(value, np.random.Generator) and isinstance(there, np.random.Generator):
                # In its place: others may hold the same one.
                there.bit_generator.state = value.bit_generator.state
            else:
                setattr(layer, name, value)


def load(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """What `save` returned, into an environment of the same kind that was reset."""
    restore(env, state["layers"])
    base: Any = env.unwrapped
    base.np_random.bit_generator.state = state["rng"]
    if "integration" in state:
        mujoco.mj_setState(base.model, base.data, state["integration"], _INTEGRATION)
        for name, value in state["derived"].items():
            getattr(base.data, name)[:] = value


def _derived(data: mujoco.MjData) -> list[str]:
    """Arrays of `MjData` with a size the model fixes; the rest lie in an arena that every step lays
    out anew.
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
