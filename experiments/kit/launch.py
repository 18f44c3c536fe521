"""Runs commands, so many at a time, on this machine or elsewhere: each under a lock, and each asked
to end when we are asked to.

A launcher starts a job, finds out whether it has ended, and asks it to end; `run` does the rest.
The launcher of this machine is here. Those of `launch_ray` and `launch_submitit` call
`launch_node.attend` on some node, which does the same there, for a single job.

The lock is the one that a run takes on its directory (`training.lock`). It is passed on to the
command, which holds it for just as long as it lives, even if the process that started it is killed.
"""

import collections
import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from experiments.kit import signals
from preqn_jax.options import UserError, option
from preqn_jax.training.lock import INHERITED, Busy, Lock

PAUSE = 30.0  # seconds before a refused job is tried again
LOOK = 2.0  # seconds between looks at how far commands are, and between requests to end
TRIES = 10  # restarts in a row of a job that was lost, without a new checkpoint between them


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """How and where runs are started."""

    launcher: str = option(
        "local", "local (processes of this machine), ray (a Ray cluster) or submitit (SLURM)"
    )
    processes: int = option(
        1, "runs, or programs of a sweep, to train at a time, each in its own process", at_least=1
    )
    ray_address: str = option(
        "",
        "with ray: address of the cluster, as 10.0.0.1:6379, or auto; empty: a Ray on this machine",
    )
    cpus_per_run: int | None = option(
        None, "with ray or submitit: cores for each run (1)", at_least=1
    )
    gpus_per_run: float = option(0.0, "with ray or submitit: GPUs for each run", at_least=0)
    tpus_per_run: int = option(0, "with ray: TPU chips for each run", at_least=0)
    cluster: str = option("auto", "with submitit: slurm, local, or auto (slurm if there is sbatch)")
    slurm_partition: str = option("", "the SLURM partition (the cluster's default)")
    slurm_minutes: int = option(
        720,
        "time limit of a SLURM job; at its end the run checkpoints and is queued again",
        at_least=1,
    )
    slurm_options: tuple[str, ...] = option(
        (), "further options for sbatch, as in account=physics,constraint=a100,exclusive"
    )

    @property
    def cpus(self) -> int | None:
        """The cores of each run on another node; None on this machine, where runs share them."""
        return None if self.launcher == "local" else self.cpus_per_run or 1


class Job(NamedTuple):
    """A command, to be run by whichever process takes its lock first."""

    name: str
    command: Sequence[str]
    # Variables: on this machine all of them; on a node, those added to the node's own.
    environment: Mapping[str, str]
    log: Path  # its output is appended there
    folder: Path  # whose lock it takes
    wanted: Callable[[], bool]  # asked once the lock is held: another may have run it by then
    reached: Callable[[], int]  # environment steps of its checkpoints, which a restart goes on from


# "ended": nothing is left to do, as seen where it ran; "failed": it ended otherwise; "stopped": it
# was asked to end, by whomever, was lost, or never started; "elsewhere": another process runs it;
# "unwanted": nothing was left to do before it started
End = Literal["ended", "failed", "stopped", "elsewhere", "unwanted"]
Look = Callable[[Sequence[str], Sequence[tuple[str, End]]], Any]


class Refused(UserError):
    """Raised if a launcher does not take a job: for ever, or for now, as when a queue is full."""


class Launcher(Protocol):
    """The interface of a launcher, which starts jobs."""

    every: float  # seconds between looks whether jobs have ended
    tries: int  # restarts without a new checkpoint of a job that was lost or stopped, not by us

    def start(self, job: Job) -> Any:
        """Starts a job. Returns a handle, which is no string, or, if it ended at once, how. Raises
        OSError, UserError, Refused.
        """
        ...

    def end(self, job: Job, handle: Any) -> End | None:
        """How the job ended; None as long as it has not."""
        ...

    def stop(self, handle: Any) -> None:
        """Asks a job to checkpoint and end; may be called more than once."""
        ...

    def pass_on(self, handles: Sequence[Any], again: bool) -> None:
        """Called in a signal's handler, where little can be done. Asks jobs to end at once, with a
        checkpoint; `again` is for a second signal, which ends them there and then.
        """
        ...

    def forward(self, handles: Sequence[Any], number: int) -> None:
        """Also called in a signal's handler. Passes the signal on, unchanged, to the processes that
        a terminal would have sent it to.
        """
        ...


