"""Collecting in worker processes gives the same as collecting in this process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT
from waiting import gone, until

from collect_cases import actors, error_of, recipe
from preqn_jax import agents, envs
from preqn_jax.envs import EnvError, derive_seed
from preqn_jax.options import UserError
from preqn_jax.training import collect, loop, watch
from preqn_jax.training.config import EVAL_ENV, TRAIN_ENV
from preqn_jax.training.errors import Stopped
from preqn_jax.training.rollout import Rollout, discounted_max, make_acting
from tests import faulty


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
    assert {i for _, episodes, _ in rounds[2:] for i, _ in episodes} == {0, 1, 2}
    evaluations = here.evaluate(actor, 100)
    assert_same(evaluations, there.evaluate(actor, 100))
    alive = [seed.rewards != 0 for seed in evaluations]  # Hopper pays at every step
    assert all((seed[1:] <= seed[:-1]).all() for seed in alive)
    assert len({int(n) for seed in alive for n in seed.sum(axis=0)}) > 1
    here.load(json.loads(states[1])), there.load(json.loads(states[0]))
    for process in processes(there):  # as at Ctrl-C, or at the end of a batch job
        os.kill(process.pid, signal.SIGINT), os.kill(process.pid, signal.SIGTERM)
    for i in (2, 3):
        assert_same(rounds[i], here.collect(actor, i))
        assert_same(rounds[i], there.collect(actor, i))
    ended = processes(there)
    there.close(), here.close()
    assert [process.exitcode for process in ended] == [0, 0]


@pytest.mark.slow
def test_what_ends_a_worker_or_its_run_is_said_in_one_sentence():
    built = recipe("probe/nan", seeds=(7,), num_envs=5)
    actor = actors(built)
    collector = collect.Collector(built, workers=4)
    diverged = [error for i in range(14) for _, error in collector.collect(actor, i)[2]]
    assert [str(error) for error in diverged] == [
        "the environment's reward is not finite at step 655, seed 7"
    ]
    assert (diverged[0].seed, diverged[0].step) == (7, 655)
    assert collector.collect(actor, 14, frozen=(0,)) == (None, [], [])
    (process,) = processes(collector)
    process.kill()
    for _ in range(2):
        with pytest.raises(
            Stopped, match=r"the worker process that steps seed 7 was killed by signal 9; "
        ) as caught:
            collector.collect(actor, 3)
        assert "\n" not in str(caught.value)
    collector.close()


@pytest.mark.slow
def test_a_script_that_its_workers_run_as_well_is_told_so(tmp_path):
    """A script that trains when it is imported, as each worker process does."""
    options = "env='probe/delay', workers=1, update_after=100, start_steps=50"
    text = f"import preqn_jax\nfor done in preqn_jax.train({options}): pass\n"
    (tmp_path / "own.py").write_text(text)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "own.py")]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    *_, last = ended.stderr.splitlines()
    assert ended.returncode == 1 and "ended with status 1 before its first step" in last
    assert """under `if __name__ == "__main__":`, because workers import it; `workers=0`""" in last


def test_imports_start_no_backend():
    """Else a worker process, which must not use the accelerator, would have one before it can say
    so.
    """
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
    assert collect.default_workers(seeds, collect.cores()) == workers


def test_fewer_than_no_workers_is_an_error():
    with pytest.raises(ValueError, match="workers is -1, but it must be at least 0"):
        collect.Collector(recipe("probe/delay"), workers=-1)


def test_every_seed_round_and_step_draws_its_own_noise():
    """Else all seeds would explore alike, which no comparison of a run with itself would show."""
    config = loop.LoopConfig(num_envs=2, update_every=6)
    spec = envs.spec("probe/action")
    acting = make_acting(agents.make(agents.AgentConfig(hidden_sizes=(4,)), spec), spec, config)
    drawn = [
        acting.draw(np.uint32(seed), np.uint32(round_)) for seed in (0, 1) for round_ in (0, 1)
    ]
    keys = np.concatenate([np.asarray(keys).reshape(6, -1) for keys, _ in drawn])
    uniform = np.concatenate([np.asarray(actions).reshape(6, -1) for _, actions in drawn])
    assert len(np.unique(keys, axis=0)) == len(np.unique(uniform, axis=0)) == 2 * 2 * 6


def test_rows_of_the_actors_stay_as_they_are_whatever_becomes_of_the_actors():
    """The actors' parameters may be the learner's own arrays, which are later donated."""
    params = {"w": jnp.arange(600.0).reshape(3, 200), "b": jnp.arange(3.0)}
    expected = jax.tree.map(np.array, params)
    collector: Any = SimpleNamespace(_members=2)
    first, none = collect.Collector._arguments(collector, params, 7, (1,))
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(params)
    assert none is None and first is not None and first[1] == 7
    assert_same(first[0], {"w": expected["w"][0], "b": expected["b"][0]})


def test_an_episode_that_begins_anew_on_going_on_brings_no_return_with_it():
    env: Any = SimpleNamespace(
        reset=lambda seeds: np.zeros((2, 1)),
        save=lambda: {},
        load=lambda state: (np.ones((2, 1)), np.array([True, False])),
    )
    config = loop.LoopConfig(num_envs=2)
    one = Rollout(None, env, None, config, 0, 10, watch.nowhere())  # pyright: ignore
    one._returns += 80
    one.load(one.save())
    assert one._returns.tolist() == [0, 80] and one._obs.tolist() == [[1], [1]]


# --- faults of environments -----------------------------------------------------------------------


def test_what_an_environment_raises_is_said_with_step_and_seed_and_its_trace_is_kept(tmp_path):
    log = tmp_path / "environment.log"
    error = error_of(recipe("tests.faulty:Raise-v0", seeds=(7,), num_envs=5), log)
    assert str(error) == (
        "environment 'tests.faulty:Raise-v0', in step, raised ValueError: no such joint "
        f"(step {5 * faulty.AT}, seed 7); its traceback is in {log}"
    )
    assert "in throw\n    raise error\nValueError: no such joint\nas the second" in log.read_text()
    error_of(recipe("tests.faulty:Construct-v0"), log)
    error_of(recipe("tests.faulty:Four-v0"), log)  # it has no traceback of its own
    assert log.read_text().count("Traceback") == 2


def test_a_log_that_is_a_link_or_cannot_be_written_costs_no_more_than_the_trace(tmp_path):
    (tmp_path / "other").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    for log in (tmp_path / "link", tmp_path / "nowhere" / "log"):
        error = error_of(recipe("tests.faulty:ResetRaise-v0", seeds=(7,)), log)
        assert str(error).endswith("in reset, raised KeyError: 'joint' (step 0, seed 7)")
    assert (tmp_path / "other").read_text() == "years of work"


@pytest.mark.parametrize("fault", ["Broken", "Ended", "Construct"])
@pytest.mark.slow
def test_a_worker_says_of_an_environment_what_this_process_would(fault, tmp_path):
    """Also of an OSError, which must not be taken for the end of the worker's pipe."""
    built = recipe(f"tests.faulty:{fault}-v0", seeds=(7,))
    here, there = tmp_path / "here", tmp_path / "there"
    error = error_of(built, there, workers=1)
    assert type(error) is EnvError
    assert str(error) == str(error_of(built, here)).replace(str(here), str(there))
    assert "Traceback" in there.read_text() and "in throw\n    raise error" in there.read_text()


