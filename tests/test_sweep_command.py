"""The sweep command: what it leaves, prints, and refuses; and two processes."""

import contextlib
import json
import re
import signal
import socket
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import matplotlib.pyplot as plt
import numpy as np
import pytest
from fabricated import one

from experiments import sweep as command
from experiments.judge import scores, sweep_report
from experiments.kit import flags, processes, signals
from preqn_jax.options import UserError
from preqn_jax.training import record
from preqn_jax.training import run as training
from preqn_jax.training import sweep as sweeps

SMALL = (
    *("--env=probe/delay", "--algorithm=ddpg", "--seeds=0:3", "--hidden_sizes=8,8"),
    *("--sweep=critic_learning_rate=0.001,0.01", "--sweep=discount=0.5,0.9", "--num_steps=300"),
    *("--update_after=50", "--start_steps=50", "--batch_size=8", "--eval_every=100"),
    *("--log_every=100", "--checkpoint_every=50", "--workers=0"),
)


start = partial(commands.start, module="experiments.sweep")


def sweep(*flags):
    return commands.finished(start(*flags), timeout=500)


def records(logdir):
    return {one.parent.name: commands.records(one.parent) for one in logdir.glob("*/metrics.jsonl")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("command") / "whole"
    return logdir, sweep(*SMALL, f"--logdir={logdir}", "--checkpoint_every=300")  # writes less


def test_a_sweep_leaves_runs_a_table_and_a_picture(tmp_path):
    logdir = tmp_path / "s"
    status, out, err = sweep(*SMALL, f"--logdir={logdir}", "--checkpoint_every=300", "--seeds=0,1")
    assert status == 0, err
    assert "8 members (4 settings, 2 seeds) in 1 program" in err
    assert len(records(logdir)) == 8
    summary = json.loads((logdir / "summary.json").read_text())
    assert summary["step"] == 300 and summary["seeds"] == [0, 1]
    assert summary["axes"] == {"critic_learning_rate": [0.001, 0.01], "discount": [0.5, 0.9]}
    for row in summary["settings"]:
        setting = row["setting"]
        lines = [
            line["eval/return_mean"]
            for seed in range(2)
            for line in record.read(
                logdir / f"critic_learning_rate={setting['critic_learning_rate']:g},"
                f"discount={setting['discount']:g},seed={seed}/metrics.jsonl"
            )
            if "eval/return_mean" in line
        ]
        assert row["mean"] == pytest.approx(sum(lines) / len(lines)) and row["best"] == max(lines)
    assert len(re.findall(r"^\| 0\.", out, re.M)) == 4
    assert out.split("\n")[1:-2] == (logdir / "summary.md").read_text().split("\n")[:6]
    assert (logdir / "sweep.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_report_alone_changes_no_run(whole):
    logdir, (_, out, _) = whole
    before = {path: path.stat().st_mtime_ns for path in logdir.glob("*/*")}
    assert sweep(*SMALL, f"--logdir={logdir}", "--report")[:2] == (0, out)
    assert before == {path: path.stat().st_mtime_ns for path in logdir.glob("*/*")}


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_ends_bit_for_bit(whole, tmp_path):
    """It is killed by SIGKILL, at five moments."""
    kills = 0
    while kills < 5:
        before = {*tmp_path.glob("s/*/checkpoints/[0-9]*")}
        made = start(*SMALL, f"--logdir={tmp_path}/s")
        there: set[Path] = set()
        while made.poll() is None and len(there) < 3:  # a checkpoint further in some folders
            time.sleep(0.05)
            there |= {*tmp_path.glob("s/*/checkpoints/[0-9]*")} - before
        if made.poll() is not None:
            break
        made.send_signal(signal.SIGKILL)
        made.communicate()
        kills += 1
    status, _, err = sweep(*SMALL, f"--logdir={tmp_path}/s")
    assert status == 0 and kills == 5, err
    assert records(tmp_path / "s") == records(whole[0])


def two(*flags):
    """Starts the same command in two processes that meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--timeout=200"]
    return [start(*SMALL, *flags, *where, f"--process_id={i}") for i in range(2)]


def said(err):
    return [line for line in err.splitlines() if not line.startswith("[Gloo]")]  # jaxlib's own


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_goes_on_with_what_two_left(whole, tmp_path):
    flags = [f"--logdir={tmp_path}/s"]
    ends = [commands.finished(one, 500) for one in two(*flags, "--num_steps=200")]
    (status, out, _), (other, nothing, err) = ends
    assert (status, other) == (0, 0) and "return" in out and not said(nothing), ends
    assert "process 2 of 2" in err
    status, _, err = sweep(*SMALL, *flags)
    assert status == 0 and "resuming" in err
    assert records(tmp_path / "s") == records(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_ends_takes_no_other_with_it(sent, tmp_path):
    """The first process, the coordinator, ends; the other goes on until it is asked to end."""
    both = two(f"--logdir={tmp_path}/s", "--num_steps=20000", "--eval_every=10000")
    while all(one.poll() is None for one in both) and len(records(tmp_path / "s")) < 4:
        time.sleep(0.1)
    both[0].send_signal(sent)
    status, _, err = commands.finished(both[0], 100)
    assert status == (signals.STOPPED if sent == signal.SIGTERM else -signal.SIGKILL), err
    before = both[1].poll()
    time.sleep(2)
    both[1].send_signal(signal.SIGTERM)
    other, _, err = commands.finished(both[1], 100)
    assert before is None and other == signals.STOPPED and "stopped at step" in err, err


@pytest.mark.slow
def test_where_the_first_process_cannot_begin_each_says_so_in_one_sentence(tmp_path):
    (tmp_path / "mine").write_text("")
    ends = [commands.finished(one, 200) for one in two(f"--logdir={tmp_path}")]
    sentences = ("holds other files", "has no sweep.json, which the first process writes")
    for (status, _, err), words in zip(ends, sentences, strict=True):
        (line,) = said(err)
        assert status == 1 and line.startswith("error: ") and words in line, err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--sweep=eta"], "sweep is 'eta', but an axis is a name and its values, as in --sweep="),
        (
            ["--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1", "--timeout=1"],
            "not all processes met at 127.0.0.1:9 in 1 s",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(tmp_path, flags, sentence):
    status, out, err = sweep(*SMALL, f"--logdir={tmp_path}/s", *flags)
    lines = [line for line in err.splitlines() if not line.startswith(("WARNING", "W1", "E1"))]
    assert status == 1 and not out and sentence in lines[-1] and len(lines) == 1, err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("axes", [(), ("eta=0.5,0.9",)])
def test_a_report_is_of_the_members_that_were_evaluated(axes, early, tmp_path, capsys):
    """One member has begun, but has no records or no evaluation yet; another has not begun. The
    line of the first updates, at step 100, is no part of the mean alignment.
    """
    given = ("--env=probe/delay", "--seeds=0,1,2", "--update_after=100", "--start_steps=50")
    run, agent, loop = flags.read(given, *training.CONFIGS)
    swept = sweeps.make(str(tmp_path), run, agent, loop, sweeps.axes(axes))
    *others, empty, _ = swept.members
    for member in [*others, empty]:
        (tmp_path / member.name).mkdir()
        config = {"env": "probe/delay", "algorithm": "preqn", "update_after": 100}
        config |= {"num_steps": 300, "seeds": [member.seed], **member.setting}
        (tmp_path / member.name / "config.json").write_text(json.dumps({"config": config}))
        step = lambda at, x, seed=member.seed: {"step": at, "seed": seed, "critic/alignment": x}
        lines = [step(100, 0.0), {**step(200, 0.5), "eval/return_mean": 1.0, "eval/return_std": 0}]
        there = lines if member != empty else lines[:1] * early
        text = "".join(json.dumps(line) + "\n" for line in there)
        (tmp_path / member.name / "metrics.jsonl").write_text(text)
    sweep_report.report(swept)
    err = capsys.readouterr().err
    assert all((one.name in err) == (one not in others) for one in swept.members)
    rows = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert [len(row["seeds"]) for row in rows] == ([3, 1] if axes else [1])
    assert {row["alignment"] for row in rows} == {0.5} and rows[0]["stable"] == len(
        rows[0]["seeds"]
    )
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    (tmp_path / empty.name / "DONE").touch()  # and its records are lost
    sweep_report.report(swept)
    bare, waiting = sorted(capsys.readouterr().err.splitlines())
    assert bare.startswith("finished, but metrics.jsonl is missing") and empty.name in bare
    assert waiting.startswith("not evaluated yet") and empty.name not in waiting


SWEPT = ("--env=probe/delay", "--seeds=0,1", "--hidden_sizes=8,4")


@pytest.mark.parametrize(
    ("words", "flags_", "sentence"),
    [
        ((), (), None),
        (("eta=0.5,0.9",), SWEPT, None),
        (("eta=0.5",), (), "the sweep in this logdir has eta=0.5,0.9, but this command says 0.5;"),
        ((), ("--seeds=0",), "the sweep in this logdir has seeds=0,1, but this command says 0;"),
        ((), ("--algorithm=td3",), "has algorithm='preqn', but this command says 'td3'"),
    ],
)
def test_a_report_is_of_the_whole_sweep_whatever_the_command_says(words, flags_, sentence):
    configs = flags.read(SWEPT, *training.CONFIGS)
    begun = sweeps.make("s", configs[0], configs[1], configs[2], sweeps.axes(["eta=0.5,0.9"]))
    sweeps.open_(begun)
    said = flags.given(flags_, *training.CONFIGS)
    given, axes = flags.read(flags_, *training.CONFIGS), sweeps.axes(words)
    (run, agent, loop), axes = sweeps.as_begun(Path("s"), given, axes, said)
    with pytest.raises(UserError, match=sentence) if sentence else contextlib.nullcontext():
        whole = sweeps.make("s", run, agent, loop, axes)
        sweeps.check_begun(whole)
        assert whole == begun


def test_what_is_read_of_a_sweep_names_the_folders_that_it_has():
    """A float of a million stays a float when it is read: its folder is named 1e+06."""
    configs = flags.read(SWEPT, *training.CONFIGS)
    begun = sweeps.make(
        "s", configs[0], configs[1], configs[2], sweeps.axes(["exploration_noise=1,1000000"])
    )
    sweeps.open_(begun)
    again, axes = sweeps.as_begun(Path("s"), configs, {}, ())
    whole = sweeps.make("s", again[0], again[1], again[2], axes)
    folders = [[member.name for member in each.members] for each in whole.programs]
    assert folders == [[member.name for member in each.members] for each in begun.programs]


def test_a_report_on_no_sweep_is_one_sentence():
    with pytest.raises(UserError, match="is not a sweep's file; give another"):
        sweeps.as_begun(Path("nowhere"), flags.read((), *training.CONFIGS), {}, ())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"num_processes": 2}, "but no coordinator"),
        ({"coordinator": "here", "num_processes": 2, "process_id": 0}, "it must be host:port"),
        ({"coordinator": "a:1", "num_processes": 2}, "a coordinator needs both"),
    ],
)
def test_processes_that_cannot_meet_are_one_sentence(given, sentence):
    with pytest.raises(UserError, match=sentence):
        processes.meet(processes.ProcessesConfig(**given), lambda: None)


def test_the_first_waits_as_long_as_others_record_and_no_longer(monkeypatch, capsys):
    """At nine looks something new was recorded, and then nothing."""
    now, looks, folder = [0.0], [], Path("s/seed=0")
    folder.mkdir(parents=True)
    wind = lambda seconds: now.__setitem__(0, now[0] + seconds)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=wind)
    monkeypatch.setattr(processes, "time", clock)
    config = processes.ProcessesConfig(patience=5.0)

    def left():
        looks.append(now[0])
        with (folder / "metrics.jsonl").open("a") as file:
            file.write("x" * (len(looks) < 10))
        if len(looks) in (3, 4):
            stale = OSError(116, "Stale file handle")
            raise stale if len(looks) == 3 else UserError("config.json is none") from stale
        return True

    def broken():
        raise UserError("config.json is none")

    wait = lambda left, asked: processes.wait(config, Path("s"), left, asked)
    assert wait(left, lambda: False) and not looks  # it is alone
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    assert not wait(left, lambda: False) and 10 < len(looks) < 15
    assert "the other processes recorded nothing in 5 s" in capsys.readouterr().err
    with pytest.raises(UserError):
        wait(broken, lambda: False)
    assert wait(lambda: False, lambda: False) and wait(left, lambda: True)
    assert capsys.readouterr().err == ""


def row(setting, run):
    return sweep_report.Row(setting, run, scores.performances(run))


def test_a_row_tells_the_best_evaluation_and_who_is_stable():
    """Seed 1 learns up to step 60,000, and then forgets all of it."""
    run = one(returns=lambda seed, t: 100 * (t if seed != 1 or t < 0.6 else 0.0) + seed)
    found = row({"eta": 0.5}, run)
    assert found.best == 102 and found.stable == 2


def test_a_map_has_every_setting_in_its_place():
    run, rows = one(), []
    for a in (1, 2):
        for b in (3, 4, 5):
            made = sweep_report.Row({"a": a, "b": b}, run, np.full(3, 10.0 * a + b))
            rows.append(made)
    figure, ax = plt.subplots()
    sweep_report._map(figure, ax, rows, ["a", "b"])
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), [[13, 23], [14, 24], [15, 25]])
    plt.close(figure)


@pytest.mark.parametrize("axis", ["activation=sin,relu", "discount=0.5,0.9"])
def test_the_bar_says_which_program_of_how_many_it_is_of(axis, monkeypatch):
    run, agent, loop = flags.read(["--env=probe/delay"], *training.CONFIGS)
    swept = sweeps.make("s", run, agent, loop, sweeps.axes([axis]))
    titles: list[str] = []
    monkeypatch.setattr(command.training, "Session", lambda *_: contextlib.nullcontext())
    running: Any = SimpleNamespace(
        stopping=False, hung=None, follow=lambda session, title: titles.append(title) or True
    )
    assert command._train(swept, swept.programs, running)
    numbered = [
        f"program {i} of 2: probe/delay, activation={name}" for i, name in ((1, "sin"), (2, "relu"))
    ]
    assert titles == (numbered if len(swept.programs) > 1 else ["probe/delay"])


@pytest.mark.slow
def test_one_program_of_a_sweep_may_be_trained_by_hand_and_not_by_a_report(tmp_path):
    words = [*commands.CHEAP, "--env=probe/delay", "--sweep=discount=0.5,0.9"]
    words.append(f"--logdir={tmp_path / 's'}")

    def sweep(*more):
        return commands.finished(commands.start(*words, *more, module="experiments.sweep"))

    assert sweep()[0] == 0
    code, _, err = sweep("--num_steps=900", "--only_program=0", "--report")
    assert code == 1 and err.endswith("--report trains nothing: leave out --only_program\n")
    code, _, err = sweep("--num_steps=900", "--only_program=0")
    assert code == 0 and "Traceback" not in err
    records = commands.records(tmp_path / "s" / "discount=0.5,seed=0")
    assert records[-1]["step"] == 900
