"""The training binary, as a person uses it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, SMALL, call, finished, records, start

from experiments.kit import running
from preqn_jax.training.record import read

PAPER = ["HalfCheetah-v5", "Walker2d-v5", "Hopper-v5", "Ant-v5", "Swimmer-v5"]


def test_a_run_ends_with_a_summary_a_picture_and_all_its_records(tmp_path, capsys):
    assert call("--env=Pendulum-v1", "--seeds=0,3", "--logdir=x", *SMALL) == 0
    out = capsys.readouterr().out
    assert "last three" in out and "mean alignment of updates" in out
    assert {p.name for p in Path("x").iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "curve.png",
        "DONE",
    }
    config = json.loads(Path("x/config.json").read_text())
    assert (
        config["config"]["eta"] == 0.97
        and config["config"]["seeds"] == [0, 3]
        and config["versions"]["jax"]
    )
    lines = read("x/metrics.jsonl")
    assert {line["seed"] for line in lines} == {0, 3}
    named = set().union(*lines)
    assert named >= {
        "step",
        "eval/return_mean",
        "eval/return_std",
        "eval/episodes",
        "eval/discounted_max",
        "train/return",
        "critic/q_mean",
        "critic/td_abs",
        "critic/alignment",
        "linesearch/backtracks",
        "linesearch/accepted",
        "solve/residual",
        "ntk/diagonal_mean",
        "ntk/row_ratio_mean",
        "time/steps_per_s",
        "time/updates_per_s",
    }
    assert [line["step"] for line in lines if line["seed"] == 0 and "eval/return_mean" in line] == [
        300,
        600,
    ]
    assert list(Path("x/tensorboard/seed_3").iterdir())


def test_a_finished_run_is_left_alone(capsys):
    args = ["--env=probe/delay", "--logdir=x", *SMALL]
    assert call(*args) == 0
    before = {p: p.stat().st_mtime_ns for p in Path("x").rglob("*") if p.is_file()}
    assert call(*args) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path("x").rglob("*") if p.is_file()}


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
    """Also where its former end was neither a logged nor an evaluated step."""
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


def test_a_run_cannot_be_shortened_and_one_without_checkpoints_not_extended(capsys):
    args = ["--env=probe/delay", "--logdir=x", *(arg for arg in SMALL if "num_steps" not in arg)]
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
    assert "without its checkpoints, so there is nothing to go on from" in capsys.readouterr().err
    assert Path("x/metrics.jsonl").read_bytes() == kept and Path("x/DONE").exists()


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers():
    for logdir in ("a", "b"):
        assert call("--env=Pendulum-v1", f"--logdir={logdir}", *SMALL) == 0
    assert records("a") == records("b")


def interrupted(tmp_path, env_id, strike, *extra):
    """A run that `strike` hits after its first checkpoint: its exit status, stderr, folder and
    arguments.
    """
    args = [f"--env={env_id}", "--seeds=0,1", *SMALL, *extra]
    broken = tmp_path / "broken"
    process = start(f"--logdir={broken}", *args)
    deadline = time.monotonic() + 240
    while not any(
        path.name.isdigit() for path in broken.glob("checkpoints/*")
    ):  # a name with a suffix is still being written
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    strike(process)
    code, _, err = finished(process)
    assert not (broken / "DONE").exists()
    return code, err, broken, args


def killed_and_resumed(tmp_path, env_id, how, *extra):
    """The records of a run that is stopped after its first checkpoint and run again, and of one
    that is not.
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


