"""Paths, links and files that would be lost, or that no run leaves."""

import errno
import json
import os
from pathlib import Path

import gymnasium
import jax
import pytest
from commands import CHEAP, call, call_other
from gymnasium.envs import registration

import after_cases
import preqn_jax
from directory_cases import EVALUATED, LINES, RUN, begun, contents
from experiments import plot, table
from experiments.kit import output
from preqn_jax.options import UserError
from preqn_jax.training import directory, files, note, provenance, record
from preqn_jax.training import run as training
from preqn_jax.training.config import LoopConfig, RunConfig

SMALL = {"hidden_sizes": (8, 8), "start_steps": 50, "update_after": 50, "batch_size": 8}
EVERY = {"checkpoint_every": 50, "eval_every": 100, "eval_episodes": 1}


@pytest.mark.parametrize("name", ["proj [v2]/run", "a\\b", "\udcff"])
def test_a_path_whose_checkpoints_could_not_be_read_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="checkpoints there could not be read again; give a path"):
        directory.open_(tmp_path / name, {})
    assert not list(tmp_path.iterdir())


def test_an_output_replaces_no_link_and_no_device(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("fifo", "link"):
        with pytest.raises(UserError, match=r"it is a link or a device, .*; give another --out$"):
            output.check("out", str(tmp_path / name))
    output.check("out", str(tmp_path / "file"))


def test_an_output_replaces_no_file_of_a_run(tmp_path):
    folder = begun(tmp_path / "run")
    for name in ("metrics.jsonl", "config.json", "checkpoints/5/note", "added/x.md"):
        with pytest.raises(UserError, match="it is a file that a run, or a sweep, needs; give"):
            output.check("out", str(folder / name))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/sweep.json").touch()
    with pytest.raises(UserError, match="that a run, or a sweep, needs"):
        output.check("out", str(tmp_path / "sweep/sweep.json"))
    others = ("run/curve.png", "run/table.md", "run/tensorboard/trace", "new/sweep.json")
    for path in (*(tmp_path / name for name in others), tmp_path / "metrics.jsonl"):
        output.check("out", str(path))
    before = contents(folder)
    assert call_other(table, table.TableConfig, str(folder), f"--out={folder}/metrics.jsonl") == 1
    assert contents(folder) == before


def test_the_numbers_of_a_plot_replace_no_text_of_others(tmp_path, capsys):
    run, out = after_cases.write_run(tmp_path / "run", "probe/delay"), tmp_path / "notes.png"
    draw = lambda: call_other(plot, plot.PlotConfig, str(tmp_path / "run"), f"--out={out}")
    assert run and draw() == draw() == 0  # its own are replaced
    out.unlink()
    assert draw() == 0
    out.unlink()
    out.with_suffix(".txt").write_text("mine")
    assert draw() == 1 and "and holds something else; give" in capsys.readouterr().err
    assert out.with_suffix(".txt").read_text() == "mine" and not out.exists()


@pytest.mark.parametrize("logdir", ["gs://bucket/run", "s3://x", "file:/x"])
def test_an_address_is_no_folder(logdir):
    with pytest.raises(UserError, match="an address, but a run writes to a folder of this machine"):
        training.plan(RunConfig(logdir=logdir), preqn_jax.agents.AgentConfig(), LoopConfig())


# --- checkpoints, and what a run was begun with ---------------------------------------------------


def train(name, steps, **more):
    options = {**SMALL, **EVERY, **more, "num_steps": steps}
    return list(preqn_jax.train("ddpg", "probe/delay", logdir=name, **options))


def test_a_checkpoint_of_another_run_is_not_gone_on_from(caplog):
    train("a", 100), train("b", 100, critic_learning_rate=0.5)
    files.remove(Path("b/checkpoints"))
    os.rename("a/checkpoints", "b/checkpoints")
    with pytest.raises(UserError, match="none of the checkpoints"):
        train("b", 150, critic_learning_rate=0.5)
    assert "it is of a run with critic_learning_rate=0.001, but this one has 0.5" in caplog.text
    note.check_made({"extra": {}}, {"eta": 0.9})  # of an earlier version, which did not say
    note.check_made({"extra": {"run": {"eta": 0.9, "old": 1}}}, {"eta": 0.9, "new": 2})


def test_an_old_one_that_cannot_be_removed_is_told_of_and_the_run_goes_on(monkeypatch, caplog):
    train("a", 100)
    there, replace = Path("a/checkpoints"), os.replace

    def refused(source, target):
        if Path(source).name == "50":
            raise PermissionError(errno.EPERM, "not permitted")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        train("a", 150)
    assert "old checkpoints in" in caplog.text and "not permitted" in caplog.text
    assert directory.steps(there) == [50, 100, 150]
    train("a", 200)
    assert directory.steps(there) == [150, 200]


def test_a_longer_run_whose_records_cannot_be_written_stays_finished(monkeypatch):
    train("a", 100)
    before, append = contents("a"), files.append

    def refused(path):
        if path.name == record.NAME:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return append(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "append", refused)
        with pytest.raises(UserError, match=r"metrics.jsonl: Operation not permitted"):
            train("a", 150)
    assert contents("a") == before
    train("a", 150)


def test_a_longer_run_whose_config_cannot_be_replaced_stays_finished(monkeypatch):
    folder = begun(lines=[*LINES, EVALUATED])
    (folder / "DONE").touch()
    before, replace = contents(folder), os.replace

    def refused(source, target):
        if Path(target).name == "config.json":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(UserError, match="Operation not permitted"):
        directory.go_on(folder, {**RUN, "num_steps": 20_000})
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("jax_random_seed_offset", 3, "set JAX_RANDOM_SEED_OFFSET=0"),
        ("jax_disable_most_optimizations", True, "set JAX_DISABLE_MOST_OPTIMIZATIONS=False"),
        ("jax_default_matmul_precision", "highest", "unset JAX_DEFAULT_MATMUL_PRECISION"),
    ],
)
def test_options_that_change_the_numbers_are_those_of_the_beginning(name, value, mend):
    folder, begun_with = begun(), jax.config.values[name]
    jax.config.update(name, value)
    try:
        with pytest.raises(UserError, match=f"says {name}={begun_with}, but .* {value}, .*{mend}"):
            provenance.check_ways(folder / "config.json")
    finally:
        jax.config.update(name, begun_with)
    provenance.check_ways(folder / "config.json")


