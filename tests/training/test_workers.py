"""What an environment may do in a worker process, and what it is told where it may not."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import pytest

from collect_cases import recipe
from preqn_jax import envs
from preqn_jax.envs import EnvError
from preqn_jax.training import collect
from tests import faulty


class Simulated(faulty.Faulty):
    """Has a simulator in a process of its own, and another in a fork of this one. As it is closed
    it asks both to end, and writes to `out` how they took it.
    """

    def __init__(self, out):
        super().__init__()
        self.out, self.started, self.forked = out, subprocess.Popen(["sleep", "60"]), os.fork()
        while not self.forked:
            signal.alarm(60)
            signal.pause()

    def close(self):
        lines = Path(f"/proc/{self.started.pid}/status").read_text().splitlines()
        masks = {line[:6]: int(line[7:], 16) for line in lines if line[:6] in ("SigBlk", "SigIgn")}
        self.started.terminate()
        os.kill(self.forked, signal.SIGTERM)
        ends = self.started.wait(), -os.WTERMSIG(os.waitpid(self.forked, 0)[1])
        Path(self.out).write_text(json.dumps({"ends": ends, **masks}))


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_what_an_environment_starts_takes_signals_as_it_would_without_a_worker(tmp_path):
    """Else a simulator does not end where it is told to, and the run waits for it."""
    source = envs.described(Simulated, {"out": str(tmp_path / "out")})
    built = recipe(source, seeds=(7,))._replace(eval_episodes=1)
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with contextlib.closing(collect.Collector(built, workers=1)) as collector:
            collector.save()  # or the worker, which has done nothing, would just be killed
    finally:
        signal.signal(signal.SIGHUP, old)
    found = json.loads((tmp_path / "out").read_text())
    assert found["ends"] == [-signal.SIGTERM, -signal.SIGTERM] and found["SigBlk"] == 0
    hangup, user = (found["SigIgn"] >> n - 1 & 1 for n in (signal.SIGHUP, signal.SIGUSR2))
    assert (hangup, user) == (1, 0)


class Parallel(faulty.Faulty):
    def __init__(self):
        multiprocessing.get_context("spawn").Process(target=print).start()


def test_an_environment_that_needs_processes_of_its_own_is_told_of_no_workers(tmp_path, caplog):
    built = recipe(Parallel, seeds=(7,))
    words = "daemonic processes are not allowed to have children; `workers=0` runs without"
    collector = collect.Collector(built, 1, tmp_path / "log")
    with contextlib.closing(collector), pytest.raises(EnvError, match=words):
        collector.save()
    # It is said once, although nothing else comes from this worker until it ends.
    assert (tmp_path / "log").read_text().count("Traceback") == 1 and not caplog.records
