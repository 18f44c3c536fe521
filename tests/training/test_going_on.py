"""A run that is stopped, killed, damaged or made longer ends as one that never was."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from commands import CHEAP, ROOT, SMALL, call, finished, records, start
from waiting import children, gone, until

import preqn_jax
from experiments.kit.signals import STOPPED
from preqn_jax import agents
from preqn_jax.training import directory, folder
from preqn_jax.training import run as training
from preqn_jax.training.config import LoopConfig, RunConfig
from preqn_jax.training.record import read
from preqn_jax.training.session import Session

PAPER = ["HalfCheetah-v5", "Walker2d-v5", "Hopper-v5", "Ant-v5", "Swimmer-v5"]


@pytest.mark.parametrize(
    ("env_id", "first", "more"),
    [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("probe/delay", 450, ()),
            ("probe/delay", 400, ()),
            ("Pendulum-v1", 450, ()),
            ("CartPole-v1", 450, ("--algorithm=preqn_discrete", "--normalize_observations")),
            ("tabular/chain", 450, ("--algorithm=dqn", "--double_q")),
        )
    ],
)
def test_a_run_that_is_extended_equals_one_that_was_longer_from_the_start(
    env_id, first, more, capsys
):
    """Even if its former end was neither a logged nor an evaluated step."""
    args = [
        f"--env={env_id}",
        *more,
        "--seeds=0,1",
        *(arg for arg in SMALL if "num_steps" not in arg and "log_every" not in arg),
    ]
    args += ["--log_every=200", "--diagnose_every=100"]
    assert call("--logdir=a", f"--num_steps={first}", *args) == 0
    assert call("--logdir=a", "--num_steps=800", *args) == 0
    assert f"resuming a at step {first}" in capsys.readouterr().err
    assert (
        json.loads(Path("a/config.json").read_text())["config"]["num_steps"] == 800
        and Path("a/DONE").exists()
    )
    assert call("--logdir=b", "--num_steps=800", *args) == 0
    assert records("a") == records("b")
    assert (
        call(
            "--logdir=b",
            "--num_steps=800",
            "--checkpoint_every=100",
            *(a for a in args if "checkpoint" not in a),
        )
        == 0
    )


@pytest.mark.slow
def test_a_run_cannot_be_shortened_and_one_without_checkpoints_not_extended(capsys):
    args = ["--env=probe/delay", "--logdir=x", *(arg for arg in CHEAP if "num_steps" not in arg)]
    assert call("--num_steps=600", *args) == 0
    files = {p: p.read_bytes() for p in Path("x").rglob("*") if p.is_file()}
    assert call("--num_steps=400", *args) == 1
    assert (
        "num_steps=600, but this command says 400; a run can be made longer, not shorter"
        in capsys.readouterr().err
    )
    assert files == {p: p.read_bytes() for p in Path("x").rglob("*") if p.is_file()}
    shutil.rmtree("x/checkpoints")
    kept = Path("x/metrics.jsonl").read_bytes()
    assert call("--num_steps=800", *args) == 1
    assert "without its checkpoints, so it cannot be made longer" in capsys.readouterr().err
    assert Path("x/metrics.jsonl").read_bytes() == kept and Path("x/DONE").exists()


def interrupted(tmp_path, env_id, strike, *extra):
    """A run that `strike` interrupts after its first checkpoint: its exit status, stderr, folder
    and arguments.
    """
    args = [f"--env={env_id}", "--seeds=0,1", *SMALL, *extra]
    broken = tmp_path / "broken"
    process = start(f"--logdir={broken}", *args)
    until(lambda: directory.steps(broken / "checkpoints"), process=process)
    strike(process)
    code, _, err = finished(process)
    assert not (broken / "DONE").exists()
    return code, err, broken, args


def killed_and_resumed(tmp_path, env_id, how, *extra):
    """The records of a run that is stopped after its first checkpoint and continued, and those of a
    run that is not stopped.
    """
    code, err, broken, args = interrupted(
        tmp_path, env_id, lambda process: process.send_signal(how), *extra
    )
    if how == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 75 and re.search(
            r"stopped at step \d+; the same command goes on from there", err
        )
    return resumed_and_straight(tmp_path, broken, args)


def resumed_and_straight(tmp_path, broken, args):
    code, _, err = finished(start(f"--logdir={broken}", *args))
    assert code == 0 and "resuming" in err, err
    assert (broken / "DONE").exists()
    straight = tmp_path / "straight"
    code, _, err = finished(start(f"--logdir={straight}", *args))
    assert code == 0, err
    return records(broken), records(straight)


@pytest.mark.slow
def test_kill_9_and_again_is_bit_for_bit_the_run_that_was_never_killed(tmp_path):
    resumed, straight = killed_and_resumed(tmp_path, "Ant-v5", signal.SIGKILL)
    assert resumed == straight


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_the_run_goes_on_bit_for_bit(tmp_path):
    resumed, straight = killed_and_resumed(tmp_path, "Hopper-v5", signal.SIGTERM, "--algorithm=td3")
    assert resumed == straight


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize("victim", ["command", "everyone", "worker"])
def test_a_run_with_workers_leaves_none_behind_and_goes_on_without_them(tmp_path, victim):
    started = []

    def strike(process):
        started.extend(children(process))  # also what multiprocessing starts beside the workers
        workers = [
            pid
            for pid in started
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(workers) == 2
        if victim == "command":
            process.kill()
        elif victim == "everyone":
            for pid in (*started, process.pid):
                os.kill(pid, signal.SIGTERM)
        else:
            os.kill(workers[1], signal.SIGKILL)

    code, err, broken, args = interrupted(
        tmp_path, "Hopper-v5", strike, "--num_steps=3000", "--workers=2"
    )
    until(lambda: gone(started))
    assert code == {"command": -signal.SIGKILL, "everyone": STOPPED, "worker": 1}[victim]
    if victim == "everyone":
        assert "stopped at step" in err and "Traceback" not in err
    if victim == "worker":
        assert re.search(
            r"error: the worker process that steps seed 1 was killed by signal 9; .* is kept in",
            err,
        )
        assert "Traceback" not in err
    resumed, straight = resumed_and_straight(tmp_path, broken, [*args, "--workers=0"])
    assert resumed == straight


@pytest.mark.slow
@pytest.mark.parametrize("env_id", PAPER)
def test_kill_9_on_every_environment_of_the_paper(tmp_path, env_id):
    resumed, straight = killed_and_resumed(
        tmp_path,
        env_id,
        signal.SIGKILL,
        "--num_steps=3000",
        "--update_after=200",
        "--checkpoint_every=700",
        "--num_envs=2",
    )
    assert resumed == straight


@pytest.mark.slow
def test_the_same_command_twice_loses_nothing(tmp_path):
    args = ["--env=probe/delay", *SMALL, "--num_steps=3000"]
    first = start(f"--logdir={tmp_path / 'run'}", *args)
    until((tmp_path / "run/lock").exists, process=first)
    code, _, err = finished(start(f"--logdir={tmp_path / 'run'}", *args))
    assert code == 1 and f"is in use by process {first.pid} on " in err and err.count("\n") == 1
    assert finished(first)[0] == 0 and not (tmp_path / "run/lock").exists()
    assert finished(start(f"--logdir={tmp_path / 'other'}", *args))[0] == 0
    assert records(tmp_path / "run") == records(tmp_path / "other")


@pytest.mark.slow
def test_a_run_goes_on_with_other_records_and_learns_the_same():
    args = ["--env=probe/delay", *CHEAP]
    assert call("--logdir=x", *args, "--num_steps=400") == 0
    others = ["--log_every=50", "--eval_every=150", "--diagnose_every=150"]
    assert call("--logdir=x", *args, *others) == 0
    assert call("--logdir=y", *args) == 0
    (x, y) = (read(f"{run}/metrics.jsonl") for run in "xy")
    (of_x, of_y) = (
        {line["step"]: line["eval/return_mean"] for line in lines if "eval/return_mean" in line}
        for lines in (x, y)
    )
    assert sorted(of_x) == [300, 450, 600] and sorted(of_y) == [300, 600]
    assert of_x[600] == of_y[600]
    assert [line["step"] for line in x if "diagnose/q_mean" in line] == [450, 600]
    of_x, of_y = (
        {line["step"]: line["critic/q_mean"] for line in lines if "critic/q_mean" in line}
        for lines in (x, y)
    )
    assert np.isclose((of_x[550] + of_x[600]) / 2, of_y[600], rtol=1e-6)
    assert json.loads(Path("x/config.json").read_text())["config"]["log_every"] == 50


@pytest.mark.slow
def test_a_seed_that_diverges_is_frozen_and_no_other_is_touched(capsys, caplog):
    """Also if the run is stopped and continued."""
    args = [*SMALL, "--seeds=0,1,2"]
    unlucky, healthy = (f"--env=tests.faulty:{name}-v0" for name in ("Unlucky", "Endless"))
    limit = "--eval_max_steps=20"
    assert call(healthy, "--logdir=healthy", limit, *args) == 0
    assert call(unlucky, "--logdir=x", limit, *args, "--num_steps=400") == 1
    said = "the environment's reward is not finite at step 260, seed 1; this seed is frozen"
    assert caplog.text.count(said) == 1
    assert call(unlucky, "--logdir=x", limit, *args) == 1
    assert caplog.text.count(said) == 1  # only before the resume
    out = capsys.readouterr().out
    assert "seed 1 diverged at step 260, where the environment's reward was not finite" in out
    others = lambda logdir: [line for line in records(logdir) if line["seed"] != 1]
    assert others("x") == others("healthy")
    mine = [line for line in records("x") if line["seed"] == 1]
    assert mine[-1] == {
        "step": 260,
        "seed": 1,
        "run/diverged": 1.0,
        "the environment's reward": None,
    }
    assert call(unlucky, "--logdir=x", limit, *args) == 1 and Path("x/DONE").exists()
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(capsys, caplog):
    args = ["--env=Pendulum-v1", "--logdir=x", *CHEAP]
    assert call(*args) == 0
    expected = records("x")
    Path("x/DONE").unlink()
    for path in Path("x/checkpoints/600").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert call(*args) == 0
    assert "the checkpoint of step 600 cannot be read" in caplog.text
    assert "resuming x at step 400" in capsys.readouterr().err
    assert records("x") == expected


@pytest.mark.parametrize(
    ("line", "pending", "eval_every", "stays"),
    [
        ({"time/steps_per_s": 1.0}, [], 100, True),
        ({"time/steps_per_s": 1.0}, [{}], 100, False),  # only the end's: the interval continues
        ({"eval/return_mean": 1.0}, [{}], 100, True),
        ({"eval/return_mean": 1.0}, [], 150, False),
        ({"critic/q_mean": 1.0}, [{}], 100, False),  # of a divergence that will come again
        ({"diagnose/failure": 0}, [], 150, True),
        ({"run/diverged": 1.0}, [], 150, True),
    ],
)
def test_of_the_step_it_goes_on_from_a_run_keeps_what_belongs_to_it(
    line, pending, eval_every, stays
):
    now: Any = SimpleNamespace(start=200, pending=pending, config=SimpleNamespace(num_steps=400))
    assert Session._stays(now, eval_every, {"step": 200, "seed": 0, **line}) is stays
    assert Session._stays(now, eval_every, {"step": 199, "seed": 0, **line})


@pytest.mark.slow
def test_regular_lines_stay_where_a_run_goes_on_with_other_records():
    small = {"hidden_sizes": (8, 8), "start_steps": 50, "update_after": 50, "batch_size": 8}
    run = partial(preqn_jax.train, "ddpg", "probe/delay", logdir="x", eval_episodes=1, **small)
    list(run(num_steps=200, log_every=100, eval_every=100))
    before = records("x")
    list(run(num_steps=300, log_every=150, eval_every=150))
    after = records("x")
    assert after[: len(before)] == before and {line["step"] for line in after} == {100, 200, 300}


@pytest.mark.slow
def test_a_break_at_a_checkpoint_writes_it_once(monkeypatch):
    saved, real = [], folder.Folder.save
    monkeypatch.setattr(folder.Folder, "save", lambda *a: (saved.append(a[1]), real(*a)))
    small = {"hidden_sizes": (8, 8), "start_steps": 50, "update_after": 50, "batch_size": 8}
    for stop in (100, 150):
        run = preqn_jax.train(
            "ddpg", "probe/delay", logdir="x", num_steps=300, checkpoint_every=100, **small
        )
        for progress in run:
            if progress.step == stop:
                break
        run.close()
    assert saved == [100, 150]


def test_a_run_that_is_stopped_between_rounds_keeps_the_one_at_hand():
    agent, small = agents.AgentConfig("ddpg", hidden_sizes=(8, 8)), {"batch_size": 8}
    loop = LoopConfig(num_steps=300, start_steps=50, update_after=50, **small)
    run = RunConfig("probe/delay", "x", workers=0, checkpoint_every=300, eval_every=300)
    for stop, there in ((100, []), (200, [100])):
        with Session(training.plan(run, agent, loop)) as session:
            assert session.kept == there  # even before its environments are made
            for progress in session.rounds():
                session.stopping = progress.step == stop
            assert progress.step == stop
        assert directory.steps(Path("x/checkpoints"))[-1:] == [stop]


def test_numbers_of_numpy_are_numbers():
    small = {"hidden_sizes": np.array([8, 8]), "start_steps": np.int64(50), "update_after": 50}
    run = preqn_jax.train(
        "ddpg",
        "probe/delay",
        logdir="x",
        seeds=np.arange(2),
        num_steps=np.int32(100),
        batch_size=np.uint8(8),
        critic_learning_rate=np.float64(0.25),
        **small,
    )
    assert [progress.step for progress in run][-1] == 100
    config = directory.read_config(Path("x/config.json"))
    assert config["seeds"] == [0, 1] and config["critic_learning_rate"] == 0.25


@pytest.mark.parametrize(
    "name",
    ["jax_enable_x64", pytest.param("jax_threefry_partitionable", marks=pytest.mark.slow)],
)
def test_a_run_that_jax_would_go_on_with_by_other_numbers_is_refused(name, capsys):
    assert call("--env=probe/delay", *CHEAP, "--logdir=x", "--num_steps=400") == 0
    kept, begun = Path("x/config.json").read_bytes(), getattr(jax.config, name)
    capsys.readouterr()
    jax.config.update(name, not begun)
    try:
        assert call("--env=probe/delay", *CHEAP, "--logdir=x") == 1
    finally:
        jax.config.update(name, begun)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"says {name}={begun}, but here it is {not begun}" in line
    assert f"set {name.upper()}={begun}, or" in line and Path("x/DONE").exists()
    assert Path("x/config.json").read_bytes() == kept
    assert call("--env=probe/delay", *CHEAP, "--logdir=x") == 0


@pytest.mark.slow
def test_a_run_that_a_script_leaves_open_is_saved_as_it_ends(tmp_path):
    small = {"hidden_sizes": (8,), "start_steps": 20, "update_after": 20, "update_every": 20}
    small |= {"batch_size": 8, "eval_every": 1000, "log_every": 20, "num_steps": 1000}
    small |= {"checkpoint_every": 500, "logdir": str(tmp_path / "x")}
    script = (
        "import preqn_jax\n"
        f"run = preqn_jax.train('ddpg', 'probe/delay', **{small!r})\n"
        "for progress in run:\n    if progress.step == 100: break\n"
        "import multiprocessing\n"
        "child = multiprocessing.get_context('fork').Process(target=print)\n"
        "child.start(), child.join(60)\n"
        "assert child.exitcode == 0\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "ignored" not in done.stderr
    assert [path.name for path in (tmp_path / "x" / "checkpoints").iterdir()] == ["100"]
