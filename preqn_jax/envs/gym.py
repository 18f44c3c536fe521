"""Gymnasium environments, including MuJoCo's. Only this file, `gym_state` and `spaces` import
either library.

An environment whose state cannot be saved logs a warning, and starts a new episode on resume.
"""

# MuJoCo's bindings are compiled and carry no types that a checker could read.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import logging
import os
import pickle
import random
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from preqn_jax.options import UserError

try:  # before all others that import it
    import mujoco
except (ImportError, RuntimeError, AttributeError) as error:  # it looks for a library to draw with
    _GL = os.environ.get("MUJOCO_GL")
    if not _GL or getattr(error, "name", None) == "mujoco":  # which is not installed
        raise
    raise UserError(f"MuJoCo does not start with MUJOCO_GL={_GL} ({error}); unset it") from error
import gymnasium
import numpy as np

from preqn_jax.actions import to_environment
from preqn_jax.envs import codec, contract, gym_state, spaces
from preqn_jax.envs.base import EnvError, Step, derive_seed
from preqn_jax.envs.source import GymSource, Wrapper
from preqn_jax.envs.source import name as called

_log = logging.getLogger(__name__)
# Wrappers with running statistics, which each copy of an environment gathers for itself.
_RUNNING = (gymnasium.wrappers.NormalizeObservation, gymnasium.wrappers.NormalizeReward)
_made = weakref.WeakValueDictionary[int, gymnasium.Env]()  # what vectors were made of, by id


