"""The records of a run: `metrics.jsonl`, TensorBoard files beside it, and a tracker."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from preqn_jax.options import UserError
from preqn_jax.training import files
from preqn_jax.training.errors import Stopped
from preqn_jax.training.trackers import Tracker

_log = logging.getLogger(__name__)
NAME = "metrics.jsonl"
DAMAGED = "metrics.damaged.jsonl"  # lines that were found in it and are no records

Line = dict[str, Any]


class Recorder:
    """Writes records, one JSON object in a line: {"step", "seed", "<group>/<name>": number or null,
    ...}.
    """

    def __init__(
        self,
        logdir: str | Path,
        seeds: tuple[int, ...],
        resume_at: int = 0,
        keep: Callable[[Line], bool] = lambda line: True,
        expected: int = 0,
        track: str = "",
    ):
        """Records of steps after `resume_at` are dropped: the run goes on from there, and will
        write them again.

        So are earlier ones for which `keep` is False. Lines that are no records are moved to
        another file, and a warning is logged where there are fewer than `expected` records up to
        `resume_at`.

        `track` names a tracker that gets the records as well (`trackers`), or is empty.

        Raises Stopped where a file cannot be written.
        """
        from preqn_jax.training.board import Boards  # imports tensorboardX: not for readers

        self._path, self.count = Path(logdir) / NAME, 0  # lines in the file
        with files.writing(str(self._path)):
            there = self._resume(resume_at, keep) if self._path.exists() else 0
            if there < expected:
                _log.warning(
                    "%d of the %d records up to step %d are missing from %s",
                    *(expected - there, expected, resume_at, self._path),
                )
            self._fd = files.append(self._path)
        self._boards = Boards(Path(logdir) / "tensorboard", seeds, resume_at)
        self._tracker = Tracker(track, Path(logdir))

    def _resume(self, resume_at: int, keep: Callable[[Line], bool]) -> int:
        """Leaves only records to keep in the file; returns how many up to `resume_at` it had."""
        found = scan(self._path)
        if found.damaged:
            aside = self._path.with_name(DAMAGED)
            files.add(aside, b"".join(raw + b"\n" for _, raw in found.damaged))
            _log.warning("%s: moved to %s", _damage(self._path, found), aside)
        before = [(raw, line) for raw, line in found.lines if line["step"] <= resume_at]
        kept = [raw + b"\n" for raw, line in before if keep(line)]
        if b"".join(kept) != self._path.read_bytes():  # else no room on the disk is needed
            files.replace(self._path, b"".join(kept))
        self.count = len(kept)
        return len(before)

    def write(self, step: int, seed: int, metrics: Mapping[str, float]) -> None:
        """Writes one record; numbers that are not finite become null, which every JSON reader
        takes.

        Raises Stopped where it cannot be written, or the file is gone, and UserError for a metric
        by a name that each record has.
        """
        for name in ("step", "seed"):
            if name in metrics:
                raise UserError(
                    f"a metric is named {name!r}, as the {name} of each record is; give it another "
                    f"name, as in 'critic/{name}'"
                )
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
        """Raises Stopped where the file was deleted or replaced: what is written to it would be
        lost.
        """
        try:
            if os.path.samestat(os.fstat(self._fd), os.lstat(self._path)):
                return
            words = "was replaced"
        except OSError:
            words = "is gone"
        raise Stopped(f"{self._path} {words}, but this run was still writing to it")

    def flush(self) -> None:
        """Force what was written to the disk: a checkpoint must not be ahead of its records. Raises
        Stopped as `write`.
        """
        self._check()
        with files.writing(str(self._path)):
            os.fsync(self._fd)

    def end(self) -> None:
        """Tells the tracker that no more records come; `close` waits for it."""
        self._tracker.end()

    def close(self) -> None:
        os.close(self._fd)
        self._boards.close()
        self._tracker.close()


class Found(NamedTuple):
    """The content of a `metrics.jsonl`; lines are raw bytes, without line ends."""

    lines: list[tuple[bytes, Line]]
    damaged: list[tuple[int, bytes]]  # (line number, from 1; the line) of what is no record
    cut: bool  # whether the last of these is the last line, without "\n"


def scan(path: str | Path) -> Found:
    """Separates records from damaged lines; empty lines are neither. Raises OSError."""
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
    """The record in a line: a JSON object with whole numbers as "step" and "seed", and a number or
    null under every other name. None for anything else.
    """
    try:
        line = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not all(map(_is_number, line.values())):
        return None
    whole = all(type(line.get(name)) is int and line[name] >= 0 for name in ("step", "seed"))
    return line if whole else None


def _is_number(value: Any) -> bool:
    """Whether a value is null, or a number that can be computed with."""
    return type(value) in (float, type(None)) or (type(value) is int and abs(value) < 2**63)


def read(path: str | Path) -> list[Line]:
    """The records in a `metrics.jsonl`. A last line that is being written, or was cut off by a
    kill, is left out; so is any other that is no record, with a warning. Raises OSError.
    """
    found = scan(path)
    if len(found.damaged) > found.cut:
        _log.warning("%s: ignored", _damage(Path(path), found))
    return [line for _, line in found.lines]


def of_run(logdir: Path) -> list[Line]:
    """As `read`, for a run directory; empty before it has any records."""
    return read(logdir / NAME) if (logdir / NAME).is_file() else []


def frozen(lines: Iterable[Line]) -> dict[int, int]:
    """{seed: step} of the seeds that were frozen because they met a NaN or an infinity. Their
    "run/diverged" record has a null for the quantity; that of a run that ended at a finding
    (`stop_on_divergence`) has none, and does not count.
    """
    return {
        line["seed"]: line["step"]
        for line in lines
        if line.get("run/diverged") is not None and None in line.values()
    }


def _damage(path: Path, found: Found) -> str:
    numbers = [str(number) for number, _ in found.damaged]
    shown = ", ".join(numbers[:5]) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
    if len(numbers) == 1:
        return f"line {shown} of {path} is not a record"
    return f"lines {shown} of {path} are not records"