def run(launcher: Launcher, jobs: Sequence[Job], processes: int, look: Look) -> None:
    """Runs all `jobs`, `processes` at a time, and waits. Signals that ask to end are passed on, and
    then nothing more is started; the same happens if an error is raised here.

    `look(running, ended)` is called with names now and then, and with each end once. Raises OSError
    where a lock or a log cannot be written, and what the launcher raises. But once the launcher has
    taken a job, one that it refuses waits: it is tried again as long as others run, and then
    `TRIES` times.
    """
    pool = _Pool(launcher, jobs, processes, look)
    with signals.handled(pool.ask), signals.handled(pool.forward, signal.SIGTSTP, signal.SIGQUIT):
        try:
            while pool.turn():
                time.sleep(launcher.every)
        finally:
            pool.end()
            while pool.turn():
                time.sleep(launcher.every)


class _Pool:
    """Jobs that wait and jobs that run."""

    def __init__(self, launcher: Launcher, jobs: Sequence[Job], processes: int, look: Look):
        self._launcher, self._processes, self._look = launcher, processes, look
        self._waiting = collections.deque(jobs)
        self._running: dict[str, tuple[Job, Any]] = {}
        self._lost = collections.Counter[str]()  # restarts of a job since its newest checkpoint
        self._reached = {job.name: job.reached() for job in jobs}
        self._refused, self._taken = -math.inf, False  # when one was last; if one was ever taken
        self._refusals = 0  # in a row, while nothing runs
        self._asked: float | None = None  # when we were asked to end
        self._looked = -math.inf

    def ask(self, *_: Any) -> None:
        """Asks all jobs to end; a signal's handler. It does so at once, and not at the next look,
        which may be much later: where all processes of a node get a signal, the jobs would take
        that for a second one.
        """
        now, handles = time.monotonic(), [handle for _, handle in self._running.values()]
        if self._asked is None:
            self._asked, self._looked = now, -math.inf
            self._launcher.pass_on(handles, again=False)
        elif now - self._asked > signals.ECHO:
            self._launcher.pass_on(handles, again=True)

    def forward(self, number: int, _: Any) -> None:
        """Passes Ctrl-Z (until fg or bg) and Ctrl-\\ on to the runs as well; a signal's handler."""
        handles, paused = [handle for _, handle in self._running.values()], number == signal.SIGTSTP
        self._launcher.forward(handles, signal.SIGSTOP if paused else number)
        if paused:
            os.kill(os.getpid(), signal.SIGSTOP)  # this returns when we are continued
            self._launcher.forward(handles, signal.SIGCONT)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def end(self) -> None:
        """Asks all jobs to end, as a first signal does, if there was none."""
        if self._asked is None:
            self.ask()

    def turn(self) -> bool:
        """Looks which jobs have ended, starts others, and asks jobs to end. Returns whether any is
        left.
        """
        ended: list[tuple[str, End]] = []
        for name, (job, handle) in list(self._running.items()):
            end = self._launcher.end(job, handle)
            if end is not None:
                del self._running[name]
                ended.extend(self._again(job) if end == "stopped" else [(name, end)])
        while self._may_start():
            job = self._waiting.popleft()
            handle = self._start(job)
            if handle is None:
                self._waiting.appendleft(job)
                break
            if isinstance(handle, str):
                ended.append((job.name, handle))  # pyright: ignore[reportArgumentType]
            else:
                self._running[job.name] = job, handle
        if self._asked is not None:
            ended.extend((job.name, "stopped") for job in self._waiting)
            self._waiting.clear()
        if ended or time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            if self._asked is not None:
                for _, handle in self._running.values():
                    self._launcher.stop(handle)
            self._look(list(self._running), ended)
        return bool(self._waiting or self._running)

    def _may_start(self) -> bool:
        free = self._waiting and len(self._running) < self._processes
        return bool(free) and self._asked is None and time.monotonic() - self._refused >= PAUSE

    def _start(self, job: Job) -> Any:
        """What the launcher's `start` returns; None if it takes no job for now."""
        try:
            handle = self._launcher.start(job)
        except Refused as error:
            self._refusals = 0 if self._running else self._refusals + 1
            if not self._taken or self._refusals > TRIES:
                raise
            if self._refused == -math.inf:
                words = f"as long as other jobs run, and {TRIES} times after that"
                print(f"{error}; the job is submitted again {words}", file=sys.stderr)
            self._refused = time.monotonic()
            return None
        self._refusals, self._taken = 0, True
        return handle

    def _again(self, job: Job) -> list[tuple[str, End]]:
        """Starts a job again that was stopped, and not by us, as on a node that is taken away.
        Returns its end if it may not be started again. A run of days may lose any number of nodes,
        as long as it writes a checkpoint now and then.
        """
        if (reached := job.reached()) != self._reached[job.name]:
            self._reached[job.name], self._lost[job.name] = reached, 0
        self._lost[job.name] += 1
        tries, asked = self._launcher.tries, self._asked is not None
        if asked or not tries:
            return [(job.name, "stopped")]
        if (lost := self._lost[job.name]) > tries:
            words = "without a new checkpoint; if nothing above says why, lower `checkpoint_every`"
            note(job, f"lost or stopped {lost} times in a row {words}")
            return [(job.name, "failed")]
        self._waiting.append(job)
        return []


