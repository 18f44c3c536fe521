"""Trackers of a run: what they receive, and that their faults never reach training."""

import json
import os
import struct
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fabricated as made_up
import numpy as np
import pytest
from commands import CHEAP, ROOT, SMALL, call, records
from waiting import until

from experiments.kit.runs import Run
from preqn_jax.training import tracker_process, trackers
from preqn_jax.training.record import Recorder, read

# Stands in for the package, in the tracker's process: it writes down what it gets.
WANDB = """
import json, os, sys, time

class Run:
    def __init__(self, id):
        self.id = id
    def say(self, *words):
        with open(os.environ["SAID"], "a") as file:
            file.write(json.dumps([self.id, *words]) + chr(10))
    def log(self, numbers, step):
        self.say("log", step, numbers)
        %s
    def finish(self, exit_code):
        self.say("finish", exit_code)

def init(**given):
    run = Run(given["id"])
    run.say("init", {k: given[k] for k in ("project", "name", "group", "config", "dir")})
    return run
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A function that installs a stand-in for wandb, whose `log` ends with a given statement. It
    returns a function that lists what the stand-in has got so far.
    """

    def install(statement="pass"):
        folder = tmp_path / "path"
        folder.mkdir(exist_ok=True)
        (folder / "wandb.py").write_text(WANDB % statement)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("SAID", str(tmp_path / "said"))
        for name in ("WANDB_PROJECT", "WANDB_DIR"):
            monkeypatch.delenv(name, raising=False)

        def said():
            there = (tmp_path / "said").exists()
            text = (tmp_path / "said").read_text() if there else ""
            return [json.loads(line) for line in text.splitlines()]

        return said

    return install


def begin(track="wandb", start=0, seeds=(3, 1), folder="x"):
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    config = {"config": {"env": "E-v1", "seeds": list(seeds), "eta": 0.9}}
    (folder / "config.json").write_text(json.dumps(config))
    return Recorder(folder, seeds, start, track=track)


def write(recorder, steps, seeds=(3, 1)):
    for step in steps:
        for seed in seeds:
            recorder.write(step, seed, {"critic/q_mean": step + seed / 10, "x": np.nan})


def test_a_tracker_gets_every_record_by_its_name_and_goes_on_with_the_run(fake):
    said = fake()
    recorder = begin()
    write(recorder, [100, 200, 300])
    recorder.close()
    begun = {one[2]["name"]: one for one in said() if one[1] == "init"}
    assert set(begun) == {"x/seed_3", "x/seed_1"}
    three, _, told = begun["x/seed_3"]
    assert told["project"] == "preqn_jax" and told["group"] == "x"
    assert told["config"] == {"env": "E-v1", "seeds": [3, 1], "eta": 0.9, "seed": 3}
    logged = [one[2:] for one in said() if one[0] == three and one[1] == "log"]
    assert logged == [[step, {"critic/q_mean": step + 0.3}] for step in (100, 200, 300)]
    assert [one[2] for one in said() if one[1] == "finish"] == [1, 1]  # there is no DONE yet

    ids, before = {one[0] for one in said()}, len(said())
    recorder = begin(start=200)  # from the checkpoint of this step; what came later comes again
    write(recorder, [250, 300, 300, 400])
    (Path("x") / "DONE").touch()
    recorder.close()
    new = said()[before:]
    assert {one[0] for one in new} == ids  # the same runs of the tracker
    # Records may come more often now, and of two at 300 the second is new.
    assert [one[2] for one in new if one[0] == three and one[1] == "log"] == [250, 300, 400]
    assert [one[2] for one in new if one[1] == "finish"] == [0, 0]


@pytest.mark.parametrize(
    ("folder", "title"),
    [
        ("sw/eta=0.5,env=a-b,seed=3", "sw/eta=0.5,env=a-b"),
        ("sw/seed=3", "sw"),
        ("E-v1/seed=3", "E-v1/seed=3"),
        ("x/seed=3", "seed=3"),
    ],
)
def test_members_of_a_sweep_are_grouped_by_their_setting_and_others_by_their_run(folder, title):
    Path("sw").mkdir()
    Path("sw/sweep.json").touch()
    assert tracker_process._title(Path(folder), {"env": "E-v1"}) == title


