"""Checkpoints that are damaged, in any byte of a file or entry of the note, and full disks."""

import copy
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import jax
import numpy as np
import pytest

import preqn_jax
from preqn_jax import agents, envs
from preqn_jax.envs import codec, gym_state
from preqn_jax.options import UserError
from preqn_jax.training import collect, loop, note
from preqn_jax.training.checkpoint import Checkpointer
from preqn_jax.training.errors import Stopped

SMALL = {"hidden_sizes": (8, 8), "start_steps": 50, "update_after": 50, "batch_size": 8}
EVERY = {"log_every": 100, "checkpoint_every": 50, "eval_every": 1000, "eval_episodes": 1}
CONFIG = loop.LoopConfig(seeds=(0, 3), num_steps=200, start_steps=50, update_after=50, batch_size=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that was left at step 150, and what a process needs to continue it."""
    folder = tmp_path_factory.mktemp("made") / "run"
    training = preqn_jax.train(
        "ddpg", "Hopper-v5", logdir=folder, seeds=(0, 3), num_steps=200, **SMALL, **EVERY
    )
    for progress in training:
        if progress.step == 150:
            break
    training.close()
    make = partial(agents.make, agents.AgentConfig(algorithm="ddpg", hidden_sizes=(8, 8)))
    agent, spec = make(envs.spec("Hopper-v5")), envs.spec("Hopper-v5")
    collector = collect.Collector(collect.Recipe(make, "Hopper-v5", CONFIG, 1), 0)
    like = loop.init(agent, spec, CONFIG)[0]
    check = partial(note.check, config=CONFIG, fresh=collector.save())
    yield SimpleNamespace(folder=folder / "checkpoints", like=like, check=check, agent=agent)
    collector.close()


@pytest.fixture
def at(made, tmp_path):
    """A copy of that run's checkpoints."""
    return Path(shutil.copytree(made.folder, tmp_path / "checkpoints"))


def restored(made, at):
    found = Checkpointer(at).restore(made.like, made.check)
    assert found is not None
    return found


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a[1], b[1])
    return a[0] == b[0] and a[2:] == b[2:]


def test_what_is_restored_is_what_was_saved(made, at):
    assert Checkpointer(at).steps() == [100, 150]
    step, learner, counters, collector, extra = restored(made, at)
    assert step == 150 and counters == (3, 150, ()) and int(learner.replay.size[1]) == 150
    assert len(collector) == 2 and extra["seeds"] == [0, 3] and extra["records"] == 2
    assert len(codec.decode(extra["pending"])) == 1  # from the round since step 100


# --- flipped, cut, missing, renamed ---------------------------------------------------------------


