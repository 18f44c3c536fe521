"""The records of a run: `metrics.jsonl`, TensorBoard files beside it, and a tracker."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from preqn_jax.training import files
from preqn_jax.training.errors import Stopped
from preqn_jax.training.trackers import Tracker

_log = logging.getLogger(__name__)
NAME = "metrics.jsonl"
DAMAGED = "metrics.damaged.jsonl"  # lines that were found in it and are no records

Line = dict[str, Any]


class Recorder:
    """Appends one JSON object a line: {"step", "seed", "<group>/<name>": number or null, ...}."""

    def __init__(
        self,
        logdir: str | Path,
        seeds: tuple[int, ...],
        resume_at: int = 0,
        keep: Callable[[Line], bool] = lambda line: True,
        expected: int = 0,
        track: str = "",
    ):
        """Records after `resume_at` are those of a run that was cut off there; they will be written
        again, and are dropped.

        So are those up to there that `keep` is False of. What is no record is put aside, and where
        fewer than `expected` are left up to there, that is said.

        `track` names a tracker that gets them as well (`trackers`), or is empty.

        Raises Stopped where a file cannot be written.
        """
        from preqn_jax.training.board import Boards  # tensorboardX, which readers do without

        self._path, self.count = Path(logdir) / NAME, 0  # lines in the file
        with files.writing(str(self._path)):
            there = self._go_on(resume_at, keep) if self._path.exists() else 0
            if there < expected:
                _log.warning(
                    "%d of the %d records up to step %d are missing from %s",
                    *(expected - there, expected, resume_at, self._path),
                )
            self._fd = files.append(self._path)
        self._boards = Boards(Path(logdir) / "tensorboard", seeds, resume_at)
        self._tracker = Tracker(track, Path(logdir))

    def _go_on(self, resume_at: int, keep: Callable[[Line], bool]) -> int:
        """Leaves what is kept in the file; returns how many records up to `resume_at` it had."""
        found = scan(self._path)
        if found.damaged:
            aside = self._path.with_name(DAMAGED)
            files.add(aside, b"".join(raw + b"\n" for _, raw in found.damaged))
            _log.warning("%s, and put aside in %s", _damage(self._path, found), aside)
        before = [(raw, line) for raw, line in found.lines if line["step"] <= resume_at]
        kept = [raw + b"\n" for raw, line in before if keep(line)]
        if b"".join(kept) != self._path.read_bytes():  # else a full disk has room for it
            files.replace(self._path, b"".join(kept))
        self.count = len(kept)
        return len(before)

    def write(self, step: int, seed: int, metrics: Mapping[str, float]) -> None:
        """One line; numbers that are not finite become null, which every JSON reader takes.

        Raises Stopped where it cannot be written, or the file is not there any more.
        """
        clean = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        text = json.dumps({"step": step, "seed": seed, **clean}) + "\n"
        self._check()
        with files.writing(f"the records of step {step} to {self._path}"):
            files.write_all(self._fd, text.encode())
        self.count += 1
        numbers = {k: v for k, v in clean.items() if v is not None}
        for board in (self._boards, self._tracker):
            board.write(step, seed, numbers)

    def _check(self) -> None:
        """A file that was deleted or replaced takes what is written with it."""
        try:
            if os.path.samestat(os.fstat(self._fd), os.lstat(self._path)):
                return
            words = "was replaced"
        except OSError:
            words = "is gone"
        raise Stopped(f"{self._path} {words}, which this run was writing to")

    def flush(self) -> None:
        """Hand what was written to the disk; a checkpoint must not be ahead of its records. Raises
        Stopped as `write`.
        """
        self._check()
        with files.writing(str(self._path)):
            os.fsync(self._fd)

    def end(self) -> None:
        """No more lines come; `close` waits for the tracker, which hears of it now."""
        self._tracker.end()

    def close(self) -> None:
        os.close(self._fd)
        self._boards.close()
        self._tracker.close()


class Found(NamedTuple):
    """What a `metrics.jsonl` holds; lines as they lie there, without their ends."""

    lines: list[tuple[bytes, Line]]
    damaged: list[tuple[int, bytes]]  # (number of the line, from 1), what is no record
    cut: bool  # the last of these is the last line, and ends without "\n"


def scan(path: str | Path) -> Found:
    """Tells records from what is none; empty lines are neither. Raises OSError."""
    *whole, rest = Path(path).read_bytes().split(b"\n")
    lines, damaged = [], []
    for number, raw in enumerate([*whole, rest], 1):
        if raw.strip():
            line = parse(raw)
            if line is None:
                damaged.append((number, raw))
            else:
                lines.append((raw, line))
    return Found(lines, damaged, bool(rest.strip()) and parse(rest) is None)


def parse(raw: bytes) -> Line | None:
    """A record: an object with whole numbers as "step" and "seed", and a number or null by every
    other name. None for anything else.
    """
    try:
        line = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not all(
        type(v) in (int, float, type(None)) for v in line.values()
    ):
        return None
    whole = all(type(line.get(name)) is int and line[name] >= 0 for name in ("step", "seed"))
    return line if whole else None


def read(path: str | Path) -> list[Line]:
    """The records in a `metrics.jsonl`. A last line that is being written, or was cut off by a
    kill, is left out; so is any other that is no record, with a warning. Raises OSError.
    """
    found = scan(path)
    if len(found.damaged) > found.cut:
        _log.warning("%s, and left out", _damage(Path(path), found))
    return [line for _, line in found.lines]


def of(logdir: Path) -> list[Line]:
    """As `read`, of a run directory; none before it has any."""
    return read(logdir / NAME) if (logdir / NAME).is_file() else []


def frozen(lines: Iterable[Line]) -> dict[int, int]:
    """seed -> step, of those that were frozen as they met a NaN or an infinity, of which their line
    has the null. A run that was to end at a finding (`stop_on_divergence`) has a line without.
    """
    return {
        line["seed"]: line["step"]
        for line in lines
        if line.get("run/diverged") is not None and None in line.values()
    }


def _damage(path: Path, found: Found) -> str:
    numbers = [str(number) for number, _ in found.damaged]
    shown = ", ".join(numbers[:5]) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
    one = len(numbers) == 1
    return (
        f"line{'' if one else 's'} {shown} of {path} {'is no record' if one else 'are no records'}"
    )
