"""Sweeps: seeds and settings as members of one program, each kept as a run of its own.

Numeric hyper-parameters are leaves of the learner, so all their values learn side by side; settings
that shape a program (sizes, activations, algorithms, environments) need one program for each value.
"""

import dataclasses
import itertools
import json
import typing
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from preqn_jax import agents, envs
from preqn_jax.agents import Agent, AgentConfig
from preqn_jax.agents.resolved import unread
from preqn_jax.options import UserError, check_same, choose, inner
from preqn_jax.training import directory, files, record
from preqn_jax.training.config import LoopConfig, RunConfig, validate_run
from preqn_jax.training.folder import Place
from preqn_jax.training.plan import Plan
from preqn_jax.types import Settings, Spec

NAME = "sweep.json"
_OTHER_AT_ZERO = {"huber", "momentum"}  # 0 (no bound, no memory) is another program
NUMERIC = tuple(
    field.name
    for field in dataclasses.fields(AgentConfig)
    if "float" in str(directory.HINTS[field.name]) and field.name not in _OTHER_AT_ZERO
)
"""Settings whose values can differ between members of one program."""
_FIXED = {"seeds", "num_steps", *(f.name for f in dataclasses.fields(RunConfig))} - {"env"}

_NAME = 255  # bytes that file systems take as a name

Axes = dict[str, tuple[Any, ...]]


class Member(NamedTuple):
    """One run of a sweep."""

    setting: dict[str, Any]  # the value on every axis
    seed: int

    @property
    def name(self) -> str:
        """The name of its run directory, in the folder of the sweep."""
        words = [f"{name}={_word(value)}" for name, value in self.setting.items()]
        return ",".join([*words, f"seed={self.seed}"])


class Program(NamedTuple):
    """Members that are compiled together."""

    run: RunConfig
    agent: AgentConfig  # without the numeric axes
    loop: LoopConfig
    axes: Axes  # the numeric ones
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """The settings that its members share, as "activation=sin"; "" where there is one
        program.
        """
        fixed = {k: v for k, v in self.members[0].setting.items() if k not in self.axes}
        return ",".join(f"{name}={_word(value)}" for name, value in fixed.items())


class Sweep(NamedTuple):
    """A whole sweep: its folder, the settings that do not vary, and the axes."""

    logdir: Path
    run: RunConfig
    agent: AgentConfig
    loop: LoopConfig
    axes: Axes

    @property
    def members(self) -> list[Member]:
        """All members, program by program, setting by setting in the order of the axes, seed by
        seed.
        """
        return [member for program in self.programs for member in program.members]

    @property
    def programs(self) -> list[Program]:
        """One program for each combination of settings that shape one."""
        shaping = {k: v for k, v in self.axes.items() if k not in NUMERIC}
        numeric = {k: v for k, v in self.axes.items() if k in NUMERIC}
        made = []
        for fixed in _product(shaping):
            run, agent, loop = (_replace(c, fixed) for c in (self.run, self.agent, self.loop))
            settings = [
                {name: {**fixed, **inner}[name] for name in self.axes}
                for inner in _product(numeric)
            ]
            members = tuple(Member(s, seed) for s in settings for seed in self.loop.seeds)
            made.append(Program(run, agent, loop, numeric, members))
        return made


def _unsaid() -> dict[str, Any]:
    """The default of every setting, in the form of config.json."""
    return directory.describe(*(config() for config in directory.CONFIGS))


def _product(axes: Axes) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _replace(config: Any, values: dict[str, Any]) -> Any:
    mine = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in values.items() if k in mine})


