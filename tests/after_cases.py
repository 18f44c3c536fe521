"""A small run directory, for tests of what users do with one after training."""

from dataclasses import replace
from pathlib import Path

import fabricated
import pytest

from preqn_jax import agents, envs
from preqn_jax.training import loop
from preqn_jax.training import run as training
from preqn_jax.training.checkpoint import Checkpointer
from preqn_jax.training.config import LoopConfig, RunConfig
from preqn_jax.training.trained import Trained

STEP = 100


def write_run(path, env, seeds=(0, 1)):
    """Writes the directory of a run whose agents have learned nothing yet, with made-up records.
    Returns what `load` should return for it.
    """
    path = Path(path)
    config = LoopConfig(seeds, num_steps=STEP, update_after=50, replay_capacity=50)
    run = RunConfig(env, str(path), eval_every=50, log_every=50, checkpoint_every=50)
    plan = training.plan(run, agents.AgentConfig(hidden_sizes=(8, 8)), config)
    spec = envs.spec(env)
    agent = plan.make_agent(spec)
    learner, counters = loop.init(agent, spec, config)
    lines = [
        {
            "step": step,
            "seed": seed,
            "critic/alignment": 0.9,
            "eval/return_mean": step + 10.0 * seed,
        }
        for step in (50, STEP)
        for seed in seeds
    ]
    fabricated.put(path, plan.described, lines)
    learner = replace(learner, replay=replace(learner.replay, added=learner.replay.added + 1))
    Checkpointer(path / "checkpoints").save(STEP, learner, counters, [], {})
    return Trained(agent, learner.agent, spec, seeds, STEP, plan.described)


@pytest.fixture(scope="session")
def reacher(tmp_path_factory):
    """(a run directory, what `load` should return for it), with episodes of 50 steps."""
    path = tmp_path_factory.mktemp("after") / "reacher"
    return path, write_run(path, "Reacher-v5")
