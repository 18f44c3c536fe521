"""A run directory that a session has open: records and checkpoints of some of the session's
members.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from preqn_jax.agents.swept import SweptState
from preqn_jax.envs import codec
from preqn_jax.options import UserError
from preqn_jax.training import directory, files, note, record
from preqn_jax.training.config import LoopConfig
from preqn_jax.training.loop import Counters, Learner
from preqn_jax.training.record import Line, Recorder
from preqn_jax.training.rows import Rings


class Place(NamedTuple):
    """The run directory in which some members are kept, as a run of these alone would leave it."""

    logdir: str | Path
    described: dict[str, Any]  # for its config.json
    members: range  # indices among the session's members


class Moment(NamedTuple):
    """The state of M members, from which a session can go on."""

    learner: Learner  # leaves `[P, ...]`, the M members first
    counters: Counters
    collector: list[Any]  # what `Collector.save` returned
    pending: list[dict[str, Any]]  # metrics and episodes since the last line of records


class Noted(NamedTuple):
    """What a checkpoint says about the records written before it."""

    records: int = 0  # how many there were
    eval_every: int | None = None  # steps between evaluations before the end; None if unknown


class Folder:
    """The run directory of one `Place`, locked until it is closed."""

    def __init__(self, place: Place, config: LoopConfig):
        """`config` is the session's. Raises UserError and Busy as `directory.open_` does."""
        self.members = place.members
        self.seeds = tuple(config.seeds[i] for i in place.members)
        self._config = dataclasses.replace(config, seeds=self.seeds)
        self._described = place.described
        self._eval_every = place.described.get("eval_every")
        self._held = contextlib.ExitStack()  # closed last to first, whatever is raised
        self.logdir, lock = directory.open_(place.logdir, place.described)
        self._held.callback(lock.release)
        self._checkpoints: Any = None
        self._recorder: Recorder | None = None

    @property
    def checkpoints(self) -> Path:
        return self.logdir / directory.CHECKPOINTS

    @property
    def finished(self) -> bool:
        """Whether its run is finished."""
        return directory.finished(self.logdir, self._config.num_steps)

    def finish(self) -> None:
        """Marks its run as finished. Raises Stopped."""
        done = self.logdir / directory.DONE
        with files.writing(str(done)):
            files.replace(done, b"")

    def close(self) -> None:
        self._held.close()

    def steps(self) -> list[int]:
        """The steps of its checkpoints."""
        return directory.steps(self.checkpoints)

    def open_checkpoints(self) -> None:
        """Opens the folder of checkpoints for writing. Raises Stopped."""
        # It imports orbax, which a run that keeps nothing does without.
        from preqn_jax.training.checkpoint import Checkpointer

        with files.writing(str(self.logdir)):
            self._checkpoints = Checkpointer(self.checkpoints)

    def read(
        self, step: int, like: Learner, rings: Rings, fresh: list[Any]
    ) -> tuple[Moment, Noted]:
        """The checkpoint of a step, with what it says about the records. `like` is a learner of all
        members; `fresh` is what `Collector.save` returns for the environments of this folder's
        members at any step, which gives the form to check against. The learner is as
        `Checkpointer.read` returns it. Raises whatever a damaged file makes the reader raise.
        """

        def check(noted: dict[str, Any]) -> None:
            note.check(noted, self._config, fresh)
            note.check_made(noted, directory.fixed(self._described))

        read = self._checkpoints.read(step, like, rings, check, self.members)
        learner, counters, collector, extra = read
        pending = codec.decode(extra["pending"])
        noted = Noted(extra["records"], extra.get("eval_every"))
        return Moment(learner, counters, collector, pending), noted

    def check_records(self) -> None:
        """Raises Stopped where no records could be written: the run stays as it is then."""
        path = self.logdir / record.NAME
        with files.writing(str(path)):
            os.close(files.append(path))

    def begin_records(
        self, start: int, keep: Callable[[Line], bool], expected: int, track: str = ""
    ) -> None:
        """Notes in config.json that the run goes on, and opens the records, to write from step
        `start` on; see `Recorder`. Raises UserError, Stopped.
        """
        directory.go_on(self.logdir, self._described)
        self._recorder = Recorder(self.logdir, self.seeds, start, keep, expected, track)
        self._held.callback(self._recorder.close)

    def evaluated(self, step: int) -> set[int]:
        """The seeds whose evaluation at a step is recorded."""
        lines = (line for line in record.of_run(self.logdir) if line["step"] == step)
        return {line["seed"] for line in lines if "eval/return_mean" in line}

    def end_records(self) -> None:
        """Tells the tracker that no more records come; `close` waits for it."""
        assert self._recorder is not None
        self._recorder.end()

    def write(self, step: int, member: int, line: dict[str, Any]) -> None:
        """Writes a line of records. Raises Stopped."""
        assert self._recorder is not None
        self._recorder.write(step, self.seeds[self.members.index(member)], line)

    def save(self, step: int, moment: Moment) -> None:
        """Writes a checkpoint of the moment of this folder's members. Raises Stopped."""
        assert self._recorder is not None
        self._recorder.flush()
        extra = {
            "pending": codec.encode(moment.pending),
            "seeds": list(self.seeds),
            "run": directory.fixed(self._described),
            "records": self._recorder.count,
            "eval_every": self._eval_every,
        }
        state = moment.learner, moment.counters, moment.collector
        self._checkpoints.save(step, *state, extra, self.members)


