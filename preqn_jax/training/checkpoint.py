"""Checkpoints of a whole run, by orbax: written atomically, verified when read.

A checkpoint holds arrays (parameters, optimisers, the filled part of the replay) and one JSON
(environment states, counters, a checksum of every array). Nothing in it is executable.
"""

import dataclasses
import logging
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from preqn_jax.options import UserError
from preqn_jax.training.loop import Counters, Learner
from preqn_jax.types import Transition

_log = logging.getLogger(__name__)
KEEP = 2  # the newest, and the one before it should the newest be damaged


class Checkpointer:
    """The checkpoints of one run directory."""

    def __init__(self, directory: str | Path):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(Path(directory).absolute(), options=options)

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, learner: Learner, counters: Counters, collector: Any, extra: Any
    ) -> None:
        """Write one. `collector` is what `Collector.save` returned; `extra` is JSON of the caller's
        own.
        """
        filled = int(jnp.max(learner.replay.size))
        data = jax.tree.map(lambda ring: ring[:, :filled], learner.replay.data)
        arrays = jax.device_get(
            _as_dict(replace(learner, replay=replace(learner.replay, data=data)))
        )
        note = {
            "counters": dataclasses.asdict(counters),
            "collector": collector,
            "extra": extra,
            "filled": filled,
            "checksums": _checksums(arrays),
        }
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), note=ocp.args.JsonSave(note)
        )
        if step in self._manager.all_steps():  # damaged, or it would have been resumed from
            self._manager.delete(step)
        self._manager.save(step, args=args, force=True)
        self._manager.wait_until_finished()

    def restore(self, like: Learner) -> tuple[int, Learner, Counters, Any, Any] | None:
        """The newest checkpoint that is whole: (step, learner, counters, collector, extra), or None
        if there is none.

        A damaged one is passed over with a warning. `like` gives shapes and types, as `loop.init`
        returns.

        Raises:
          UserError: there are checkpoints, and none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, *self._read(step, like)
            except Exception as error:  # whatever a damaged file makes the reader raise
                reason = (
                    str(error).strip().splitlines()[0][:160]
                    if str(error).strip()
                    else type(error).__name__
                )
                _log.warning(
                    "the checkpoint of step %d cannot be read (%s); trying the one before",
                    step,
                    reason,
                )
        if steps:
            raise UserError(
                f"none of the checkpoints in {self._manager.directory} can be read (steps "
                f"{steps}); "
                "move the run directory away, or give another --logdir, to start anew"
            )
        return None

    def _read(self, step: int, like: Learner) -> tuple[Learner, Counters, Any, Any]:
        note = self._manager.restore(step, args=ocp.args.Composite(note=ocp.args.JsonRestore()))[
            "note"
        ]
        short = jax.tree.map(lambda ring: ring[:, : note["filled"]], like.replay.data)
        target = _as_dict(replace(like, replay=replace(like.replay, data=short)))
        abstract = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), target)
        arrays = self._manager.restore(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
        )["arrays"]
        shapes = jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), arrays, abstract
        )
        if not all(jax.tree.leaves(shapes)) or _checksums(arrays) != note["checksums"]:
            raise ValueError("its contents do not match their checksums")
        learner = _from_dict(arrays, like)
        return learner, Counters(**note["counters"]), note["collector"], note["extra"]

    def close(self) -> None:
        self._manager.close()


def _as_dict(learner: Learner) -> dict[str, Any]:
    """Leaves by name: a layout on disk that outlives a change of the classes."""
    paths = jax.tree_util.tree_flatten_with_path(learner)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _from_dict(arrays: dict[str, Any], like: Learner) -> Learner:
    learner = jax.tree.unflatten(
        jax.tree.structure(like), [arrays[name] for name in _as_dict(like)]
    )

    def fill(short: Any, ring: Any) -> Any:
        return jnp.asarray(ring).at[:, : short.shape[1]].set(short)

    data = Transition(*jax.tree.map(fill, tuple(learner.replay.data), tuple(like.replay.data)))
    return jax.device_put(
        replace(learner, replay=replace(learner.replay, data=data)),
        jax.tree.map(lambda leaf: leaf.sharding, like),
    )


def _checksums(arrays: dict[str, Any]) -> dict[str, int]:
    return {name: zlib.crc32(np.ascontiguousarray(leaf).data) for name, leaf in arrays.items()}
