"""Checkpoints of a whole run, by orbax: written atomically, verified when read.

A checkpoint holds arrays (parameters, optimisers, the filled part of the replay) and one JSON
(environment states, counters, a checksum of every array). Nothing in it is executable.
"""

import logging
import zlib
from collections.abc import Callable
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

    def __init__(self, directory: str | Path, *, read_only: bool = False):
        """`read_only` leaves the folder as it is, also while a run writes to it."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else KEEP,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
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
        replay = replace(learner.replay, data=data)
        parts = jax.device_get({"agent": _named(learner.agent), "replay": _named(replay)})
        note = {
            "counters": counters._asdict(),
            "collector": collector,
            "extra": extra,
            "filled": filled,
            "checksums": {part: _checksums(arrays) for part, arrays in parts.items()},
        }
        items = {part: ocp.args.StandardSave(arrays) for part, arrays in parts.items()}
        args = ocp.args.Composite(note=ocp.args.JsonSave(note), **items)
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
        found = self._newest(lambda step: self._read(step, like))
        return None if found is None else (found[0], *found[1])

    def restore_agent(self, like: Any) -> tuple[int, Any] | None:
        """(step, the agent's state) of the newest whole checkpoint, without its replay; else as
        `restore`.
        """
        return self._newest(lambda step: self._read_part(step, "agent", like, self._note(step)))

    def _newest(self, read: Callable[[int], Any]) -> tuple[int, Any] | None:
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, read(step)
            except Exception as error:  # whatever a damaged file makes the reader raise
                text = str(error).strip()
                reason = text.splitlines()[0][:160] if text else type(error).__name__
                words = "the checkpoint of step %d cannot be read (%s); trying the one before"
                _log.warning(words, step, reason)
        if steps:
            raise UserError(
                f"none of the checkpoints in {self._manager.directory} can be read (steps {steps});"
                " move the run directory away, or give another `logdir`, to start anew"
            )
        return None

    def _note(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(note=ocp.args.JsonRestore()))[
            "note"
        ]

    def _read(self, step: int, like: Learner) -> tuple[Learner, Counters, Any, Any]:
        note = self._note(step)
        short = jax.tree.map(lambda ring: ring[:, : note["filled"]], like.replay.data)
        agent = self._read_part(step, "agent", like.agent, note)
        replay = self._read_part(step, "replay", replace(like.replay, data=short), note)

        def fill(part: Any, ring: Any) -> Any:
            return jnp.asarray(ring).at[:, : part.shape[1]].set(part)

        data = Transition(*jax.tree.map(fill, tuple(replay.data), tuple(like.replay.data)))
        learner = Learner(agent, replace(replay, data=data))
        learner = jax.device_put(learner, jax.tree.map(lambda leaf: leaf.sharding, like))
        return learner, Counters(**note["counters"]), note["collector"], note["extra"]

    def _read_part(self, step: int, part: str, like: Any, note: dict[str, Any]) -> Any:
        """One item of a checkpoint, in the structure of `like`. Raises ValueError if damaged."""
        shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in _named(like).items()}
        abstract = {name: np.zeros(*shape) for name, shape in shapes.items()}
        args = ocp.args.Composite(**{part: ocp.args.StandardRestore(abstract)})
        arrays = self._manager.restore(step, args=args)[part]
        same = {name: (leaf.shape, leaf.dtype) for name, leaf in arrays.items()} == shapes
        if not same or _checksums(arrays) != note["checksums"][part]:
            raise ValueError("its contents do not match their checksums")
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in shapes])

    def close(self) -> None:
        self._manager.close()


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by name: a layout on disk that outlives a change of the classes."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _checksums(arrays: dict[str, Any]) -> dict[str, int]:
    return {name: zlib.crc32(np.ascontiguousarray(leaf).data) for name, leaf in arrays.items()}
