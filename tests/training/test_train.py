"""The training command, as a user runs it."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
from commands import CHEAP, SMALL, call, defined, finished, records, start

from experiments import train
from experiments.kit import flags, running
from preqn_jax.options import UserError
from preqn_jax.training import directory
from preqn_jax.training import run as training
from preqn_jax.training.record import read

RUN = ["--env=Pendulum-v1", "--seeds=0,3", *SMALL]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a finished run, and what its command printed."""
    folder, said = tmp_path_factory.mktemp("ended") / "x", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert call(*RUN, f"--logdir={folder}") == 0
    return folder, said.getvalue()


def times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_run_ends_with_a_summary_a_picture_and_all_its_records(ended):
    folder, out = ended
    assert "last three" in out and "mean alignment of updates" in out
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "curve.png",
        "DONE",
    }
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["config"]["eta"] == 0.97
        and config["config"]["seeds"] == [0, 3]
        and config["versions"]["jax"]
    )
    lines = read(folder / "metrics.jsonl")
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
    assert list((folder / "tensorboard/seed_3").iterdir())


def test_a_finished_run_is_left_alone(ended, capsys):
    before = times(ended[0])
    assert call(*RUN, f"--logdir={ended[0]}") == 0
    assert "nothing to do" in capsys.readouterr().out and times(ended[0]) == before


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers():
    for logdir in ("a", "b"):
        assert call("--env=Pendulum-v1", f"--logdir={logdir}", *SMALL) == 0
    assert records("a") == records("b")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--algorithm=dqm"], "unknown algorithm 'dqm' (did you mean 'dqn'?)"),
        (["--env=NoSuch-v0"], "cannot make environment 'NoSuch-v0'"),
        (["--env=CartPole-v1"], "has 2 discrete actions; use --algorithm=preqn_discrete (or dqn)"),
        (["--algorithm=dqn"], "has continuous actions of size 1; use --algorithm=preqn (or td3)"),
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


def test_another_configuration_in_the_same_logdir_is_refused_and_the_field_is_named(ended, capsys):
    before = times(ended[0])
    assert call(*RUN, f"--logdir={ended[0]}", "--eta=0.5") == 1
    assert "holds a run with eta=0.97, but this command says 0.5" in capsys.readouterr().err
    for other in ("--workers=3", "--log_every=50", "--eval_every=600"):  # they change no number
        assert call(*RUN, f"--logdir={ended[0]}", other) == 0
    assert times(ended[0]) == before


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
            *CHEAP,
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
    again = ["--checkpoint_every=100", "--seeds=7", "--log_every=200"]
    assert call("--env=probe/nan", "--logdir=x", *CHEAP, *again) == 1
    assert [line["step"] for line in read("x/metrics.jsonl")] == [100, 131]


