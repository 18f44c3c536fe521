"""A sweep whose programs are trained side by side, a process for each, here or on a cluster."""

import functools
import sys
from typing import Literal

import jax

from experiments.kit import launch, launchers, runs
from experiments.kit.curves import plural
from experiments.kit.processes import ProcessesConfig
from preqn_jax.options import UserError
from preqn_jax.training import sweep as sweeps
from preqn_jax.training.sweep import Sweep


def train(
    sweep: Sweep, config: launch.LaunchConfig, together: ProcessesConfig
) -> Literal["done", "failed", "stopped"]:
    """Trains whatever is left of a sweep. A program that fails does not stop the others; one that
    another command is training is left to that command. "stopped" says that work is left to do, for
    whomever.

    Raises UserError as `launchers.launcher` and `sweeps.open_` do, and if a coordinator is given:
    processes that meet at one share the sweep by themselves.
    """
    if together.coordinator:
        raise UserError(
            "coordinator is given, but launcher or processes as well: both divide the sweep among "
            "processes; leave one of them out"
        )
    jax.config.update("jax_platforms", "cpu")  # of this process: accelerators are for the programs
    folder = sweep.logdir / "programs" / ".submitit"
    launcher = launchers.launcher(config, together.timeout, folder)
    sweeps.open_(sweep)
    programs = runs_of(sweep)
    number = {program.name: i for i, program in enumerate(programs)}
    jobs = [_job(sweep, i, config) for i in number.values() if _left(sweep, i)]
    ends: dict[str, launch.End] = {}

    def ended(name: str, end: launch.End) -> str:
        ends[name] = end
        words = "another process trains it" if end == "elsewhere" else ""
        if end == "failed":
            words = runs.last_words(programs[number[name]].log)
        return f"{name}: {end}{': ' * bool(words)}{words}"

    sizes = f"{plural(len(sweep.members), 'member')} in {plural(len(programs), 'program')}"
    print(f"{sizes}, {config.processes} at a time: {sweep.logdir}", file=sys.stderr)
    runs.follow(_members(sweep), jobs, launcher, config.processes, ended, "logdir")
    for name, end in ends.items():
        if end == "elsewhere" and not _left(sweep, number[name]):
            ends[name] = "ended"
    if words := runs.left(ends.values()):
        print(words, file=sys.stderr)
        return "stopped"
    return "failed" if "failed" in ends.values() else "done"


def runs_of(sweep: Sweep) -> list[runs.Run]:
    """A run for each program of the sweep: a folder, whose lock the program takes, and a log beside
    it.
    """
    rest = ((), sweep.loop.seeds, sweep.loop.num_steps)
    names = [program.name or "program" for program in sweep.programs]
    return [runs.Run(name, sweep.logdir / "programs" / name, *rest) for name in names]


def _members(sweep: Sweep) -> list[runs.Run]:
    steps = sweep.loop.num_steps
    return [runs.Run(m.name, sweep.logdir / m.name, (), (m.seed,), steps) for m in sweep.members]


def _left(sweep: Sweep, index: int) -> bool:
    """Whether anything of a program is left to do."""
    return bool(sweeps.plans(sweep, sweep.programs[index]))


def _job(sweep: Sweep, index: int, config: launch.LaunchConfig) -> launch.Job:
    """The job that trains one program, by this same command."""
    program, cores = sweep.programs[index], config.cpus or runs.cores(config.processes)
    job = runs.job(runs_of(sweep)[index], config.processes, config.cpus)
    own = f"--only_program={index}", *runs.workers(program.run, len(program.members), cores)
    members = [sweep.logdir / member.name for member in program.members]
    return job._replace(
        command=[sys.executable, "-m", "experiments.sweep", *sys.argv[1:], *own],
        wanted=functools.partial(_left, sweep, index),
        reached=functools.partial(runs.reached, members),
    )