# Stands in for the package: it says whether another process could have made a client just now.
MLFLOW = """
import fcntl

said = []

class entities:
    Metric = Param = tuple

class MlflowClient:
    def __init__(self):
        said.append(free())
    def update_run(self, id, status):
        said.append(free())

def free():
    try:
        with open("mlflow.lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
"""


@pytest.mark.parametrize(
    ("store", "first"), [("", False), ("sqlite:///m.db", False), ("https://m:5000", True)]
)
def test_one_tracker_at_a_time_begins_in_a_store_that_is_a_file(monkeypatch, store, first):
    """Each would make the tables of a new one, and leave it broken for all."""
    mlflow: Any = ModuleType("mlflow")
    exec(MLFLOW, mlflow.__dict__)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if store:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    tracker_process.Mlflow(Path("x"), {}, 0, "an id")
    assert mlflow.said == [first, True]


def test_what_an_earlier_version_kept_of_a_tracker_counts(monkeypatch, tmp_path):
    sent = []
    run = SimpleNamespace(id="a", log=lambda step, numbers: sent.append(step))
    monkeypatch.setitem(tracker_process.TRACKERS, "wandb", lambda *given: run)
    (tmp_path / "config.json").write_text('{"config": {}}')
    kept = {"wandb": {"0": {"id": "a", "step": 200, "records": 1}}}
    (tmp_path / "tracker.json").write_text(json.dumps(kept))
    for steps, new in (([100, 200, 200, 400], [200, 400]), ([100, 200, 200, 300, 400], [300])):
        sent.clear()
        sender = tracker_process.Sender("wandb", tmp_path)
        for step in steps:
            sender.send({"step": step, "seed": 0, "x": 1.0})
        sender.keep()
        assert sent == new


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("raise RuntimeError('the network is gone')", "RuntimeError: the network is gone"),
        ("os._exit(3)", "it ended"),
    ],
)
def test_a_tracker_that_fails_is_said_once_and_ends_nothing(fake, statement, why, caplog):
    fake(statement)
    recorder = begin()
    write(recorder, [100])
    recorder._tracker._process.wait(60)
    write(recorder, range(200, 900, 100))
    recorder.close()
    assert len(read("x/metrics.jsonl")) == 16
    assert caplog.text.count("no more records are sent to wandb: ") == 1
    assert f"{why}; the run itself is unaffected; see x/tracker.log" in caplog.text


@pytest.mark.slow
def test_a_tracker_that_hangs_holds_nothing_up(fake, caplog, monkeypatch):
    said = fake("time.sleep(1000)")
    monkeypatch.setattr(trackers, "WAIT", 0.5)
    recorder = begin()
    write(recorder, [100])
    until(lambda: any(one[1] == "log" for one in said()))
    process = recorder._tracker._process
    write(recorder, range(200, 5000, 10))
    recorder.close()
    assert process.poll() is not None and not any(one[1] == "finish" for one in said())
    assert len(read("x/metrics.jsonl")) == 2 + 2 * 480
    assert (
        caplog.text.count(
            "no more records are sent to wandb: it had not finished 0 s after the run"
        )
        == 1
    )


def test_trackers_have_the_same_time_to_end_and_not_one_after_another(monkeypatch, tmp_path):
    waits, now = [], [100.0]
    process: Any = SimpleNamespace(
        stdin=SimpleNamespace(close=lambda: None), wait=lambda limit: waits.append(limit)
    )
    monkeypatch.setattr(trackers.time, "monotonic", lambda: now[0])
    both = [trackers.Tracker("", tmp_path) for _ in range(2)]
    for one in both:
        one._process = process
        one.end()
    for one in both:
        now[0] += 45.0
        one.close()
    assert waits == [trackers.WAIT - 45, 0]


