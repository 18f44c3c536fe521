"""What a launcher of other machines calls on a node: `attend`, which makes one job there."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.kit import signals
from experiments.kit.launch import LOOK, End, Job, Local, note, run
from preqn_jax.training.lock import Busy, Lock

LEASE = 180.0  # seconds that a network's file system may keep the lock of a host that is gone


def attend(job: Job, folder: str, here: Local | None = None) -> End:
    """Runs one job from `folder` on the node where this is called, and waits. First it waits for
    the job's lock, which is free or soon will be: a job is killed with the process that attends to
    it, so that it can go on elsewhere at once. On a node that does not reach the job's files, it is
    "stopped", to be tried again: another node may reach them.
    """
    ends: list[End] = []
    job = job._replace(environment={**os.environ, **job.environment})

    def look(_: Sequence[str], ended: Sequence[tuple[str, End]]) -> None:
        ends.extend(end for _, end in ended)

    try:
        os.chdir(folder)
        if not _may_be_free(job.folder):
            return "stopped"
        run(here or Local(bound=True), [job], 1, look)
    except OSError as error:
        note(job, error)
        return "stopped"
    return ends[0]


def _may_be_free(folder: Path) -> bool:
    """Waits until a lock is free, or for `LEASE` seconds: after that somebody really holds it.
    Returns False if we are asked to end meanwhile.
    """
    asked: list[int] = []
    until = time.monotonic() + LEASE
    with signals.handled(lambda number, _: asked.append(number)):
        while not asked:
            try:
                Lock(folder).release()
                return True
            except Busy:
                if time.monotonic() >= until:
                    return True
            time.sleep(min(LOOK, LEASE / 10))
    return False
