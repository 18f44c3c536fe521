"""metrics.jsonl and TensorBoard files when they are damaged or deleted, or the disk is full."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from fabricated import text

from preqn_jax.options import UserError
from preqn_jax.training import board, files, record
from preqn_jax.training.errors import Stopped

LINES = [{"step": s, "seed": 0, "critic/q_mean": s / 3, "x": None} for s in range(100, 600, 100)]


def begun(lines=LINES):
    folder = Path("x")
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(text(lines))
    return folder


DAMAGED = [
    b"\xff\xfe\x00",
    b'{"step": 300, "se',
    b"null",
    b"3",
    b"[1, 2]",
    b'"step"',
    b'{"seed": 0, "x": 1}',
    b'{"step": 300, "x": 1}',
    b'{"step": "300", "seed": 0}',
    b'{"step": 3.5, "seed": 0}',
    b'{"step": true, "seed": 0}',
    b'{"step": -50, "seed": 0}',
    b'{"step": 300, "seed": 0, "x": "y"}',
    b'{"step": 300, "seed": 0, "x": [1]}',
    b"[" * 100_000,
    b'{"step": ' + b"9" * 5000 + b', "seed": 0}',
]


@pytest.mark.parametrize("bad", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_put_aside_and_nothing_else_is_lost(bad, caplog):
    folder = begun()
    raw = text(LINES[:2]) + bad + b"\n\n  \n" + text(LINES[2:])
    (folder / "metrics.jsonl").write_bytes(raw)
    assert record.read(folder / "metrics.jsonl") == LINES
    assert "line 3 of x/metrics.jsonl is not a record: ignored" in caplog.text
    caplog.clear()
    recorder = record.Recorder(folder, (0,), resume_at=400)
    recorder.write(500, 0, {"x": 1.0})
    recorder.close()
    assert recorder.count == 5
    expected = text([*LINES[:4], {"step": 500, "seed": 0, "x": 1.0}])
    assert (folder / "metrics.jsonl").read_bytes() == expected
    assert (folder / "metrics.damaged.jsonl").read_bytes() == bad + b"\n"
    words = "line 3 of x/metrics.jsonl is not a record: moved to x/metrics.damaged.jsonl"
    assert words in caplog.text


def test_all_of_many_damaged_lines_are_kept_and_numbered(caplog):
    folder = begun(lines=[])
    (folder / "metrics.jsonl").write_bytes(b"a\nb\n" + text(LINES) + b"c\nd\ne\nf\ng")
    record.Recorder(folder, (0,), 500).close()
    assert "lines 1, 2, 8, 9, 10 and 2 more of" in caplog.text
    assert (folder / "metrics.damaged.jsonl").read_bytes() == b"a\nb\nc\nd\ne\nf\ng\n"
    assert (folder / "metrics.jsonl").read_bytes() == text(LINES)


def test_a_reader_says_nothing_of_a_line_that_is_being_written(caplog):
    folder = begun()
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 600, "seed')
    assert record.read(folder / "metrics.jsonl") == LINES and not caplog.text


@pytest.mark.parametrize("name", ["step", "seed"])
def test_no_metric_takes_the_name_of_what_each_record_has(name):
    recorder = record.Recorder(begun(), (0,), 500)
    with pytest.raises(UserError, match=f"named '{name}'.* as in 'critic/{name}'"):
        recorder.write(600, 0, {"critic/q_mean": 1.0, name: 2.0})
    recorder.close()
    assert Path("x/metrics.jsonl").read_bytes() == text(LINES)


def test_missing_records_are_counted(caplog):
    folder = begun(lines=LINES[2:])
    record.Recorder(folder, (0,), 500, expected=5).close()
    assert "2 of the 5 records up to step 500 are missing from x/metrics.jsonl" in caplog.text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "x/metrics.jsonl is gone"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "x/metrics.jsonl is gone"),
        (lambda folder: files.replace(folder / "metrics.jsonl", b""), "was replaced"),
    ],
)
@pytest.mark.parametrize("act", ["write", "flush"])
def test_records_that_are_deleted_in_mid_run_stop_it_in_a_sentence(fault, words, act):
    folder = begun()
    recorder = record.Recorder(folder, (0,), 500)
    fault(folder)
    with pytest.raises(Stopped, match=words):
        recorder.write(600, 0, {"x": 1.0}) if act == "write" else recorder.flush()
    recorder.close()


def test_a_disk_that_fills_up_stops_the_run_with_every_line_whole(monkeypatch):
    folder = begun()
    recorder, write = record.Recorder(folder, (0,), 500), os.write

    def short(fd, content):
        """Writes one half, and then has no room, as write(2) does."""
        monkeypatch.setattr(os, "write", full)
        return write(fd, content[: len(content) // 2])

    def full(fd, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    words = "cannot write the records of step 600 to x/metrics.jsonl: No space left on device"
    with pytest.raises(Stopped, match=words):
        recorder.write(600, 0, {"x": 1.0})
    recorder.close()
    assert (folder / "metrics.jsonl").read_bytes() == text(LINES)


class Full:
    """A TensorBoard file on a full disk."""

    def __init__(self, *args):
        pass

    def write_event(self, event):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = close = lambda self: self.write_event(None)


def test_a_dead_tensorboard_is_said_once_and_ends_nothing(monkeypatch, caplog):
    folder = begun()
    recorder = record.Recorder(folder, (0, 1), 500)
    for writer in recorder._boards._writers.values():
        monkeypatch.setattr(writer, "write_event", Full().write_event)
    for step in range(600, 4000, 100):  # tensorboardX's own queue holds ten
        recorder.write(step, 0, {"x": 1.0})
        recorder.write(step, 1, {"x": 1.0})
    recorder.close()
    assert (
        caplog.text.count("TensorBoard files are no longer written: No space left on device") == 1
    )
    assert len(record.read(folder / "metrics.jsonl")) == 5 + 2 * 34
    monkeypatch.setattr(board, "EventsWriter", Full)
    record.Recorder(folder, (0,), 500).close()


def test_tensorboard_files_hold_what_was_written():
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

    recorder = record.Recorder(begun(), (3,), 500)
    recorder.write(600, 3, {"critic/q_mean": 0.25, "x": float("nan")})
    recorder.close()
    (path,) = Path("x/tensorboard/seed_3").iterdir()
    raw, events = path.read_bytes(), []
    while raw:  # length, its checksum, event, its checksum
        size = int.from_bytes(raw[:8], "little")
        events.append(Event.FromString(raw[12 : 12 + size]))
        raw = raw[16 + size :]
    assert [event.step for event in events] == [0, 501, 600]
    assert events[1].session_log.status == 1  # START: what is there of later steps is hidden
    (value,) = events[2].summary.value
    assert (value.tag, value.simple_value) == ("critic/q_mean", 0.25)


def test_records_that_are_dropped_on_purpose_are_not_missing(caplog):
    keep = lambda line: line["step"] != 200
    recorder = record.Recorder(begun(), (0,), 500, keep=keep, expected=5)
    recorder.close()
    assert recorder.count == 4 and "missing" not in caplog.text


def test_a_damaged_line_is_said_also_where_the_last_record_has_no_end(caplog):
    folder = begun()
    (folder / "metrics.jsonl").write_bytes(b"nonsense\n" + text(LINES).rstrip(b"\n"))
    assert record.read(folder / "metrics.jsonl") == LINES
    assert "line 1 of x/metrics.jsonl is not a record: ignored" in caplog.text
