"""The pool of jobs: who waits, who is started again, who is asked to end; and attending to one on a
node. Launchers and commands are stand-ins.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from waiting import children, free, gone, until

from experiments.kit import launch, launch_node
from experiments.kit import runs as kit
from preqn_jax.options import UserError
from preqn_jax.training import lock


class Fake:
    """A launcher whose jobs end as given: `ends` has what `end` returns, None for a running job."""

    every, tries = 0.001, launch.TRIES

    def __init__(self, **ends):
        self.ends, self.starts, self.stopped, self.most, self.now = ends, [], [], 0, 0

    def start(self, job):
        self.starts.append(job.name)
        self.now += 1
        self.most = max(self.most, self.now)
        return [job.name]

    def end(self, job, handle):
        end = self.ends[job.name].pop(0)
        self.now -= end is not None
        return end

    def stop(self, handle):
        self.stopped += handle
        self.ends[handle[0]] = ["stopped"]

    def pass_on(self, handles, again):
        pass

    def forward(self, handles, number):
        pass


def jobs(*names):
    return [
        launch.Job(n, [], {}, Path(f"{n}.log"), Path(n), lambda: True, lambda: 0) for n in names
    ]


def ends(fake, *names, processes=2, look=lambda running: None):
    found = {}

    def gather(running, ended):
        look(running)
        assert not {*found} & {name for name, _ in ended}
        found.update(ended)

    launch.run(fake, jobs(*names), processes, gather)
    return found


class Full(Fake):
    """A `Fake` that refuses job "b" so many times."""

    def __init__(self, refusals, **ends):
        super().__init__(**ends)
        self.refusals = refusals

    def start(self, job):
        if job.name == "b" and self.refusals:
            self.refusals -= 1
            raise launch.Refused("SLURM rejects the job: too many")
        return super().start(job)


@pytest.mark.parametrize(
    ("running", "refusals", "taken"), [(200, 50, True), (0, 10, True), (0, 11, False)]
)
def test_what_a_queue_refuses_for_now_waits_and_stops_nobody(
    running, refusals, taken, monkeypatch, capsys
):
    """It waits as long as another job runs, and is tried some more times after that."""
    monkeypatch.setattr(launch, "PAUSE", 0.0)
    fake = Full(refusals, a=[*[None] * running, "ended"], b=["ended"])
    if taken:
        assert ends(fake, "a", "b") == {"a": "ended", "b": "ended"}
    else:
        with pytest.raises(UserError, match="rejects the job"):
            ends(fake, "a", "b", processes=1)
    assert fake.refusals == 0 and fake.stopped == []
    assert capsys.readouterr().err.count("SLURM rejects") == 1


def test_a_queue_that_takes_nothing_is_said_at_once():
    with pytest.raises(UserError, match="rejects the job"):
        ends(Full(1, b=["ended"]), "b")


def test_whoever_attends_to_a_job_leaves_signals_to_those_that_mean_something_by_them(monkeypatch):
    """Such as submitit, which queues a job again at SIGUSR2."""
    heard, (job,) = [], jobs("a")
    job.folder.mkdir()
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append(1))
    script = "import os, signal; os.kill(os.getppid(), signal.SIGUSR2)"
    try:
        job = job._replace(command=[sys.executable, "-c", script])
        assert launch_node.attend(job, os.getcwd(), launch.Local()) == "ended" and heard == [1]
    finally:
        signal.signal(signal.SIGUSR2, before)


PREEMPTED = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("script", "end"),
    [
        (PREEMPTED, "stopped"),
        ("sys.exit(75)", "stopped"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "stopped"),  # while it is being imported
        ("os.kill(os.getpid(), signal.SIGUSR1)", "stopped"),
        ("sys.exit(128 + signal.SIGTERM)", "stopped"),  # at a second signal
        ("os.kill(os.getpid(), signal.SIGKILL)", "failed"),
        ("sys.exit(1)", "failed"),
        ("sys.exit(0)", "ended"),
    ],
)
def test_a_run_that_is_told_to_end_on_its_node_is_for_whoever_made_the_job_to_go_on_with(
    script, end
):
    """Its end is "stopped", so that the launcher that made the job may start it again."""
    (job,) = jobs("a")
    job.folder.mkdir()
    script = f"import os, signal, sys, time\n{script}"
    job = job._replace(command=[sys.executable, "-I", "-S", "-c", script])
    assert launch_node.attend(job, os.getcwd(), launch.Local()) == end


def test_a_job_that_is_lost_is_started_again_and_each_end_is_told_once():
    fake = Fake(a=[None, "stopped", None, "ended"], b=["failed"], c=[None] * 5 + ["elsewhere"])
    assert ends(fake, "a", "b", "c") == {"a": "ended", "b": "failed", "c": "elsewhere"}
    assert sorted(fake.starts) == ["a", "a", "b", "c"] and fake.most == 2


def test_a_job_that_is_lost_again_and_again_has_failed():
    fake = Fake(a=["stopped"] * 99)
    assert ends(fake, "a") == {"a": "failed"} and len(fake.starts) == 1 + launch.TRIES
    words = f"lost or stopped {1 + launch.TRIES} times in a row without a new checkpoint"
    assert words in kit.last_words(Path("a.log"))


@pytest.mark.parametrize("lost", ["work", "log"])
def test_a_job_whose_files_its_node_does_not_reach_is_tried_elsewhere(lost):
    (job,) = jobs("a")
    job.folder.mkdir()
    command = [sys.executable, "-I", "-S", "-c", "print(1)"]
    job = job._replace(command=command, log=Path("none" * (lost == "log"), "a.log"))
    folder = os.getcwd() + "/none" * (lost == "work")
    assert launch_node.attend(job, folder, launch.Local()) == "stopped"
    if lost == "work":
        assert "No such file" in kit.last_words(job.log)
    else:
        job.log.parent.mkdir()
        assert launch_node.attend(job, folder, launch.Local()) == "ended"


@pytest.mark.parametrize("place", [Path("v"), Path("v", "added")])
def test_a_job_may_be_lost_any_number_of_times_as_long_as_it_writes_checkpoints(place):
    """Of the run, or of seeds that are added; once they have joined it their folder is gone."""
    run = kit.Run("e/v", Path("v"), (), (0,), 10**6)
    fake = Fake(v=["stopped"] * 99)
    (job,) = [one._replace(reached=kit.job(run, 1).reached) for one in jobs("v")]

    def start(job):
        if len(fake.starts) % 8 == 7 and len(fake.starts) < 46:
            (place / "checkpoints" / str(len(fake.starts))).mkdir(parents=True)
        elif len(fake.starts) == 47:
            shutil.rmtree(place / "checkpoints")
        return Fake.start(fake, job)

    fake.start = start
    seen = []
    launch.run(fake, [job], 1, lambda _, ended: seen.extend(ended))
    assert seen == [("v", "failed")] and len(fake.starts) == 48 + launch.TRIES


def test_a_signal_asks_what_runs_to_end_and_starts_nothing_more():
    fake = Fake(a=[None] * 10**6, b=[None] * 10**6, c=["ended"])
    looks = []

    def strike(running):
        looks.append(running)
        if len(looks) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    assert ends(fake, "a", "b", "c", look=strike) == dict.fromkeys("abc", "stopped")
    assert {*fake.stopped} == {"a", "b"} == {*fake.starts}


def test_what_is_raised_while_jobs_run_comes_once_they_have_ended():
    fake = Fake(a=[None] * 10**6)

    def start(job):
        if job.name == "b":
            raise PermissionError(13, "Permission denied", "b.log")
        return Fake.start(fake, job)

    fake.start = start
    with pytest.raises(PermissionError):
        ends(fake, "a", "b")
    assert fake.stopped == ["a"]


def test_why_a_job_could_not_be_attended_to_is_the_last_line_of_its_log():
    (job,) = jobs("a")
    launch.note(job, "Traceback\n  File x\nImportError: no module named y\n")
    assert kit.last_words(job.log) == "ImportError: no module named y"
    job.log.write_text("")
    assert kit.last_words(job.log) == f"{job.log} is empty, as where a disk is full"
    assert kit.last_words(Path("nowhere")) == ""


@pytest.mark.parametrize(
    ("lease", "then", "end"),
    [(60.0, "freed", "ended"), (0.2, "kept", "elsewhere"), (60.0, "asked", "stopped")],
)
def test_a_lock_that_outlives_its_host_is_waited_for_but_not_for_ever(
    lease, then, end, monkeypatch
):
    """NFS may keep such a lock for a while."""
    (job,) = jobs("a")
    job.folder.mkdir()
    held, tried = lock.Lock(job.folder), []

    def busy(folder):
        tried.append(folder)
        if len(tried) == 3 and then == "freed":
            held.release()
        if len(tried) == 3 and then == "asked":
            os.kill(os.getpid(), signal.SIGTERM)
        return lock.Lock(folder)

    monkeypatch.setattr(launch, "Lock", busy)
    monkeypatch.setattr(launch_node, "Lock", busy)
    monkeypatch.setattr(launch_node, "LEASE", lease)
    monkeypatch.setattr(launch, "LOOK", 0.01)
    monkeypatch.setattr(launch_node, "LOOK", 0.01)
    job = job._replace(command=[sys.executable, "-I", "-S", "-c", ""])
    assert launch_node.attend(job, os.getcwd(), launch.Local()) == end and len(tried) >= 2
    held.release()


@pytest.mark.slow
def test_a_job_is_killed_with_whoever_attends_to_it_and_its_lock_is_free():
    Path("a").mkdir()
    ours = """
import sys
from pathlib import Path
from experiments.kit import launch, launch_node
sleep = [sys.executable, "-S", "-c", "import time; print(1, flush=True); time.sleep(60)"]
job = launch.Job("a", sleep, {}, Path("a.log"), Path("a"), lambda: True, lambda: 0)
launch_node.attend(job, ".")
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    attendant = subprocess.Popen([sys.executable, "-c", ours], env=env)
    until(lambda: Path("a.log").exists() and Path("a.log").read_text())
    (pid,) = children(attendant)
    assert not free(Path("a"))
    attendant.kill(), attendant.wait()
    until(lambda: free(Path("a")))
    until(lambda: gone([pid]))
