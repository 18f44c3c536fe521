"""Environments as pure functions, and `FunctionalVector`, which runs them as a `VectorEnv`."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import actions
from preqn_jax.actions import to_environment
from preqn_jax.envs import codec, contract
from preqn_jax.envs.base import EnvError, Step
from preqn_jax.options import UserError
from preqn_jax.types import KEEP_KEY_DATA, Array, Key, Spec, holds_key

EnvState = Any


class Outcome(NamedTuple):
    """What one step of a functional environment returns besides the next state."""

    reward: Array  # []
    terminated: Array | np.bool_  # [] bool


class FunctionalEnv(NamedTuple):
    """A Markov decision process as pure functions of one environment.

    reset: `key -> state`.
    step: `(state, action [act] in the spec's bounds, key) -> (state, Outcome)`; integers `[1]`
      where the spec has finitely many actions.
    observe: `state -> obs [obs]`.
    time_limit: steps after which an episode is cut off (truncated, not terminated); 0 for none.
    """

    spec: Spec
    reset: Callable[[Key], EnvState]
    step: Callable[[EnvState, Array, Key], tuple[EnvState, Outcome]]
    observe: Callable[[EnvState], Array]
    time_limit: int = 0


def of_states(reset: Callable, step: Callable, action_size: int, time_limit: int) -> FunctionalEnv:
    """An environment made of a reset and a step in the style of Brax and MuJoCo Playground, with
    actions in [-1, 1].

    reset: `key data -> state`, with `state.obs`, an array `[obs]` or a dict that holds "state".
    step: `(state, action) -> state`, with `state.reward` and `state.done` as well, which is 1
      where the task ends.
    """

    def observe(state: Any) -> Array:
        return state.obs["state"] if isinstance(state.obs, Mapping) else state.obs

    def begin(key: Key) -> EnvState:
        with allow_rank_promotion():
            return reset(jax.random.key_data(key))  # raw data: a state must not hold keys

    def advance(state: EnvState, action: Array, key: Key) -> tuple[EnvState, Outcome]:
        with allow_rank_promotion():
            after = step(state, action)
        return after, Outcome(after.reward, after.done > 0)

    obs = jax.eval_shape(lambda key: observe(begin(key)), jax.random.key(0))
    bound = np.ones(action_size)
    return FunctionalEnv(
        Spec(obs.shape[-1], action_size, -bound, bound), begin, advance, observe, time_limit
    )


def allow_rank_promotion() -> contextlib.AbstractContextManager[Any]:
    """A context in which JAX may promote ranks, as Brax and Playground need; ours does not."""
    return jax.numpy_rank_promotion("allow")


def checked(env: FunctionalEnv, name: str) -> FunctionalEnv:
    """`env` with checks: when traced, it raises EnvError for its own exceptions, shapes that do not
    fit its spec, and a state that cannot be saved. Rewards and observations become float32.

    Raises UserError for sizes and bounds that make no sense, or a time limit below 0.
    """
    actions.check(env.spec, f"environment {name!r}")
    limit = env.time_limit
    if not isinstance(limit, int | np.integer) or limit < 0:
        raise UserError(
            f"environment {name!r} has time_limit={limit}, but it must be a whole number of at "
            "least 0 (0 for no limit)"
        )

    def whole(state: EnvState, action: Array, key: Key) -> tuple[EnvState, Outcome]:
        after, (reward, terminated) = env.step(state, action, key)
        return jax.tree.map(partial(_as, name), after, state), Outcome(reward, terminated)

    def step(state: EnvState, action: Array, key: Key) -> tuple[EnvState, Outcome]:
        after, out = contract.ask(name, "step", whole, state, action, key)
        shapes = {"the reward": (out.reward, ()), "terminated": (out.terminated, ())}
        contract.check_shapes(name, "step", **shapes)
        return after, Outcome(jnp.asarray(out.reward, jnp.float32), jnp.asarray(out[1], bool))

    def observe(state: EnvState) -> Array:
        obs = contract.ask(name, "observe", env.observe, state)
        contract.check_shapes(name, "observe", **{"the observation": (obs, (env.spec.obs_size,))})
        return jnp.asarray(obs, jnp.float32)

    def reset(key: Key) -> EnvState:
        state = contract.ask(name, "reset", env.reset, key)
        if not jax.tree.leaves(state):
            raise EnvError(
                f"environment {name!r}, in reset, returned a state without an array, expected at "
                "least one, such as jnp.zeros(())"
            )
        if holds_key(state):
            raise EnvError(
                f"environment {name!r} has a random key in its state, which cannot be saved: "
                f"{KEEP_KEY_DATA}"
            )
        return state

    return env._replace(reset=reset, step=step, observe=observe)


def _as(name: str, new: Any, old: Array) -> Array:
    """An array of a state, cast to the dtype that it had after the reset. Raises EnvError for
    another shape, and if the cast would cut fractions off.
    """
    new, words = jnp.asarray(new), "a state with an array"
    contract.check_shapes(name, "step", **{words: (new, old.shape)})
    if jnp.issubdtype(new.dtype, jnp.inexact) and not jnp.issubdtype(old.dtype, jnp.inexact):
        raise EnvError(
            f"environment {name!r}, in step, returned {words} of {new.dtype}, expected {old.dtype} "
            "as from its reset: begin with floating-point numbers, such as 0.0 instead of 0"
        )
    return new.astype(old.dtype)


class Many(NamedTuple):
    """A vector of a functional environment as pure functions. Its state holds each environment's
    own state, the number of steps in its episode, and a counter for its keys.

    start: `keys -> state`, from one key for each environment.
    advance: `(state, actions in the spec's bounds, keys) -> (state, Step)`.
    observe: `state -> obs`, where to act from.
    """

    start: Callable[[Key], EnvState]
    advance: Callable[[EnvState, Array, Key], tuple[EnvState, Step]]
    observe: Callable[[EnvState], Array]


def many(env: FunctionalEnv, name: str, axes: int = 1) -> Many:
    """A vector of `env`, whose arrays have `axes` leading axes: `[E]`, or `[S, E]`."""
    env = checked(env, name)

    def each(function: Callable) -> Callable:
        for _ in range(axes):
            function = jax.vmap(function)
        return function

    fold = each(jax.random.fold_in)

    def start(keys: Key) -> EnvState:
        zeros = jnp.zeros(keys.shape, jnp.int32)
        return each(env.reset)(fold(keys, zeros)), zeros, zeros + 1

    def advance(state: EnvState, actions: Array, keys: Key) -> tuple[EnvState, Step]:
        before, elapsed, count = state
        inner, outcome = each(env.step)(before, actions, fold(keys, 2 * count))
        elapsed = elapsed + 1
        truncated = (elapsed >= env.time_limit) & (env.time_limit > 0)
        ended = outcome.terminated | truncated

        def renew(inner: EnvState) -> EnvState:
            fresh = each(env.reset)(fold(keys, 2 * count + 1))
            return jax.tree.map(partial(each(jnp.where), ended), fresh, inner)

        # A reset may cost as much as many steps, so none is computed if no episode ended.
        after = jax.lax.cond(jnp.any(ended), renew, lambda inner: inner, inner)
        see = each(env.observe)
        out = Step(outcome.reward, outcome.terminated, truncated, see(inner), see(after))
        return (after, jnp.where(ended, 0, elapsed), count + 1), out

    return Many(start, advance, lambda state: each(env.observe)(state[0]))


@functools.lru_cache(maxsize=64)  # bounded, as a program may make new environments again and again
def _compiled(env: FunctionalEnv, name: str) -> tuple[Callable, Callable, Callable]:
    """Compiled `start`, `advance`, `observe` of `Many`; vectors of one environment share them."""
    made = many(env, name)
    return jax.jit(made.start), jax.jit(made.advance), jax.jit(made.observe)


class FunctionalVector:
    """`VectorEnv` of a functional environment; its whole state is a pytree."""

    def __init__(self, env: FunctionalEnv, num_envs: int, name: str = "FunctionalEnv"):
        """Raises UserError as `checked` does."""
        self.spec, self.num_envs, self._name = env.spec, num_envs, name
        checked(env, name)
        self._start, self._advance, self._observe = _compiled(env, name)
        self._state: Any = None
        self._obs = np.zeros((num_envs, env.spec.obs_size), np.float32)
        self._keys: Any = None
        self._seeds: list[int] = []

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        self._seeds = [int(seed) for seed in seeds]
        self._keys = jax.vmap(jax.random.key)(jnp.asarray(self._seeds, jnp.uint32))
        self._state = contract.ask(self._name, "reset", self._start, self._keys)
        return self._look()

    def _look(self) -> np.ndarray:
        self._obs = np.asarray(contract.ask(self._name, "observe", self._observe, self._state))
        return self._obs

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        actions = to_environment(self.spec, actions)
        state, outcome = contract.ask(
            self._name, "step", self._advance, self._state, actions, self._keys
        )
        reward, terminated, truncated, next_obs, obs = (np.array(x) for x in outcome)
        if active is not None:
            keep = jnp.asarray(active)
            state = jax.tree.map(
                lambda new, old: jax.vmap(jnp.where)(keep, new, old), state, self._state
            )
            terminated, truncated = terminated & active, truncated & active
            reward = np.where(active, reward, 0)  # of a state that stays it may be a NaN
            next_obs = np.where(active[:, None], next_obs, 0)
        self._state, self._obs = state, obs
        return Step(reward, terminated, truncated, next_obs, obs)

    def save(self) -> Any:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self._state)]
        seen = codec.encode(self._obs)
        return {"leaves": codec.encode(leaves), "seeds": self._seeds, "seen": seen}

    def load(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        self.reset(state["seeds"])
        leaves = [jnp.asarray(leaf) for leaf in codec.decode(state["leaves"])]
        self._state = jax.tree.unflatten(jax.tree.structure(self._state), leaves)
        if "seen" in state:  # observing again, in another program, may round otherwise
            self._obs = codec.decode(state["seen"])
        else:
            self._look()
        return self._obs, np.zeros(self.num_envs, bool)

    def close(self) -> None:
        pass
