"""Commands on this machine: so many at a time, each under a lock of its own, asked to end with us.

The lock is the one that a run takes on its directory (`training.lock`), and it is passed on to the
command: that holds it for just as long as it lives, even if whoever started it is killed.
"""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, Literal, NamedTuple

from preqn_jax.training.lock import INHERITED, Busy, Lock

LOOK = 2.0  # seconds between looks at how far commands are


class Job(NamedTuple):
    """A command, for whoever holds its lock first."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path  # what it prints is added there
    folder: Path  # whose lock it takes
    wanted: Callable[[], bool]  # asked once the lock is held: by then another may have run it


# ended well; ended otherwise; was asked to end, or never started; runs in another process; was not
# wanted any more
End = Literal["ended", "failed", "stopped", "elsewhere", "unwanted"]
Look = Callable[[Sequence[str], Sequence[tuple[str, End]]], Any]


def local(jobs: Sequence[Job], processes: int, look: Look) -> None:
    """Runs all `jobs`, `processes` at a time, and waits. Ctrl-C, SIGTERM and SIGHUP are passed on,
    and nothing is started after them; so it is where something is raised here.

    `look(running, ended)` is called with names now and then, and with each end once. Raises OSError
    where a lock or a log cannot be written.
    """
    here = _Here()
    with here.signals(), futures.ThreadPoolExecutor(processes) as pool:
        names = {pool.submit(here.run, job): job.name for job in jobs}
        waiting = set(names)
        try:
            while waiting:
                done, waiting = futures.wait(waiting, LOOK, futures.FIRST_COMPLETED)
                look(list(here.running), [(names[one], one.result()) for one in done])
        finally:
            here.stop()


class _Here:
    """The commands that run, and whether more may."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen] = {}
        self.stopping = False
        self.starting = threading.RLock()  # a signal may come while one is passed on

    def run(self, job: Job) -> End:
        if self.stopping:
            return "stopped"
        try:
            lock = Lock(job.folder)
        except Busy:
            return "elsewhere"
        started = False
        try:
            assert lock.fd is not None
            with self.starting, job.log.open("ab") as log:
                if self.stopping or not job.wanted():
                    return "stopped" if self.stopping else "unwanted"
                process = self.running[job.name] = subprocess.Popen(
                    job.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**job.environment, INHERITED: str(lock.fd)},
                    pass_fds=(lock.fd,),
                )
                started = True
        finally:
            lock.release(remove=not started)
        code = process.wait()
        del self.running[job.name]
        return "ended" if code == 0 else "stopped" if self.stopping else "failed"

    def stop(self, *_: Any) -> None:
        """Asks what runs to end; what is about to start either ran before this or never does."""
        self.stopping = True
        with self.starting:
            for process in list(self.running.values()):
                process.terminate()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        asking = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        old = {number: signal.signal(number, self.stop) for number in asking}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
