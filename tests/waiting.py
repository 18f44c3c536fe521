"""What tests wait for, of other processes and threads; and whom there is to wait for."""

import contextlib
import time
from pathlib import Path

from preqn_jax.training import lock


def until(happened, seconds=240, process=None):
    """What `happened()` says once it is true. Generous: a test must not depend on the machine's
    speed. It fails loudly where the time is over, or `process` has ended without.
    """
    deadline = time.monotonic() + seconds
    while True:
        ended = process is not None and process.poll() is not None  # before the last look
        if found := happened():
            return found
        assert not ended, ("ended before it happened", process.returncode, process.communicate())
        assert time.monotonic() < deadline, f"it has not happened within {seconds} s"
        time.sleep(0.01)


def children(process):
    """Process ids, whichever thread started them; none where it has ended."""
    found = []
    for task in Path(f"/proc/{process.pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is ending
            found += map(int, (task / "children").read_text().split())
    return found


def gone(pids):
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def free(folder):
    """Whether nobody holds the lock of a run directory."""
    try:
        lock.Lock(folder).release()
    except lock.Busy:
        return False
    return True
