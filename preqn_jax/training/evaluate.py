"""Noiseless evaluation on environments of its own."""

from collections.abc import Callable

import jax
import numpy as np

from preqn_jax.agents import Agent
from preqn_jax.envs import VectorEnv, derive_seed
from preqn_jax.training.loop import EVAL_ENV
from preqn_jax.types import Params


def make(agent: Agent, env: VectorEnv, seeds: tuple[int, ...], episodes: int) -> Callable[[Params, int], np.ndarray]:
    """An evaluation on `env`, which holds S*episodes environments, a seed's side by side.

    Returns:
      `(actor params [S], step) -> returns [S, episodes]`. Every call starts new episodes from seeds derived of (seed, step,
      episode), so that an evaluation depends on nothing before it.
    """
    act = jax.jit(jax.vmap(jax.vmap(agent.act, in_axes=(None, 0))))

    def evaluate(actor: Params, step: int) -> np.ndarray:
        obs = env.reset([derive_seed(seed, EVAL_ENV, step, e) for seed in seeds for e in range(episodes)])
        returns, running = np.zeros(env.num_envs), np.ones(env.num_envs, bool)
        while running.any():
            action = np.asarray(act(actor, obs.reshape(len(seeds), episodes, -1)))
            out = env.step(action.reshape(env.num_envs, -1), running)
            returns += np.where(running, out.reward, 0)
            running &= ~(out.terminated | out.truncated)
            obs = out.obs
        return returns.reshape(len(seeds), episodes)

    return evaluate
