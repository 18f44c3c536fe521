"""The run directory: what is in it, and whether a command may go on with it.

It holds config.json, metrics.jsonl, tensorboard/, checkpoints/, environment.log where one raised,
DONE once `num_steps` is reached, lock while a process has it in hand, and added/ while seeds are
trained that are to join it (`added`); beside them curve.png, what trackers were told and said, and
records that could not be read (`_FILES`). None of these may be a link: a run writes to its
directory alone.
"""

import contextlib
import dataclasses
import json
import os
import stat
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preqn_jax import agents, envs
from preqn_jax.options import UserError, check_same, fits
from preqn_jax.training import files, lock, provenance, record, trackers
from preqn_jax.training.config import LoopConfig, RunConfig

CONFIGS: tuple[Any, ...] = (RunConfig, agents.AgentConfig, LoopConfig)
HINTS = {k: hint for config in CONFIGS for k, hint in typing.get_type_hints(config).items()}
DONE = "DONE"
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
PICTURE = "curve.png"
ENVIRONMENT_LOG = "environment.log"  # what environments themselves raised
_FOLDERS = (CHECKPOINTS, "tensorboard", "added")
_FILES = (
    CONFIG,
    record.NAME,
    record.DAMAGED,
    DONE,
    lock.NAME,
    ENVIRONMENT_LOG,
    PICTURE,
    trackers.LOG,
    trackers.KEPT,
)
# What there may be before there is a config.json.
_FIRST = {lock.NAME, "config.tmp"}
# A run may be moved, and go on with other processes, or after all.
_NOT_OF_THE_RUN = ("logdir", "workers", "env_timeout", "stop_on_divergence", "track")
# Nothing that is learned depends on how often a run is looked at.
MAY_CHANGE = ("num_steps", "checkpoint_every", "log_every", "eval_every", "diagnose_every")


def describe(*configs: Any) -> dict[str, Any]:
    """What config.json says of a run: all that its numbers depend on, as plain JSON."""
    fields = {name: value for config in configs for name, value in _fields(config)}
    return json.loads(json.dumps({k: v for k, v in fields.items() if k not in _NOT_OF_THE_RUN}))


def _fields(config: Any) -> list[tuple[str, Any]]:
    return list((config if isinstance(config, dict) else dataclasses.asdict(config)).items())


def open_(logdir: str | Path, config: dict[str, Any]) -> tuple[Path, lock.Lock]:
    """A directory in which the run described by `config` may begin or go on, and its lock, which
    is held; config.json is written.

    Args:
      logdir: the directory.
      config: what `describe` says of the run.

    Raises:
      UserError: the directory holds another run, a longer one, links, or what no run leaves; it
        cannot be written to.
      lock.Busy: another process has it in hand.
    """
    logdir = Path(logdir)
    with writing_to(logdir), contextlib.ExitStack() as held:
        logdir.mkdir(parents=True, exist_ok=True)
        _look(logdir)
        mine = lock.Lock(logdir)
        held.callback(mine.release)
        _look(logdir)  # what there is now stays
        _begin(logdir, config)
        mine.sign()
        held.pop_all()
    return logdir, mine


def finished(logdir: Path) -> bool:
    """Whether a run directory holds its run, whole."""
    return (logdir / DONE).exists()


def writing_to(logdir: Path) -> contextlib.AbstractContextManager[None]:
    """An OSError inside is a UserError."""
    return files.writing(f"to logdir {str(logdir)!r}", "; give another `logdir`", UserError)


def _look(logdir: Path) -> None:
    """Raises UserError for a directory of other things, or of what is not of the kind a run
    leaves.
    """
    there = {}
    for path in logdir.iterdir():
        with contextlib.suppress(FileNotFoundError):  # of another, which is not locked out yet
            there[path.name] = path.lstat().st_mode
    for folder in _FOLDERS:
        if stat.S_ISDIR(there.get(folder, 0)):
            for path in (logdir / folder).iterdir():
                if path.is_symlink():
                    there[f"{folder}/{path.name}"] = path.lstat().st_mode
    for name, mode in there.items():
        known, is_folder = name in _FILES or name.split("/")[0] in _FOLDERS, name in _FOLDERS
        if known and stat.S_ISLNK(mode):
            raise UserError(
                f"{str(logdir / name)!r} is a symbolic link, but a run writes to its directory "
                "alone; put what it points to in its place, or give another `logdir`"
            )
        if known and "/" not in name and not (stat.S_ISDIR if is_folder else stat.S_ISREG)(mode):
            raise UserError(
                f"{str(logdir / name)!r} is no {'folder' if is_folder else 'file'}, as a run keeps "
                "one by that name; move it away, or give another `logdir`"
            )
    others = [name for name in there if not files.is_temporary(name, CONFIG)]
    if CONFIG not in there and not set(others) <= _FIRST:
        raise UserError(
            f"logdir {str(logdir)!r} holds other files and no config.json; "
            "give an empty or a new directory"
        )


