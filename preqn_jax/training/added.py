"""Adds seeds to a finished run.

The new seeds are trained as a run of their own, in the folder `added` of the run directory, from
the start to the step at which the run has ended; then the two are joined into one. A member's
numbers do not depend on the other members, so the result is what a run of all seeds from the start
would have left.

Until they are joined, the run directory is as it was. The joined one is first made in full inside
of `added`. It takes effect at the moment in which config.json names all seeds; if the process is
killed before the other files have been moved, the next command moves the rest.
"""

import heapq
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from preqn_jax import envs
from preqn_jax.options import UserError
from preqn_jax.training import (
    collect,
    directory,
    files,
    folder,
    lock,
    loop,
    memory,
    record,
    trackers,
)
from preqn_jax.training.config import named
from preqn_jax.training.folder import Folder, Place
from preqn_jax.training.plan import Plan
from preqn_jax.training.session import Session
from preqn_jax.training.trained import agent_of

NAME = "added"
_GONE = "added.tmp"  # what `added` is renamed to, once all of it has moved
_WHOLE = "whole"  # the folder in it where the joined run directory is made
_KINDS = ("time/steps_per_s", "diagnose/failure", "eval/return_mean")  # record kinds, in order


def ordered(plan: Plan) -> Plan:
    """The plan with its seeds in the order of its run directory, new ones last, so that the order
    in which they were given makes no difference.
    """
    there = _begun(plan)
    if there is None:
        return plan
    place = {seed: i for i, seed in enumerate(there["seeds"])}
    return _of(plan, sorted(plan.loop.seeds, key=lambda seed: place.get(seed, len(place))))


def stages(plan: Plan) -> Iterator[Plan]:
    """The plans to run to their end, one after the other, before `plan` itself, where its directory
    holds a finished run of some of its seeds. The first trains the new seeds, the last joins them
    to the run.

    Ask for each once the session before has ended. A join that a kill left halfway is finished
    first.

    Raises UserError where the seeds cannot join the run, and Busy where its lock is held.
    """
    there = _begun(plan)
    if there is None:
        return
    home = Path(str(plan.run.logdir))
    if _halfway(home, there):
        _finish_join(home)
        there = directory.read_config(home / directory.CONFIG)
    old = there["seeds"]
    new = [seed for seed in plan.loop.seeds if seed not in old]
    if not new or not set(old) <= set(plan.loop.seeds):
        return
    directory.compare(home / directory.CONFIG, {**plan.described, "seeds": old})
    new = _check(home, old, new, there["num_steps"])
    looks = {name: there[name] for name in directory.MAY_CHANGE if name in there}
    steps = looks.pop("num_steps")
    plan = plan._replace(
        run=replace(plan.run, **looks),
        loop=replace(plan.loop, num_steps=steps),
        described={**plan.described, **looks, "num_steps": steps},
    )
    first, second = _of(plan, old), _of(plan, new)
    directory.open_(home, first.described)[1].release()  # raises where it is damaged
    together = _of(plan, [*old, *new])
    with collect.watched(plan.env, plan.run.env_timeout, collect.say):
        spec = envs.spec(plan.env)
    agent = agent_of(plan.make_agent, spec)
    memory.check(spec, together.loop, together.described, agent, together.settings)
    apart = home / NAME
    if not _finished(apart, steps):
        alone = _devices(second) == 1 < _devices(together)
        second = second._replace(run=replace(plan.run, logdir=str(apart)))
        yield _in_company(second) if alone else second
    if not _finished(apart, steps):
        raise UserError(
            f"{named(new)} did not reach step {steps} and cannot be added to the run: "
            f"{record.NAME} in {str(apart)!r} says why; remove that folder to give up"
        )
    # Absolute, as they are joined after an environment may have left the current folder.
    places = (
        Place(home.absolute(), first.described, range(len(old))),
        Place(apart.absolute(), second.described, range(len(old), len(old) + len(new))),
    )
    run = replace(plan.run, workers=0, track="")
    yield together._replace(run=run, places=places, ended=_join)


def _begun(plan: Plan) -> dict[str, Any] | None:
    """What config.json says of the run in a plan's directory, if there is one."""
    path = Path(plan.run.logdir or "") / directory.CONFIG
    kept = plan.places is None and plan.run.logdir and path.is_file()
    return directory.read_config(path) if kept else None


def _of(plan: Plan, seeds: list[int]) -> Plan:
    loop, described = replace(plan.loop, seeds=tuple(seeds)), {**plan.described, "seeds": seeds}
    return plan._replace(loop=loop, described=described)


def _check(home: Path, old: list[int], new: list[int], steps: int) -> list[int]:
    """The new seeds, in the order in which their training was begun. Raises UserError where they
    cannot join the run.
    """
    words, where = named(new), repr(str(home))
    if set(old) <= set(record.frozen(record.of_run(home))):
        raise UserError(
            f"logdir {where} holds a run in which every seed diverged, so {words} cannot be added; "
            "give another `logdir`"
        )
    if not directory.finished(home):
        raise UserError(
            f"logdir {where} holds an unfinished run, but seeds can be added only to a finished "
            f"one; finish it first, with `seeds={tuple(old)}`, then add {words} with this command"
        )
    if steps not in _checkpoints(home):
        raise UserError(
            f"logdir {where} holds a run of {steps} steps without its last checkpoint, so {words} "
            "cannot be added; give another `logdir` to train all seeds anew"
        )
    path = home / NAME / directory.CONFIG
    begun = directory.read_config(path)["seeds"] if path.is_file() else new
    if set(begun) != set(new):
        raise UserError(
            f"logdir {where} holds a run to which an earlier command adds {named(begun)}, but this "
            f"command adds {words}; finish that first, with `seeds={(*old, *begun)}`, or remove "
            f"{str(home / NAME)!r} to give it up"
        )
    return begun


