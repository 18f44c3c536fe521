"""Sweeps whose programs are processes of their own."""

import sys
from pathlib import Path

import pytest
from test_sweep_command import SMALL, records, start, sweep
from waiting import free

from experiments.kit import flags, launch, launch_sweep
from experiments.kit.processes import ProcessesConfig
from preqn_jax.options import UserError
from preqn_jax.training import lock
from preqn_jax.training import run as training
from preqn_jax.training import sweep as sweeps

OUTER = ("--sweep=activation=relu,sin", "--sweep=env=probe/delay,probe/constant")


def planned(*axes, args=()):
    given = ("--algorithm=ddpg", "--seeds=0,1", *args)
    run, agent, loop = flags.read(given, *training.CONFIGS)
    return sweeps.make("s", run, agent, loop, sweeps.axes(axes))


def test_each_program_is_this_command_with_its_number(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep", "--sweep=eta=0.5,0.9", "--logdir=s"])
    swept = planned("eta=0.5,0.9", "activation=sin,relu")
    config = launch.LaunchConfig("ray", processes=9, cpus_per_run=3)
    jobs = [launch_sweep._job(swept, i, config) for i in range(2)]
    assert [job.name for job in jobs] == ["activation=sin", "activation=relu"]
    assert jobs[1].command[1:] == [
        *("-m", "experiments.sweep", "--sweep=eta=0.5,0.9", "--logdir=s"),
        *("--only_program=1", "--workers=3"),
    ]
    assert jobs[1].log == Path("s/programs/activation=relu.log") and jobs[1].wanted()
    given = planned("activation=sin,relu", args=["--workers=0"])
    assert launch_sweep._job(given, 1, config).command[-1] == "--only_program=1"


def test_a_program_on_the_device_gets_no_workers_and_its_neighbour_does():
    swept = planned("env=native/pendulum,Pendulum-v1")
    config = launch.LaunchConfig("submitit", cpus_per_run=4)
    last = [launch_sweep._job(swept, i, config).command[-1] for i in range(2)]
    assert last == ["--only_program=0", "--workers=2"]


def test_a_program_is_as_far_as_the_checkpoints_of_its_members():
    swept = planned("eta=0.5,0.9", "activation=sin,relu")
    jobs = [launch_sweep._job(swept, i, launch.LaunchConfig("ray")) for i in range(2)]
    assert [job.reached() for job in jobs] == [0, 0]
    for member, step in zip(swept.programs[0].members, (200, 400), strict=False):
        for made in (100, step):
            (swept.logdir / member.name / "checkpoints" / str(made)).mkdir(parents=True)
    assert [job.reached() for job in jobs] == [600, 0]


def test_with_one_program_there_is_one_job():
    assert [run.name for run in launch_sweep.runs_of(planned("eta=0.5,0.9"))] == ["program"]


@pytest.mark.parametrize(
    ("config", "together", "words"),
    [
        ({"processes": 2}, {"coordinator": "a:1"}, "coordinator is given, but launcher or"),
        ({"launcher": "rey"}, {}, "unknown launcher 'rey'"),
        ({"cluster": "local"}, {}, "cluster is local, but launcher is local"),
    ],
)
def test_what_makes_no_sense_is_one_sentence_and_nothing_is_written(config, together, words):
    with pytest.raises(UserError, match=words):
        launch_sweep.train(
            planned("eta=0.5,0.9"), launch.LaunchConfig(**config), ProcessesConfig(**together)
        )
    assert not Path("s").exists()


@pytest.mark.parametrize(
    ("end", "outcome"),
    [("ended", "done"), ("stopped", "stopped"), ("failed", "failed"), ("elsewhere", "stopped")],
)
def test_a_program_is_over_where_its_process_says_so(end, outcome, monkeypatch):
    """Over a network the files may not show it here yet."""
    monkeypatch.setattr(launch.Local, "start", lambda self, job: end)
    swept, config = planned("discount=0.5,0.9"), launch.LaunchConfig(processes=2)
    assert launch_sweep.train(swept, config, ProcessesConfig()) == outcome


def test_a_program_that_another_command_has_ended_meanwhile_is_done(monkeypatch):
    left = [True]
    monkeypatch.setattr(launch_sweep, "_left", lambda sweep, index: left[0])

    def start(self, job):
        left.clear(), left.append(False)
        return "elsewhere"

    monkeypatch.setattr(launch.Local, "start", start)
    assert launch_sweep.train(planned(), launch.LaunchConfig(), ProcessesConfig()) == "done"


@pytest.mark.slow
def test_programs_side_by_side_leave_what_they_do_one_after_the_other(tmp_path):
    """Even if the first is stopped, and another command holds one of the programs."""
    args = [*SMALL[1:5], *SMALL[6:], *OUTER]
    one, many = tmp_path / "one", tmp_path / "many"
    status, out, err = sweep(*args, f"--logdir={one}")
    assert status == 0 and "in 4 programs" in err, err
    many_at_once = [*args, f"--logdir={many}", "--processes=2"]
    process = start(*many_at_once)
    while process.poll() is None and not [*many.glob("*/checkpoints/[0-9]*")]:
        pass
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75 and "the same command goes on from there" in err, err
    folders = [path for path in (many / "programs").iterdir() if path.is_dir()]
    assert len(folders) == 4 and all(map(free, folders)) and not (many / "summary.md").exists()
    held = lock.Lock(many / "programs" / "activation=sin,env=probe-delay")
    status, _, err = sweep(*many_at_once)
    assert status == 75 and "activation=sin,env=probe-delay: elsewhere" in err, err
    held.release()
    status, mine, err = sweep(*many_at_once)
    assert status == 0 and mine.replace("many", "one") == out, err
    assert records(many) == records(one) and len(records(one)) == 24