def _begin(logdir: Path, config: dict[str, Any]) -> None:
    """Writes config.json, where the run that it tells of may go on as `config` says. Raises
    UserError, OSError.
    """
    path, done = logdir / CONFIG, finished(logdir)
    begun = compare(path, config) if path.exists() else None
    longer = begun is None or begun["num_steps"] < config["num_steps"]
    if begun is not None:
        if longer or not done:
            _check_ways(path)
        if not done:
            _check_checkpoints(logdir, max(begun["checkpoint_every"], config["checkpoint_every"]))
        elif longer:
            _check_extension(logdir, begun)
        else:
            _check_records(logdir, config)
    if begun != config and (longer or not done):
        content = json.dumps({"config": config, **provenance.of_process()}, indent=2) + "\n"
        with files.anew(path) as file:
            file.write(content.encode())
            files.settle(file)
            # Once there is room for it, and before it is in place, or the longer run would count as
            # finished.
            (logdir / DONE).unlink(missing_ok=True)
    if not os.access(logdir, os.W_OK):
        raise PermissionError("not writable")


def _check_records(logdir: Path, config: dict[str, Any]) -> None:
    """Raises UserError where they do not tell how each seed of a finished run ended."""
    end = config["num_steps"]
    told = {
        line["seed"]
        for line in record.of(logdir)
        if "run/diverged" in line or ("eval/return_mean" in line and line["step"] == end)
    }
    if not told >= set(config["seeds"]):
        raise UserError(
            f"logdir {str(logdir)!r} holds a finished run without its records: {record.NAME} is "
            "missing or not whole; put it back, or give another `logdir` to make the run anew"
        )


def _check_checkpoints(logdir: Path, every: int) -> None:
    """Raises UserError where records tell of checkpoints that are gone: to begin anew would drop
    them.
    """
    if any((logdir / CHECKPOINTS).glob("*")):
        return
    reached = max((line["step"] for line in record.of(logdir)), default=0)
    if reached > every:
        raise UserError(
            f"logdir {str(logdir)!r} holds records to step {reached} without their checkpoints, so "
            "there is nothing to go on from; give another `logdir` to make the run anew"
        )


def steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints in a folder of these, in order."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())


def _check_extension(logdir: Path, begun: dict[str, Any]) -> None:
    if not any((logdir / CHECKPOINTS).glob("*")):
        raise UserError(
            f"logdir {str(logdir)!r} holds a run of {begun['num_steps']} steps without its "
            "checkpoints, so there is nothing to go on from; give another `logdir` to make it anew"
        )


def read_config(path: Path, flag: str = "logdir") -> dict[str, Any]:
    """What a run's config.json says of the run: its environment, seeds, algorithm and steps at
    least, and every known setting of its type. Raises UserError if it is none, FileNotFoundError.
    """
    unread: OSError | None = None  # from which a caller may tell that it will be read yet
    try:
        config = json.loads(path.read_bytes().decode())["config"]
        hints = {name: hint for name, hint in HINTS.items() if name in config}
        wrong = [name for name, hint in hints.items() if not fits(_read(config[name]), hint)]
        needed = [config[name] for name in ("env", "seeds", "algorithm", "num_steps")]
        if not wrong and all(needed):
            return config
    except FileNotFoundError:
        raise
    except OSError as error:
        unread, wrong = error, []
    except (LookupError, TypeError, ValueError, RecursionError):
        wrong = []
    named = f" ({wrong[0]} is {config[wrong[0]]!r})" if wrong else ""
    raise UserError(f"{path} is not a run's config.json{named}; give another `{flag}`") from unread


def config_of(logdir: Path, flag: str = "logdir") -> dict[str, Any]:
    """As `read_config`, of a run directory. Raises UserError also where there is none."""
    try:
        return read_config(logdir / CONFIG, flag)
    except FileNotFoundError as error:
        raise UserError(f"{str(logdir)!r} is not a run directory: it has no config.json") from error