def test_a_link_in_the_place_of_what_a_tracker_keeps_is_not_followed(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {}}')
    (tmp_path / "other").write_text("years of work")
    (tmp_path / "tracker.json").symlink_to(tmp_path / "other")
    sender = tracker_process.Sender("wandb", tmp_path)
    for _ in range(2):
        sender.keep()
    assert (tmp_path / "other").read_text() == "years of work"
    assert (tmp_path / "tracker.json").read_text() == "{}"
    assert not (tmp_path / "tracker.json").is_symlink()
    assert len([*tmp_path.glob("tracker.json*")]) == 1


@pytest.mark.slow
def test_a_tracker_ends_by_itself_where_the_run_is_killed(fake):
    said = fake()
    code = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tests.training.test_trackers import begin, write
write(begin(), [100, 200])
os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{ROOT}:{ROOT}/tests"}
    subprocess.run([sys.executable, "-c", code, str(ROOT)], env=env, capture_output=True)
    until(lambda: sum(one[1] == "finish" for one in said()) >= 2)
    assert sum(one[1] == "log" for one in said()) == 4 == len(read("x/metrics.jsonl"))
    assert [one[2] for one in said() if one[1] == "finish"] == [1, 1]


@pytest.mark.slow
def test_a_run_is_the_same_with_a_tracker_and_without(fake, capsys):
    """The tracker is no setting of the run, which may also go on without it."""
    said = fake()
    args = ["--algorithm=ddpg", "--env=probe/delay", *SMALL]
    assert call(*args, "--logdir=with", "--track=wandb") == 0
    assert call(*args, "--logdir=without") == 0
    assert records("with") == records("without")
    assert (
        json.loads(Path("with/config.json").read_text())["config"]
        == (json.loads(Path("without/config.json").read_text())["config"])
    )
    logged = [{"step": one[2], "seed": 0, **one[3]} for one in said() if one[1] == "log"]
    assert logged == read("with/metrics.jsonl")
    assert said()[-1][1:] == ["finish", 0]
    assert call(*args, "--logdir=with") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_finished_run_is_sent_by_the_same_command_as_far_as_it_was_not(fake):
    args = [*CHEAP, "--env=probe/delay", "--eval_every=600", "--logdir=x", "--track=wandb"]
    made_up.begin(Run("x", Path("x"), tuple(args[:-2]), (0,), 600))
    Path("x/DONE").touch()
    said = fake()
    for more in ([], [800]):
        lines = [{"step": step, "seed": 0, "eval/return_mean": 1.0} for step in (400, 600, *more)]
        Path("x/metrics.jsonl").write_bytes(made_up.text(lines))
        for _ in range(2):  # the second has nothing left to send
            assert call(*args) == 0
    assert [one[2] for one in said() if one[1] == "log"] == [400, 600, 800]
    assert [one[2] for one in said() if one[1] == "finish"] == [0, 0]


@pytest.mark.slow
def test_so_are_the_members_of_a_finished_sweep(fake):
    said = fake()
    env = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{ROOT}"}
    command = [sys.executable, "-m", "experiments.sweep", *CHEAP, "--env=probe/delay"]
    command += ["--sweep=discount=0.5,0.9", "--logdir=s"]
    for more in ([], ["--track=wandb"], ["--track=wandb"]):
        subprocess.run([*command, *more], env=env, check=True, capture_output=True)
    made = [line for path in sorted(Path("s").glob("*/metrics.jsonl")) for line in read(path)]
    logged = [{"step": one[2], "seed": 0, **one[3]} for one in said() if one[1] == "log"]
    assert logged == made and len(made) > 10


