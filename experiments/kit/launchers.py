"""The choice of a launcher, by flags."""

import dataclasses
import importlib.util
from pathlib import Path

from experiments.kit.launch import LaunchConfig, Launcher, Local
from preqn_jax.options import UserError, check, choose, to_install

_TAKEN_BY = {
    "ray_address": ("ray",),
    "cpus_per_run": ("ray", "submitit"),
    "gpus_per_run": ("ray", "submitit"),
    "tpus_per_run": ("ray",),
    "cluster": ("submitit",),
    "slurm_partition": ("submitit",),
    "slurm_minutes": ("submitit",),
    "slurm_options": ("submitit",),
}


def launcher(config: LaunchConfig, timeout: float, folder: Path) -> Launcher:
    """The launcher that the flags name.

    Args:
      timeout: seconds in which a Ray cluster must answer.
      folder: for the files of submitit, on a file system that all nodes share.

    Raises:
      UserError: no such launcher, or it is not installed; flags that it does not take; a cluster
        that does not answer. Nothing is written then.
    """
    check(config)
    name = choose("launcher", config.launcher, ("local", "ray", "submitit"))
    for field in dataclasses.fields(config):
        value, takers = getattr(config, field.name), _TAKEN_BY.get(field.name, (name,))
        if value != field.default and name not in takers:
            raise UserError(
                f"{field.name} is {value}, but launcher is {name}: leave it out, or give "
                f"`launcher={takers[0]}`"
            )
    if name == "local":
        return Local()
    if importlib.util.find_spec(name) is None:
        raise UserError(f"launcher is {name}, which is not installed; {to_install(name)}")
    if name == "ray":
        from experiments.kit.launch_ray import Ray  # takes seconds, and is seldom installed

        return Ray(config, timeout)
    from experiments.kit.launch_submitit import Submitit

    return Submitit(config, folder)