def children(process):
    """Process ids of the workers, and of what multiprocessing starts beside them."""
    return [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize("victim", ["command", "everyone", "worker"])
def test_a_run_with_workers_leaves_none_behind_and_goes_on_without_them(tmp_path, victim):
    started = []

    def strike(process):
        started.extend(children(process))
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
        tmp_path, "Hopper-v5", strike, "--num_steps=1200", "--workers=2"
    )
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert code == {"command": -signal.SIGKILL, "everyone": 0, "worker": 1}[victim]
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
    deadline = time.monotonic() + 240
    while not (tmp_path / "run/lock").exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.01)
    code, _, err = finished(start(f"--logdir={tmp_path / 'run'}", *args))
    assert code == 1 and f"is in use by process {first.pid} on " in err and err.count("\n") == 1
    assert finished(first)[0] == 0 and not (tmp_path / "run/lock").exists()
    assert finished(start(f"--logdir={tmp_path / 'other'}", *args))[0] == 0
    assert records(tmp_path / "run") == records(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["<&- >&- 2>&-", "2>&1 | head -1", ">/dev/full 2>&1"])
def test_training_does_not_depend_on_a_reader(tmp_path, how):
    args = ["--env=probe/delay", f"--logdir={tmp_path / 'run'}", *SMALL]
    words = " ".join([sys.executable, "-m", "experiments.train", *args, how])
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {words}"], env=env, cwd=tmp_path)
    assert ended.returncode == 0
    assert (tmp_path / "run/DONE").exists() and (tmp_path / "run/curve.png").exists()
    assert len(read(tmp_path / "run/metrics.jsonl")) == len(records(tmp_path / "run")) == 8


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--algorithm=dqm"], "unknown algorithm 'dqm' (did you mean 'dqn'?)"),
        (["--env=NoSuch-v0"], "cannot make environment 'NoSuch-v0'"),
        (["--env=CartPole-v1"], "has 2 discrete actions; use --algorithm=preqn_discrete (or dqn)"),
        (["--algorithm=dqn"], "has 1 continuous action; use --algorithm=preqn (or td3)"),
        (["--activation=swish"], "unknown activation 'swish'; choose one of relu, sin, tanh"),
        (["--solver=lu"], "unknown solver 'lu'"),
        (["--batch_size=0"], "batch_size is 0, but it must be at least 1"),
        (["--batch_size=-5"], "batch_size is -5"),
        (["--num_steps=0"], "num_steps is 0"),
        (["--num_steps=-100"], "num_steps is -100"),
        (["--critic_learning_rate=0"], "critic_learning_rate is 0.0, but it must be above 0"),
        (["--actor_learning_rate=-0.1"], "actor_learning_rate is -0.1"),
        (["--eta=1"], "eta is 1.0, but it must be above -1 and below 1"),
        (["--eta=-1.5"], "eta is -1.5"),
        (["--num_steps=150"], r"num_steps is 150, below update_after (200)"),
        (["--seeds=1,x"], "seeds is '1,x', but it must be whole numbers"),
        (["--seeds=1,1"], "each seed trains once"),
        (["--workers=-1"], "workers is -1, but it must be at least 0"),
        (["--eval_every=70"], "eval_every is 70, but it must be a multiple of update_every (50)"),
        (["--logdir=/dev/null/x"], "cannot write to logdir '/dev/null/x'"),
    ],
)
def test_a_mistake_is_one_sentence_and_touches_nothing(args, words, capsys, tmp_path):
    assert call(*["--env=probe/delay", "--logdir=x", *SMALL, *args]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and words in err and err.count("\n") == 1 and out == ""
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["--unknown_flag=1"],
        *(
            pytest.param(args, marks=pytest.mark.slow)
            for args in (["--batch_size=many"], ["--algorithm=dqn"], ["stray"])
        ),
    ],
)
def test_the_command_itself_fails_without_a_traceback(args):
    code, _, err = finished(start(*args))
    assert code != 0 and "Traceback" not in err and len(err.strip().splitlines()) <= 3
    assert any(word in err for word in ("unknown_flag", "batch_size", "dqn", "stray"))