# --- on this machine ------------------------------------------------------------------------------

# Runs before the command: the kernel will kill it with its parent (prctl's PR_SET_PDEATHSIG).
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class Local:
    """Processes of this machine, each the first of a process group of its own, which a terminal's
    signals do not reach: we pass them on. If our process is killed, they go on, with their locks;
    or, on Linux and if they are `bound`, they are killed with it.
    """

    every = 0.1
    tries = 0  # what was asked to end is not restarted here; on a node, its launcher may do so

    def __init__(self, bound: bool = False):
        self._bound = bound and sys.platform == "linux"
        self.asked: set[int] = set()  # process ids; a second signal would end a run at once
        self.running: dict[str, subprocess.Popen] = {}

    def start(self, job: Job) -> subprocess.Popen | End:
        try:
            lock = Lock(job.folder)
        except Busy:
            return "elsewhere"
        process, command = None, list(job.command)
        if self._bound:
            command = [sys.executable, "-S", "-c", _WITH_PARENT, str(os.getpid()), *command]
        try:
            assert lock.fd is not None
            with job.log.open("ab") as log:
                if not job.wanted():
                    return "unwanted"
                process = self.running[job.name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**job.environment, INHERITED: str(lock.fd)},
                    pass_fds=(lock.fd,),
                    process_group=0,
                )
                return process
        finally:
            lock.release(remove=process is None)

    def end(self, job: Job, handle: subprocess.Popen) -> End | None:
        code = handle.poll()
        if code is None:
            return None
        self.running.pop(job.name, None)
        if code == 0 or (code not in signals.ASKED and _over(job)):
            return "ended"
        if code in signals.ASKED or handle.pid in self.asked:
            return "stopped"
        if code < 0:  # the last line of its log may be a progress bar
            note(job, _killed(-code))
        return "failed"

    def stop(self, handle: subprocess.Popen) -> None:
        if handle.pid not in self.asked and handle.returncode is None:
            self.asked.add(handle.pid)
            _kill(handle)

    def pass_on(self, handles: Sequence[subprocess.Popen], again: bool) -> None:
        """On a node it does not ask again: there, later signals repeat a request that was made
        elsewhere.
        """
        for handle in handles:
            self.stop(handle)
            if again and not self._bound:
                _kill(handle)

    def forward(self, handles: Sequence[subprocess.Popen], number: int) -> None:
        for handle in handles:
            _send(handle, os.killpg, number)


def _kill(handle: subprocess.Popen) -> None:
    _send(handle, os.kill, signal.SIGTERM)
    _send(handle, os.killpg, signal.SIGCONT)  # a paused process hears nothing else


def _send(handle: subprocess.Popen, send: Callable[[int, int], None], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        if handle.returncode is None:
            send(handle.pid, number)


def _killed(number: int) -> str:
    """What is known of a process that a signal ended, which it did not get from us."""
    name = {one.value: one.name for one in signal.Signals}.get(number, f"signal {number}")
    if number != signal.SIGKILL:
        return f"it crashed ({name}); the lines above may say why"
    return (
        f"it was killed ({name}), as the system does where memory is full; lower --processes or "
        "--replay_capacity, or on a cluster ask for more memory"
    )


def _over(job: Job) -> bool:
    """Whether nothing is left to do although the job ended with an error, as when a seed diverged.
    This is asked on the machine where it ran: over a network, others may see its files later.
    """
    with contextlib.suppress(OSError, UserError):
        return not job.wanted()
    return False


def note(job: Job, error: BaseException | str) -> None:
    """Appends to a job's log, as its last line, why the job could not be attended to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = f"\nerror: {lines[-1] if lines else type(error).__name__}\n"  # after a progress bar
    with contextlib.suppress(OSError), job.log.open("ab") as log:
        log.write(line.encode(errors="backslashreplace"))
