"""The agents of Stable Baselines Jax (SBX, https://github.com/araffin/sbx), set up as ours are: a
reference for our times.

SBX is not among the project's dependencies: BUILD.md, "Peers", says how to install it. Nothing of
it is imported before an agent is asked for. All agents get `hidden_sizes` for actor and critic,
even CrossQ, whose critics are 1,024 wide by default, and keep SBX's defaults in everything else.
Each runs in a process of its own: under JAX's default settings, as its users run it, or under the
settings that `experiments` chooses (`SETTINGS`).
"""

import atexit
import contextlib
import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import jax
import numpy as np

import experiments
from preqn_jax.options import UserError, choose
from preqn_jax.training import provenance
from preqn_jax.types import Spec, Transition

AGENTS = {"td3": "TD3", "sac": "SAC", "ddpg": "DDPG", "crossq": "CrossQ"}
REFERENCE = "SBX TD3"
HELP = f"agents of SBX to time beside ours, separated by commas: {','.join(AGENTS)} (default: none)"
SETTINGS = ("default", "ours")
SETTINGS_HELP = "XLA flags and threads of the agents of SBX: default (those of JAX) or ours"
# The defaults of XLA and OpenBLAS, written out because importing `experiments` would otherwise
# set something else.
_DEFAULTS = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true --xla_cpu_prefer_vector_width=256 "
    "--xla_force_host_platform_device_count=1",
    "OPENBLAS_NUM_THREADS": str(os.cpu_count()),
}


def _bare() -> dict[str, str]:
    """The environment variables, with the defaults in place of what `experiments` sets."""
    given = {"NPROC": experiments.NPROC_GIVEN} if experiments.NPROC_GIVEN else {}
    rest = {name: value for name, value in os.environ.items() if name != "NPROC"}
    return {**rest, **_DEFAULTS, **given}


def parse(flag: str, settings: str) -> list[str]:
    """The agents that a `--peers` flag names. Raises UserError for one that does not exist, and if
    SBX is not installed.
    """
    choose("peers_settings", settings, SETTINGS)
    names = [choose("peer", name.strip(), AGENTS) for name in flag.split(",") if name.strip()]
    if names:
        _sbx()
    return list(dict.fromkeys(names))


def label(name: str) -> str:
    """The name of this agent's row."""
    return f"SBX {AGENTS[name]}"


def versions() -> str:
    """The versions of SBX and of the packages it is built on, as text."""
    found = provenance.versions("sbx-rl", "stable-baselines3", "torch")
    return ", ".join(f"{package} {version}" for package, version in found.items())


def show(flag: str, settings: str) -> None:
    """Prints which SBX is timed, if a `--peers` flag names agents of it."""
    if flag:
        print(f"SBX: {versions()}; settings: {settings}")


def references(first: str, rows: Collection[str]) -> list[str]:
    """The rows that all rows are divided by: `first`, one of ours, and SBX's TD3 if it is in
    `rows`.
    """
    return [first, *({REFERENCE} & set(rows))]


def apart(
    settings: str, make: Callable[..., Callable[..., Any]], *args: Any, **kwargs: Any
) -> Callable[..., None]:
    """Makes `make(*args, **kwargs)`, a function, in a process of its own. Returns a function that
    runs it there at each call.

    `make` must be a function of a module, and its arguments must pickle. An error in that process
    is raised here, as a UserError.
    """
    ours, theirs = multiprocessing.Pipe()
    default = settings == "default"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(theirs.fileno())],
        env={**(_bare() if default else os.environ), **path},
        pass_fds=(theirs.fileno(),),
    )
    atexit.register(process.kill)
    theirs.close()
    ours.send((partial(make, *args, **kwargs), default))

    def run(*args: Any) -> None:
        try:
            ours.send(args)
            error = ours.recv()
        except (EOFError, OSError):
            error = "its process died"
        if error is not None:
            raise UserError(f"an agent of SBX cannot be timed: {error}")

    return run


def _serve(pipe: Connection) -> None:
    """The process of `apart`: it makes the function, and runs it whenever it is asked to."""
    run = None
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more
        make, default = pipe.recv()
        jax.config.update("jax_cpu_enable_async_dispatch", default)
        while True:
            args = pipe.recv()
            try:
                run = run or make()
                jax.block_until_ready(run(*args))
                pipe.send(None)
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}")


def updates(
    name: str,
    spec: Spec,
    stored: Transition,
    batch_size: int,
    hidden_sizes: tuple[int, ...],
    count: int,
) -> Callable:
    """A function that takes `count` gradient steps on minibatches from `stored` `[N]`, as SBX does
    in training.
    """
    agent = peer(
        name,
        _Still(spec),
        batch_size=batch_size,
        hidden_sizes=hidden_sizes,
        every=count,
        capacity=len(stored.reward),
    )
    agent.set_logger(importlib.import_module("stable_baselines3.common.logger").Logger(None, []))
    for obs, action, reward, discount, next_obs in zip(
        *(leaf[:, None] for leaf in stored), strict=True
    ):
        agent.replay_buffer.add(obs, next_obs, action, reward, 1 - discount, [{}])

    def run() -> Any:
        with jax.numpy_rank_promotion("allow"):
            agent.train(gradient_steps=count, batch_size=batch_size)
        return agent.policy.qf_state.params, agent.policy.actor_state.params

    for _ in range(
        agent.policy_delay
    ):  # a delay that does not divide `count` compiles a program for every remainder
        run()
    return run


def training(name: str, env_id: str, **settings: Any) -> Callable[[int], Any]:
    """A function that continues a run on `env_id` by a given number of environment steps;
    `settings` are those of `peer`.
    """
    agent = peer(name, gymnasium.make(env_id), **settings)

    def run(steps: int) -> Any:
        with jax.numpy_rank_promotion("allow"):
            agent.learn(total_timesteps=steps, reset_num_timesteps=False)
        return agent.policy.qf_state.params, agent.policy.actor_state.params

    return run


def peer(
    name: str,
    env: gymnasium.Env,
    *,
    batch_size: int,
    hidden_sizes: tuple[int, ...],
    every: int,
    capacity: int,
    learning_starts: int = 0,
) -> Any:
    """An SBX agent that takes `every` gradient steps after that many environment steps, and
    explores as ours do.
    """
    settings: dict[str, Any] = {}
    if name in ("td3", "ddpg"):  # the others' policies are stochastic
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
    """An environment that has the right sizes, but is never stepped."""

    def __init__(self, spec: Spec):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_size,))
        self.action_space = gymnasium.spaces.Box(
            np.float32(spec.action_low), np.float32(spec.action_high)
        )


def _sbx() -> Any:
    try:
        return importlib.import_module("sbx")
    except ImportError as error:
        raise UserError(
            f"--peers needs SBX, which cannot be imported ({error}); install PyTorch's CPU build "
            f"and then, in the project's "
            """folder, type: pip install -e ".[peers]" (BUILD.md, "Peers")"""
        ) from error


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
