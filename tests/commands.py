"""Starts the project's commands as a user would, for tests."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

from absl import flags as absl_flags
from absl.testing import flagsaver

from experiments import train
from experiments.kit import flags
from experiments.kit.running import WatchConfig
from preqn_jax.training import run as training
from preqn_jax.training.record import read

ROOT = Path(__file__).parent.parent
SMALL = [
    "--hidden_sizes=16,16",
    "--num_steps=600",
    "--start_steps=100",
    "--update_after=200",
    "--batch_size=16",
    "--eval_every=300",
    "--eval_episodes=2",
    "--log_every=100",
    "--checkpoint_every=200",
    "--workers=0",
]
# For tests that any algorithm will do for: DDPG compiles in a third of PreQN's time.
CHEAP = ["--algorithm=ddpg", *SMALL]


def defined():
    """Defines the flags of experiments.train, as its command does, unless they exist already."""
    if "algorithm" not in absl_flags.FLAGS:
        flags.define(*training.CONFIGS, WatchConfig)


def call(*args):
    """Calls `main` of experiments.train in this process, with errors handled as on the command
    line.
    """
    defined()
    with flagsaver.flagsaver():
        absl_flags.FLAGS(["train", *args])
        return flags.guard(train.main, ["train"])


def call_other(module, config, *args):
    """Likewise calls `main` of another command, with flags kept apart: other commands have an --out
    too, and a process has a single set of flags.
    """
    values = absl_flags.FlagValues()
    flags.define(config, values=values)
    rest = values([module.__name__, *args])
    with mock.patch.object(flags, "parse", partial(flags.parse, values=values)):
        return flags.guard(module.main, rest)


def start(*args, module="experiments.train", cwd=ROOT, **options):
    """Starts a command as a process of its own, with these `options` of Popen."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=env, **pipes, **options)


def finished(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def records(logdir):
    """The lines of metrics.jsonl, without measured times."""
    return [
        {k: v for k, v in line.items() if not k.startswith("time/")}
        for line in read(Path(logdir) / "metrics.jsonl")
    ]
