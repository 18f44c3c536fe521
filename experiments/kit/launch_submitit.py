"""A launcher of SLURM jobs through submitit, on nodes that share a file system; without SLURM, of
processes of this machine that submitit starts.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit  # pyright: ignore[reportMissingImports]
from submitit.core.utils import (  # pyright: ignore[reportMissingImports]
    DelayedSubmission,
    FailedJobError,
    UncompletedJobError,
)

import experiments
from experiments.kit import signals
from experiments.kit.launch import TRIES, End, Job, LaunchConfig, Local, Refused, note
from experiments.kit.launch_node import attend
from preqn_jax.options import UserError, choose

_FOR_EVER = 1_000_000  # how often a run that meets its time limit is queued again
# Options of sbatch that may have no value.
_BARE = (
    *("contiguous", "exclusive", "get_user_env", "hold", "no_kill", "no_requeue", "overcommit"),
    *("oversubscribe", "reboot", "requeue", "spread_job", "use_min_nodes"),
)


class Submitit:
    """A launcher with a SLURM job for each job. One that is preempted, or meets its time limit,
    checkpoints and is queued again under the same number.
    """

    every = 2.0
    tries = TRIES

    def __init__(self, config: LaunchConfig, folder: Path):
        """submitit's files go to `folder`, from the first start on. Raises UserError for flags that
        make no sense.
        """
        cluster = choose("cluster", config.cluster, ("auto", "local", "slurm"))
        found = shutil.which("sbatch") is not None
        if cluster == "slurm" and not found:
            raise UserError(
                "cluster is slurm, but there is no sbatch on this machine; run the command on a "
                "machine with sbatch, or give `cluster=local`"
            )
        if config.gpus_per_run % 1:
            raise UserError(
                f"gpus_per_run is {config.gpus_per_run:g}, but SLURM gives only whole GPUs; give "
                "a whole number, or `launcher=ray`"
            )
        self._slurm = found if cluster == "auto" else cluster == "slurm"
        self._folder, self._executor = folder, None
        more = dict(_option(word) for word in config.slurm_options)
        self._parameters: dict[str, Any] = {
            "name": "preqn_jax",
            "timeout_min": config.slurm_minutes,
            "cpus_per_task": config.cpus_per_run or 1,
            "gpus_per_node": int(config.gpus_per_run) or None,
            "slurm_partition": config.slurm_partition or None,
            "slurm_additional_parameters": more or None,
        }

    def start(self, job: Job) -> submitit.Job:
        try:
            if self._executor is None:
                self._executor = submitit.AutoExecutor(
                    self._folder,
                    "slurm" if self._slurm else "local",
                    slurm_max_num_timeout=_FOR_EVER,
                    local_max_num_timeout=_FOR_EVER,
                )
                self._executor.update_parameters(**self._parameters)
            # Ctrl-C is for us alone: we ask jobs to end. sbatch passes on the whole environment.
            with signals.handled(signal.SIG_IGN, signal.SIGINT), experiments.as_given():
                return self._executor.submit(Task(job, os.getcwd()))
        except FailedJobError as error:  # of sbatch
            reason = [*filter(None, str(error).splitlines()), "no reason given"]
            raise Refused(
                f"SLURM rejects the job: {reason[0]}; check slurm_partition, slurm_minutes and "
                "slurm_options"
            ) from error

    def end(self, job: Job, handle: submitit.Job) -> End | None:
        if not handle.done():
            return None
        if not handle.paths.result_pickle.exists():  # it was killed, or cancelled
            return "stopped"
        try:
            return handle.result()
        except UncompletedJobError as error:
            note(job, error)
            return "failed"

    def stop(self, handle: submitit.Job) -> None:
        if self._slurm:
            handle.cancel(check=False)
            return
        # submitit's `cancel` would kill the process a second later; here a job's id is its process.
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(handle.job_id), signal.SIGTERM)

    def pass_on(self, handles: Sequence[submitit.Job], again: bool) -> None:
        """Does nothing: a cluster is asked later, by `stop`, outside of the handler."""

    def forward(self, handles: Sequence[submitit.Job], number: int) -> None:
        """Does nothing: a terminal's signals are not for a cluster."""


class Task:
    """A job in the form in which submitit calls it on a node."""

    def __init__(self, job: Job, folder: str):
        self._job, self._folder = job, folder
        self._here = Local(bound=True)

    def __call__(self) -> End:
        return attend(self._job, self._folder, self._here)

    def checkpoint(self) -> DelayedSubmission:
        """Returns the rest of the job, to be queued again, once the run has written its checkpoint.
        It is called in a signal's handler, where a lock of `subprocess` may be held.
        """
        for process in list(self._here.running.values()):
            self._here.stop(process)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Task(self._job, self._folder))


def _option(word: str) -> tuple[str, str | bool]:
    """An option of sbatch and its value; True where it has none, as submitit takes it."""
    name, equals, value = word.partition("=")
    name = name.lstrip("-").replace("-", "_")
    if name and equals and value:
        return name, value
    if not equals and name in _BARE:
        return name, True
    raise UserError(
        f"slurm_options has {word!r}, but each entry must be name=value, as in "
        "`slurm_options=account=physics`, or an option without a value, as exclusive; put an entry "
        "with commas in double quotes, as in 'mem=8G,\"exclude=n1,n2\"'"
    )