def test_another_configuration_in_the_same_logdir_is_refused_and_the_field_is_named(capsys):
    args = ["--env=probe/delay", "--logdir=x", *SMALL]
    assert call(*args) == 0
    before = {p: p.read_bytes() for p in Path("x").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert call(*args, "--eta=0.5") == 1
    assert "holds a run with eta=0.97, but this command says 0.5" in capsys.readouterr().err
    for other in ("--workers=3", "--log_every=50", "--eval_every=600"):  # they touch no number
        assert call(*args, other) == 0
    assert before == {p: p.read_bytes() for p in Path("x").rglob("*") if p.is_file()}


def test_a_run_goes_on_with_other_records_and_learns_the_same():
    args = ["--env=probe/delay", *SMALL]
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


def test_a_folder_of_other_things_is_not_written_to(capsys):
    Path("x").mkdir()
    Path("x/thesis.tex").write_text("years of work")
    assert call("--env=probe/delay", "--logdir=x", *SMALL) == 1
    assert "holds other files and no config.json" in capsys.readouterr().err
    assert [p.name for p in Path("x").iterdir()] == ["thesis.tex"]


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(capsys):
    assert (
        call(
            "--env=probe/nan",
            "--logdir=x",
            *SMALL,
            "--checkpoint_every=100",
            "--seeds=7",
            "--log_every=200",
        )
        == 1
    )
    err = capsys.readouterr().err
    assert (
        "the environment's reward is not finite at step 131, seed 7; the checkpoint of step 100 is "
        "kept in x" in err
    )
    assert "Traceback" not in err
    assert [p.name for p in Path("x/checkpoints").iterdir()] == ["100"] and not Path(
        "x/DONE"
    ).exists()
    *before, last = read("x/metrics.jsonl")
    assert last == {"step": 131, "seed": 7, "run/diverged": 1.0, "the environment's reward": None}
    assert [line["step"] for line in before] == [100]


@pytest.mark.slow
def test_a_seed_that_diverges_is_frozen_and_no_other_is_touched(capsys, caplog):
    """Also over a stop and a resume."""
    args = [*SMALL, "--seeds=0,1,2"]
    unlucky, healthy = (f"--env=tests.faulty:{name}-v0" for name in ("Unlucky", "Endless"))
    limit = "--eval_max_steps=20"
    assert call(healthy, "--logdir=healthy", limit, *args) == 0
    assert call(unlucky, "--logdir=x", limit, *args, "--num_steps=400") == 1
    said = "the environment's reward is not finite at step 260, seed 1; this seed is frozen"
    assert caplog.text.count(said) == 1
    assert call(unlucky, "--logdir=x", limit, *args) == 1
    assert caplog.text.count(said) == 1  # it was before the resume
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


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(capsys, caplog):
    args = ["--env=Pendulum-v1", "--logdir=x", *SMALL]
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


def test_help_names_the_flags_that_matter_and_helpfull_every_flag():
    code, out, _ = finished(start("--help"))
    assert code == 0 and "--update_every" not in out and "--helpfull has all" in out
    places = [out.index(f"\n  --{name}") for name in ("algorithm", "env", "seeds", "num_steps")]
    assert places == sorted(places)
    code, out, _ = finished(start("--helpfull"))
    assert code == 0
    for name in ("algorithm", "eta", "critic_learning_rate", "seeds", "logdir", "update_every"):
        assert f"--{name}" in out or f"--[no]{name}" in out
    for words in ("What a person says of an algorithm:", "gamma", "alpha_q", "Eq. 24", "debug"):
        assert words in out


def test_a_mistyped_flag_points_to_a_help_that_lists_flags():
    code, out, err = finished(start("--num_stepz=5"))
    assert code != 0 and "num_steps" in err and "--helpfull" in err and "Traceback" not in err


def test_a_run_says_how_long_it_will_take_once_its_rate_is_known():
    """The first two rounds with updates compile; 50 steps a second from there."""
    clock = running.Clock(100_000)
    rounds = [(50, False, 0), (100, True, 90), (150, True, 99), (200, True, 100), (450, True, 105)]
    said = [clock.first_words(*one) for one in [*rounds, (500, True, 106)]]
    assert said == [None, None, None, None, "50 steps a second: about 33 minutes to go", None]
