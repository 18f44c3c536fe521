"""The agents of Stable Baselines Jax (SBX, https://github.com/araffin/sbx), set up as ours are: what our figures stand beside.

SBX is not among the project's dependencies: BUILD.md, "Peers", says how to install it. Nothing of it is imported before an
agent is asked for. All agents get `hidden_sizes` for actor and critic, CrossQ too, whose critics are 1,024 wide by default, and
keep SBX's defaults in everything else.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np

from preqn_jax.options import UserError, choose
from preqn_jax.types import Spec, Transition

AGENTS = {"td3": "TD3", "sac": "SAC", "ddpg": "DDPG", "crossq": "CrossQ"}
REFERENCE = "SBX TD3"
HELP = f"agents of SBX to time beside ours, with commas between: {','.join(AGENTS)} (default: none)"


def parse(flag: str) -> list[str]:
    """The agents that a `--peers` flag names. Raises UserError for one that does not exist, and if SBX is not installed."""
    names = [choose("peer", name.strip(), AGENTS) for name in flag.split(",") if name.strip()]
    if names:
        _sbx()
    return list(dict.fromkeys(names))


def label(name: str) -> str:
    """What a row of this agent is called."""
    return f"SBX {AGENTS[name]}"


def versions() -> str:
    """SBX and what it stands on."""
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("sbx-rl", "stable-baselines3", "torch"))


def updates(name: str, spec: Spec, stored: Transition, batch_size: int, hidden_sizes: tuple[int, ...], count: int) -> Callable:
    """A function that takes `count` gradient steps on minibatches from `stored` `[N]`, as SBX's training does."""
    agent = make(name, _Still(spec), batch_size=batch_size, hidden_sizes=hidden_sizes, every=count, capacity=len(stored.reward))
    agent.set_logger(importlib.import_module("stable_baselines3.common.logger").Logger(None, []))
    for obs, action, reward, discount, next_obs in zip(*(leaf[:, None] for leaf in stored), strict=True):
        agent.replay_buffer.add(obs, next_obs, action, reward, 1 - discount, [{}])

    def run() -> Any:
        with jax.numpy_rank_promotion("allow"):
            agent.train(gradient_steps=count, batch_size=batch_size)
        return agent.policy.qf_state.params, agent.policy.actor_state.params

    for _ in range(agent.policy_delay):  # a delay that does not divide `count` compiles a program for every remainder
        run()
    return run


def training(name: str, env_id: str, **settings: Any) -> Callable[[int], Any]:
    """A function that goes on with a run on `env_id` for so many environment steps; `settings` are those of `make`."""
    agent = make(name, gymnasium.make(env_id), **settings)

    def run(steps: int) -> Any:
        with jax.numpy_rank_promotion("allow"):
            agent.learn(total_timesteps=steps, reset_num_timesteps=False)
        return agent.policy.qf_state.params, agent.policy.actor_state.params

    return run


def make(
    name: str,
    env: gymnasium.Env,
    *,
    batch_size: int,
    hidden_sizes: tuple[int, ...],
    every: int,
    capacity: int,
    learning_starts: int = 0,
) -> Any:
    """An SBX agent that takes `every` gradient steps after as many environment steps, and explores as ours do."""
    settings: dict[str, Any] = {}
    if name in ("td3", "ddpg"):  # the others' policies are random
        size = int(np.prod(env.action_space.shape or ()))
        noise = importlib.import_module("stable_baselines3.common.noise").NormalActionNoise
        settings["action_noise"] = noise(np.zeros(size), np.full(size, 0.1))
    with jax.numpy_rank_promotion("allow"):
        return getattr(_sbx(), AGENTS[name])(
            "MlpPolicy",
            env,
            batch_size=batch_size,
            policy_kwargs={"net_arch": list(hidden_sizes)},
            train_freq=every,
            gradient_steps=every,
            buffer_size=capacity,
            learning_starts=learning_starts,
            seed=0,
            **settings,
        )


class _Still(gymnasium.Env):
    """The sizes of an environment, never stepped."""

    def __init__(self, spec: Spec):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_size,))
        self.action_space = gymnasium.spaces.Box(np.float32(spec.action_low), np.float32(spec.action_high))


def _sbx() -> Any:
    try:
        return importlib.import_module("sbx")
    except ImportError as error:
        raise UserError(
            f"--peers needs SBX, which cannot be imported ({error}); install PyTorch's CPU build and then, in the project's "
            """folder, type: pip install -e ".[peers]" (BUILD.md, "Peers")"""
        ) from error
