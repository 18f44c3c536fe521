"""One run of a plan: its folder, how far it is, and the command that makes it.

A run is a run directory `<root>/<env>/<variant>` of `experiments.train`, all of its seeds in one
program. Beside it lies `<variant>.log`, what it printed.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import experiments
from experiments.kit import launch
from preqn_jax.options import UserError
from preqn_jax.training import collect, directory, record


class Run(NamedTuple):
    """One run directory."""

    name: str  # `<env>/<variant>`
    folder: Path
    flags: tuple[str, ...]  # of experiments.train, but for num_steps, logdir and workers
    seeds: tuple[int, ...]
    num_steps: int  # to be reached now

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")


def state(run: Run) -> str:
    """done, diverged, begun, new, or copied: records without the checkpoints that would let the run
    go on.
    """
    line, copied = last(run), not (run.folder / "checkpoints").exists()
    if line.get("run/diverged") is not None:
        return "diverged"
    reached = line.get("step", 0) >= run.num_steps
    longer = begun(run).get("num_steps", 0) > run.num_steps
    if reached and (copied or longer or (run.folder / directory.DONE).exists()):
        return "done"
    return "new" if not line else "copied" if copied else "begun"


def is_over(run: Run) -> bool:
    """Whether nothing is left to do."""
    return state(run) in ("done", "diverged")


def progress(run: Run) -> int:
    """Environment steps of all seeds so far; a run that is over counts as whole."""
    step = run.num_steps if is_over(run) else min(last(run).get("step", 0), run.num_steps)
    return step * len(run.seeds)


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


def job(run: Run, processes: int) -> launch.Job:
    """What makes the run, or the rest of it, beside others: one of so many processes."""
    return launch.Job(
        run.name,
        command(run, processes),
        environment(processes),
        run.log,
        run.folder,
        lambda: not is_over(run),
    )


def command(run: Run, processes: int) -> list[str]:
    """What makes the run, with its share of the cores for stepping environments."""
    workers = min(_cores(processes), len(run.seeds))
    workers = workers if workers > 1 else 0
    here = (f"--num_steps={run.num_steps}", f"--logdir={run.folder}", f"--workers={workers}")
    return [sys.executable, "-m", "experiments.train", *run.flags, *here]


def environment(processes: int) -> dict[str, str]:
    """That of a run: with its share of the cores as devices, and no accelerator's memory taken in
    advance by one of several.

    A run on one core has one thread as well: with more of them than cores the runs cost each other
      a fifth of their speed.
    """
    if processes == 1:
        return dict(os.environ)
    name, given, share = (
        "xla_force_host_platform_device_count",
        experiments.XLA_FLAGS_GIVEN,
        _cores(processes),
    )
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, "XLA_FLAGS": given}
    if name not in given:
        shared["XLA_FLAGS"] = f"{given} --{name}={share}".strip()
        shared["NPROC"] = experiments.NPROC_GIVEN or str(experiments.threads(share))
    return shared


def _cores(processes: int) -> int:
    """The share of each of so many processes."""
    return max(1, collect.default_workers(sys.maxsize) // processes)
