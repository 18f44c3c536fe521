"""Trackers, Weights & Biases and MLflow: a process beside the run hands its records on.

In a process of their own (`tracker_process`) they can neither hold training up nor end it, whatever
becomes of a network, a login or a disk.
"""

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from preqn_jax.options import UserError, choose, to_install
from preqn_jax.training import files

_log = logging.getLogger(__name__)
NAMES = ("mlflow", "wandb")
LOG = "tracker.log"  # what a tracker says
KEPT = "tracker.json"  # of `tracker_process`
WAIT = 60.0  # seconds at the end of a run for what was not handed on yet


def check(track: str, logdir: str) -> None:
    """Raises UserError for a tracker that is not known or not installed, or without a run
    directory, whose records it takes.
    """
    if not track:
        return
    choose("tracker", track, NAMES)
    if importlib.util.find_spec(track) is None:
        raise UserError(f"track is {track!r}, which is not installed; {to_install(track)}")
    if not logdir:
        raise UserError(
            f"track is {track!r}, but there are no records without a run directory; add "
            "`logdir='runs/x'`"
        )


class Tracker:
    """The process, if there is one. A run can do without: where it fails, one warning, and no more
    of it.
    """

    def __init__(self, track: str, logdir: Path):
        """`track` is one of `NAMES`, or empty for none. There is a metrics.jsonl in `logdir`."""
        self._track, self._log = track, logdir / LOG
        self._process: subprocess.Popen | None = None
        self._until = 0.0  # when it is given up, once it was told of the end
        if not track:
            return
        program = Path(__file__).with_name("tracker_process.py")
        # -P: modules of this folder have names that others have as well.
        command = [sys.executable, "-P", str(program), track, str(logdir)]
        try:
            log = files.append(self._log)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is the run's, which ends it by and by
                )
            finally:
                os.close(log)
        except OSError as error:
            self._say(error.strerror or str(error))

    def write(self, step: int, seed: int, numbers: Mapping[str, float]) -> None:
        """Sees whether it is still there; the records themselves it reads from their file."""
        if self._process is not None and self._process.poll() is not None:
            self._give_up()

    def end(self) -> None:
        """Tells it that no more come; from now on it has `WAIT` seconds."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._until = self._until or time.monotonic() + WAIT

    def close(self) -> None:
        """Waits for what was not handed on yet, but not for ever."""
        if self._process is None:
            return
        self.end()
        try:
            if self._process.wait(max(0.0, self._until - time.monotonic())):
                self._give_up()
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and what it started
            self._process.wait()
            self._say(f"it was not done {WAIT:.0f} s after the run")
        self._process = None

    def _give_up(self) -> None:
        """It ended before the run, or badly."""
        self._process = None
        said = [""]
        with contextlib.suppress(OSError):
            said = self._log.read_text(errors="replace").strip().splitlines() or said
        self._say(said[-1][:200] or "it ended")

    def _say(self, why: str) -> None:
        words = "no more records for %s: %s; the run is whole without, and %s says more"
        _log.warning(words, self._track, why, self._log)
