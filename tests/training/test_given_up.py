"""An evaluation that was given up, because the run was to stop, is made first when the run
continues.
"""

import gc
import json
import weakref
from typing import Any

import jax
import numpy as np
import pytest
from commands import CHEAP, call, records

import preqn_jax
from preqn_jax import agents
from preqn_jax.training import run as training
from preqn_jax.training import workers
from preqn_jax.training.config import LoopConfig, RunConfig
from preqn_jax.training.session import Session

LOOP = {"start_steps": 20, "update_after": 20, "update_every": 20, "batch_size": 8}
LOOP |= {"seeds": (0, 1), "num_steps": 120, "replay_capacity": 200}
EVERY = {"eval_every": 40, "log_every": 20, "checkpoint_every": 1000, "eval_episodes": 1}


def trained(logdir, env, give_up: tuple[int, ...] = (), **fields) -> Any:
    """The states at the end of a run that is stopped in its evaluations at these steps."""
    run = RunConfig(env=env, logdir=str(logdir), **EVERY, **fields)
    plan = training.plan(run, agents.AgentConfig("ddpg", hidden_sizes=(8,)), LoopConfig(**LOOP))
    for step in (*give_up, None):
        session: Any
        with Session(plan) as session:
            real = session._evaluate

            def evaluate(at, members=None, step=step, session=session, real=real):
                session.stopping = at == step
                return real(at, members)

            session._evaluate = evaluate
            seen = [progress.step for progress in session.rounds()]
            assert session.finished == (step is None)
            if step is not None:
                assert session.kept[-1] == step and step not in seen
            states = jax.device_get(session.trained().states)
    return states


@pytest.mark.parametrize(
    ("env", "fields"),
    [
        ("Pendulum-v1", {"workers": 0}),
        ("native/pendulum", {"on_device": True}),
        pytest.param("Pendulum-v1", {"workers": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_in_an_evaluation_is_one_that_never_was(
    tmp_path, monkeypatch, env, fields
):
    monkeypatch.setattr(workers, "_LOOK", 0)
    whole = trained(tmp_path / "whole", env, **fields)
    parts = trained(tmp_path / "parts", env, (40, 80, 120), **fields)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    told = records(tmp_path / "whole")
    assert told == records(tmp_path / "parts")
    assert sum("eval/return_mean" in line for line in told) == 6


def test_an_evaluation_that_is_not_recorded_comes_once(tmp_path):
    run = RunConfig(env="probe/delay", logdir=str(tmp_path / "x"), workers=0, **EVERY)
    plan = training.plan(run, agents.AgentConfig("ddpg", hidden_sizes=(8,)), LoopConfig(**LOOP))
    with Session(plan) as session:
        for progress in session.rounds():
            session.stopping = progress.step == 40  # once it is recorded
    trained(tmp_path / "x", "probe/delay", (80,), workers=0)
    steps = [line["step"] for line in records(tmp_path / "x") if "eval/return_mean" in line]
    assert steps == [40, 40, 80, 80, 120, 120]


def test_a_finished_run_of_before_an_option_has_nothing_to_do(tmp_path, capsys):
    where = f"--logdir={tmp_path / 'x'}"
    assert call("--env=probe/delay", *CHEAP, where) == 0
    path = tmp_path / "x" / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["diagnose_every"]
    path.write_text(json.dumps(content))
    assert call("--env=probe/delay", *CHEAP, where) == 0
    assert "holds a finished run of this command; nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("env", ["probe/delay", "native/pendulum"])
def test_a_run_that_is_over_is_gone_with_all_its_arrays(env, monkeypatch):
    """Immediately, as the next run may need their memory."""
    made, init = [], Session.__init__

    def noted(self, *given):
        init(self, *given)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Session, "__init__", noted)
    gc.collect()
    gc.disable()
    try:
        for _ in preqn_jax.train("ddpg", env, hidden_sizes=(8,), **{**LOOP, "num_steps": 40}):
            pass
        assert len(made) == 1 and made[0]() is None
    finally:
        gc.enable()
