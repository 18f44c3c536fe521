"""A launcher whose jobs are tasks of Ray, on any node of a cluster with a shared file system."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence

import ray  # pyright: ignore[reportMissingImports]
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    RayTaskError,
    TaskCancelledError,
)

from experiments.kit.launch import TRIES, End, Job, LaunchConfig, note
from experiments.kit.launch_node import attend
from preqn_jax.options import UserError

_PROBE = "import sys, ray; ray.init(sys.argv[1], logging_level='CRITICAL', log_to_driver=False)"


class Ray:
    """A launcher with a Ray task for each job. Where a task's worker or node is lost, another task
    goes on from the run's checkpoint.
    """

    every = 0.5
    tries = TRIES

    def __init__(self, config: LaunchConfig, timeout: float):
        """Joins the cluster, or starts a Ray on this machine that ends with this process. Raises
        UserError if the cluster does not answer within `timeout` seconds, or has too few resources.
        """
        cpus, own = config.cpus_per_run or 1, {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if config.ray_address:
            _probe(config.ray_address, timeout)
        else:
            own = {
                "num_cpus": config.processes * cpus,
                "include_dashboard": False,
                "object_store_memory": 100 * 2**20,  # what is passed around is a few bytes
            }
        ray.init(
            config.ray_address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **own,
        )
        wanted = {"CPU": cpus, "GPU": config.gpus_per_run, "TPU": config.tpus_per_run}
        _check_resources(wanted)
        self._task = ray.remote(attend).options(
            num_cpus=cpus,
            num_gpus=config.gpus_per_run,
            resources={"TPU": config.tpus_per_run} if config.tpus_per_run else None,
            max_retries=0,  # lost jobs are restarted here, where it is seen how far they came
        )

    def start(self, job: Job) -> ray.ObjectRef:
        return self._task.remote(job, os.getcwd())

    def end(self, job: Job, handle: ray.ObjectRef) -> End | None:
        if not ray.wait([handle], timeout=0)[0]:
            return None
        try:
            return ray.get(handle)
        except TaskCancelledError:  # before it began
            return "stopped"
        except Exception as error:
            note(job, error)
            # What the task raised would be raised again; any other error is of its worker or node.
            return "failed" if isinstance(error, RayTaskError) else "stopped"

    def stop(self, handle: ray.ObjectRef) -> None:
        """Ray interrupts the task as Ctrl-C would, and `attend` passes that on."""
        ray.cancel(handle)

    def pass_on(self, handles: Sequence[ray.ObjectRef], again: bool) -> None:
        """Does nothing: a cluster is asked later, by `stop`, outside of the handler."""

    def forward(self, handles: Sequence[ray.ObjectRef], number: int) -> None:
        """Does nothing: a terminal's signals are not for a cluster."""


def _probe(address: str, timeout: float) -> None:
    """Raises UserError if no Ray cluster answers. It asks in a process of its own: Ray's client may
    wait for longer, or end its process.
    """
    command = [sys.executable, "-c", _PROBE, address]
    try:
        found = subprocess.run(command, timeout=timeout, capture_output=True, text=True)
        if found.returncode == 0:
            return
        words = "refused the connection" if "RuntimeError" in found.stderr else "did not answer"
    except subprocess.TimeoutExpired:
        words = f"did not answer in {timeout:g} s"
    raise UserError(
        f"the Ray cluster at ray_address={address!r} {words}; start one with `ray start --head`, "
        f"give its address, or leave ray_address out for a Ray on this machine"
    )


def _check_resources(wanted: dict[str, float]) -> None:
    """Raises UserError if no node has the `wanted` resources: the task would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(has.get(k, 0) >= n for k, n in wanted.items()) for has in nodes):
        words = ", ".join(f"{n:g} {k}" for k, n in wanted.items() if n)
        ray.shutdown()
        raise UserError(
            f"a run asks for {words}, but no node of this cluster has that; lower cpus_per_run, "
            f"gpus_per_run or tpus_per_run, or give the `ray_address` of a cluster that has it"
        )