def tupled(value: Any) -> Any:
    """A list of JSON's as the tuple that a field has."""
    return tuple(value) if isinstance(value, list) else value


def _read(value: Any) -> Any:
    """JSON's value as a field has it: lists are tuples, and runs of before may have 1e6 steps."""
    value = tupled(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def trusted(env: str, where: str, trust: bool) -> str:
    """The environment that a file names, to be made. By some names, as "module:Env-v0", a module is
    imported, which runs it, and a run directory may come from anybody.

    Raises UserError for these, unless `trust`; `where` says who names it.
    """
    if ":" in env and not trust:
        raise _untrusted(f"{where} names the environment {env!r}", _RUNS)
    return env


_RUNS = "whose module would be imported and run"


def _untrusted(what: str, why: str) -> UserError:
    return UserError(f"{what}, {why}; if you trust it, say `trust=True`")


def source(config: Mapping[str, Any], where: str, trust: bool) -> envs.Source:
    """The environments of a run, as its config.json describes them.

    Raises UserError as `trusted`, and likewise, unless `trust`, for wrappers that are not known to
    do no harm, and for arguments that are texts: one may name a file or a module.
    """
    env = trusted(config["env"], where, trust)
    kwargs, wrappers = config.get("env_kwargs"), config.get("wrappers", ())
    for text in () if trust else wrappers:
        if not envs.Wrapper.parse(text).harmless:
            raise _untrusted(f"{where} names the wrapper {text!r}", _RUNS)
    for name, value in {} if trust or not kwargs else kwargs.items():
        if _has_text(value):
            given = f"{where} gives its environment {name}={value!r:.60}"
            raise _untrusted(given, "a text, which may name a file or a module")
    return envs.described(env, kwargs, wrappers)


def _has_text(value: Any) -> bool:
    if isinstance(value, dict):
        return True  # whose names are texts
    return any(map(_has_text, value)) if isinstance(value, list) else isinstance(value, str)


def of(kind: Any, config: Mapping[str, Any]) -> Any:
    """The part of what a config.json says that is a `kind`, one of `CONFIGS`, with their defaults
    for what it lacks.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    said = {name: value for name, value in config.items() if name in names}
    return kind(**{name: tupled(value) for name, value in said.items()})


def own_parts(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a run whose agent was put together by somebody's own function."""
    return "activation" not in config


def whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says, and of settings that came after it what its algorithm has."""
    if own_parts(config):
        return dict(config)
    fields = {field.name: field.default for one in CONFIGS for field in dataclasses.fields(one)}
    fields = describe({**fields, **config})
    with contextlib.suppress(UserError, TypeError):  # of what nobody can train today
        filled = describe(agents.resolve(of(agents.AgentConfig, fields)).config)
        fields |= {name: filled[name] for name in filled.keys() - config.keys()}
    return fields


def compare(path: Path, config: dict[str, Any], flag: str = "logdir") -> dict[str, Any]:
    """What the config.json at `path` says; `config` may have more steps, or look at others.

    Raises UserError if anything else differs; `flag` is the one that would lead elsewhere.
    """
    try:
        said = read_config(path, flag)
        old = {k: v for k, v in whole(said).items() if k in config or k in said}
    except FileNotFoundError as error:
        raise UserError(f"{path} is gone; give another `{flag}`") from error
    if old["num_steps"] > config["num_steps"]:
        raise UserError(
            f"logdir {str(path.parent)!r} holds a run with num_steps={old['num_steps']}, but this "
            f"command says {config['num_steps']}; a run can be made longer, not shorter: use at "
            f"least as many, or another `{flag}`"
        )
    free = dict.fromkeys(MAY_CHANGE)
    begun = f"logdir {str(path.parent)!r} holds a run with"
    check_same(begun, {**old, **free}, {**config, **free}, flag)
    return old


def _check_ways(path: Path) -> None:
    """Raises UserError where the run that config.json tells of was begun with others."""
    begun = json.loads(path.read_text()).get("jax")
    begun = begun if isinstance(begun, dict) else {}  # of a version that did not say
    for name, now in provenance.ways().items():
        if begun.get(name, now) != now:
            raise UserError(
                f"{path} says {name}={begun[name]}, but here it is {now}, so that the run would go "
                f"on with other numbers: set {name.upper()}={begun[name]}, or give another `logdir`"
            )
