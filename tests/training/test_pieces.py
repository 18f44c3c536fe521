"""A replay buffer that is written and read in pieces, and the memory that this takes."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT

from preqn_jax import replay as replays
from preqn_jax.options import UserError
from preqn_jax.training import arrays, checkpoint, files, memory, note
from preqn_jax.training.checkpoint import Checkpointer
from preqn_jax.training.errors import Stopped
from preqn_jax.training.loop import Counters, Learner
from preqn_jax.types import Spec

SPEC = Spec(3, 2, -np.ones(2), np.ones(2))
SEEDS, CAPACITY, ROW = 2, 20, 4 * 2 * (3 + 2 + 1 + 1 + 3)  # bytes of a row of both seeds


def learner(filled):
    """A learner whose replay buffer has random first rows; the others are zero, as in a new one."""
    rng = np.random.default_rng(0)

    def ring(leaf):
        rows = np.arange(CAPACITY).reshape((1, -1) + (1,) * (leaf.ndim - 1)) < filled
        return jnp.asarray(rng.normal(size=(SEEDS, *leaf.shape)) * rows, jnp.float32)

    form = jax.eval_shape(lambda: replays.init(SPEC, CAPACITY))
    data = jax.tree.map(ring, form.data)
    agent = {"w": jnp.arange(6.0).reshape(SEEDS, 3)}
    return Learner(agent, replays.Replay(data, jnp.full(SEEDS, filled, jnp.int32)))


def save(folder, filled, rows, monkeypatch, step=50):
    """Saves a replay buffer with so many rows filled, in pieces of so many rows."""
    monkeypatch.setattr(checkpoint, "_PIECE", rows * ROW + ROW - 1)
    Checkpointer(folder).save(step, learner(filled), Counters(1, step, ()), [], {})
    return Path(folder) / str(step)


def restored(folder):
    found = Checkpointer(folder).restore(learner(0))
    assert found is not None
    return found[0], jax.tree.map(np.asarray, found[1])


@pytest.mark.parametrize(
    ("filled", "rows", "sizes"),
    [(17, 5, [5, 5, 5, 2]), (20, 5, [5, 5, 5, 5]), (4, 5, [4]), (3, 1, [1, 1, 1])],
)
def test_what_is_read_is_what_was_written_in_pieces_of_any_size(
    tmp_path, filled, rows, sizes, monkeypatch
):
    at = save(tmp_path, filled, rows, monkeypatch)
    names = ["replay", *(f"replay.{i}" for i in range(1, len(sizes)))]
    forms = note.read(at, 50)["arrays"]
    assert list(forms) == ["agent", *names]
    assert [forms[name]["data.obs"] for name in names] == [[[2, n, 3], "float32"] for n in sizes]
    assert sorted(path.name for path in at.iterdir()) == sorted(["agent", "note", *names])
    monkeypatch.setattr(checkpoint, "_PIECE", 3 * ROW)  # the reader has pieces of another size
    expected = jax.tree.map(np.asarray, learner(filled))
    jax.tree.map(np.testing.assert_array_equal, restored(tmp_path)[1], expected)


def test_a_row_that_is_larger_than_a_piece_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_PIECE", 1)
    Checkpointer(tmp_path).save(50, learner(2), Counters(1, 50, ()), [], {})
    assert list(note.read(tmp_path / "50", 50)["arrays"]) == ["agent", "replay", "replay.1"]


def test_a_replay_that_is_read_takes_the_place_of_the_fresh_one(tmp_path, monkeypatch):
    """Else memory would hold both."""
    save(tmp_path, 17, 5, monkeypatch)
    like = learner(0)
    Checkpointer(tmp_path).restore(like)
    assert all(ring.is_deleted() for ring in jax.tree.leaves(like.replay.data))
    fresh = learner(0)
    assert Checkpointer(tmp_path / "empty").restore(fresh) is None
    assert not any(ring.is_deleted() for ring in jax.tree.leaves(fresh.replay.data))


def test_the_rings_that_are_saved_can_still_be_donated(tmp_path, monkeypatch):
    """A view of them that the host kept would make the next round copy all of them."""
    like = learner(17)
    Checkpointer(tmp_path).save(50, like, Counters(1, 50, ()), [], {})
    where = [ring.unsafe_buffer_pointer() for ring in jax.tree.leaves(like.replay.data)]
    put = jax.jit(lambda data: jax.tree.map(lambda x: x.at[:, 0].set(1), data), donate_argnums=0)
    after = [ring.unsafe_buffer_pointer() for ring in jax.tree.leaves(put(like.replay.data))]
    assert after == where


# --- damage ---------------------------------------------------------------------------------------


def test_a_damaged_piece_is_noticed_before_anything_is_given_up(tmp_path, monkeypatch, caplog):
    at = save(tmp_path, 17, 5, monkeypatch)
    file = max((at / "replay.3").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    like = learner(0)
    with pytest.raises(UserError, match=r"files in replay\.3 do not match their checksums"):
        Checkpointer(tmp_path).restore(like)
    assert not any(ring.is_deleted() for ring in jax.tree.leaves(like.replay.data))


def drop_last(content):
    del content["arrays"]["replay.3"]


def swap(content):
    arrays = content["arrays"]
    arrays["replay"], arrays["replay.3"] = arrays["replay.3"], arrays["replay"]


def rows(value):
    def change(content):
        for form in content["arrays"]["replay.1"].values():
            if len(form[0]) > 1:
                form[0][1] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_last, "its replay has 15 rows, not 17"),
        (lambda content: content.update(filled=18), "its replay has 17 rows, not 18"),
        (rows(-5), r"its replay\.1 has -5 rows"),
        *(
            pytest.param(rows(x), rf"its replay\.1 has {x!r} rows", marks=pytest.mark.slow)
            for x in (0, 5.0, True, "5")
        ),
        (swap, "its replay does not match its note"),
        (lambda content: content["arrays"].pop("replay"), "its replay has 0 rows, not 17"),
    ],
)
def test_a_note_of_other_pieces_leads_to_the_checkpoint_before(
    tmp_path, change, words, monkeypatch, caplog
):
    save(tmp_path, 8, 5, monkeypatch)
    at = save(tmp_path, 17, 5, monkeypatch, step=100)
    content = note.read(at, 100)
    change(content)
    (at / note.NAME).unlink()
    note.write(at, {name: value for name, value in content.items() if name != "files"})
    step, read = restored(tmp_path)
    assert step == 50 and "the checkpoint of step 100 cannot be read (" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, read, jax.tree.map(np.asarray, learner(8)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=words):
        patch.setattr(Checkpointer, "steps", lambda self: [100])
        restored(tmp_path)


# --- room -----------------------------------------------------------------------------------------


def test_room_is_looked_for_for_every_piece(tmp_path, monkeypatch):
    """Every piece needs files, of which there may be few left."""
    real = os.statvfs

    def limited(path):
        there = real(path)
        return SimpleNamespace(
            f_bavail=there.f_bavail, f_frsize=there.f_frsize, f_files=10**6, f_favail=70
        )

    monkeypatch.setattr(os, "statvfs", limited)
    assert save(tmp_path, 4, 5, monkeypatch).exists()
    with pytest.raises(Stopped, match="there is room for 70 files"):
        save(tmp_path, 17, 5, monkeypatch, step=100)
    assert Checkpointer(tmp_path).steps() == [50]


def test_no_part_has_more_files_than_room_is_looked_for(tmp_path, monkeypatch):
    at = save(tmp_path, 17, 5, monkeypatch)
    for part in ("agent", "replay", "replay.3"):
        assert len(list((at / part).rglob("*"))) < checkpoint._FILES
    assert files.digests(at).keys() > {"note"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of a process")
@pytest.mark.parametrize("seeds", [1, 4])
def test_memory_peaks_at_no_more_than_1_5_replays(seeds):
    command = [sys.executable, "tests/peak.py", "--megabytes=440", f"--seeds={seeds}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    peaks = dict(line.rsplit(maxsplit=1) for line in told.stdout.splitlines()[1:])
    for name in ("writing a checkpoint", "resuming from it"):
        assert 1 <= float(peaks[name]) <= 1.5
    assert 1 <= float(peaks["training"]) <= memory.COPIES


# --- one in the place of another ------------------------------------------------------------------


@pytest.mark.parametrize("after", ["50.before", "50"])
def test_a_kill_as_one_takes_the_place_of_another_leaves_one_of_them(tmp_path, after, monkeypatch):
    save(tmp_path, 4, 5, monkeypatch)
    real = os.replace

    def killed(source, target):
        real(source, target)
        if Path(target).name == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        save(tmp_path, 8, 5, monkeypatch)
    step, read = restored(tmp_path)
    assert step == 50 and int(read.replay.added[0]) == {"50.before": 4, "50": 8}[after]
    assert [path.name for path in tmp_path.iterdir()] == ["50"]


@pytest.mark.parametrize("step", [100, 200])
def test_later_ones_go_once_an_earlier_one_is_written(tmp_path, step, monkeypatch):
    real = os.replace

    def refused(source, target):
        if Path(source).name == f"{step}.tmp":
            raise OSError("no")
        real(source, target)

    save(tmp_path, 8, 5, monkeypatch, step=200)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(os, "replace", refused)
        save(tmp_path, 4, 5, monkeypatch, step=step)
    assert Checkpointer(tmp_path).steps() == [200]
    save(tmp_path, 4, 5, monkeypatch, step=100)
    assert Checkpointer(tmp_path).steps() == [100]


def test_of_several_folders_the_one_with_the_damage_is_named(caplog):
    def broken(step):
        raise ValueError(f"step {step} is broken")

    Path("b/0").mkdir(parents=True)
    with pytest.raises(UserError, match="move the folders of these steps out of there, and the"):
        checkpoint.newest([1, 2], {Path("b"): broken})
    Path("b/0").rmdir()
    readers = {Path("a"): lambda step: step, Path("b"): broken, Path("c"): lambda step: step}
    with pytest.raises(UserError, match=r"none of the checkpoints in b can be read \(steps \[1, 2"):
        checkpoint.newest([1, 2], readers)
    assert "of step 2 cannot be read (step 2 is broken), in b; trying the one before" in caplog.text
    readers[Path("b")] = lambda step: step if step == 1 else broken(step)
    assert checkpoint.newest([1, 2], readers) == (1, [1, 1, 1])
    assert checkpoint.newest([], readers) is None


def test_threads_have_orbax_one_after_the_other():
    """Its settings are global: a second thread would keep those that the first had set."""
    logger, inside, most = logging.getLogger("absl"), [], []
    before = logger.disabled, type(asyncio.get_event_loop_policy())

    def enter():
        for _ in range(3):
            with arrays._orbax():
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(3)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert most == [1] * 9
    assert (logger.disabled, type(asyncio.get_event_loop_policy())) == before
