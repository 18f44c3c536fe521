"""Checkpoints of a whole run, by orbax: written atomically, verified when read.

The checkpoint of a step is a folder: arrays (parameters, optimisers, the filled part of the replay)
in orbax's format, and a note (`training.note`) with environment states, counters and a checksum of
every file. It is read as arrays and JSON: no file of it is unpickled, imported or run. (The
environment's name, by which a module may be imported, is in config.json; see `directory.trusted`.)
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from preqn_jax.options import UserError
from preqn_jax.training import files, note
from preqn_jax.training.errors import Stopped
from preqn_jax.training.loop import Counters, Learner
from preqn_jax.types import Transition

_log = logging.getLogger(__name__)
KEEP = 2  # the newest, and the one before it should the newest be damaged
_FILES = 64  # at most, of a checkpoint
_SLACK = 100_000  # bytes that these take beside their contents

Note = dict[str, Any]


class Checkpointer:
    """The checkpoints of one run directory."""

    def __init__(self, directory: str | Path, *, read_only: bool = False):
        """`read_only` leaves the folder as it is, also while a run writes to it; else what a kill
        left unfinished in it is removed. Raises OSError.
        """
        self._folder = Path(directory).absolute()
        self._ratio = 1.0  # of the size on disk to that in memory, at most
        if not read_only:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob("[0-9]*tmp*"):
                files.remove(path)

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def save(
        self, step: int, learner: Learner, counters: Counters, collector: Any, extra: Any
    ) -> None:
        """Write one. `collector` is what `Collector.save` returned; `extra` is JSON of the caller's
        own.

        Raises Stopped where it cannot be written; those before are as they were.
        """
        filled = int(jnp.max(learner.replay.size))
        data = jax.tree.map(lambda ring: ring[:, :filled], learner.replay.data)
        arrays = replace(learner.replay, data=data)
        parts = jax.device_get({"agent": _named(learner.agent), "replay": _named(arrays)})
        content = {
            "step": step,
            "counters": counters._asdict(),
            "collector": collector,
            "extra": extra,
            "filled": filled,
            "arrays": {part: _forms(named) for part, named in parts.items()},
        }
        written = self._folder / f"{step}.tmp"
        size = len(json.dumps(content)) + sum(x.nbytes for n in parts.values() for x in n.values())
        with self._complaints(step, size):
            files.remove(written)
            written.mkdir()
            for part, named in parts.items():
                with _orbax() as orbax:
                    orbax.save(written / part, args=ocp.args.StandardSave(named))
            note.write(written, content)
            self._retire([old for old in self.steps() if old >= step])  # damaged, or we were there
            os.replace(written, self._folder / str(step))
            self._retire(self.steps()[:-KEEP])

    def _retire(self, steps: list[int]) -> None:
        for step in steps:
            files.remove(self._folder / str(step))

    @contextlib.contextmanager
    def _complaints(self, step: int, size: int) -> Iterator[None]:
        """Where a checkpoint cannot be written that is what Stopped says, and nothing is left of
        it; for one that has no room, before any of it is written.
        """
        needed = int(size * self._ratio) + _SLACK
        what = f"the checkpoint of step {step} to {self._folder}, which needs {files.size(needed)}"
        written = self._folder / f"{step}.tmp"
        try:
            room = os.statvfs(self._folder)
            free = room.f_bavail * room.f_frsize
            if free < needed:
                raise Stopped(f"cannot write {what}: {files.size(free)} are free")
            if room.f_files and room.f_favail < _FILES:
                raise Stopped(f"cannot write {what}: there is room for {room.f_favail} files")
            yield
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore's are of all kinds
            shutil.rmtree(written, ignore_errors=True)
            raise Stopped(f"cannot write {what}: {_reason(error)}") from error
        used = sum(p.stat().st_size for p in (self._folder / str(step)).rglob("*"))
        self._ratio = min(1.0, 1.2 * used / size)

    def restore(
        self, like: Learner, check: Callable[[Note], None] = lambda note: None
    ) -> tuple[int, Learner, Counters, Any, Any] | None:
        """The newest checkpoint that is whole: (step, learner, counters, collector, extra), or None
        if there is none.

        A damaged one is passed over with a warning, as is one whose note makes `check` raise.
        `like` gives shapes and types, as `loop.init` returns.

        Raises:
          UserError: there are checkpoints, and none is whole.
        """

        found = newest(self._folder, self.steps(), lambda step: self.read(step, like, check))
        return None if found is None else (found[0], *found[1])

    def read(
        self, step: int, like: Learner, check: Callable[[Note], None] = lambda note: None
    ) -> tuple[Learner, Counters, Any, Any]:
        """That of one step, as `restore`; raises whatever a damaged file makes the reader raise."""
        content = note.read(self._folder / str(step), step)
        check(content)
        return self._read(content, like)

    def restore_agent(self, like: Any) -> tuple[int, Any] | None:
        """(step, the agent's state) of the newest whole checkpoint, without its replay; else as
        `restore`.
        """

        def read(step: int) -> Any:
            return self._read_part("agent", like, note.read(self._folder / str(step), step))

        return newest(self._folder, self.steps(), read)

    def _read(self, content: Note, like: Learner) -> tuple[Learner, Counters, Any, Any]:
        short = jax.tree.map(lambda ring: ring[:, : content["filled"]], like.replay.data)
        agent = self._read_part("agent", like.agent, content)
        replay = self._read_part("replay", replace(like.replay, data=short), content)

        def fill(part: Any, ring: Any) -> Any:
            return jnp.asarray(ring).at[:, : part.shape[1]].set(part)

        data = Transition(*jax.tree.map(fill, tuple(replay.data), tuple(like.replay.data)))
        learner = Learner(agent, replace(replay, data=data))
        done = content["counters"]
        counters = Counters(**{**done, "frozen": tuple(done["frozen"])})
        learner = jax.device_put(learner, jax.tree.map(lambda leaf: leaf.sharding, like))
        return learner, counters, content["collector"], content["extra"]

    def _read_part(self, part: str, like: Any, content: Note) -> Any:
        """One item of a checkpoint, in the structure of `like`. Raises ValueError if damaged, or
        of other names, shapes or types; orbax sees none of these.
        """
        forms, folder = _forms(_named(like)), self._folder / str(content["step"])
        if content["arrays"][part] != forms:
            raise ValueError(f"its {part} is of another kind")
        note.verify(folder, content, part)
        abstract = {name: np.zeros(shape, dtype) for name, (shape, dtype) in forms.items()}
        with _orbax() as orbax:
            arrays = orbax.restore(folder / part, args=ocp.args.StandardRestore(abstract))
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in forms])


def newest(where: Path, steps: list[int], read: Callable[[int], Any]) -> tuple[int, Any] | None:
    """The last of the steps that can be read, and what `read` returns of it; None if there is none.

    Those that cannot are passed over with a warning. Raises UserError if that goes for all.
    """
    reason = ""
    for step in reversed(steps):
        try:
            return step, read(step)
        except Exception as error:  # whatever a damaged file makes the reader raise
            reason = _reason(error)
            words = "the checkpoint of step %d cannot be read (%s); trying the one before"
            _log.warning(words, step, reason)
    if steps:
        raise UserError(
            f"none of the checkpoints in {where} can be read (steps {steps}; {reason}); move the "
            "run directory away, or give another `logdir`, to start anew"
        )
    return None


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that ends after its tasks.

    Orbax closes its own at the first array that fails, while tensorstore still has the others in
    hand: each would print a traceback, "Event loop is closed", as it comes to its end.
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _Loops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.Checkpointer]:
    """Orbax, which says what fails by what it raises alone, and not on the console as well."""
    policy, logger = asyncio.get_event_loop_policy(), logging.getLogger("absl")
    disabled, logger.disabled = logger.disabled, True
    asyncio.set_event_loop_policy(_Loops())
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as orbax:
            yield orbax
    finally:
        asyncio.set_event_loop_policy(policy)
        logger.disabled = disabled


def _reason(error: Exception) -> str:
    """Of an exception, in a few words: the operating system's, where they are in it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    system = re.search(r"os_error_code='(\d+)'", text)
    if system:
        return os.strerror(int(system[1]))
    return text.splitlines()[0][:160] if text else type(error).__name__


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by name: a layout on disk that outlives a change of the classes."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _forms(named: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [list(leaf.shape), leaf.dtype.name] for name, leaf in named.items()}
