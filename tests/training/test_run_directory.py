"""The run directory under faults: its files, and what is refused, with which message."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from commands import SMALL, call_other
from fabricated import text

import preqn_jax
from directory_cases import EVALUATED, LINES, RUN, begun, contents, open_
from experiments import diagnose
from experiments.kit import curves
from preqn_jax.options import UserError
from preqn_jax.training import directory, files, provenance, record
from preqn_jax.training import run as training
from preqn_jax.training.config import LoopConfig, RunConfig
from preqn_jax.training.errors import Stopped

PROBE = ["--env=probe/delay", "--logdir=x", *SMALL]


# --- what is refused ------------------------------------------------------------------------------


def broken_config(content):
    def damage(folder):
        (folder / "config.json").write_bytes(content)

    return damage


def instead(name, how):
    def damage(folder):
        path = folder / name
        path.is_file() and path.unlink()
        path.mkdir() if how == "folder" else path.write_text("")

    return damage


def done(content):
    def damage(folder):
        (folder / "DONE").touch()
        path = folder / "metrics.jsonl"
        path.unlink() if content is None else path.write_bytes(content)

    return damage


def beyond(folder):
    (folder / "metrics.jsonl").write_bytes(text([*LINES, {"step": 700, "seed": 0}]))


NONE = "config.json is not a run's config.json"
DAMAGES = {
    "bytes": (broken_config(b"\xff\xfe{"), NONE),
    "no JSON": (broken_config(b'{"config": {'), NONE),
    "empty": (broken_config(b""), NONE),
    "null": (broken_config(b"null"), NONE),
    "a list": (broken_config(b"[1]"), NONE),
    "null inside": (broken_config(b'{"config": null}'), NONE),
    "a list inside": (broken_config(b'{"config": []}'), NONE),
    "nothing inside": (broken_config(b'{"config": {}}'), NONE),
    "deep": (broken_config(b'{"config": ' + b"[" * 100_000), NONE),
    "a type": (
        broken_config(json.dumps({"config": {**RUN, "seeds": None}}).encode()),
        r"is not a run's config.json \(seeds is None\)",
    ),
    "another type": (
        broken_config(json.dumps({"config": {**RUN, "eta": "x"}}).encode()),
        r"\(eta is 'x'\)",
    ),
    **{
        f"no {name}": (
            broken_config(json.dumps({"config": {k: RUN[k] for k in RUN if k != name}}).encode()),
            NONE,
        )
        for name in ("algorithm", "num_steps")
    },
    "config.json a folder": (instead("config.json", "folder"), "config.json' should be a file"),
    "checkpoints a file": (instead("checkpoints", "file"), "checkpoints' should be a folder"),
    "tensorboard a file": (instead("tensorboard", "file"), "tensorboard' should be a folder"),
    "metrics a folder": (instead("metrics.jsonl", "folder"), "metrics.jsonl' should be a file"),
    "DONE a folder": (instead("DONE", "folder"), "DONE' should be a file"),
    "DONE, no metrics": (done(None), "a finished run without its records"),
    "DONE, empty metrics": (done(b""), "a finished run without its records"),
    "DONE, other metrics": (done(text(LINES)), "a finished run without its records"),
    "records, no checkpoints": (beyond, "holds records to step 700 without their checkpoints"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_no_run_leaves_is_refused_in_a_sentence_and_stays(name):
    damage, words = DAMAGES[name]
    folder = begun()
    damage(folder)
    before = contents(folder)
    with pytest.raises(UserError, match=words) as caught:
        open_()
    assert "\n" not in str(caught.value) and contents(folder) == before


@pytest.mark.parametrize(
    "name",
    ["bytes", "null inside", "config.json a folder", "a type", "no algorithm", "no num_steps"],
)
def test_readers_refuse_it_in_a_sentence_as_well(name):
    folder = begun()
    DAMAGES[name][0](folder)
    for reader in (curves.load, preqn_jax.load):
        with pytest.raises(UserError, match=r"is not a run's config\.json"):
            reader(folder)


def test_a_finished_run_with_its_records_is_accepted():
    folder = begun(lines=[*LINES, EVALUATED])
    (folder / "DONE").touch()
    before = contents(folder)
    open_()
    assert contents(folder) == before


def test_a_finished_run_needs_the_records_of_all_its_seeds(monkeypatch):
    monkeypatch.setitem(RUN, "seeds", [0, 1])
    folder = begun(lines=[*LINES, EVALUATED])
    (folder / "DONE").touch()
    with pytest.raises(UserError, match="a finished run without its records"):
        open_()
    early = {**EVALUATED, "seed": 1, "step": 5000}
    for other, whole in ((early, False), ({**EVALUATED, "seed": 1}, True)):
        (folder / "metrics.jsonl").write_bytes(text([*LINES, EVALUATED, other]))
        with contextlib.nullcontext() if whole else pytest.raises(UserError, match="incomplete"):
            open_()


def test_a_finished_run_without_its_checkpoints_keeps_its_records():
    small = {"hidden_sizes": (4,), "start_steps": 50, "update_after": 50, "batch_size": 4}
    small |= {"num_steps": 100, "eval_every": 100, "eval_episodes": 1, "logdir": "run"}
    list(preqn_jax.train("ddpg", "probe/delay", **small))
    shutil.rmtree("run/checkpoints")
    before = Path("run/metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds a finished run without its checkpoints"):
        list(preqn_jax.train("ddpg", "probe/delay", **small))
    assert Path("run/metrics.jsonl").read_bytes() == before


def test_a_finished_seed_that_diverged_needs_no_last_evaluation(monkeypatch):
    monkeypatch.setitem(RUN, "seeds", [0, 1])
    last = {"step": 300, "seed": 1}
    folder = begun(lines=[EVALUATED, {**last, "run/diverged": 1.0}])
    (folder / "DONE").touch()
    before = contents(folder)
    open_()
    assert contents(folder) == before
    (folder / "metrics.jsonl").write_bytes(text([EVALUATED, {**last, "critic/q_mean": 1.0}]))
    with pytest.raises(UserError, match="a finished run without its records"):
        open_()


def test_a_run_that_cannot_be_made_longer_stays_finished(monkeypatch):
    """If there is no room for its new config.json. Only once its checkpoint is read is it longer,
    and what made it before is kept.
    """
    folder, longer = begun(lines=[*LINES, EVALUATED]), {**RUN, "num_steps": 20_000}
    (folder / "DONE").touch(), (folder / "checkpoints" / "10000").mkdir(parents=True)
    before, settle = contents(folder), os.fsync

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        directory.go_on(folder, longer)
    assert contents(folder) == before
    monkeypatch.setattr(os, "fsync", settle)
    open_(num_steps=20_000)
    assert contents(folder) == before
    first = json.loads((folder / "config.json").read_text())
    directory.go_on(folder, longer)
    assert not (folder / "DONE").exists()
    found = json.loads((folder / "config.json").read_text())
    assert found["config"] == longer and found["versions"] == first["versions"]
    del first["config"]
    assert found["earlier"] == [{"num_steps": 10_000, **first}]
    directory.go_on(folder, {**longer, "num_steps": 30_000})
    found = json.loads((folder / "config.json").read_text())
    assert [one["num_steps"] for one in found["earlier"]] == [10_000, 20_000]
    shutil.rmtree(folder / "checkpoints")  # as of seeds that join: records come first
    directory.go_on(folder, {**longer, "num_steps": 40_000})


@pytest.mark.parametrize("fault", ["checkpoint", "environment"])
def test_a_longer_run_that_is_refused_leaves_the_finished_one_as_it_was(fault, monkeypatch):
    small = {"start_steps": 50, "update_after": 50, "batch_size": 8, "hidden_sizes": (8, 8)}
    small |= {"eval_every": 100, "eval_episodes": 1, "logdir": "run"}
    train = lambda steps: list(preqn_jax.train("ddpg", "probe/delay", num_steps=steps, **small))
    train(100)
    if fault == "checkpoint":
        for file in Path("run/checkpoints/100").rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    before = contents("run")
    with monkeypatch.context() as broken:
        if fault == "environment":

            def refuse(*_):
                raise UserError("cannot be read: no such joint")

            broken.setattr(training.Session, "begin", refuse)
        with pytest.raises(UserError, match="be read"):
            train(150)
    assert contents("run") == before
    assert directory.finished(Path("run"), 100) and not directory.finished(Path("run"), 150)


@pytest.mark.parametrize("left", ["config.json.0123abcd.tmp", "lock", "config.tmp"])
def test_what_a_kill_leaves_before_config_json_is_accepted(left):
    Path("x").mkdir()
    (Path("x") / left).write_text("{")
    open_()
    assert json.loads(Path("x/config.json").read_text())["config"] == RUN


def test_what_another_takes_away_as_we_look_is_not_missed(monkeypatch):
    """Such as its lock, or a temporary file that has replaced a file."""
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: [*listed(path), path / "config.json.tmp"])
    open_()
    assert json.loads(Path("x/config.json").read_text())["config"] == RUN


# --- links ----------------------------------------------------------------------------------------

LINKS = [
    *("config.json", "metrics.jsonl", "metrics.damaged.jsonl", "DONE", "lock", "curve.png"),
    *("tensorboard", "checkpoints", "tensorboard/seed_0", "checkpoints/600"),
]


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_refused_and_not_followed(name, dangling):
    folder, outside = begun(), Path("outside")
    if not dangling:
        outside.mkdir() if "." not in name else outside.write_text("years of work")
    files.remove(folder / name)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside.absolute())
    before = contents(".")
    with pytest.raises(UserError, match=rf"'x/{name}' is a symbolic link"):
        open_()
    assert contents(".") == before


def test_a_link_in_the_place_of_a_file_that_is_written_is_not_followed():
    outside = Path("outside")
    outside.write_text("years of work")
    folder = begun()
    (folder / "metrics.damaged.jsonl").symlink_to(outside.absolute())
    (folder / "metrics.jsonl").write_bytes(b"broken\n")
    with pytest.raises(Stopped, match=r"cannot write x/metrics\.jsonl"):
        record.Recorder(folder, (0,), 200)
    assert outside.read_text() == "years of work"
    (folder / "link.json").symlink_to(outside.absolute())
    files.replace(folder / "link.json", b"{}")
    assert outside.read_text() == "years of work" and not (folder / "link.json").is_symlink()


def test_one_number_is_taken_where_there_may_be_several():
    run, agent, loop = training.configs(
        "ddpg", "E-v1", "", {"seeds": 3, "hidden_sizes": 64, "num_steps": 1e6}
    )
    assert (loop.seeds, agent.hidden_sizes, run.wrappers) == ((3,), (64,), ())
    with pytest.raises(UserError, match="wrappers has 3, but a wrapper is given as module"):
        list(preqn_jax.train("ddpg", wrappers=3))
    assert loop.num_steps == 1_000_000 and isinstance(loop.num_steps, int)


# --- a directory from a stranger ------------------------------------------------------------------


def test_a_module_that_only_a_run_names_is_not_imported(tmp_path, capsys, monkeypatch):
    report = partial(call_other, diagnose, diagnose.DiagnoseConfig)
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("q_mean", "soft_divergence", "linearization_error", "gain", "extrapolation")
    numbers = {f"diagnose/{name}": 0.5 for name in (*names, "alignment", "q_largest")}
    looks = [{"step": 100, "seed": 0, **numbers}]
    folder = begun(lines=looks, env="evil:E-v0", seeds=[0])
    (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match="whose module would be imported and run"):
        preqn_jax.load(folder)
    capsys.readouterr()
    assert report("x") == 0  # everything that does not need the environment
    out = capsys.readouterr().out
    assert (
        "transitions that moved Q cannot be named: the run 'x' names the environment 'evil:E-v0'"
        in out
    )
    assert "say --trust=True" in out and not Path("executed").exists()
    assert json.loads((folder / "diagnosis.json").read_text())["attribution"] == []
    assert report("x", "--trust") == 0  # it holds no such environment
    assert "cannot make environment" in capsys.readouterr().out and Path("executed").exists()


def test_a_run_says_which_command_and_commit_made_it(monkeypatch, tmp_path):
    open_()
    made = json.loads(Path("x/config.json").read_text())
    program, *words = sys.orig_argv
    assert made["command"] == [Path(program).name, *words]
    assert made["commit"] == provenance.commit() and provenance.commit.cache_info().misses <= 1
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    package = tmp_path / "preqn_jax" / "training" / "provenance.py"
    package.parent.mkdir(parents=True)
    package.touch()
    monkeypatch.setattr(provenance, "__file__", str(package))
    asked = provenance.commit.__wrapped__  # it looks once in a process
    assert asked() is None  # installed
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = asked()
    assert clean and len(clean) == 40
    package.write_text("changed")
    assert asked() == f"{clean}-dirty"
    monkeypatch.setenv("PATH", "")
    assert asked() is None  # no git


# --- runs of before -------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["preqn", "crossq"])
def test_a_run_of_before_a_setting_there_is_now_had_what_its_algorithm_has(algorithm):
    config = preqn_jax.agents.AgentConfig(algorithm=algorithm)
    now = training.plan(RunConfig(env="probe/delay"), config, LoopConfig()).described
    directory.open_("x", now)[1].release()
    path = Path("x") / "config.json"
    told = json.loads(path.read_text())
    for name in ("adam_b1", "critic_hidden_sizes", "pessimism"):  # filled in, or None
        del told["config"][name]
    path.write_text(json.dumps(told))
    assert directory.with_defaults(told["config"]) == now
    directory.open_("x", now)[1].release()
    with pytest.raises(UserError, match=r"holds a run with adam_b1=0\.[59], but .* says 0\.7"):
        directory.open_("x", {**now, "adam_b1": 0.7})