def _word(value: Any) -> str:
    """A value as it is written on the command line, and in names of folders."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).replace("/", "-")


# --- from words to a sweep ------------------------------------------------------------------------


def axes(words: Sequence[str]) -> Axes:
    """The axes that words "name=value,value,..." give; sizes are written 64x64. Raises
    UserError.
    """
    found: Axes = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(
                f"sweep is {word!r}, but an axis is a name and its values, as in "
                "`sweep=critic_learning_rate=0.03,0.1,0.3`"
            )
        choose("axis", name, sorted({*directory.HINTS} - _FIXED))
        if name in found:
            raise UserError(f"sweep names {name} twice; give all its values once")
        values = [part for part in text.split(",") if part]
        if not values:
            raise UserError(f"the axis {name} has no values; give some, as in `sweep={name}=A,B`")
        found[name] = tuple(_value(name, part) for part in values)
        if len(set(found[name])) < len(values):
            raise UserError(f"the axis {name} has a value twice: {text}; give each once")
    return found


def _value(name: str, text: str) -> Any:
    hint = inner(directory.HINTS[name])
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(hint) is tuple:
            return tuple(int(part) for part in text.split("x"))
        return hint(text)
    except (ValueError, KeyError):
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        words = kinds.get(hint, "whole numbers with x between, as in 64x64")
        raise UserError(f"the axis {name} has {text!r}, but it must be {words}") from None


def make(
    logdir: str | Path | None, run: RunConfig, agent: AgentConfig, loop: LoopConfig, axes: Axes
) -> Sweep:
    """The sweep of these settings and axes. Raises UserError where those of a member make no
    sense.
    """
    if not logdir:
        raise UserError("logdir is empty; name a folder for the sweep, as in `logdir=runs/sweep`")
    sweep = Sweep(Path(logdir).expanduser(), run, agent, loop, axes)
    for program in sweep.programs:
        validate_run(program.run, program.loop)
        if program.run.stop_on_divergence:
            raise UserError(
                "stop_on_divergence is on, but it would end the other members of the sweep too; "
                "leave it out: findings are recorded (`diagnose_every`)"
            )
        for member in program.members:
            agents.resolve(_replace(program.agent, member.setting))
    longest = max((member.name for member in sweep.members), key=lambda name: len(name.encode()))
    if (size := len(longest.encode())) > _NAME:
        raise UserError(
            f"sweep has {len(axes)} axes, which would give a member a folder with a name of {size} "
            f"bytes, {longest:.60}..., but file systems allow {_NAME}: vary fewer at once"
        )
    return sweep


def _check_axes(sweep: Sweep) -> None:
    """Raises UserError for an axis that no member reads: each member would be trained once for
    every value of it, with the same numbers.
    """
    idle = set(sweep.axes)
    algorithms = dict.fromkeys(program.agent.algorithm for program in sweep.programs)
    for program in sweep.programs:
        for member in program.members:
            idle &= unread(agents.resolve(_replace(program.agent, member.setting)))
    for name in sweep.axes:
        if name in idle:
            raise UserError(
                f"sweep varies {name}, which has no effect on {', '.join(algorithms)} with these "
                "settings: leave it out"
            )


def open_(sweep: Sweep, write: bool = True) -> None:
    """Opens the folder of the sweep, where it may begin, go on, or get more members, and writes its
    file. Of several processes only one should `write`, before the others open it.

    Raises UserError: an algorithm does not fit its environment's actions, or no member reads an
    axis; the folder holds another sweep, or other files; it cannot be written to.
    """
    for program in sweep.programs:
        agents.check_kind(program.agent.algorithm, envs.spec(program.run.source))
    path, content = sweep.logdir / NAME, _content(sweep)
    if not path.exists():  # a sweep that was begun may go on as it is
        _check_axes(sweep)
    with directory.writing_to(sweep.logdir):
        if write:
            sweep.logdir.mkdir(parents=True, exist_ok=True)
        there = {one.name for one in sweep.logdir.iterdir()} if sweep.logdir.is_dir() else set()
        if NAME in there:
            check_begun(sweep)
        elif not write:
            raise UserError(
                f"logdir {str(sweep.logdir)!r} has no {NAME}, which the first process writes: see "
                "its output"
            )
        elif not all(files.is_temporary(name, NAME) for name in there):
            raise UserError(
                f"logdir {str(sweep.logdir)!r} holds other files and no {NAME}; give an empty or a "
                "new directory"
            )
        text = (json.dumps(content, indent=1) + "\n").encode()
        # Another process may be reading, or writing the same.
        if write and not (path.exists() and path.read_bytes() == text):
            files.replace(path, text)


def _content(sweep: Sweep) -> dict[str, Any]:
    """The content of the sweep's file."""
    base = directory.describe(sweep.run, sweep.agent, sweep.loop)
    content = {
        "config": {**base, **dict.fromkeys(sweep.axes)},
        "axes": {name: list(values) for name, values in sweep.axes.items()},
        "seeds": list(sweep.loop.seeds),
    }
    return json.loads(json.dumps(content))


def check_begun(sweep: Sweep) -> None:
    """Raises UserError where its folder holds another sweep, or one with more members, or none."""
    begun, content = read(sweep.logdir), _content(sweep)
    words = f"the sweep in {str(sweep.logdir)!r} has"
    free = dict.fromkeys((*sweep.axes, *begun["axes"], "seeds", *directory.MAY_CHANGE))
    made = {**_unsaid(), **begun["config"], **free}  # defaults for options that came later
    check_same(words, made, {**content["config"], **free}, "logdir")
    for name in dict.fromkeys((*begun["axes"], *content["axes"])):
        _check_kept(name, begun["axes"].get(name, []), content["axes"].get(name, []))
    _check_kept("seeds", begun["seeds"], content["seeds"])


def as_begun(
    logdir: Path, configs: Sequence[Any], axes: Axes, given: Collection[str]
) -> tuple[list[Any], Axes]:
    """`configs` and `axes` as the sweep's file has them, except for the settings `given` to this
    command, and for its axes if it gives any. Raises UserError if there is no such file.
    """
    there = read(logdir)
    kept = {**there["config"], "seeds": there["seeds"]}
    kept = {k: directory.tupled(v) for k, v in kept.items() if k not in {*given, *there["axes"]}}
    old = {name: tuple(map(directory.tupled, v)) for name, v in there["axes"].items()}
    return [_replace(config, kept) for config in configs], axes or old


