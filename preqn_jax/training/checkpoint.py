"""Checkpoints of a whole run, by orbax: written atomically, verified when read.

The checkpoint of a step is a folder: arrays (parameters, optimizers, the filled part of the replay
buffer) in orbax's format, the replay buffer in pieces of some rows each, so that memory need not
hold it twice; and a note (`training.note`) with environment states, counters and a checksum of
every file. It is read as arrays and JSON: no file of it is unpickled, imported or run. (The
environment's name, by which a module may be imported, is in config.json; see `directory.trusted`.)
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from preqn_jax.options import UserError
from preqn_jax.replay import Replay
from preqn_jax.training import arrays, directory, files, note, rows
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
            for path in self._folder.iterdir():
                if re.fullmatch(r"\d+\.(tmp|orbax-checkpoint-tmp-\d+)", path.name):
                    files.remove(path)
                elif re.fullmatch(r"\d+\.before", path.name):
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
            content["arrays"]["agent"] = arrays.write(written / "agent", agent)
            for i, start in enumerate(starts):
                count = min(most, content["filled"] - start)
                piece = [rows.cut_ring(ring, members, start, count, most) for ring in data]
                content["arrays"][_part(i)] = arrays.write(
                    written / _part(i), Replay(Transition(*piece), added)
                )
            note.write(written, content)
            self._settle(written, step)
        self._prune(step)

    def _prune(self, step: int) -> None:
        """Removes all checkpoints but the last ones until `step`: later ones are damaged, or the
        run would have gone on from them. Folders without a note are none of ours.
        """
        try:
            there = self.steps()
            kept = [old for old in there if old <= step][-KEEP:]
            for old in (self._folder / str(old) for old in there if old not in kept):
                if (old / note.NAME).exists():
                    gone = old.with_name(f"{old.name}.tmp")
                    os.replace(old, gone)  # so that a kill leaves no half of it under its name
                    files.remove(gone)
        except OSError as error:  # the new one is there, and the run goes on
            _log.warning("old checkpoints in %s cannot be removed: %s", self._folder, error)

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
        cure: str | None = None,
    ) -> tuple[int, Learner, Counters, Any, Any] | None:
        """The newest checkpoint that is whole: (step, learner, counters, collector, extra), or None
        if there is none.

        A damaged one is skipped with a warning, as is one whose note makes `check` raise. `like`, a
        learner as `loop.init` returns it, gives shapes, types and devices. Only its rows of
        `members`, which are the first ones, are read, all if None. Where there is a checkpoint, the
        replay arrays of `like` are deleted to make room. `cure` says what to do if there is none.

        Raises:
          UserError: there are checkpoints, and none is whole.
        """

        rings = rows.Rings(like.replay.data)

        def read(step: int) -> tuple[Learner, Counters, Any, Any]:
            rings.clear()
            return self.read(step, like, rings, check, members)

        found = newest(self.steps(), {self._folder: read}, cure)
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

    def restore_agent(self, like: Any, cure: str) -> tuple[int, Any] | None:
        """(step, the agent's state) of the newest whole checkpoint, without the replay buffer;
        otherwise as `restore`.
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
        if content["arrays"][part] != arrays.forms(like):
            raise ValueError(f"its {part} has other names, shapes or types than expected")
        note.verify(self._folder / str(content["step"]), content, part)

    def _load(self, part: str, like: Any, content: Note) -> Any:
        """Loads a verified part, in the form of `like`. Raises ValueError where it has another."""
        return arrays.read(self._folder / str(content["step"]) / part, like)


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


def _reason(error: Exception) -> str:
    """A few words on the reason for an exception: the operating system's, where there are any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    system = re.search(r"os_error_code='(\d+)'", text)
    if system:
        return os.strerror(int(system[1]))
    return text.splitlines()[0][:160] if text else type(error).__name__


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