def test_a_flipped_byte_in_any_file_is_noticed(made, at, caplog, capfd):
    """The checkpoint before is then used."""
    random = np.random.default_rng(0)
    (at / "150").rename("aside")
    expected = restored(made, at)
    Path("aside").rename(at / "150")
    paths = [path for path in (at / "150").rglob("*") if path.is_file()]
    assert {path.name for path in paths} >= {"note", "_METADATA", "manifest.ocdbt"}
    for path in paths:
        raw = path.read_bytes()
        spoilt, offset = bytearray(raw), int(random.integers(len(raw)))
        spoilt[offset] ^= 1 << int(random.integers(8))
        path.write_bytes(spoilt)
        caplog.clear()
        assert same(restored(made, at), expected), (path, offset)
        assert "the checkpoint of step 150 cannot be read (" in caplog.text
        path.write_bytes(raw)
    assert restored(made, at)[0] == 150
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.parametrize("how", ["cut", "missing", "a link", "added"])
def test_a_file_that_is_not_as_it_was_written_is_noticed(made, at, how, caplog):
    path = max((at / "150/replay").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    if how == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "missing":
        path.unlink()
    elif how == "a link":
        path.rename("elsewhere")
        path.symlink_to(Path("elsewhere").absolute())
    else:
        (path.parent / "new").touch()
    assert restored(made, at)[0] == 100
    words = {"a link": "is a link", "added": "is no file of this checkpoint: remove it"}
    assert words.get(how, "files in replay do not match") in caplog.text


def test_a_checkpoint_under_another_step_is_noticed_and_goes_with_the_next(made, at, caplog):
    (at / "150").rename(at / "2000")
    step, learner, counters, collector, extra = restored(made, at)
    assert step == 100 and "its note says that it is of step 150" in caplog.text
    checkpoints = Checkpointer(at)
    checkpoints.save(150, learner, counters, collector, extra)
    assert checkpoints.steps() == [100, 150]


def test_one_of_an_earlier_version_or_unfinished_is_refused_in_a_sentence(made, at):
    for step in (100, 150):
        (at / str(step) / "note").unlink()
        (at / str(step) / "note").mkdir()
        (at / str(step) / "note" / "metadata").write_text("{}")
    with pytest.raises(UserError, match="it has no note, so it is of an earlier version") as error:
        restored(made, at)
    assert "\n" not in str(error.value) and Checkpointer(at).steps() == [100, 150]


def test_what_a_kill_leaves_of_one_is_removed_and_a_reader_removes_nothing(made, at):
    left = [at / "200.tmp", at / "200.orbax-checkpoint-tmp-7"]
    others = [at / name for name in ("2024-tmp-backup", "12tmp", "notes.before", "999")]
    for folder in (*left, *others):
        (folder / "agent").mkdir(parents=True)
    Checkpointer(at, read_only=True)
    assert all(folder.exists() for folder in left)
    step, *kept = restored(made, at)
    assert step == 150 and not any(folder.exists() for folder in left)
    Checkpointer(at).save(200, *kept)
    assert Checkpointer(at).steps() == [150, 200, 999]
    assert all(folder.exists() for folder in others)  # somebody else's


# --- a note that is valid and wrong ---------------------------------------------------------------


def sign(folder, content):
    """Writes a note with a valid checksum, as a person with a text editor and sha256sum would."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "note").write_bytes(hashlib.sha256(raw).hexdigest().encode() + b"\n" + raw)


def seed(content):
    return content["collector"][1]


def first_env(content):
    return seed(content)["env"]["envs"][0]


def set_(path, value):
    """The change that puts `value` at a path in the note."""

    def change(content):
        *parents, last = path
        for name in parents:
            content = content[name]
        content[last] = value

    return change


def drop(*path):
    def change(content):
        for name in path[:-1]:
            content = content[name]
        del content[path[-1]]

    return change


ENV = ("collector", 1, "env")
STATE = (*ENV, "envs", 0)
WRONG = {
    "negative round": set_(["counters", "round"], -3),
    "another round": set_(["counters", "round"], 2),
    "round of another type": set_(["counters", "round"], "3"),
    "more updates": set_(["counters", "updates"], 200),
    "no counters": drop("counters"),
    "another step": set_(["step"], 100),
    "step of another type": set_(["step"], "150"),
    "filled": set_(["filled"], 149),
    "negative filled": set_(["filled"], -1),
    "missing seed": lambda content: content["collector"].pop(),
    "extra seed": lambda content: content["collector"].append(content["collector"][0]),
    "other seeds": set_(["extra", "seeds"], [0, 4]),
    "no pending": drop("extra", "pending"),
    "pending null": set_(["extra", "pending"], None),
    "pending of other shape": set_(
        ["extra", "pending"], [{"metrics": {"x": codec.encode(np.zeros(3))}, "episodes": []}]
    ),
    "pending of strings": set_(["extra", "pending"], [{"metrics": {"x": "ab"}, "episodes": []}]),
    "pending of another type": set_(
        ["extra", "pending"], [{"metrics": {"x": codec.encode(np.zeros(2, bool))}, "episodes": []}]
    ),
    "pending episode": set_(["extra", "pending"], [{"metrics": {}, "episodes": [[7, 1.0]]}]),
    "no records": drop("extra", "records"),
    "observation of other shape": set_([*ENV, "obs"], codec.encode(np.zeros((1, 3), np.float32))),
    "observation of other type": set_([*ENV, "obs"], codec.encode(np.zeros((1, 11), np.int64))),
    "observation of objects": set_([*ENV, "obs"], {"__array__": "|O", "shape": [1], "hex": "00"}),
    "no observation": set_([*ENV, "obs"], None),
    "environment seeds": set_([*ENV, "seeds"], [7]),
    "environment steps": set_([*ENV, "steps"], "7"),
    "no environment": set_([*ENV, "envs"], []),
    "environment of a list": set_(STATE, []),
    "returns": set_(["collector", 0, "returns"], codec.encode(np.zeros(2))),
    "no layers": set_([*STATE, "layers"], []),
    "layers of lists": set_([*STATE, "layers"], [[], [], []]),
    "no generator": drop(*STATE, "rng"),
    "another generator": set_([*STATE, "rng", "bit_generator"], "MT19937"),
    "a generator out of range": set_([*STATE, "rng", "state", "state"], -1),
    "MuJoCo's state": set_([*STATE, "integration"], codec.encode(np.zeros(5))),
    "MuJoCo's arrays": drop(*STATE, "derived", "qpos"),
    "agent arrays": set_(["arrays", "agent"], {}),
    "files": drop("files", "agent/_METADATA"),
    "no files": set_(["files"], {}),
    "format": set_(["format"], 3),
    "null": lambda content: b"null",
    "a list": lambda content: b"[]",
    "no JSON": lambda content: b"{",
    "bytes": lambda content: b"\xff",
}


# The fast tests take one entry of each part of a note.
FAST = ("another round", "no counters", "filled", "missing seed", "other seeds", "no records")
FAST += ("pending of other shape", "pending episode", "observation of other type", "no JSON")
FAST += ("environment seeds", "layers of lists", "a generator out of range", "MuJoCo's arrays")
FAST += ("returns", "agent arrays", "files", "format")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in WRONG]
)
def test_a_note_that_cannot_be_of_this_run_leads_to_the_checkpoint_before(made, at, name, caplog):
    content = note.read(at / "150", 150)
    changed = copy.deepcopy(content)
    raw = WRONG[name](changed)
    sign(at / "150", raw if isinstance(raw, bytes) else changed)
    assert restored(made, at)[0] == 100
    (words,) = [line.getMessage() for line in caplog.records]
    assert words.startswith("the checkpoint of step 150 cannot be read (") and "\n" not in words
    sign(at / "150", content)
    assert restored(made, at)[0] == 150


def test_a_note_of_another_filled_part_is_refused_without_a_look_at_the_arrays(made, at):
    content = note.read(at / "150", 150)
    made.check(content)
    for filled in (0, 149, 151):
        with pytest.raises(ValueError, match=f"its replay of {filled} transitions is not that of"):
            made.check({**content, "filled": filled})


def test_only_plain_state_of_a_fresh_environment_is_restored(made, at):
    """A note may set how far an environment is, but not what it is."""

    class Own(gymnasium.Wrapper):
        beats = 0  # the first step shadows it

        def step(self, action):
            self.beats += 1
            self.last = np.array(action)
            return self.env.step(action)

    env = Own(gymnasium.make("Hopper-v5"))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    saved = gym_state.save(env)
    hostile = dict.fromkeys(
        ("step", "reset", "np_random", "_np_random", "render_mode", "env", "unwrapped"), "human"
    )
    hostile |= dict.fromkeys(("metadata", "mujoco_renderer", "spec", "__class__"), "human")
    for layer in saved["layers"]:
        layer.update(hostile)
    saved["layers"][-1]["model"] = saved["layers"][-1]["data"] = "human"
    fresh = Own(gymnasium.make("Hopper-v5"))
    fresh.reset(seed=1)
    before = [
        {k: v for k, v in vars(layer).items() if k in hostile} for layer in gym_state.layers(fresh)
    ]
    gym_state.load(fresh, codec.decode(codec.encode(saved)))
    for layer, old in zip(gym_state.layers(fresh), before, strict=True):
        now = {k: v for k, v in vars(layer).items() if k in hostile}
        assert now.keys() == old.keys() and all(now[k] is old[k] for k in old)
    assert fresh.beats == 1 and (fresh.last == env.last).all()
    action = env.action_space.sample()
    for a, b in zip(env.step(action)[:4], fresh.step(action)[:4], strict=True):
        np.testing.assert_array_equal(a, b)


# --- a disk without room --------------------------------------------------------------------------


def save_again(made, at):
    step, *parts = restored(made, at)
    checkpoints = Checkpointer(at)
    checkpoints.save(step + 50, *parts)
    return checkpoints


def limited(monkeypatch, **fields):
    """Imitates a file system with as much room as `fields` of statvfs say."""
    real = os.statvfs

    def room(path):
        names = ("f_bavail", "f_frsize", "f_files", "f_favail")
        return SimpleNamespace(**{name: getattr(real(path), name) for name in names} | fields)

    monkeypatch.setattr(os, "statvfs", room)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"f_bavail": 3, "f_frsize": 1024}, r"which needs \d+\.\d kB: 3\.1 kB are free"),
        ({"f_files": 100, "f_favail": 5}, r"there is room for 5 files"),
    ],
)
def test_room_is_looked_for_before_a_checkpoint_is_written(made, at, monkeypatch, fields, words):
    limited(monkeypatch, **fields)
    before = sorted(at.rglob("*"))
    with pytest.raises(Stopped, match=r"cannot write the checkpoint of step 200 to .*" + words):
        save_again(made, at)
    assert sorted(at.rglob("*")) == before


def test_file_systems_that_count_no_files_have_room_for_them(made, at, monkeypatch):
    limited(monkeypatch, f_files=0, f_favail=0)
    assert save_again(made, at).steps() == [150, 200]


@pytest.mark.parametrize("limit", [100, 3000, 8000])
def test_a_write_that_fails_midway_is_one_sentence_and_leaves_nothing(made, at, limit, capfd):
    """As for a quota, which free space does not show."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(Stopped, match=r"of step 200 to .*, which needs .*: File too large"):
            save_again(made, at)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert sorted(path.name for path in at.iterdir()) == ["100", "150"]
    assert restored(made, at)[0] == 150
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err and "Error" not in printed.err


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 1 MB, if one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("looked", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_run_on_a_disk_that_fills_up_stops_in_a_sentence_and_goes_on_with_room(
    small_disk, looked, monkeypatch, capfd
):
    """Whether this is noticed before the checkpoint is written (looked) or during it."""
    if not looked:
        limited(monkeypatch, f_bavail=2**40)
    options = {"num_steps": 200, **SMALL, **EVERY, "logdir": small_disk / "run"}
    step = 0
    with pytest.raises(
        Stopped, match=r"cannot write the (checkpoint|records) of step 100"
    ) as error:
        for progress in preqn_jax.train("ddpg", "probe/delay", **options):
            step = progress.step
            with (small_disk / "ballast").open("ab", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        break
    assert step == 50 and "\n" not in str(error.value)
    assert "Traceback" not in "".join(capfd.readouterr())
    if not looked:
        return
    (small_disk / "ballast").unlink()
    assert [progress.step for progress in preqn_jax.train("ddpg", "probe/delay", **options)] == [
        100,
        150,
        200,
    ]
    assert (small_disk / "run/DONE").exists()


@pytest.mark.parametrize("gone", ["run", "run/metrics.jsonl", "run/checkpoints"])
def test_what_is_deleted_under_a_run_stops_it_at_the_next_write(gone, tmp_path):
    options = {"num_steps": 200, **SMALL, **EVERY, "logdir": tmp_path / "run"}
    with pytest.raises(Stopped, match=r"is gone|cannot write the checkpoint of step 100"):
        for progress in preqn_jax.train("ddpg", "probe/delay", **options):
            if progress.step == 50:
                path = tmp_path / gone
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert progress.step == 50
    assert gone != "run" or not (tmp_path / "run").exists()


def test_a_member_that_was_frozen_early_costs_no_other_a_row_of_its_replay(made, at):
    _, learner, counters, *rest = restored(made, at)
    replay = dataclasses.replace(learner.replay, added=np.asarray([50, 150], np.int32))
    reward = np.asarray(replay.data.reward[1, :150])
    assert reward[50:].any()
    learner = loop.Learner(learner.agent, replay)
    Checkpointer(at).save(200, learner, counters._replace(frozen=(0,)), *rest)
    found = Checkpointer(at).restore(made.like)
    assert found is not None and found[0] == 200
    learner = found[1]
    assert learner.replay.size.tolist() == [50, 150]
    np.testing.assert_array_equal(learner.replay.data.reward[1, :150], reward)