def test_what_cannot_be_sent_to_workers_is_said_before_any_starts():
    with pytest.raises(UserError, match=r"cannot be sent to worker processes .*`workers=0`"):
        collect.Collector(recipe(lambda: faulty.Faulty()), workers=2)


@pytest.mark.parametrize("env_id", ["NoSuchEnv-v5", "tests.faulty:Construct-v0"])
def test_a_collector_that_cannot_be_made_leaves_no_watch(env_id, monkeypatch):
    closed, real = [], watch.Watch.close
    monkeypatch.setattr(watch.Watch, "close", lambda self: (closed.append(self), real(self)))
    with pytest.raises(UserError):
        collect.Collector(recipe(env_id))
    assert len(closed) == 1


def test_closing_one_that_raises_is_a_warning(caplog, tmp_path):
    collect.Collector(recipe("tests.faulty:Close-v0"), log=tmp_path / "log").close()
    assert "in close, raised RuntimeError: closed twice; its traceback is in" in caplog.text
    assert "RuntimeError: closed twice" in (tmp_path / "log").read_text()


def test_an_evaluation_that_does_not_end_is_cut_off_and_says_so_once(caplog):
    built = recipe("tests.faulty:Endless-v0")._replace(eval_max_steps=7)
    collector = collect.Collector(built)
    for step in (100, 200):
        (evaluation,) = collector.evaluate(actors(built), step)
        assert evaluation.rewards.shape == (7, 2) and (evaluation.rewards == 1).all()
        assert evaluation.cut.all() and not evaluation.terminated.any()
        assert (evaluation.lengths == 7).all()
    assert [record.getMessage() for record in caplog.records] == [
        "2 of the evaluation's episodes had not ended after 7 steps, at step 100, and were cut "
        "off: they count as truncated (eval_max_steps)"
    ]
    healthy = recipe("probe/time-limit")
    (evaluation,) = collect.Collector(healthy).evaluate(actors(healthy), 100)
    assert not evaluation.cut.any() and len(caplog.records) == 1


@pytest.mark.parametrize("fault", ["EvalNan", "EvalNanObs"])
def test_a_nan_that_only_an_evaluation_meets_is_in_its_return(fault, caplog):
    built = recipe(f"tests.faulty:{fault}-v0")
    collector = collect.Collector(built)
    (first,), (second,) = (collector.evaluate(actors(built), step) for step in (100, 200))
    assert (first.rewards == 1).all()
    at = 2 if fault == "EvalNan" else 3  # the observation is what the step before returned
    assert np.isnan(second.rewards[at]).all() and np.isfinite(second.rewards[:at]).all()
    assert np.isnan(discounted_max(second, 0.9)) and np.isfinite(discounted_max(first, 0.9))
    assert "2 of the evaluation's episodes met a NaN" in caplog.text


