"""Runs on other nodes, with Ray and with submitit, as far as one machine can stand for several."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import ROOT, finished, records, start
from waiting import free, until

from experiments.kit import flags, launch, launchers
from experiments.kit import runs as kit
from preqn_jax.options import UserError

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
        ({"slurm_options": ("exclude=n1", "n2")}, "has 'n2', .* double quotes, as in 'mem=8G,"),
    ],
)
def test_flags_of_submitit_are_checked_before_anything_is_written(flags, words, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=words):
        launchers.launcher(CONFIG("submitit", **flags), 1.0, Path("files"))
    assert not list(Path().iterdir())


def test_options_of_sbatch_may_have_commas_or_no_value(monkeypatch):
    pytest.importorskip("submitit")
    given = ['--slurm_options=account=x,"exclude=n1,n2",--no-requeue,exclusive']
    (read,) = flags.read(["--launcher=submitit", "--cluster=local", *given], CONFIG)
    launcher: Any = launchers.launcher(read, 1.0, Path("files"))
    told = {"account": "x", "exclude": "n1,n2", "no_requeue": True, "exclusive": True}
    assert launcher._parameters["slurm_additional_parameters"] == told


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


def test_what_a_task_raises_is_no_loss_of_its_node(monkeypatch):
    """What is raised is raised on any node, but a lost worker's job may go on elsewhere."""
    pytest.importorskip("ray")
    from ray import exceptions  # pyright: ignore[reportMissingImports]

    from experiments.kit import launch_ray

    ends = []
    for raised in (
        exceptions.RayTaskError("attend", "ImportError: no module named y", ImportError("y")),
        exceptions.WorkerCrashedError(),
        exceptions.TaskCancelledError(),
    ):

        def get(_, raised=raised):
            raise raised

        monkeypatch.setattr(launch_ray, "note", lambda *_: None)
        monkeypatch.setattr(launch_ray.ray, "wait", lambda handles, timeout: (handles, []))
        monkeypatch.setattr(launch_ray.ray, "get", get)
        ends.append(launch_ray.Ray.end(None, None, None))
    assert ends == ["failed", "stopped", "stopped"]


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
    job = launch.Job("a", [], {}, Path("a.log"), Path("a"), lambda: True, lambda: 0)
    assert launcher.start(job) is None and os.environ["NPROC"]


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