def _check_kept(name: str, old: list[Any], new: list[Any]) -> None:
    left = [value for value in old if value not in new]
    if left or not old:
        raise UserError(
            f"the sweep in this logdir has {name}={','.join(map(str, old)) or 'one value'}, but "
            f"this command says {','.join(map(str, new)) or 'one value'}; a sweep may get more "
            f"values of an axis, but keeps those it has: name them too, or give another `logdir`"
        )


def read(logdir: Path) -> dict[str, Any]:
    """The content of a sweep's file. Raises UserError if it is none."""
    path = logdir / NAME
    try:
        content = json.loads(path.read_bytes().decode())
        good = all(isinstance(content[k], dict) for k in ("config", "axes"))
        good = good and all(type(seed) is int for seed in content["seeds"])
        if good and all(isinstance(v, list) and v for v in content["axes"].values()):
            return {name: content[name] for name in ("config", "axes", "seeds")}
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        pass
    raise UserError(f"{str(path)!r} is not a sweep's file; give another `logdir`")


# --- from a sweep to plans ------------------------------------------------------------------------


def plans(sweep: Sweep, program: Program, share: slice = slice(None)) -> list[Plan]:
    """The plans of what is left to train of a program's members, or of a share of them: a session
    for each group of members that can go on from the same step.
    """
    members = program.members[share]
    folders = [sweep.logdir / member.name for member in members]
    left = [
        i for i, one in enumerate(folders) if not directory.finished(one, program.loop.num_steps)
    ]
    if all(_diverged(folders[i]) for i in left):  # all in one session, which left no DONE
        return []
    steps = [directory.steps(folders[i] / directory.CHECKPOINTS) for i in left]
    each = groups(steps, [_first(folders[i]) for i in left])
    return [_plan(sweep, program, [members[left[i]] for i in group]) for group in each]


def groups(steps: Sequence[list[int]], firsts: Sequence[int]) -> list[list[int]]:
    """Groups of members, by index, that go on together: all from their checkpoints of the same
    step, or all from the beginning. The group furthest behind comes first.

    Args:
      steps: those of the checkpoints of every member.
      firsts: the step of each one's first checkpoint. A member that has only this one may begin
        anew, together with those that have none yet: a kill while first checkpoints are written
        leaves such members.
    """
    left, found = list(range(len(steps))), []
    while left:
        at = min(max(steps[i], default=0) for i in left)
        anew = {i for i in left if not at and steps[i] in ([], [firsts[i]])}
        group = [i for i in left if at in steps[i] or i in anew]
        found.append(group)
        left = [i for i in left if i not in group]
    return found


def _first(folder: Path) -> int:
    """The step of a member's first checkpoint; 0 where it was never begun, or is finished, and so
    never begins anew.
    """
    path = folder / directory.CONFIG
    if directory.finished(folder) or not path.exists():
        return 0
    return directory.read_config(path)["checkpoint_every"]


def _diverged(folder: Path) -> bool:
    return bool(record.frozen(record.of_run(folder)))


def _plan(sweep: Sweep, program: Program, members: Sequence[Member]) -> Plan:
    resolved = [agents.resolve(_replace(program.agent, member.setting)) for member in members]
    settings: Settings = {
        name: np.array([getattr(one.config, name) for one in resolved], np.float32)
        for name in program.axes
    }
    example = {name: float(values[0]) for name, values in settings.items()}
    discounts = np.array([one.config.discount for one in resolved])
    config = dataclasses.replace(program.loop, seeds=tuple(member.seed for member in members))
    places = tuple(
        Place(sweep.logdir / member.name, _described(program, one.config, member), range(i, i + 1))
        for i, (member, one) in enumerate(zip(members, resolved, strict=True))
    )
    make: Callable[[Spec], Agent] = partial(make_swept, program.agent, tuple(example.items()))
    described = places[0].described
    return Plan(
        make, program.run.source, program.run, config, discounts, described, settings, places
    )


def _described(program: Program, agent: AgentConfig, member: Member) -> dict[str, Any]:
    loop = dataclasses.replace(program.loop, seeds=(member.seed,))
    return directory.describe(program.run, agent, loop)


@lru_cache(maxsize=16)  # as `agents.make`
def make_swept(config: AgentConfig, example: tuple[tuple[str, Any], ...], spec: Spec) -> Agent:
    """The agent of a program; `example` is one member's settings. It pickles, as workers need."""
    if not example:
        return agents.make(config, spec)

    def make(settings: Settings) -> Agent:
        return agents.make(dataclasses.replace(config, **settings), spec)

    return agents.swept(make, dict(example))
