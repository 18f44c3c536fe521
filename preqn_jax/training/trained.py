"""What training came to: policies and critics to use, from a run at hand or from its directory."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax import agents, envs
from preqn_jax.agents import Agent
from preqn_jax.options import UserError
from preqn_jax.training import directory
from preqn_jax.types import Array, Spec


class Trained(NamedTuple):
    """An agent and its state, of all seeds."""

    agent: Agent
    states: Any  # leaves `[S, ...]`
    spec: Spec
    seeds: tuple[int, ...]
    step: int  # environment steps of each seed

    def state(self, seed: int | None = None) -> Any:
        """One seed's state; the first's if None. Raises UserError for a seed that is not there."""
        if seed is None:
            seed = self.seeds[0]
        if seed not in self.seeds:
            known = ", ".join(map(str, self.seeds))
            raise UserError(f"there is no seed {seed}; this run has {known}")
        return jax.tree.map(lambda leaf: leaf[self.seeds.index(seed)], self.states)

    def policy(self, seed: int | None = None) -> Callable[[Any], Array]:
        """`obs [obs] or [B, obs] -> action [act] or [B, act]` in the environment's own units.

        Noiseless, and compiled. Raises UserError for a seed that is not there.
        """
        params, spec, act = self.agent.policy(self.state(seed)), self.spec, self.agent.act
        low, high = (jnp.asarray(bound) for bound in (spec.action_low, spec.action_high))

        def one(obs: Array) -> Array:
            return (high + low) / 2 + (high - low) / 2 * jnp.clip(act(params, obs), -1, 1)

        policy = {1: jax.jit(one), 2: jax.jit(jax.vmap(one))}

        def checked(obs: Any) -> Array:
            obs = jnp.asarray(obs, jnp.float32)
            if obs.ndim not in (1, 2) or obs.shape[-1] != spec.obs_size:
                raise ValueError(
                    f"obs has the shape {obs.shape}, expected ({spec.obs_size},) or "
                    f"(B, {spec.obs_size})"
                )
            return policy[obs.ndim](obs)

        return checked


def load(
    logdir: str | Path,
    *,
    agent: Callable[[Spec], Agent] | None = None,
    env: envs.Source | None = None,
    trust: bool = False,
) -> Trained:
    """The newest whole checkpoint of a run directory; the run may still be going on.

    Args:
      logdir: the run directory.
      agent, env: what `train` was given, where that was no name.
      trust: import what an environment's id names, as in "module:Env-v0". A run directory may come
        from anybody, and importing a module runs it; nothing else in one is run.

    Raises:
      UserError: it is no run directory, has no whole checkpoint, its environment cannot be made, or
        names a module and `trust` is off.
    """
    logdir = Path(logdir)
    try:
        config = directory.read_config(logdir / directory.CONFIG)
    except FileNotFoundError as error:
        raise UserError(f"{str(logdir)!r} is not a run directory: it has no config.json") from error
    if env is None:
        env = directory.trusted(config["env"], f"the run {str(logdir)!r}", trust)
    spec, seeds = envs.spec(env), tuple(config["seeds"])
    made = (agent or partial(agents.make, _agent_config(config)))(spec)
    step, states = _restore(logdir, made, len(seeds))
    return Trained(made, states, spec, seeds, step)


def _agent_config(config: dict[str, Any]) -> agents.AgentConfig:
    names = {field.name for field in dataclasses.fields(agents.AgentConfig)}
    return agents.AgentConfig(**{k: _tuple(v) for k, v in config.items() if k in names})


def _restore(logdir: Path, agent: Agent, seeds: int) -> tuple[int, Any]:
    from preqn_jax.training.checkpoint import Checkpointer  # orbax takes a second to import

    folder = logdir / directory.CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"the run {str(logdir)!r} has no checkpoints")
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
    like = jax.eval_shape(jax.vmap(agent.init), keys)
    found = Checkpointer(folder, read_only=True).restore_agent(like)
    if found is None:
        raise UserError(f"the run {str(logdir)!r} has no checkpoint yet")
    return found


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
