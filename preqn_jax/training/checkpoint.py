"""Checkpoints of a whole run, by orbax: written atomically, verified when read.

The checkpoint of a step is a folder: arrays (parameters, optimizers, the filled part of the replay
buffer) in orbax's format, the replay buffer in pieces of some rows each, so that memory need not
hold it twice; and a note (`training.note`) with environment states, counters and a checksum of
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
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp

from preqn_jax.options import UserError
from preqn_jax.replay import Replay
from preqn_jax.training import directory, files, note, rows
from preqn_jax.training.errors import Stopped
from preqn_jax.training.loop import Counters, Learner
from preqn_jax.types import Array, Transition

_log = logging.getLogger(__name__)
KEEP = 2  # the newest, and the one before it should the newest be damaged
_FILES = 32  # files at most in a part of a checkpoint: the agent, or a piece of the replay buffer
_SLACK = 50_000  # bytes that the files of a part take beside their contents
_PIECE = 16_000_000  # bytes of a piece at most, unless one row has more
_NOWHERE: Any = ()  # in place of a replay buffer's rings, where these are kept elsewhere

Note = dict[str, Any]


class Checkpointer:
    """The checkpoints of one run directory."""

    def __init__(self, folder: str | Path, *, read_only: bool = False):
        """`read_only` leaves the folder as it is, so that a run may be writing to it; otherwise
        what a kill left unfinished in it is removed. Raises OSError.
        """
        self._folder = Path(folder).absolute()
        self._ratio = 1.0  # size on disk to size in memory, estimated from above
        if not read_only:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob("[0-9]*tmp*"):
                files.remove(path)
            for path in self._folder.glob("[0-9]*.before"):
                self._unsettle(path)

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, in order."""
        return directory.steps(self._folder)

    def save(
        self,
        step: int,
        learner: Learner,
        counters: Counters,
        collector: Any,
        extra: Any,
        members: range | None = None,
    ) -> None:
        """Write a step's checkpoint. `collector` is what `Collector.save` returned, `extra` the
        caller's JSON; `members` are those whose rows of the learner are written, all if None.

        Raises Stopped where it cannot be written; earlier ones stay as they were.
        """
        members, data = _all(learner) if members is None else members, learner.replay.data
        added: Any = rows.cut(learner.replay.added, members)
        agent = jax.tree.map(lambda leaf: rows.cut(leaf, members), learner.agent)
        row = _bytes(data) * len(members) // data.reward.size  # of one transition of each member
        content = {
            "step": step,
            "counters": counters._asdict(),
            "collector": collector,
            "extra": extra,
            "filled": min(int(added.max()), data.reward.shape[1]),
            "arrays": {},
        }
        most = max(1, _PIECE // row)
        starts = range(0, content["filled"], most)
        size = len(json.dumps(content)) + _bytes(agent) + content["filled"] * row
        written = self._folder / f"{step}.tmp"
        with self._complaints(step, size, 1 + len(starts)):
            files.remove(written)
            written.mkdir()
            content["arrays"]["agent"] = _write(written / "agent", agent)
            for i, start in enumerate(starts):
                count = min(most, content["filled"] - start)
                piece = [rows.cut_ring(ring, members, start, count, most) for ring in data]
                content["arrays"][_part(i)] = _write(
                    written / _part(i), Replay(Transition(*piece), added)
                )
            note.write(written, content)
            self._settle(written, step)
            # Later ones are damaged, or the run would have gone on from them.
            kept = [old for old in self.steps() if old <= step][-KEEP:]
            for old in {*self.steps()} - {*kept}:
                files.remove(self._folder / str(old))

    def _settle(self, written: Path, step: int) -> None:
        """Moves a checkpoint into its place; an older one of that step stays until then."""
        there, before = self._folder / str(step), self._folder / f"{step}.before"
        if there.exists():
            os.replace(there, before)
        try:
            os.replace(written, there)
        finally:
            if before.exists():
                self._unsettle(before)

    def _unsettle(self, before: Path) -> None:
        """Puts back a checkpoint that was to be replaced, unless the new one is in place."""
        if before.with_suffix("").exists():
            files.remove(before)
        else:
            os.replace(before, before.with_suffix(""))

    @contextlib.contextmanager
    def _complaints(self, step: int, size: int, parts: int) -> Iterator[None]:
        """Raises Stopped where a checkpoint cannot be written, and leaves nothing of it. Where
        there is no room, it raises before anything is written.
        """
        needed = int(size * self._ratio) + parts * _SLACK
        what = f"the checkpoint of step {step} to {self._folder}, which needs {files.size(needed)}"
        written = self._folder / f"{step}.tmp"
        try:
            room = os.statvfs(self._folder)
            free = room.f_bavail * room.f_frsize
            if free < needed:
                raise Stopped(f"cannot write {what}: {files.size(free)} are free")
            if room.f_files and room.f_favail < parts * _FILES:
                raise Stopped(f"cannot write {what}: there is room for {room.f_favail} files")
            yield
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore raises all of these
            shutil.rmtree(written, ignore_errors=True)
            raise Stopped(f"cannot write {what}: {_reason(error)}") from error
        used = sum(p.stat().st_size for p in (self._folder / str(step)).rglob("*"))
        self._ratio = min(1.0, 1.2 * used / size)

    def restore(
        self,
        like: Learner,
        check: Callable[[Note], None] = lambda note: None,
        members: range | None = None,
    ) -> tuple[int, Learner, Counters, Any, Any] | None:
        """The newest checkpoint that is whole: (step, learner, counters, collector, extra), or None
        if there is none.

        A damaged one is skipped with a warning, as is one whose note makes `check` raise. `like`, a
        learner as `loop.init` returns it, gives shapes, types and devices. Only its rows of
        `members`, which are the first ones, are read, all if None. Where there is a checkpoint, the
        replay arrays of `like` are deleted to make room.

        Raises:
          UserError: there are checkpoints, and none is whole.
        """

        rings = rows.Rings(like.replay.data)

        def read(step: int) -> tuple[Learner, Counters, Any, Any]:
            rings.clear()
            return self.read(step, like, rings, check, members)

        found = newest(self.steps(), {self._folder: read})
        if found is None:
            return None
        step, ((learner, *rest),) = found
        return step, join_learners(like, [learner], rings), *rest

    def read(
        self,
        step: int,
        like: Learner,
        rings: rows.Rings,
        check: Callable[[Note], None] = lambda note: None,
        members: range | None = None,
    ) -> tuple[Learner, Counters, Any, Any]:
        """Read a step's checkpoint of these `members` of `like`, all if None. Returns what
        `restore` does but the step; the learner's leaves are `[len(members), ...]` on the host, and
        its replay buffer goes into `rings`. Raises whatever a damaged file makes the reader raise.
        """
        members = _all(like) if members is None else members
        form = jax.eval_shape(partial(jax.tree.map, lambda leaf: leaf[: len(members)]), like)
        content = note.read(self._folder / str(step), step)
        check(content)
        pieces = _pieces(content, form.replay)
        for part, one in {"agent": form.agent, **pieces}.items():
            self._verify(part, one, content)
        agent = jax.device_get(self._load("agent", form.agent, content))
        start, added = 0, cast(Any, np.zeros(len(members), form.replay.added.dtype))
        for part, one in pieces.items():
            piece = self._load(part, one, content)
            rings.put(members, start, piece.data)
            start, added = start + piece.data.reward.shape[1], jax.device_get(piece.added)
        done = content["counters"]
        counters = Counters(**{**done, "frozen": tuple(done["frozen"])})
        learner = Learner(agent, Replay(_NOWHERE, added))
        return learner, counters, content["collector"], content["extra"]

    def restore_agent(self, like: Any, cure: str | None = None) -> tuple[int, Any] | None:
        """(step, the agent's state) of the newest whole checkpoint, without the replay buffer;
        otherwise as `restore`. `cure` says what to do if none can be read.
        """

        def read(step: int) -> Any:
            content = note.read(self._folder / str(step), step)
            self._verify("agent", like, content)
            return self._load("agent", like, content)

        found = newest(self.steps(), {self._folder: read}, cure)
        return None if found is None else (found[0], found[1][0])

    def _verify(self, part: str, like: Any, content: Note) -> None:
        """Raises ValueError where a part of a checkpoint is damaged, or of other names, shapes or
        types than `like`.
        """
        if content["arrays"][part] != _forms(_named(like)):
            raise ValueError(f"its {part} has other names, shapes or types than expected")
        note.verify(self._folder / str(content["step"]), content, part)

    def _load(self, part: str, like: Any, content: Note) -> Any:
        """Loads a verified part, in the form of `like`. Raises ValueError where it has another."""
        forms, folder = _forms(_named(like)), self._folder / str(content["step"])
        with _orbax() as orbax:
            arrays = orbax.restore(folder / part, args=ocp.args.StandardRestore())
        if _forms(arrays) != forms:  # given others, orbax would cut or fill up what is there
            raise ValueError(f"its {part} does not match its note")
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in forms])