class Strict(faulty.Faulty):
    """Has a NaN in the rounds of seed 1, and in one episode of its evaluation at step 100; it
    refuses actions that are not in its space.
    """

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        bad = (TRAIN_ENV, 0), (EVAL_ENV, 100, 1)
        self.fault = "NanObs" if seed in [derive_seed(1, *words) for words in bad] else ""
        return super().reset(seed=seed)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(action)


def test_a_nan_is_one_also_where_the_environment_refuses_the_action_after_it():
    built = recipe(Strict, seeds=(0, 1))._replace(eval_max_steps=270)
    collector, actor = collect.Collector(built), actors(built)
    assert not any(collector.collect(actor, i)[2] for i in range(5))
    transitions, _, ((member, error),) = collector.collect(actor, 5)
    assert member == 1 and str(error) == (
        "the environment's observation is not finite at step 260, seed 1"
    )
    assert transitions is not None and np.isfinite(transitions.action[0]).all()
    well, other = collector.evaluate(actor, 100)
    assert well is not None and other is not None
    assert well.returns.tolist() == [270, 270] and well.lengths.tolist() == [270, 270]
    assert other.returns[0] == 270 and np.isnan(other.returns[1])
    assert other.lengths.tolist() == [270, 261] and other.cut.tolist() == [True, False]


def test_a_nan_from_a_reset_is_one():
    class Born(Strict):
        def reset(self, *, seed=None, options=None):
            return faulty.OBS * np.nan, {}

    built = recipe(Born, seeds=(4,), start_steps=0)
    collector = collect.Collector(built)
    transitions, _, ((member, error),) = collector.collect(actors(built), 0)
    assert transitions is None and member == 0
    assert str(error) == "the environment's observation is not finite at step 1, seed 4"
    (evaluation,) = collector.evaluate(actors(built), 100)
    assert np.isnan(evaluation.returns).all() and (evaluation.lengths == 1).all()


def test_an_environment_that_hangs_is_named(tmp_path):
    built = recipe("tests.faulty:Wait-v0", seeds=(7,))._replace(env_timeout=1.0)
    told = []
    faulty.RELEASED.clear()

    def hung(error):
        told.append(str(error))
        if "from step" in told[-1]:  # and not making it, on a slow machine
            faulty.RELEASED.set()

    collector = collect.Collector(built, log=tmp_path / "log", hung=hung)
    actor = actors(built)
    for i in range(6):
        collector.collect(actor, i)
    collector.close()
    assert told and told[-1] == (
        "environment 'tests.faulty:Wait-v0' has not returned from step for 1 seconds (step 260, "
        "seed 7); if it needs more time, use `env_timeout=2`; its traceback is in "
        f"{tmp_path / 'log'}"
    )
    assert "RELEASED.wait(120)" in (tmp_path / "log").read_text()


class Broadcasts(gymnasium.Env):
    """Computes with JAX; its rewards show whether JAX has float64 on."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.asarray(jnp.ones((2, 3)) * jnp.ones(3), np.float32)[0], {}  # this promotes a rank

    def step(self, action):
        wide = jnp.asarray(np.ones(1)).dtype == jnp.float64
        return self.reset()[0], float(wide), False, False, {}


def test_an_environment_may_let_jax_promote_ranks():
    built = recipe(Broadcasts, seeds=(4,))
    transitions, *_ = collect.Collector(built).collect(actors(built), 0)
    assert (transitions.obs == 1).all() and (transitions.reward == 0).all()


@pytest.mark.slow
def test_workers_do_as_jax_was_told_in_this_process(x64):
    built = recipe(Broadcasts, seeds=(4,))
    with contextlib.closing(collect.Collector(built, workers=1)) as collector:
        assert (collector.collect(actors(built), 0)[0].reward == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["Hang", "Spin"])
def test_a_worker_whose_environment_hangs_is_named_and_ended(fault, tmp_path):
    built = recipe(f"tests.faulty:{fault}-v0", seeds=(7,))._replace(env_timeout=20.0)
    error = error_of(built, tmp_path / "log", workers=1)
    assert "has not returned from step for 20 seconds (step 260, seed 7)" in str(error)
    assert "tests/faulty.py" in (tmp_path / "log").read_text()


ORPHANS = """
import os, sys
from functools import partial
from tests.training import test_collect as here
if __name__ == "__main__":
    built = here.recipe("tests.faulty:Hang-v0", seeds=(7, 8))
    collector = here.collect.Collector(built, workers=2)
    print(*(process.pid for process in here.processes(collector)), flush=True)
    for i in range(6):
        print(i, flush=True)
        collector.collect(here.actors(built), i)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize("rounds", [1, 6])
def test_workers_end_with_a_parent_that_is_killed(rounds, tmp_path):
    """As they start, and while an environment hangs without giving other threads a turn."""
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/training"}
    parent = subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    for _ in range(rounds):
        parent.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):  # it hangs, or its workers are starting
        parent.wait(1)
    parent.kill()
    parent.wait()
    until(lambda: gone(pids))
