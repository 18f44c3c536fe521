"""Waiting for other processes and threads in tests, and finding them."""

import contextlib
import time
from pathlib import Path

from preqn_jax.training import lock


def until(happened, seconds=240, process=None):
    """Waits until `happened()` returns something true, and returns that. The time is generous: a
    test must not depend on the machine's speed. Fails loudly when the time is over, or if `process`
    ends before.
    """
    deadline = time.monotonic() + seconds
    while True:
        ended = process is not None and process.poll() is not None  # asked before the last look
        if found := happened():
            return found
        assert not ended, ("ended before it happened", process.returncode, process.communicate())
        assert time.monotonic() < deadline, f"it has not happened within {seconds} s"
        time.sleep(0.01)


def children(process):
    """Ids of the child processes, whichever thread started them; none if the process has ended."""
    found = []
    for task in Path(f"/proc/{process.pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is ending
            found += map(int, (task / "children").read_text().split())
    return found


def gone(pids):
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def free(folder):
    """Whether no process holds the lock of a run directory."""
    try:
        lock.Lock(folder).release()
    except lock.Busy:
        return False
    return True