def _finished(where: Path, steps: int) -> bool:
    """Whether the run in `where` is finished at exactly `steps` steps, with its last checkpoint."""
    if not directory.finished(where) or steps not in _checkpoints(where):
        return False
    return directory.read_config(where / directory.CONFIG)["num_steps"] == steps


def _checkpoints(where: Path) -> list[int]:
    return directory.steps(where / directory.CHECKPOINTS)


def _devices(plan: Plan) -> int:
    return len(loop.devices_for(len(plan.loop.seeds)))


def _in_company(plan: Plan) -> Plan:
    """The plan of one seed with a second member beside it, which takes no part, so that it is
    trained on two devices. For several devices XLA compiles another program, which rounds
    differently, and the seed is to be as in a run of all seeds, which takes several.
    """
    apart, seeds = Path(str(plan.run.logdir)), plan.loop.seeds * 2
    homes = (apart, apart / "company")
    places = tuple(Place(home, plan.described, range(i, i + 1)) for i, home in enumerate(homes))
    return plan._replace(loop=replace(plan.loop, seeds=seeds), places=places, resting=(1,))


# --- two run directories become one ---------------------------------------------------------------


def _join(session: Session) -> None:
    """Makes the first of a session's run directories that of all its members. Raises Stopped."""
    places = session.plan.places
    assert places is not None
    home, apart = (Path(place.logdir) for place in places)
    made, seeds = apart / _WHOLE, list(session.config.seeds)
    with files.writing(f"the run of {named(seeds)} to {home}"):
        files.remove(made)
        place = Place(made, {**places[0].described, "seeds": seeds}, range(len(seeds)))
        whole = Folder(place, session.config)
        try:
            files.replace(made / record.NAME, _records([home, apart]))
            whole.open_checkpoints()
            whole.begin_records(session.config.num_steps, lambda line: True, 0)
            whole.save(session.config.num_steps, folder.part(session.moment(), whole.members))
        finally:
            whole.close()
        os.replace(made / directory.CONFIG, home / directory.CONFIG)
        _move(home)


def _records(runs: list[Path]) -> bytes:
    """The records of several runs of the same steps, in the order in which one run of all their
    members would have written them.
    """

    def when(found: tuple[bytes, record.Line]) -> tuple[int, int]:
        line = found[1]
        kinds = [i for i, name in enumerate(_KINDS) if name in line]
        return line["step"], kinds[0] if kinds else len(_KINDS)

    each = (record.scan(run / record.NAME).lines for run in runs)
    return b"".join(raw + b"\n" for raw, _ in heapq.merge(*each, key=when))


def _halfway(home: Path, there: dict[str, Any]) -> bool:
    """Whether a join was cut off: config.json names the new seeds already, but `added` is still
    there.
    """
    path = home / NAME / directory.CONFIG
    named = path.is_file() and set(directory.read_config(path)["seeds"]) <= set(there["seeds"])
    return named or (home / _GONE).exists()


def _finish_join(home: Path) -> None:
    """Finishes a join that a kill cut off. Raises Stopped, Busy."""
    with files.writing(f"to {home}"):
        held = lock.Lock(home)
        try:
            held.sign()
            _move(home)
        finally:
            held.release()


def _move(home: Path) -> None:
    """Moves the files of the joined run to the run directory, except config.json, which is there
    already. May be called again wherever it was cut off. Raises OSError.
    """
    apart, gone = home / NAME, home / _GONE
    made = apart / _WHOLE
    files.remove(gone)
    if not apart.exists():
        return
    checkpoints = home / directory.CHECKPOINTS
    if (made / directory.CHECKPOINTS).exists():
        if checkpoints.exists():
            os.replace(checkpoints, apart / "before")
        os.replace(made / directory.CHECKPOINTS, checkpoints)
    if (made / record.NAME).exists():
        os.replace(made / record.NAME, home / record.NAME)
    for name in ("tensorboard", "wandb"):
        for path in (apart / name).glob("*"):
            (home / name).mkdir(exist_ok=True)
            if not os.path.lexists(home / name / path.name):
                os.replace(path, home / name / path.name)
    for name in (directory.ENVIRONMENT_LOG, record.DAMAGED, trackers.LOG):
        if (apart / name).exists():
            files.add(home / name, (apart / name).read_bytes())
            (apart / name).unlink()
    if (apart / trackers.KEPT).exists():
        kept, more = (_json(one / trackers.KEPT) for one in (home, apart))
        for name, runs in more.items():
            kept[name] = {**kept.get(name, {}), **runs}
        files.replace(home / trackers.KEPT, json.dumps(kept).encode())
    (home / directory.PICTURE).unlink(missing_ok=True)  # it shows fewer seeds
    os.replace(apart, gone)
    files.remove(gone)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.exists() else {}
