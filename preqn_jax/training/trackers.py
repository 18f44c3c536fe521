"""Trackers, Weights & Biases and MLflow: a process beside the run sends them its records.

In a process of their own (`tracker_process`) they can neither delay training nor end it, whatever
happens to a network, a login or a disk.
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
LOG = "tracker.log"  # the output of a tracker's process
KEPT = "tracker.json"  # written by `tracker_process`
WAIT = 60.0  # seconds at the end of a run to send what is left


def check(track: str, logdir: str) -> None:
    """Raises UserError for a tracker that is not known or not installed, or where there is no run
    directory, whose records it sends.
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
    """The tracker's process, if there is one. A run can do without it: where it fails, a
    warning is logged once, and no more is sent.
    """

    def __init__(self, track: str, logdir: Path):
        """`track` is one of `NAMES`, or empty for none. There is a metrics.jsonl in `logdir`, of
        which the process sends what it has not sent before.
        """
        self._track, self._log = track, logdir / LOG
        self._process: subprocess.Popen | None = None
        self._until = 0.0  # when the process is given up, once it was told of the end
        if not track:
            return
        program = Path(__file__).with_name("tracker_process.py")
        # -P, so that modules of this folder do not hide others of the same names.
        command = [sys.executable, "-P", str(program), track, str(logdir)]
        try:
            log = files.append(self._log)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the run, which ends this later
                )
            finally:
                os.close(log)
        except OSError as error:
            self._say(error.strerror or str(error))

    def write(self, step: int, seed: int, numbers: Mapping[str, float]) -> None:
        """Checks that the process is still there; it reads the records themselves from their
        file.
        """
        if self._process is not None and self._process.poll() is not None:
            self._give_up()

    def end(self) -> None:
        """Tells the process that no more records come; from now on it has `WAIT` seconds."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._until = self._until or time.monotonic() + WAIT

    def close(self) -> None:
        """Waits until the process has sent what is left, but not for ever: then it is killed."""
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
            self._say(f"it had not finished {WAIT:.0f} s after the run")
        self._process = None

    def _give_up(self) -> None:
        """Warns that the process ended before the run, or with an error."""
        self._process = None
        said = [""]
        with contextlib.suppress(OSError):
            said = self._log.read_text(errors="replace").strip().splitlines() or said
        self._say(said[-1][:200] or "it ended")

    def _say(self, why: str) -> None:
        words = "no more records are sent to %s: %s; the run itself is unaffected; see %s"
        _log.warning(words, self._track, why, self._log)