class GymVector:
    """`VectorEnv` of copies of one Gymnasium environment, stepped one after the other."""

    def __init__(
        self,
        source: str | Callable[[], Any] | GymSource,
        num_envs: int,
        ask: Callable[[], None] = lambda: None,
    ):
        """`source` is an id, a function that makes an environment, or one of these with arguments
        and wrappers (`GymSource`); `ask` is called before each call of one of the environments.

        Raises UserError for an unknown id, argument or wrapper, a wrapper with running statistics,
        spaces that are not supported, or a function that returns an environment twice; EnvError if
        making an environment raises. Those that were made before are closed then.
        """
        route_mujoco_warnings()
        self._name, self.num_envs, self._ask = called(source), num_envs, ask
        self._envs: list[gymnasium.Env] = []
        with contract.closed_on_error(self.close):
            for _ in range(num_envs):
                ask()
                self._envs.append(_new(single(source), self._name))
            _check_layers(self._name, self._envs[0])
            self._initial = gym_state.initial_attributes(self._envs)
            self.spec = spaces.spec(self._name, self._envs[0])
        self._obs_shape = tuple(self._envs[0].observation_space.shape or ())
        space = self._envs[0].action_space
        self._action_shape = space.shape
        # A Box takes no numbers of a wider type than its own.
        self._half = np.dtype(np.float16) == space.dtype
        self._obs = np.zeros((num_envs, self.spec.obs_size), np.float32)
        self._seeds: list[int] = [0] * num_envs
        self._steps = 0
        self._said = False  # whether a warning said that one cannot be saved

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Reset all, as if they were new: what an environment keeps over its episodes is put back
        to what it was made with, if it can be saved.
        """
        self._seeds, self._steps = list(seeds), 0
        for i, (env, seed) in enumerate(zip(self._envs, seeds, strict=True)):
            if (initial := self._initial[i]) is not None:
                initial.restore(env)
            self._obs[i] = self._first(env, int(seed))
        return self._obs.copy()

    def follows_its_seed(self, ask: Callable[[], None]) -> bool:
        """Whether two resets with the same seed, each with a step, give the same observations, and
        leave the global generators of Python and NumPy alone; True if this cannot be told, as when
        one raises. `ask` is called before each reset.
        """
        env, initial = self._envs[0], self._initial[0]
        if initial is None:
            return True
        found, before = [], _global_generators()
        still = np.zeros((self.num_envs, self.spec.action_size), np.float32)
        for _ in range(2):
            ask()
            try:
                if not initial.restore(env):
                    return True
                found.append((self._first(env, 0), self._stepped(env, self._own(still)[0])[0]))
            except EnvError:
                return True  # a run will raise it too
        same = bool(np.array_equal(*found, equal_nan=True))
        return same and before == _global_generators()

    def _first(self, env: gymnasium.Env, seed: int | None = None) -> np.ndarray:
        """The first observation `[obs]` of a new episode."""
        self._ask()
        out = contract.ask(self._name, "reset", env.reset, seed=seed)
        return contract.first_obs(self._name, out, self._obs_shape).reshape(-1)

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        n = self.num_envs
        reward, ended, next_obs = (
            np.zeros(n, np.float32),
            np.zeros((2, n), bool),
            np.zeros_like(self._obs),
        )
        actions = self._own(actions)
        for i, env in enumerate(self._envs):
            if active is not None and not active[i]:
                continue
            obs, reward[i], ended[0, i], ended[1, i] = self._stepped(env, actions[i])
            next_obs[i] = obs
            # With `active`, as in an evaluation, no next episode is needed.
            anew = active is None and ended[:, i].any()
            self._obs[i] = self._first(env) if anew else next_obs[i]
        self._steps += 1
        return Step(reward, ended[0], ended[1], next_obs, self._obs.copy())

    def _own(self, actions: np.ndarray) -> np.ndarray:
        """The environments' own actions `[E, act]`, of their own type."""
        actions = to_environment(self.spec, actions)
        return actions.astype(np.float16) if self._half else actions

    def _stepped(self, env: gymnasium.Env, action: np.ndarray) -> tuple[np.ndarray, Any, Any, Any]:
        """(observation `[obs]`, reward, terminated, truncated) after one of its own actions."""
        shaped = action.reshape(self._action_shape)
        shaped = shaped if self._action_shape else shaped.item()
        self._ask()
        out = contract.ask(self._name, "step", env.step, shaped)
        obs, *rest = contract.outcome(self._name, out, self._obs_shape)
        return obs.reshape(-1), *rest

    def save(self) -> Any:
        return {
            "envs": [self._state(env) for env in self._envs],
            "obs": codec.encode(self._obs),
            "seeds": self._seeds,
            "steps": self._steps,
        }

    def _state(self, env: gymnasium.Env) -> Any:
        """The encoded state of one environment; None, and a warning the first time, if it cannot be
        saved.
        """
        try:
            return codec.encode(gym_state.save(env))
        except TypeError as error:
            if not self._said:
                words = "%s cannot be saved (%s): a resumed run will start a new episode"
                _log.warning(words, env.unwrapped, error)
                self._said = True
        return None

    def load(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        self._obs, self._seeds, self._steps = (
            codec.decode(state["obs"]),
            list(state["seeds"]),
            state["steps"],
        )
        anew = np.zeros(self.num_envs, bool)
        for i, (env, saved) in enumerate(zip(self._envs, state["envs"], strict=True)):
            # Also for a saved state: without a reset, Gymnasium refuses step().
            first = self._first(env, derive_seed(self._seeds[i], self._steps))
            if saved is None or self._state(env) is None:
                self._obs[i], anew[i] = first, True
            else:
                gym_state.load(env, codec.decode(saved))
        return self._obs.copy(), anew

    def close(self) -> None:
        failed = None
        for env in self._envs:
            self._ask()
            try:
                env.close()
            except contract.RAISED as error:
                failed = error
        if failed is not None:
            raise contract.raised(self._name, "close", failed) from failed


def _global_generators() -> bytes:
    """The states of the global random generators of NumPy and Python."""
    return pickle.dumps((np.random.get_state(legacy=False), random.getstate()))  # noqa: NPY002


def _new(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """The environment, if no vector was made of it before. Raises UserError otherwise: training and
    evaluation would step the same one in turn.
    """
    inner = env.unwrapped
    if id(inner) in _made:
        raise UserError(
            f"the function that makes environment {name!r} returned one that it had returned "
            "before, but several copies are needed: make a new one at each call"
        )
    _made[id(inner)] = inner
    return env


def single(source: str | Callable[[], Any] | GymSource) -> gymnasium.Env:
    """Make one environment. Raises as `GymVector` does, but does not check spaces or statistics."""
    source = source if isinstance(source, GymSource) else GymSource(source, {})
    name, kwargs = called(source), dict(source.kwargs)
    if isinstance(source.env, gymnasium.Env):
        raise UserError(
            f"env is an environment, {name}, but several copies are needed: give its id, or a "
            "function that makes one, as in `env=lambda: MyEnv()`"
        )
    try:
        if isinstance(source.env, str):
            env = gymnasium.make(source.env, **{"disable_env_checker": True, **kwargs})
        else:
            env = source.env(**kwargs)
    except gymnasium.error.Error as error:
        raise UserError(
            f"cannot make environment {name!r}: {str(error).strip().rstrip('.')}"
        ) from error
    except UserError:
        raise  # from a source that calls this function itself
    except ImportError as error:
        raise UserError(
            f"environment {name!r} needs a package that is not installed: "
            f"{str(error).split('. ')[0]}; modules are also looked for in the current folder"
        ) from error
    except contract.RAISED as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unknown and unknown[1] in kwargs:
            if unknown[1] == "render_mode":
                words = f"environment {name!r} has no picture: it takes no render_mode"
                raise UserError(words) from error
            raise UserError(
                f"environment {name!r} has no argument {unknown[1]!r}, which env_kwargs gives it; "
                "leave it out, or look up its name in the documentation of the environment"
            ) from error
        raise contract.raised(name, "its construction", error) from error
    _check_env(env, f"the function that makes environment {name!r}")
    with contract.closed_on_error(env.close):
        for text in source.wrappers:
            env = _wrapped(env, name, text)
    return env


def _check_env(env: Any, maker: str) -> None:
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"{maker} returned {type(env).__name__}, expected a gymnasium.Env")


def _wrapped(env: gymnasium.Env, name: str, text: str) -> gymnasium.Env:
    wrapper = Wrapper.parse(text)
    make = wrapper.found()
    try:
        outer = make(env, **wrapper.kwargs)
    except contract.RAISED as error:
        raise UserError(
            f"wrapper {text!r} around environment {name!r} raised {contract.said(error)}"
        ) from error
    _check_env(outer, f"wrapper {text!r}")
    return outer


def _check_layers(name: str, env: gymnasium.Env) -> None:
    """Raises UserError for wrappers that normalize by statistics of their own."""
    for layer in gym_state.layers(env):
        if isinstance(layer, _RUNNING):
            of_obs = isinstance(layer, gymnasium.wrappers.NormalizeObservation)
            instead = ", and use `normalize_observations=True`" if of_obs else ""
            raise UserError(
                f"environment {name!r} has the wrapper {type(layer).__name__}, whose running "
                "statistics differ from copy to copy of the environment, so that training and "
                f"evaluation would see different units: leave it out{instead}"
            )


class BoundAction(gymnasium.ActionWrapper):
    """Bounds the actions of an environment, for one without finite bounds, or with wider ones.

    `low` and `high` are numbers, or arrays with one entry for each action coordinate. Bounds of the
    environment that are tighter stay.

    Example:
      >>> import gymnasium, numpy as np
      >>> from preqn_jax.envs.gym import BoundAction
      >>> BoundAction(gymnasium.make("Pendulum-v1"), low=-1, high=3).action_space.high
      array([2.], dtype=float32)
    """

    def __init__(self, env: gymnasium.Env, low: Any, high: Any):
        super().__init__(env)
        inner: Any = env.action_space
        low, high = (np.broadcast_to(x, inner.shape).astype(inner.dtype) for x in (low, high))
        bounds = np.maximum(low, inner.low), np.minimum(high, inner.high)
        self.action_space = gymnasium.spaces.Box(*bounds, dtype=inner.dtype)

    def action(self, action: Any) -> Any:
        return action


class FlattenAction(gymnasium.ActionWrapper):
    """Makes the actions one vector, for an environment that takes a Dict or a Tuple of boxes."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        if not spaces.boxes(env.action_space):
            raise ValueError(
                f"the action space {env.action_space} has parts other than Boxes of floats, of "
                "which numbers could choose the first option alone: write a wrapper"
            )
        self.action_space = gymnasium.spaces.flatten_space(env.action_space)

    def action(self, action: Any) -> Any:
        return gymnasium.spaces.unflatten(self.env.action_space, action)


def route_mujoco_warnings() -> None:
    """Send MuJoCo's warnings to `logging`, instead of the console and a MUJOCO_LOG.TXT in the
    current folder.
    """

    def handler(message: str) -> None:
        # Gymnasium's own model files use this attribute; there is nothing a user could do about it.
        _log.log(
            logging.DEBUG if "settotalmass" in message else logging.WARNING, "MuJoCo: %s", message
        )

    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(handler)