# --- moments of some members, and of all ----------------------------------------------------------


def bare(learner: Learner) -> Learner:
    """The learner without the settings of a sweep: the checkpoint of a member is the same as in a
    run of it alone.
    """
    swept = isinstance(learner.agent, SweptState)
    return dataclasses.replace(learner, agent=learner.agent.inner) if swept else learner


def dressed(learner: Learner, agent: Any) -> Learner:
    """The inverse of `bare`: the learner with the settings that `agent` has, if any."""
    swept = isinstance(agent, SweptState)
    whole = SweptState(agent.settings, learner.agent) if swept else learner.agent
    return dataclasses.replace(learner, agent=whole)


def part(moment: Moment, members: range) -> Moment:
    """The moment of some members alone, except that the learner is still that of all: its rows are
    cut as they are written.
    """
    frozen = tuple(members.index(i) for i in moment.counters.frozen if i in members)
    return Moment(
        moment.learner,
        moment.counters._replace(frozen=frozen),
        [moment.collector[i] for i in members],
        [
            {
                "metrics": {k: v[members.start : members.stop] for k, v in one["metrics"].items()},
                "episodes": [(members.index(i), r) for i, r in one["episodes"] if i in members],
            }
            for one in moment.pending
        ],
    )


def _joined(parts: Sequence[tuple[range, Moment]], learner: Learner) -> Moment:
    """The moment of all members, made from their `parts`, in order, and the learner of all. Rounds
    that are pending in only some of the parts, as where the others' were recorded already, are left
    out.
    """
    moments = [moment for _, moment in parts]
    frozen = tuple(members[i] for members, moment in parts for i in moment.counters.frozen)
    pending, last = [], min(len(moment.pending) for moment in moments)
    for together in zip(*(m.pending[len(m.pending) - last :] for m in moments), strict=True):
        names = together[0]["metrics"]
        metrics = {k: np.concatenate([one["metrics"][k] for one in together]) for k in names}
        episodes = [
            (members[i], total)
            for (members, _), one in zip(parts, together, strict=True)
            for i, total in one["episodes"]
        ]
        pending.append({"metrics": metrics, "episodes": episodes})
    collector = [state for moment in moments for state in moment.collector]
    return Moment(learner, moments[0].counters._replace(frozen=frozen), collector, pending)


def restore(
    folders: Sequence[Folder], like: Learner, fresh: list[Any]
) -> tuple[int, Moment, list[Noted]] | None:
    """The newest step whose checkpoint is whole in every folder: (step, moment of all members, what
    each folder's says about its records), or None where no step is in all folders.

    A damaged checkpoint is skipped with a warning. Where some step is in all folders, the replay
    buffer of `like` is deleted. Raises UserError where there are such steps but none is whole, or
    where there are none although a run is finished.
    """
    from preqn_jax.training.checkpoint import join_learners, newest

    steps = sorted(set.intersection(*(set(folder.steps()) for folder in folders)))
    if not steps:
        for done in (one.logdir for one in folders if one.finished):
            raise UserError(
                f"{str(done)!r} holds a finished run without its checkpoints, so its learner "
                "cannot be restored; its records can be read (`preqn_jax.records`), or give "
                "another `logdir` to train it anew"
            )
        return None
    rings = Rings(like.replay.data)

    def read(folder: Folder, step: int) -> tuple[Moment, Noted]:
        if folder is folders[0]:  # the next step to try, as one before is damaged
            rings.clear()
        return folder.read(step, like, rings, [fresh[i] for i in folder.members])

    found = newest(steps, {folder.checkpoints: partial(read, folder) for folder in folders})
    if found is None:
        return None
    step, parts = found
    learner = join_learners(like, [moment.learner for moment, _ in parts], rings)
    moments = [(f.members, m) for f, (m, _) in zip(folders, parts, strict=True)]
    return step, _joined(moments, learner), [noted for _, noted in parts]
