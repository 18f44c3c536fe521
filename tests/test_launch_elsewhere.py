"""Runs on other nodes, with Ray and with submitit, as far as one machine can stand for several."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import ROOT, finished, records, start
from waiting import children, free, gone, until

from experiments.kit import launch, launchers
from experiments.kit import runs as kit
from preqn_jax.options import UserError
from preqn_jax.training import lock

CONFIG = launch.LaunchConfig

# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"launcher": "slurm"}, "unknown launcher 'slurm'"),
        ({"processes": 0}, "processes is 0"),
        ({"gpus_per_run": 1.0}, "gpus_per_run is 1.0, but launcher is local"),
        ({"launcher": "ray", "slurm_minutes": 5}, "slurm_minutes is 5, but launcher is ray"),
        ({"launcher": "submitit", "ray_address": "a:1"}, "give `launcher=ray`"),
        ({"launcher": "ray"}, r"launcher is ray, which is not installed; .*\.\[ray\]"),
        ({"launcher": "submitit"}, r"which is not installed; .*\.\[submitit\]"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(flags, words, monkeypatch):
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=words):
        launchers.launcher(CONFIG(**flags), 1.0, Path("files"))
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"cluster": "slrm"}, "unknown cluster 'slrm'"),
        ({"cluster": "slurm"}, "there is no sbatch on this machine"),
        ({"gpus_per_run": 0.5}, "gpus_per_run is 0.5, but SLURM gives only whole GPUs"),
        ({"slurm_options": ("account",)}, "slurm_options has 'account'"),
    ],
)
def test_flags_of_submitit_are_checked_before_anything_is_written(flags, words, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=words):
        launchers.launcher(CONFIG("submitit", **flags), 1.0, Path("files"))
    assert not list(Path().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--ray_address=127.0.0.1:9", "--timeout=5"],
            "--ray_address='127.0.0.1:9' did not answer",
        ),
        (
            ["--gpus_per_run=99"],
            "a run asks for 1 CPU, 99 GPU, but no node of this cluster has that",
        ),
    ],
)
def test_a_ray_that_does_not_answer_or_has_too_little_is_one_sentence(flags, words):
    pytest.importorskip("ray")
    process = command("--root=r", "--launcher=ray", *flags)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and err.count("\n") == 1 and words.replace("--", "") in err
    assert not Path("r").exists()


# --- what is handed on ----------------------------------------------------------------------------


def test_a_node_gets_what_is_of_the_run_and_keeps_what_is_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr("experiments.XLA_FLAGS_GIVEN", "")
    monkeypatch.setattr("experiments.NPROC_GIVEN", "")
    run = kit.Run("e/v", Path("r/e/v"), ("--env=e",), (0, 1, 2), 400)
    job = kit.job(run, 1, cpus=2)
    assert "CUDA_VISIBLE_DEVICES" not in job.environment and "PATH" not in job.environment
    assert job.environment["JAX_PLATFORMS"] == "cpu" and job.environment["NPROC"] == "4"
    assert job.environment["XLA_FLAGS"] == "--xla_force_host_platform_device_count=2"
    assert job.command[-1] == "--workers=2"


def test_what_this_machine_chose_for_itself_is_no_nodes():
    """In a separate process, whose environment sets the number of devices and BLAS's threads."""
    ours = """
import json, os
import experiments
from experiments.kit import runs
before, passed = dict(os.environ), runs.variables_elsewhere(3)
with experiments.as_given():
    inside = dict(os.environ)
assert os.environ == before and "NPROC" in before and "JAX_COMPILATION_CACHE_DIR" in before
print(json.dumps([passed, inside]))
"""
    mine = {"XLA_FLAGS": "--xla_force_host_platform_device_count=5", "OPENBLAS_NUM_THREADS": "2"}
    env = {"HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(ROOT), **mine}
    said = subprocess.run([sys.executable, "-c", ours], env=env, capture_output=True, check=True)
    passed, inside = json.loads(said.stdout)
    assert passed == {"PYTHONPATH": str(ROOT), **mine}
    assert {k: v for k, v in inside.items() if k != "LC_CTYPE"} == env


def test_a_job_of_slurm_inherits_nothing_that_this_machine_chose(monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr("experiments._SET", {"NPROC": os.environ["NPROC"]})
    monkeypatch.setattr("experiments.NPROC_GIVEN", "")
    launcher = launchers.launcher(CONFIG("submitit", cluster="local"), 1.0, Path("files"))
    submitted = SimpleNamespace(submit=lambda task: os.environ.get("NPROC"))
    monkeypatch.setattr(launcher, "_executor", submitted)
    assert launcher.start(*jobs("a")) is None and os.environ["NPROC"]


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
        assert launch.attend(job, os.getcwd(), launch.Local()) == "ended" and heard == [1]
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
    assert launch.attend(job, os.getcwd(), launch.Local()) == end


def test_a_job_that_is_lost_is_started_again_and_each_end_is_told_once():
    fake = Fake(a=[None, "stopped", None, "ended"], b=["failed"], c=[None] * 5 + ["elsewhere"])
    assert ends(fake, "a", "b", "c") == {"a": "ended", "b": "failed", "c": "elsewhere"}
    assert sorted(fake.starts) == ["a", "a", "b", "c"] and fake.most == 2


def test_a_job_that_is_lost_again_and_again_has_failed():
    fake = Fake(a=["stopped"] * 99)
    assert ends(fake, "a") == {"a": "failed"} and len(fake.starts) == 1 + launch.TRIES


def test_a_job_may_be_lost_any_number_of_times_as_long_as_it_writes_checkpoints():
    run = kit.Run("e/v", Path("v"), (), (0,), 10**6)
    fake = Fake(v=["stopped"] * 99)
    (job,) = [one._replace(reached=kit.job(run, 1).reached) for one in jobs("v")]

    def start(job):
        if len(fake.starts) % 8 == 7 and len(fake.starts) < 50:
            Path("v", "checkpoints", str(len(fake.starts))).mkdir(parents=True)
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
    monkeypatch.setattr(launch, "LEASE", lease)
    monkeypatch.setattr(launch, "LOOK", 0.01)
    job = job._replace(command=[sys.executable, "-I", "-S", "-c", ""])
    assert launch.attend(job, os.getcwd(), launch.Local()) == end and len(tried) >= 2
    held.release()


@pytest.mark.slow
def test_a_job_is_killed_with_whoever_attends_to_it_and_its_lock_is_free():
    Path("a").mkdir()
    ours = """
import sys
from pathlib import Path
from experiments.kit import launch, launchers
sleep = [sys.executable, "-S", "-c", "import time; print(1, flush=True); time.sleep(60)"]
job = launch.Job("a", sleep, {}, Path("a.log"), Path("a"), lambda: True, lambda: 0)
launch.attend(job, ".")
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    attendant = subprocess.Popen([sys.executable, "-c", ours], env=env)
    until(lambda: Path("a.log").exists() and Path("a.log").read_text())
    (pid,) = children(attendant)
    assert not free(Path("a"))
    attendant.kill(), attendant.wait()
    until(lambda: free(Path("a")))
    until(lambda: gone([pid]))


# --- with experiments.train itself ----------------------------------------------------------------

RUNS = [
    *("--envs=probe/delay,probe/constant", "--seeds=0", "--num_steps=2000", "--processes=2"),
    *("--only=*/td3-relu,*/ddpg-relu", "--"),
    *("--hidden_sizes=8,8", "--start_steps=50", "--update_after=50", "--batch_size=8"),
    *("--eval_every=1000", "--eval_episodes=1", "--log_every=500", "--checkpoint_every=200"),
]


def command(*args):
    """Starts the command in a session of its own, as a terminal does."""
    return start(*args, module="experiments.benchmark", cwd=None, start_new_session=True)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of the same runs, made by processes of this machine."""
    root = tmp_path_factory.mktemp("straight")
    process = command(f"--root={root}", *RUNS)
    _, out, err = finished(process, 900)
    assert "4 runs: 4 done" in out, err
    return root


def folders(root):
    return [
        Path(root) / "probe" / env / variant
        for env in ("constant", "delay")
        for variant in ("td3-relu", "ddpg-relu")
    ]


def attendant(folder):
    """The id of the process whose child makes the run in `folder`, once it has a checkpoint; else
    None.
    """
    if not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        return None
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if words[1:3] == [b"-m", b"experiments.train"] and str(folder).encode() in b" ".join(words):
            return parent
    return None


def strike(process, root, number, spared=()):
    """Sends a signal to the process that attends to one of the runs. Returns the run's folder."""

    def attended():
        for folder in folders(root):
            pid = None if folder in spared or (folder / "DONE").exists() else attendant(folder)
            if pid is not None:
                return folder, pid
        return None

    folder, pid = until(attended, process=process)
    os.kill(pid, number)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("ray", [signal.SIGKILL, signal.SIGTERM]),
        ("submitit", [signal.SIGKILL, signal.SIGUSR2, signal.SIGTERM]),
    ],
)
def test_runs_elsewhere_end_as_those_here_whatever_becomes_of_workers(
    name, losses, straight, tmp_path
):
    """Ctrl-C at the first checkpoint; then the same command again, which loses a worker to kill -9,
    and other workers to preemption.
    """
    pytest.importorskip(name)
    args = [f"--root={tmp_path}/r", f"--launcher={name}", *RUNS]
    process = command(*args)
    until(lambda: any(map(attendant, folders(tmp_path / "r"))), process=process)
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = finished(process, 300)
    assert code == 75 and "stopped; the same command goes on" in out, err
    begun = [one for one in folders(tmp_path / "r") if one.exists()]
    assert all(map(free, begun)) and not all((one / "DONE").exists() for one in begun)
    process, struck = command(*args), []
    for number in losses:
        struck.append(strike(process, tmp_path / "r", number, struck))
    code, out, err = finished(process, 600)
    assert code == 0 and "4 runs: 4 done" in out, err
    for folder in struck:
        assert "resuming" in folder.with_name(folder.name + ".log").read_text()
    for mine, theirs in zip(folders(tmp_path / "r"), folders(straight), strict=True):
        assert records(mine) == records(theirs)
