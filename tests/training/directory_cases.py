"""A run directory as a run leaves it, without training one."""

import os
from pathlib import Path

from fabricated import text

import preqn_jax
from preqn_jax.training import directory
from preqn_jax.training import run as training
from preqn_jax.training.config import LoopConfig, RunConfig

RUN = training.plan(
    RunConfig(env="probe/delay", checkpoint_every=600),
    preqn_jax.agents.AgentConfig(),
    LoopConfig(num_steps=10_000),
).described
LINES = [{"step": s, "seed": 0, "critic/q_mean": s / 3, "x": None} for s in range(100, 600, 100)]
EVALUATED = {"step": 10_000, "seed": 0, "eval/return_mean": 1.5}


def open_(folder="x", **changes):
    """Opens a run directory, and releases its lock."""
    directory.open_(folder, {**RUN, **changes})[1].release()


def begun(folder="x", lines=LINES, **changes):
    open_(folder, **changes)
    (Path(folder) / "metrics.jsonl").write_bytes(text(lines))
    return Path(folder)


def contents(folder):
    return {
        path: os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in Path(folder).rglob("*")
    }