def join_learners(like: Learner, parts: Sequence[Learner], rings: rows.Rings) -> Learner:
    """The learner of all members, in the form of `like`. Its first rows are those of `parts`, in
    order, which are as `read` returns them; the others are those of `like`.
    """

    def join(form: Array, *each: np.ndarray) -> Array:
        there = sum(map(len, each))
        return jax.device_put(np.concatenate([*each, np.asarray(form)[there:]]), form.sharding)

    bare = replace(like, replay=replace(like.replay, data=_NOWHERE))
    joined = jax.tree.map(join, bare, *parts)
    return replace(joined, replay=replace(joined.replay, data=rings.taken()))


def _all(learner: Learner) -> range:
    return range(len(learner.replay.added))


def newest(
    steps: list[int], readers: Mapping[Path, Callable[[int], Any]], cure: str | None = None
) -> tuple[int, list[Any]] | None:
    """The last of `steps` that can be read in every folder, and what the folders' readers return
    for it; None if there are no steps.

    Steps that cannot be read are skipped with a warning. Raises UserError if none can be read.
    """
    damaged, reason = [], ""
    for step in reversed(steps):
        found = []
        for where, read in readers.items():
            try:
                found.append(read(step))
            except Exception as error:  # whatever a damaged file makes the reader raise
                damaged, reason = [*damaged, where], _reason(error)
                words = "the checkpoint of step %d cannot be read (%s), in %s; "
                _log.warning(words + "trying the one before", step, reason, where)
                break
        else:
            return step, found
    if not steps:
        return None
    bad = list(dict.fromkeys(damaged))
    where = " and ".join(map(str, bad))
    if cure is None and any(set(directory.steps(one)) - set(steps) for one in bad):
        # one of them has steps that other folders lack
        cure = f"move the folders of {'these steps' if steps[1:] else 'this step'} out of there, "
        cure += "and the same command resumes from the other checkpoints"
    cure = cure or "move the run directory away, or give another `logdir`, to start anew"
    raise UserError(
        f"none of the checkpoints in {where} can be read (steps {steps}; {reason}); {cure}"
    )


