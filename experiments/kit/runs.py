"""One run of a plan: its folder, how far it is, and the command that makes it.

A run is a run directory `<root>/<env>/<variant>` of `experiments.train`, with all of its seeds in
one program. Its output is in `<variant>.log`, beside the directory.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

import experiments
from experiments.kit import curves, flags, launch, streams
from preqn_jax.options import UserError
from preqn_jax.training import added, collect, device, directory, record
from preqn_jax.training.config import RunConfig

# Prefixes of the environment variables that runs on other nodes get from this process.
_PASSED = ("JAX_", "XLA_", "NPROC", "OPENBLAS_", "MUJOCO_", "PYTHONPATH", "WANDB_", "MLFLOW_")


class Run(NamedTuple):
    """One run directory."""

    name: str  # `<env>/<variant>`
    folder: Path
    flags: tuple[str, ...]  # of experiments.train, without num_steps, logdir and workers
    seeds: tuple[int, ...]
    num_steps: int  # to be reached now

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")


def state(run: Run) -> str:
    """The state of a run: "done", "diverged", "begun", "new", or "copied", which has records but
    not the checkpoints that would let it go on.
    """
    line, copied = last(run), not (run.folder / directory.CHECKPOINTS).exists()
    # Where one seed has diverged, others may just have written nothing since.
    if line.get("run/diverged") is not None and (
        curves.wanted_end(line) or set(run.seeds) <= diverged(run)
    ):
        return "diverged"
    there = begun(run)
    whole = set(run.seeds) <= set(there.get("seeds", run.seeds))
    reached = whole and line.get("step", 0) >= run.num_steps
    longer = there.get("num_steps", 0) > run.num_steps
    if reached and (copied or longer or directory.finished(run.folder)):
        return "done"
    return "new" if not line else "copied" if copied else "begun"


def diverged(run: Run) -> set[int]:
    """The run's seeds that have diverged."""
    with contextlib.suppress(OSError):  # it was replaced, over a network: the next look tells
        return set(run.seeds) & set(curves.diverged(record.read(run.folder / record.NAME)))
    return set()


def is_over(run: Run) -> bool:
    """Whether nothing of the run is left to do."""
    return state(run) in ("done", "diverged")


def progress(run: Run) -> int:
    """Environment steps of all seeds so far, also of those that are being added; a run that is over
    counts as whole.
    """
    if is_over(run):
        return run.num_steps * len(run.seeds)
    new = len(set(run.seeds) - set(begun(run).get("seeds", run.seeds)))
    apart = run._replace(folder=run.folder / added.NAME)
    step, of_new = (min(last(one).get("step", 0), run.num_steps) for one in (run, apart))
    return step * (len(run.seeds) - new) + of_new * new


def begun(run: Run) -> dict[str, Any]:
    """The configuration in a run's config.json; {} if there is none."""
    with contextlib.suppress(OSError, UserError):
        return directory.read_config(run.folder / directory.CONFIG)
    return {}