def test_help_names_the_flags_that_matter(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    defined()
    flags.run(train.main)
    out = capsys.readouterr().out
    assert "--update_every" not in out and "--helpfull shows all" in out
    places = [out.index(f"\n  --{name}") for name in ("algorithm", "env", "seeds", "num_steps")]
    assert places == sorted(places)


@pytest.mark.slow
def test_helpfull_names_every_flag():
    code, out, _ = finished(start("--helpfull"))
    assert code == 0
    for name in ("algorithm", "eta", "critic_learning_rate", "seeds", "logdir", "update_every"):
        assert f"--{name}" in out or f"--[no]{name}" in out
    for words in ("The settings of an agent", "gamma", "alpha_q", "Eq. 24", "debug"):
        assert words in out


@pytest.mark.slow
def test_a_mistyped_flag_points_to_a_help_that_lists_flags():
    code, out, err = finished(start("--num_stepz=5"))
    assert code != 0 and "num_steps" in err and "--helpfull" in err and "Traceback" not in err


def test_a_run_says_how_long_it_will_take_once_its_rate_is_known():
    """The first two rounds with updates compile; from there the rate is 50 steps a second."""
    clock = running.Clock(100_000)
    rounds = [(50, False, 0), (100, True, 90), (150, True, 99), (200, True, 100), (450, True, 105)]
    said = [clock.first_words(*one) for one in [*rounds, (500, True, 106)]]
    assert said == [None, None, None, None, "50 steps a second: about 33 minutes to go", None]


def test_a_run_that_goes_on_says_how_long_the_rest_of_it_will_take():
    clock = running.Clock(100_000)
    rounds = [(90_050, True, 0), (90_100, True, 9), (90_350, True, 14)]
    assert [clock.first_words(*one) for one in rounds][-1] == (
        "50 steps a second: about 3 minutes to go"
    )


@pytest.mark.parametrize(
    ("rounds", "asked", "words"),
    [
        (2, [], "no trace: it begins after 3 rounds with updates, but there were only 2"),
        (4, ["start", "stop"], "trace of 1 round: there"),
        (9, ["start", "stop"], "trace of 3 rounds: there"),
    ],
)
def test_a_trace_ends_with_its_run_and_says_what_it_holds(
    monkeypatch, capsys, rounds, asked, words
):
    made = []
    monkeypatch.setattr(running.jax.profiler, "start_trace", lambda folder: made.append("start"))
    monkeypatch.setattr(running.jax.profiler, "stop_trace", lambda: made.append("stop"))
    trace = running.Trace("there")
    for updates in [False, *[True] * rounds]:
        trace.round(updates)
    trace.close()
    assert made == asked and words in capsys.readouterr().err
    running.Trace("").close()
    assert capsys.readouterr().err == ""


def test_a_trace_that_cannot_be_written_ends_no_run(monkeypatch, capsys):
    def full():
        raise RuntimeError("NOT_FOUND: there; No such file or directory\n")

    monkeypatch.setattr(running.jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(running.jax.profiler, "stop_trace", full)
    trace = running.Trace("there")
    for _ in range(9):
        trace.round(True)
    trace.close()
    assert capsys.readouterr().err.splitlines() == [
        "no trace: NOT_FOUND: there; No such file or directory"
    ]
    Path("file").write_text("")
    with pytest.raises(UserError, match="cannot write 'file/trace': 'file' is no folder|/file' is"):
        running.Running(running.WatchConfig(profile="file"))


def test_a_device_without_room_is_a_sentence_with_the_checkpoint(monkeypatch, capsys):
    def follow(*_):
        raise running.jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.\nmore"
        )

    monkeypatch.setattr(running, "_follow", follow)
    assert call("--env=probe/delay", *CHEAP, "--logdir=x") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "memory: Out of memory while trying to allocate 8589934592 bytes; lower --batch" in line
    assert line.endswith("there was no checkpoint yet")
    monkeypatch.undo()
    assert (
        flags.guard(follow, []) == 1
        and "error: the device has too little" in capsys.readouterr().err
    )


def test_a_home_folder_is_meant_where_a_shell_leaves_its_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    run, *_ = flags.read(["--logdir=~/x"], *training.CONFIGS)
    assert run.logdir == "/home/me/x"


def test_checkpoints_that_cannot_be_read_hide_no_sentence(monkeypatch):
    assert call("--env=probe/delay", *CHEAP, "--logdir=x") == 0
    args = ["--env=probe/delay", *CHEAP, "--logdir=x"]
    following = running.Running()
    with (
        pytest.raises(UserError, match="^mine$"),
        training.Session(training.plan(*flags.read(args, *training.CONFIGS))) as session,
    ):
        following.take(session)
        assert following.kept() == "the checkpoint of step 600 is kept in x"
        monkeypatch.setattr(directory, "steps", lambda _: _no_more_files())
        assert following.kept() == "the list of checkpoints cannot be read (Too many open files)"
        raise UserError("mine")


def _no_more_files():
    raise OSError(24, "Too many open files")
