"""Collecting in worker processes is collecting in this one."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from commands import ROOT

from preqn_jax import agents, envs
from preqn_jax.training import collect, loop
from preqn_jax.training.errors import Diverged, Stopped
from preqn_jax.training.rollout import make_acting

STEPS = {"num_steps": 600, "start_steps": 50, "update_after": 100}


def recipe(env_id, algorithm="td3", **loop_fields):
    config = agents.AgentConfig(algorithm=algorithm, hidden_sizes=(32, 32))
    return collect.Recipe(
        partial(agents.make, config),
        env_id,
        loop.LoopConfig(**{**STEPS, **loop_fields}),
        eval_episodes=2,
    )


def actors(recipe):
    agent = recipe.make_agent(envs.spec(recipe.env))
    return agent.policy(jax.vmap(agent.init)(loop.keys(recipe.config.seeds)))


def processes(collector):
    return [worker.process for worker in collector._pool._workers]


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_workers_give_the_same_numbers_and_go_on_from_one_another():
    built = recipe("Hopper-v5", "sac", seeds=(3, 1, 2), num_envs=2)
    actor = actors(built)
    here, there = collect.Collector(built), collect.Collector(built, workers=2)
    rounds, states = [], []
    for i in range(4):  # the first of them at random
        rounds.append(here.collect(actor, i))
        assert_same(rounds[-1], there.collect(actor, i))
        if i == 1:
            states = [json.dumps(here.save()), json.dumps(there.save())]
    assert states[0] == states[1]
    assert {i for _, episodes in rounds[2:] for i, _ in episodes} == {0, 1, 2}
    evaluations = here.evaluate(actor, 100)
    assert_same(evaluations, there.evaluate(actor, 100))
    alive = [seed.rewards != 0 for seed in evaluations]  # Hopper pays at every step
    assert all((seed[1:] <= seed[:-1]).all() for seed in alive)
    assert len({int(n) for seed in alive for n in seed.sum(axis=0)}) > 1
    here.load(json.loads(states[1])), there.load(json.loads(states[0]))
    for process in processes(there):  # as Ctrl-C and the end of a batch job reach them
        os.kill(process.pid, signal.SIGINT), os.kill(process.pid, signal.SIGTERM)
    for i in (2, 3):
        assert_same(rounds[i], here.collect(actor, i))
        assert_same(rounds[i], there.collect(actor, i))
    ended = processes(there)
    there.close(), here.close()
    assert [process.exitcode for process in ended] == [0, 0]


def test_what_ends_a_worker_or_its_run_is_said_in_one_sentence():
    built = recipe("probe/nan", seeds=(7,), num_envs=5)
    actor = actors(built)
    collector = collect.Collector(built, workers=4)
    with pytest.raises(
        Diverged, match=r"the environment's reward is not finite at step 655, seed 7"
    ) as caught:
        for i in range(20):
            collector.collect(actor, i)
    assert (caught.value.seed, caught.value.step) == (7, 655)
    (process,) = processes(collector)
    process.kill()
    for _ in range(2):
        with pytest.raises(
            Stopped, match=r"the worker process that steps seed 7 was killed by signal 9; "
        ) as caught:
            collector.collect(actor, 3)
        assert "\n" not in str(caught.value)
    collector.close()


def test_imports_start_no_backend():
    """Or a worker, which must keep off the accelerator, would be on it before it could say so."""
    modules = "experiments.train, preqn_jax.envs.gym"
    code = (
        f"import jax, {modules}; jax.config.update('jax_platforms', 'none-such'); "
        f"print(jax.devices())"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and "none-such" in done.stderr


@pytest.mark.parametrize(
    ("cores", "seeds", "workers"), [(2, 1, 0), (2, 2, 2), (2, 5, 2), (8, 3, 3), (1, 4, 0)]
)
def test_workers_by_default(monkeypatch, cores, seeds, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert collect.default_workers(seeds) == workers


def test_fewer_than_no_workers_is_an_error():
    with pytest.raises(ValueError, match="workers is -1, but it must be at least 0"):
        collect.Collector(recipe("probe/delay"), workers=-1)


def test_every_seed_round_and_step_draws_its_own_noise():
    """Else seeds would explore alike, which no comparison of a run with itself would show."""
    config = loop.LoopConfig(num_envs=2, update_every=6)
    spec = envs.spec("probe/action")
    acting = make_acting(agents.make(agents.AgentConfig(hidden_sizes=(4,)), spec), spec, config)
    drawn = [
        acting.draw(np.uint32(seed), np.uint32(round_)) for seed in (0, 1) for round_ in (0, 1)
    ]
    keys = np.concatenate([np.asarray(keys).reshape(6, -1) for keys, _ in drawn])
    uniform = np.concatenate([np.asarray(actions).reshape(6, -1) for _, actions in drawn])
    assert len(np.unique(keys, axis=0)) == len(np.unique(uniform, axis=0)) == 2 * 2 * 6
