"""Whether a run fits into this machine, before any of it is allocated."""

import contextlib
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from preqn_jax.agents import Agent
from preqn_jax.agents.config import STEPS
from preqn_jax.options import UserError
from preqn_jax.training import files, loop
from preqn_jax.training.config import LoopConfig
from preqn_jax.types import Settings, Spec

# Copies of the replay buffer in memory at the peak: up to 1.5 in training, at a checkpoint and when
# resuming from one (tests/peak.py), on one device or several.
COPIES = 1.5
_FILES, _OTHERS = 4, 128  # open files: of each run directory (lock, records, board), and others
_KERNEL = 4 * 4  # bytes for each entry of K: a solve holds four matrices B x B at once


def needs(spec: Spec, config: LoopConfig, kernels: int = 1, gradients: int = 0) -> dict[str, int]:
    """Bytes that a run needs at its peak, by the option that decides on them: `replay_capacity` for
    the replay buffers of all members; `batch_size` for a round's minibatches of all members and for
    what the members that learn side by side hold at once: `kernels` K each, one for every critic,
    and `gradients` bytes of per-example gradients for each pair of a minibatch.

    >>> from preqn_jax import envs
    >>> from preqn_jax.training import memory
    >>> from preqn_jax.training.config import LoopConfig
    >>> memory.needs(envs.spec("Pendulum-v1"), LoopConfig(num_steps=1_000_000))
    {'replay_capacity': 54000000, 'batch_size': 1509376}
    """
    row = 4 * (2 * spec.obs_size + spec.action_size + 2)  # bytes of a transition
    members, batch = len(config.seeds), config.batch_size
    held = members * min(config.replay_capacity, config.num_steps)
    learning = 1 if loop.take_turns(config) else members
    solves = kernels * _KERNEL * batch**2 + gradients * batch
    return {
        "replay_capacity": int(COPIES * held * row),
        "batch_size": members * config.update_every * batch * row + learning * solves,
    }


def check(
    spec: Spec, config: LoopConfig, described: dict[str, Any], agent: Agent, settings: Settings
) -> None:
    """Raises UserError where replay, minibatches, kernels or per-example gradients cannot fit this
    machine. `described` is what `directory.describe` says of the run of `agent`, whose `settings`
    `[M]` each are those that an agent of `agents.swept` takes, {} for any other.
    """
    step, critics = STEPS.get(described.get("critic_step", "")), described.get("num_critics") or 1
    solves, reads = (step.solves, step.reads) if step else (False, frozenset())
    jacobian = "kernel" in reads and described.get("kernel") == "jacobian"
    gradients = critics * _parameters(agent, settings) if jacobian else 0
    there, where = _smallest_device(), "memory on each device"
    if there is None:
        there, where = _machine(), "memory"
    else:  # each device holds its share of the members
        share = -(-len(config.seeds) // len(loop.devices_for(len(config.seeds))))
        config = replace(config, seeds=config.seeds[:share])
    found = needs(spec, config, critics * solves, gradients)
    if sum(found.values()) > there:
        most = max(found, key=lambda name: found[name])
        structured = sum(needs(spec, config, critics * solves).values())
        other = ", or use `kernel=structured`" * (jacobian and structured <= there)
        raise UserError(
            f"this run would need some {files.size(sum(found.values()))} of {where} at its "
            f"peak, {files.size(found[most])} of that for {most}={getattr(config, most)}, but "
            f"there are {files.size(there)}; lower `{most}`{other}"
        )


def _parameters(agent: Agent, settings: Settings) -> int:
    """Bytes of the parameters of one critic, without making them."""
    given = [jax.tree.map(lambda leaf: leaf[0], settings)] if settings else []
    critic = jax.eval_shape(lambda: agent.critic(agent.init(jax.random.key(0), *given)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(critic))


def make_room_for_files(folders: int) -> None:
    """Raises this process's limit of open files, which is low in most shells, to what so many run
    directories need. Raises UserError where the system does not allow as many.
    """
    needed = _FILES * folders + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        fewer = "train fewer `seeds` or settings at once" if folders > 1 else "have it raised"
        raise UserError(
            f"this run would need some {needed} open files, but the system allows {hard} per "
            f"process (`ulimit -Hn`); {fewer}"
        )
    with contextlib.suppress(OSError, ValueError):  # a failure shows when files are opened
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _smallest_device() -> int | None:
    """Bytes of memory of the smallest device; None where devices do not say, as CPUs, which use the
    machine's.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return min((found["bytes_limit"] for found in stats if "bytes_limit" in found), default=None)


def _machine(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory of this machine, or what a batch system or a container leaves of it to this
    process: by its control group and those around it (Linux, versions 1 and 2), and by SLURM's
    variables.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_slurm()]
    with contextlib.suppress(OSError, ValueError):
        for line in proc.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                limits += _of_groups(root, group, "memory.max")
            elif "memory" in controllers.split(","):
                limits += _of_groups(root / "memory", group, "memory.limit_in_bytes")
    return min(limits)


def _of_groups(root: Path, group: str, name: str) -> list[int]:
    path, limits = root / group.lstrip("/"), []
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError, ValueError):  # where there is none, or it is "max"
            limits.append(int((folder / name).read_text()))
    return limits


def _of_slurm() -> list[int]:
    """Bytes of the SLURM job's share of this node, where it is limited."""
    with contextlib.suppress(KeyError, ValueError):
        if node := int(os.environ.get("SLURM_MEM_PER_NODE", 0)):
            return [node * 2**20]
        if core := int(os.environ["SLURM_MEM_PER_CPU"]):
            return [core * int(os.environ["SLURM_CPUS_ON_NODE"]) * 2**20]
    return []