def test_flags_of_xla_that_change_the_numbers_are_those_of_the_beginning(monkeypatch):
    folder = begun()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true --xla_dump_to=x")
    words = "says XLA_FLAGS=, but here it is --xla_cpu_enable_fast_math=true, .*: unset XLA_FLAGS,"
    with pytest.raises(UserError, match=words):
        provenance.check_ways(folder / "config.json")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_force_host_platform_device_count=7")
    provenance.check_ways(folder / "config.json")


# --- an environment that leaves the current folder ------------------------------------------------


class Wanderer(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    away = ""

    def __init__(self):
        os.chdir(self.away)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        os.chdir(self.away)
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        return self.observation_space.sample() * 0, 0.0, False, True, {}


def test_a_folder_that_is_gone_keeps_nobody_from_training(tmp_path):
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    assert preqn_jax.envs.spec("probe/delay").action_size == 1
    train(str(tmp_path / "run"), 100)
    assert (tmp_path / "run/DONE").exists()


def test_a_run_stays_in_its_folder_when_an_environment_goes_elsewhere(monkeypatch, tmp_path):
    here, away = Path.cwd(), tmp_path / "away"
    away.mkdir()
    monkeypatch.setattr(Wanderer, "away", away)
    options = {**SMALL, **EVERY, "num_steps": 100, "logdir": "run"}
    list(preqn_jax.train("ddpg", Wanderer, **options))
    assert Path.cwd() == away and (here / "run/DONE").exists()
    assert len(record.read(here / "run/metrics.jsonl")) == 2
    os.chdir(here)
    known = registration.EnvSpec("Wanderer-v0", Wanderer)
    monkeypatch.setitem(gymnasium.registry, "Wanderer-v0", known)
    assert call("--env=Wanderer-v0", *CHEAP, "--logdir=other") == 0
    assert Path.cwd() == here and Path("other/curve.png").exists()
    list(preqn_jax.train("ddpg", Wanderer, **options, seeds=(0, 1)))  # one more joins the first
    assert {line["seed"] for line in record.read(here / "run/metrics.jsonl")} == {0, 1}
    assert not list(away.iterdir())


# --- records with numbers that nothing can compute with -------------------------------------------


def test_numbers_beyond_all_bounds_are_no_records_and_no_settings():
    huge = int("1" * 310)
    assert record.parse(json.dumps({"step": 1, "seed": 0, "x": huge}).encode()) is None
    assert record.parse(json.dumps({"step": 1, "seed": 0, "x": 10**15}).encode())
    for field in ("critic_learning_rate", "eta"):
        with pytest.raises(UserError, match=f"{field} is 1"):
            preqn_jax.agents.resolve(preqn_jax.agents.AgentConfig(**{field: huge}))


def test_a_foreign_file_in_a_checkpoint_is_named(tmp_path):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/own").write_text("x")
    kept = {f"agent/{k}": v for k, v in files.digests(tmp_path / "agent").items()}
    note.verify(tmp_path, {"files": kept}, "agent")
    (tmp_path / "agent/.DS_Store").write_text("y")
    with pytest.raises(ValueError, match="agent/.DS_Store is no file of this checkpoint: remove"):
        note.verify(tmp_path, {"files": kept}, "agent")