def last(run: Run) -> dict[str, Any]:
    """The last whole line of a run's records; {} if there is none."""
    try:
        with (run.folder / record.NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return {}
    for line in reversed(lines):
        found = record.parse(line) if line.endswith(b"\n") else None
        if found is not None:
            return found
    return {}


# --- making it ------------------------------------------------------------------------------------


def job(run: Run, processes: int, cpus: int | None = None) -> launch.Job:
    """The job that makes the run, or the rest of it: as one of so many processes of this machine,
    or with so many cores of another.
    """
    share = cpus or cores(processes)
    return launch.Job(
        run.name,
        command(run, share),
        variables_here(processes) if cpus is None else variables_elsewhere(cpus),
        run.log,
        run.folder,
        functools.partial(_wanted, run),
        functools.partial(reached, [run.folder, run.folder / added.NAME]),
    )


def _wanted(run: Run) -> bool:
    return not is_over(run)


def reached(folders: Iterable[Path]) -> int:
    """The environment steps of the newest checkpoint in each of these run directories, in sum."""
    found = 0
    for folder in folders:
        with contextlib.suppress(OSError):
            found += max(directory.steps(folder / directory.CHECKPOINTS), default=0)
    return found


def command(run: Run, cores: int) -> list[str]:
    """The command that makes the run, with so many cores for stepping environments."""
    config, *_ = flags.read(run.flags, *directory.CONFIGS)
    here = f"--num_steps={run.num_steps}", f"--logdir={run.folder}"
    own = workers(config, len(run.seeds), cores)
    return [sys.executable, "-m", "experiments.train", *run.flags, *here, *own]


def workers(run: RunConfig, members: int, cores: int) -> list[str]:
    """The flag for the worker processes that step the environments of so many members, with so many
    cores. There is none where the run names their number, or has its environments on the device.
    """
    if run.workers is not None or device.wanted(run, run.source):
        return []
    return [f"--workers={collect.default_workers(members, cores)}"]


def variables_here(processes: int) -> dict[str, str]:
    """The environment variables of a run on this machine, whose devices are its share of the cores.

    A run on one core has one thread as well: with more of them than cores the runs cost each other
    a fifth of their speed.
    """
    return dict(os.environ) if processes == 1 else _shared(os.environ, cores(processes))


def variables_elsewhere(cpus: int) -> dict[str, str]:
    """The environment variables that a run on another node gets beside that node's own, which say
    which accelerators it may use.
    """
    passed = {k: v for k, v in experiments.given().items() if k.startswith(_PASSED)}
    return _shared(passed, cpus)


def _shared(passed: Mapping[str, str], cores: int) -> dict[str, str]:
    name, given = "xla_force_host_platform_device_count", experiments.XLA_FLAGS_GIVEN
    shared = {**passed, "XLA_FLAGS": given}
    if name not in given:
        shared["XLA_FLAGS"] = f"{given} --{name}={cores}".strip()
        shared["NPROC"] = experiments.NPROC_GIVEN or str(experiments.threads(cores))
    return shared


def cores(processes: int) -> int:
    """How many cores each of so many processes gets."""
    return max(1, collect.cores() // processes)


# --- making several -------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of a run in this call."""

    run: Run
    state: str  # done, diverged, stopped, failed, or elsewhere: another process makes it
    words: str  # the sentence it ended with, if it says more than the state

    @property
    def sentence(self) -> str:
        words = f"{self.run.name}: {self.state}{': ' if self.words else ''}{self.words}"
        logged = self.state == "failed" and self.run.log.exists()
        return words + f" ({self.run.log})" * logged


def execute(
    runs: Sequence[Run],
    processes: int,
    launcher: launch.Launcher | None = None,
    cpus: int | None = None,
) -> list[Outcome]:
    """Makes the runs that are not over, `processes` at a time, and waits; Ctrl-C and SIGTERM are
    passed on, and each run checkpoints. A launcher makes them, with so many `cpus` for each on its
    nodes; without one they are processes of this machine.

    Returns the outcomes of all `runs`; a run that fails stops no other.
    """
    outcomes = {run.name: _outcome(run, state(run)) for run in runs}
    to_make = {run.name: run for run in runs if outcomes[run.name].state in ("new", "begun")}

    def ended(name: str, end: launch.End) -> str:
        outcomes[name] = _ended(to_make[name], end)
        return outcomes[name].sentence if end in ("ended", "failed", "stopped") else ""

    jobs = [job(run, processes, cpus) for run in to_make.values()]
    follow(runs, jobs, launcher or launch.Local(), processes, ended)
    for name, outcome in outcomes.items():
        if outcome.state == "elsewhere":  # it may have ended there since
            outcomes[name] = _ended(outcome.run, "elsewhere")
    return list(outcomes.values())


def left(states: Collection[str]) -> str:
    """What to say where work is left to do, for the same command or for another process; "" where
    none is.
    """
    if "stopped" in states:
        return "stopped; the same command goes on from there"
    if "elsewhere" in states:
        return "another process trains the rest; once it is done, the same command reports"
    return ""


def _ended(run: Run, end: launch.End) -> Outcome:
    """The outcome of a run whose process has ended, or never started. `end` knows from where it ran
    that a run is over; here a network's file system may not show it yet.
    """
    if is_over(run):
        return _outcome(run, state(run))
    return _outcome(run, "done" if end in ("ended", "unwanted") else end)


def _outcome(run: Run, state: str) -> Outcome:
    """The outcome of a run in this state, with the log's last line if it diverged or failed."""
    if state == "copied":
        words = "holds records without checkpoints; to train the run, give another --root"
        return Outcome(run, "failed", f"{str(run.folder)!r} {words}")
    if state == "elsewhere":
        return Outcome(run, state, "another process trains it")
    return Outcome(run, state, last_words(run.log) if state in ("diverged", "failed") else "")


def follow(
    runs: Sequence[Run],
    jobs: Sequence[launch.Job],
    launcher: launch.Launcher,
    processes: int,
    ended: Callable[[str, launch.End], str],
    flag: str = "root",
) -> None:
    """Runs the jobs, which make `runs`, with a progress bar of these. `ended(name, end)` is called
    for each job; what it returns is printed. The folders of the jobs are made before, and listed as
    they end: else a network's file system may go on saying that files are not there.

    Raises UserError if something cannot be written, and another `--flag` would help, or if the
    launcher gives up.
    """
    folders = {one.name: one.folder for one in jobs}
    with _bar(runs) as bar:

        def look(running: Sequence[str], ends: Sequence[tuple[str, launch.End]]) -> None:
            for name, end in ends:
                _list(folders[name])
                if words := ended(name, end):
                    bar.write(words, file=sys.stderr)
            bar.set_postfix_str(", ".join(running), refresh=False)
            bar.update(sum(map(progress, runs)) - bar.n)

        try:
            for one in jobs:
                one.folder.mkdir(parents=True, exist_ok=True)
            launch.run(launcher, jobs, processes, look)
            for run in runs:
                _list(run.folder)
        except OSError as error:
            if error.filename is None:
                raise
            raise UserError(
                f"cannot write to {str(error.filename)!r}: {error.strerror}; give another --{flag}"
            ) from error


def _list(folder: Path) -> None:
    with contextlib.suppress(OSError):
        os.listdir(folder)


def _bar(runs: Sequence[Run]) -> tqdm:
    total, initial = sum(run.num_steps * len(run.seeds) for run in runs), sum(map(progress, runs))
    return streams.bar(total, initial, unit_scale=True, smoothing=0)  # steps come in lumps


def last_words(log: Path) -> str:
    """The last line of a log, without the "error: " that errors begin with; "" where there is no
    log.
    """
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
        words = next((line for line in reversed(lines) if line.strip()), "")
        return words.removeprefix("error: ") or f"{log} is empty, as where a disk is full"
    return ""
