"""Environments as pure functions, and the vector that runs them where the loop expects one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.envs import codec, contract
from preqn_jax.envs.base import Step, scale
from preqn_jax.options import UserError
from preqn_jax.types import Array, Key, Spec

EnvState = Any


class Outcome(NamedTuple):
    """What one step of a functional environment returns beside its state."""

    reward: Array  # []
    terminated: Array | np.bool_  # [] bool


class FunctionalEnv(NamedTuple):
    """A Markov decision process as pure functions of one environment.

    reset: `key -> state`.
    step: `(state, action [act] in the spec's bounds, key) -> (state, Outcome)`.
    observe: `state -> obs [obs]`.
    time_limit: steps after which an episode is cut off (truncated, not terminated); 0 for none.
    """

    spec: Spec
    reset: Callable[[Key], EnvState]
    step: Callable[[EnvState, Array, Key], tuple[EnvState, Outcome]]
    observe: Callable[[EnvState], Array]
    time_limit: int = 0


@functools.cache
def _compiled(
    reset: Callable, step: Callable, observe: Callable, time_limit: int
) -> tuple[Callable, Callable, Callable]:
    """Start, advance and observe a vector of the environment with these functions; its other
    vectors share them.
    """

    def start(key: Key) -> tuple[EnvState, Array, Array]:
        return reset(jax.random.fold_in(key, 0)), jnp.int32(0), jnp.int32(1)

    def advance(state: tuple[EnvState, Array, Array], action: Array, key: Key):
        inner, elapsed, count = state  # steps of this episode; keys used by this environment
        inner, outcome = step(inner, action, jax.random.fold_in(key, 2 * count))
        elapsed = elapsed + 1
        truncated = (elapsed >= time_limit) & (time_limit > 0)
        ended = outcome.terminated | truncated
        fresh = reset(jax.random.fold_in(key, 2 * count + 1))
        after = jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, inner)
        state = (after, jnp.where(ended, 0, elapsed), count + 1)
        return state, (
            outcome.reward,
            outcome.terminated,
            truncated,
            observe(inner),
            observe(after),
        )

    def look(state: tuple[EnvState, Array, Array]) -> Array:
        return observe(state[0])

    return jax.jit(jax.vmap(start)), jax.jit(jax.vmap(advance)), jax.jit(jax.vmap(look))


class FunctionalVector:
    """`VectorEnv` of a functional environment; its whole state is a pytree."""

    def __init__(self, env: FunctionalEnv, num_envs: int, name: str = "FunctionalEnv"):
        """Raises UserError for sizes and bounds that make no sense, or a time limit below 0."""
        contract.check_spec(name, env.spec)
        if env.time_limit < 0:
            raise UserError(
                f"environment {name!r} has time_limit={env.time_limit}, but it must be at least 0, "
                "for none"
            )
        self.spec, self.num_envs, self._name = env.spec, num_envs, name
        self._start, self._advance, self._observe = _compiled(
            env.reset, env.step, env.observe, env.time_limit
        )
        self._state: Any = None
        self._keys: Any = None
        self._seeds: list[int] = []

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        self._seeds = [int(seed) for seed in seeds]
        self._keys = jax.vmap(jax.random.key)(jnp.asarray(self._seeds, jnp.uint32))
        self._state = self._ask("reset", self._start, self._keys)
        return self._look()

    def _ask(self, call: str, function: Callable, *given: Any) -> Any:
        """What the environment raises comes as EnvError, most of it when it is traced."""
        try:
            return function(*given)
        except contract.RAISED as error:
            raise contract.raised(self._name, call, error) from error

    def _look(self) -> np.ndarray:
        obs = np.asarray(self._ask("observe", self._observe, self._state), np.float32)
        shape = (self.num_envs, self.spec.obs_size)
        contract.check_arrays(self._name, "observe", **{"the observation": (obs, shape)})
        return obs

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        actions = scale(self.spec, actions).astype(np.float32)
        state, outcome = self._ask("step", self._advance, self._state, actions, self._keys)
        reward, terminated, truncated, next_obs, obs = (np.array(x) for x in outcome)
        n, size = self.num_envs, self.spec.obs_size
        shapes: dict[str, tuple[np.ndarray, tuple[int, ...]]] = {
            "the reward": (reward, (n,)),
            "terminated": (terminated, (n,)),
            "the observation": (next_obs, (n, size)),
        }
        contract.check_arrays(self._name, "step", **shapes)
        if active is not None:
            keep = jnp.asarray(active)
            state = jax.tree.map(
                lambda new, old: jax.vmap(jnp.where)(keep, new, old), state, self._state
            )
            reward, terminated, truncated = reward * active, terminated & active, truncated & active
            next_obs = next_obs * active[:, None]
        self._state = state
        return Step(
            reward.astype(np.float32),
            terminated.astype(bool),
            truncated,
            next_obs.astype(np.float32),
            obs.astype(np.float32),
        )

    def save(self) -> Any:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self._state)]
        return {"leaves": codec.encode(leaves), "seeds": self._seeds}

    def load(self, state: Any) -> np.ndarray:
        self.reset(state["seeds"])
        leaves = [jnp.asarray(leaf) for leaf in codec.decode(state["leaves"])]
        self._state = jax.tree.unflatten(jax.tree.structure(self._state), leaves)
        return self._look()

    def close(self) -> None:
        pass