def test_what_was_sent_is_noted_before_all_is(monkeypatch, tmp_path):
    """The process may be ended before."""
    monkeypatch.setattr(tracker_process, "time", SimpleNamespace(monotonic=count(0, 2).__next__))
    sent, noted = [], []
    sender: Any = SimpleNamespace(send=sent.append, keep=lambda: noted.append(len(sent)))
    (tmp_path / "lines").write_text("{}\n" * 3)
    with open(os.devnull) as over:
        monkeypatch.setattr(sys, "stdin", over)
        tracker_process.follow(tmp_path / "lines", sender)
    assert noted == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--track=tensorboard"], "unknown tracker 'tensorboard'; choose one of mlflow, wandb"),
        (["--track=wandb"], "track is 'wandb', which is not installed; pip install -e '.[wandb]'"),
        (
            ["--track=mlflow", "--logdir="],
            "there are no records without a run directory; add --log",
        ),
    ],
)
def test_a_tracker_that_makes_no_sense_touches_nothing(args, words, capsys, monkeypatch):
    there = {"wandb": None, "mlflow": object()}
    monkeypatch.setattr(trackers.importlib.util, "find_spec", there.get)
    assert call("--env=probe/delay", "--logdir=x", *SMALL, *args) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not Path("x").exists()


def offline(path):
    """The records in a .wandb file, which is a LevelDB log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    raw, at, part = path.read_bytes(), 7, b""
    while at < len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        part, at = part + raw[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record
            part = b""


def test_wandb_keeps_the_records_offline(monkeypatch):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    recorder = begin(seeds=(3,))
    write(recorder, [100, 200], seeds=(3,))
    recorder.close()
    assert recorder._tracker._process is None
    (path,) = Path("x/wandb").glob("offline-run-*/*.wandb")
    seen = [r.history for r in offline(path) if r.WhichOneof("record_type") == "history"]
    rows = [{"/".join(i.nested_key) or i.key: i.value_json for i in h.item} for h in seen]
    shown = [(int(row["_step"]), float(row["critic/q_mean"])) for row in rows]
    assert shown == [(100, 100.3), (200, 200.3)] and not any("x" in row for row in rows)


def store_of_mlflow(monkeypatch):
    """MLflow, and a store in a file that is not there yet."""
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    pytest.importorskip("sqlalchemy")
    store = f"sqlite:///{Path('m.db').absolute()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    return mlflow, store


@pytest.mark.slow
def test_mlflow_keeps_the_records_in_a_file(monkeypatch):
    """Also of a run that was continued."""
    mlflow, store = store_of_mlflow(monkeypatch)
    for start, steps in ((0, [100, 200]), (150, [300])):
        recorder = begin("mlflow", start, seeds=(3,))
        write(recorder, steps, seeds=(3,))
        if steps == [300]:
            Path("x/DONE").touch()
        recorder.close()
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.run_name == "x/seed_3" and run.info.status == "FINISHED"
    assert run.data.params["eta"] == "0.9" and set(run.data.metrics) == {"critic/q_mean"}
    history = client.get_metric_history(run.info.run_id, "critic/q_mean")
    assert [(one.step, one.value) for one in history] == [(s, s + 0.3) for s in (100, 200, 300)]


@pytest.mark.slow
def test_trackers_that_begin_at_once_share_a_new_store_of_mlflow(monkeypatch):
    mlflow, store = store_of_mlflow(monkeypatch)
    recorders = [begin("mlflow", seeds=(3,), folder=name) for name in "abcd"]
    for recorder in recorders:
        write(recorder, [100], seeds=(3,))
    for recorder in recorders:
        recorder.close()
    client = mlflow.MlflowClient(store)
    made = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert sorted(run.info.run_name for run in made) == [f"{name}/seed_3" for name in "abcd"]


def test_tensorboards_own_reader_reads_our_files():
    """After a run went on from a checkpoint, what came later is there once."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recorder = begin(track="")
    write(recorder, [100, 200, 300])
    recorder.close()
    time.sleep(1.1)  # tensorboard orders files by their names, which have the second
    recorder = begin(track="", start=200)
    write(recorder, [300, 400])
    recorder.close()
    for seed in (3, 1):
        events = accumulator.EventAccumulator(f"x/tensorboard/seed_{seed}").Reload()
        assert events.Tags()["scalars"] == ["critic/q_mean"]  # and nothing of what was not finite
        seen = [(one.step, one.value) for one in events.Scalars("critic/q_mean")]
        expected = [(step, np.float32(step + seed / 10)) for step in (100, 200, 300, 400)]
        assert seen == expected
