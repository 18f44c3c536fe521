"""The records of a run: `metrics.jsonl`, and TensorBoard files beside it."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


class Recorder:
    """Appends one JSON object a line: {"step", "seed", "<group>/<name>": number or null, ...}."""

    def __init__(
        self,
        logdir: str | Path,
        seeds: tuple[int, ...],
        resume_at: int = 0,
        keep: Callable[[dict[str, Any]], bool] = lambda line: True,
    ):
        """Records after `resume_at` are those of a run that was cut off there; they will be written
        again, and are dropped.

        So are those up to there that `keep` is False of.
        """
        self._path = Path(logdir) / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in read(self._path) if line["step"] <= resume_at and keep(line)]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(temporary, self._path)
        self._file = self._path.open("a", buffering=1)  # whole lines, for whoever follows the run
        folder = Path(logdir) / "tensorboard"
        self._boards = {
            seed: SummaryWriter(str(folder / f"seed_{seed}"), purge_step=resume_at + 1)
            for seed in seeds
        }

    def write(self, step: int, seed: int, metrics: Mapping[str, float]) -> None:
        """One line; numbers that are not finite become null, which every JSON reader takes."""
        clean = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        self._file.write(json.dumps({"step": step, "seed": seed, **clean}) + "\n")
        for name, value in clean.items():
            if value is not None:
                self._boards[seed].add_scalar(name, value, step)

    def flush(self) -> None:
        """Hand what was written to the operating system; a checkpoint must not be ahead of its
        records.
        """
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()
        for board in self._boards.values():
            board.close()


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut off by a kill is left out."""
    lines = []
    for text in Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