def _write(folder: Path, tree: Any) -> dict[str, list[Any]]:
    """Writes one part of a checkpoint; returns what the note says of its arrays."""
    named = jax.device_get(_named(tree))
    with _orbax() as orbax:
        orbax.save(folder, args=ocp.args.StandardSave(named))
    return _forms(named)


# --- the replay buffer, in pieces -----------------------------------------------------------------


def _part(i: int) -> str:
    """The name of the replay buffer's i-th piece. The first has no number, as in earlier versions
    of the format, which kept the buffer in one piece.
    """
    return f"replay.{i}" if i else "replay"


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _pieces(content: Note, replay: Replay) -> dict[str, Replay]:
    """The pieces of the replay buffer that a note lists: the form of each by its name. Raises
    ValueError where they do not make up the buffer, or whatever a malformed note leads to.
    """
    pieces, filled = {}, 0
    while (part := _part(len(pieces))) in content["arrays"]:
        count = content["arrays"][part]["data.reward"][0][1]
        if type(count) is not int or count < 1:
            raise ValueError(f"its {part} has {count!r} rows")

        def short(ring: Array, count: int = count) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((ring.shape[0], count, *ring.shape[2:]), ring.dtype)

        pieces[part] = replace(replay, data=jax.tree.map(short, replay.data))
        filled += count
    if filled != content["filled"]:
        raise ValueError(f"its replay has {filled} rows, not {content['filled']}")
    return pieces


# --- orbax ----------------------------------------------------------------------------------------


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that ends after its tasks.

    Orbax closes its own loop at the first array that fails, while tensorstore is still writing the
    others, each of which would print a traceback, "Event loop is closed", when it ends.
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _Loops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


_alone = threading.RLock()  # `_orbax` changes settings of the whole process


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.Checkpointer]:
    """Orbax, which tells of failures by exceptions alone, and not on the console as well."""
    with contextlib.ExitStack() as held:
        held.enter_context(_alone)
        policy, logger = asyncio.get_event_loop_policy(), logging.getLogger("absl")
        held.callback(asyncio.set_event_loop_policy, policy)
        held.callback(setattr, logger, "disabled", logger.disabled)
        logger.disabled = True
        asyncio.set_event_loop_policy(_Loops())
        # Each of several processes saves its own arrays, and waits for no other: Orbax is told that
        # it is the only one.
        alone = mock.patch.multiple(jax, process_count=lambda: 1, process_index=lambda: 0)
        with alone, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as orbax:
            yield orbax


def _reason(error: Exception) -> str:
    """A few words on the reason for an exception: the operating system's, where there are any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    system = re.search(r"os_error_code='(\d+)'", text)
    if system:
        return os.strerror(int(system[1]))
    return text.splitlines()[0][:160] if text else type(error).__name__


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by name: a layout on disk that outlives changes of the classes."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _forms(named: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [list(leaf.shape), leaf.dtype.name] for name, leaf in named.items()}
