"""The run directory: what is in it, and whether a command may go on with it.

It holds config.json, metrics.jsonl, tensorboard/, checkpoints/, environment.log where an
environment raised, DONE once `num_steps` is reached, lock while a process uses the directory, and
added/ while new seeds for the run are trained (`added`); also curve.png, the files of trackers, and
records that could not be read (`_FILES`). None of these may be a link: a run writes to its own
directory only.
"""

import contextlib
import dataclasses
import json
import os
import re
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
# Files that may be there before config.json.
_FIRST = {lock.NAME, "config.tmp"}
# A run may be moved, go on with other workers, or go on after it was stopped.
_NOT_OF_THE_RUN = ("logdir", "workers", "env_timeout", "stop_on_divergence", "track")
# What is learned so far does not depend on these.
MAY_CHANGE = ("num_steps", "checkpoint_every", "log_every", "eval_every", "diagnose_every")


def describe(*configs: Any) -> dict[str, Any]:
    """The settings in config.json: all that a run's numbers depend on, as plain JSON."""
    fields = {name: value for config in configs for name, value in _fields(config)}
    return json.loads(json.dumps({k: v for k, v in fields.items() if k not in _NOT_OF_THE_RUN}))


def fixed(described: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of config.json that stay as they are for as long as the run is there."""
    return {name: v for name, v in described.items() if name not in (*MAY_CHANGE, "seeds")}


def _fields(config: Any) -> list[tuple[str, Any]]:
    return list((config if isinstance(config, dict) else dataclasses.asdict(config)).items())


def open_(logdir: str | Path, config: dict[str, Any]) -> tuple[Path, lock.Lock]:
    """Opens a directory in which the run described by `config` may begin or go on. Returns the
    directory and its lock, which is held. The config.json of a new run is written at once; that of
    one that is there stays until `go_on`.

    Args:
      logdir: the directory.
      config: what `describe` returns for the run.

    Raises:
      UserError: the directory holds another run, a longer one, links, or files that no run leaves;
        it cannot be written to.
      lock.Busy: another process uses it.
    """
    logdir = Path(logdir)
    if odd := re.search(r"\[.*\]|\\|[\ud800-\udfff]", str(logdir.absolute())):
        raise UserError(
            f"logdir {str(logdir.absolute())!r} has {odd[0]!r} in it, and checkpoints there could "
            "not be read again; give a path without brackets, backslashes and broken characters"
        )
    with writing_to(logdir), contextlib.ExitStack() as held:
        logdir.mkdir(parents=True, exist_ok=True)
        _look(logdir)
        mine = lock.Lock(logdir)
        held.callback(mine.release)
        _look(logdir)  # locked, it does not change any more
        if _begun(logdir, config) is None:
            _write_config(logdir, config)
        if not os.access(logdir, os.W_OK):
            raise PermissionError("not writable")
        mine.sign()
        held.pop_all()
    return logdir.absolute(), mine  # an environment may change the current folder


def go_on(logdir: Path, config: dict[str, Any]) -> None:
    """Writes that the run in `logdir`, which is open and whose checkpoint was read, goes on as
    `config` says: until then it is as it was, so that a checkpoint that cannot be read, or an
    environment that cannot be made, changes nothing. Raises UserError where it cannot be written.
    """
    with writing_to(logdir):
        changed = compare(logdir / CONFIG, config) != config
        if changed and not finished(logdir, config["num_steps"]):
            _write_config(logdir, config)


def finished(logdir: Path, num_steps: int = 0) -> bool:
    """Whether the run in a run directory is finished, with so many steps at least."""
    there = (logdir / DONE).exists()
    return there and (not num_steps or read_config(logdir / CONFIG)["num_steps"] >= num_steps)


def writing_to(logdir: Path) -> contextlib.AbstractContextManager[None]:
    """A context that turns an OSError into a UserError."""
    return files.writing(f"to logdir {str(logdir)!r}", "; give another `logdir`", UserError)


def is_of_a_run(path: Path) -> bool:
    """Whether a file is one that a run keeps in its directory, and that nothing else may write. The
    run's picture, which can be drawn again, is none, nor are others in its folder for TensorBoard.
    """
    path = path.absolute()
    for folder in path.parents:
        first = path.relative_to(folder).parts[0]
        if first in {*_FILES, CHECKPOINTS, "added"} - {PICTURE} and (folder / CONFIG).is_file():
            with contextlib.suppress(UserError):
                return bool(read_config(folder / CONFIG))
    return False


def _look(logdir: Path) -> None:
    """Raises UserError for a directory with other files and no config.json, and for a link, or
    anything of the wrong kind, in the place of a file or folder of the run.
    """
    there = {}
    for path in logdir.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removed it just now
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
                f"{str(logdir / name)!r} is a symbolic link, but a run writes only to its own "
                "directory; replace the link by what it points to, or give another `logdir`"
            )
        if known and "/" not in name and not (stat.S_ISDIR if is_folder else stat.S_ISREG)(mode):
            raise UserError(
                f"{str(logdir / name)!r} should be a {'folder' if is_folder else 'file'} of the "
                "run, but is not one; move it away, or give another `logdir`"
            )
    others = [name for name in there if not files.is_temporary(name, CONFIG)]
    if CONFIG not in there and not set(others) <= _FIRST:
        raise UserError(
            f"logdir {str(logdir)!r} holds other files and no config.json; "
            "give an empty or a new directory"
        )


def _begun(logdir: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the run that is there, which may go on as `config` says; None if there is no
    run. Raises UserError, OSError.
    """
    path, done = logdir / CONFIG, finished(logdir)
    begun = compare(path, config) if path.exists() else None
    longer = begun is None or begun["num_steps"] < config["num_steps"]
    if begun is not None:
        if longer or not done:
            provenance.check_ways(path)
        if not done:
            _check_checkpoints(logdir, max(begun["checkpoint_every"], config["checkpoint_every"]))
        elif longer:
            _check_extension(logdir, begun)
        else:
            _check_records(logdir, config)
    return begun


def _write_config(logdir: Path, config: dict[str, Any]) -> None:
    """Writes config.json; what made the run before stays in it, under "earlier"."""
    path, content = logdir / CONFIG, {"config": config, **provenance.of_process()}
    if path.exists():
        before = json.loads(path.read_bytes().decode())
        steps, made = before.pop("config")["num_steps"], before.pop("earlier", [])
        content["earlier"] = [*made, {"num_steps": steps, **before}]
    done = logdir / DONE
    was_done = done.exists()
    try:
        with files.anew(path) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())
            files.settle(file)
            # DONE goes once there is room for config.json, and before that is in place: otherwise
            # the longer run would count as finished.
            done.unlink(missing_ok=True)
    except OSError:
        if was_done:
            done.touch()
        raise


def _check_records(logdir: Path, config: dict[str, Any]) -> None:
    """Raises UserError where records do not tell how each seed of a finished run ended."""
    end = config["num_steps"]
    told = {
        line["seed"]
        for line in record.of_run(logdir)
        if "run/diverged" in line or ("eval/return_mean" in line and line["step"] == end)
    }
    if not told >= set(config["seeds"]):
        raise UserError(
            f"logdir {str(logdir)!r} holds a finished run without its records: {record.NAME} is "
            "missing or incomplete; put it back, or give another `logdir` to train the run anew"
        )


def _check_checkpoints(logdir: Path, every: int) -> None:
    """Raises UserError where records go further than they could without a checkpoint, but there is
    none: to begin anew would drop the records.
    """
    if any((logdir / CHECKPOINTS).glob("*")):
        return
    reached = max((line["step"] for line in record.of_run(logdir)), default=0)
    if reached > every:
        raise UserError(
            f"logdir {str(logdir)!r} holds records to step {reached} without their checkpoints, so "
            "it cannot be resumed; give another `logdir` to start anew"
        )


def steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints in the folder `checkpoints`, in order."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())


def _check_extension(logdir: Path, begun: dict[str, Any]) -> None:
    if not any((logdir / CHECKPOINTS).glob("*")):
        raise UserError(
            f"logdir {str(logdir)!r} holds a run of {begun['num_steps']} steps without its "
            "checkpoints, so it cannot be made longer; give another `logdir` to start anew"
        )


def read_config(path: Path, flag: str = "logdir") -> dict[str, Any]:
    """The settings in a run's config.json. Raises UserError where environment, seeds, algorithm or
    number of steps are missing, or a known setting is of the wrong type, and FileNotFoundError.
    """
    unread: OSError | None = None  # tells a caller that the file may be readable later
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
    """A JSON list as the tuple that a field has; any other value as it is."""
    return tuple(value) if isinstance(value, list) else value


def _read(value: Any) -> Any:
    """A JSON value as a field has it: lists become tuples, and floats that are whole numbers become
    ints, as earlier versions may have written 1e6 steps.
    """
    value = tupled(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def trusted(env: str, where: str, trust: bool) -> str:
    """The environment `env`, which a file names, if it is safe to make. Names such as
    "module:Env-v0" import a module, which runs its code, and a run directory may come from anybody.

    Raises UserError for such names, unless `trust`; `where` says, for the message, what names it.
    """
    if ":" in env and not trust:
        raise _untrusted(f"{where} names the environment {env!r}", _RUNS)
    return env


_RUNS = "whose module would be imported and run"


def _untrusted(what: str, why: str) -> UserError:
    return UserError(f"{what}, {why}; if you trust it, say `trust=True`")


def source(config: Mapping[str, Any], where: str, trust: bool) -> envs.Source:
    """The environments of a run, as its config.json describes them.

    Raises UserError as `trusted` and, unless `trust`, also for wrappers that are not known to be
    harmless, and for arguments with text in them, which may name a file or a module.
    """
    env = trusted(config["env"], where, trust)
    kwargs, wrappers = config.get("env_kwargs"), config.get("wrappers", ())
    for text in () if trust else wrappers:
        if not envs.Wrapper.parse(text).harmless:
            raise _untrusted(f"{where} names the wrapper {text!r}", _RUNS)
    for name, value in {} if trust or not kwargs else kwargs.items():
        if _has_text(value):
            given = f"{where} gives its environment {name}={value!r:.60}"
            raise _untrusted(given, "a string, which may name a file or a module")
    return envs.described(env, kwargs, wrappers)


def _has_text(value: Any) -> bool:
    if isinstance(value, dict):
        return True  # its keys are strings
    return any(map(_has_text, value)) if isinstance(value, list) else isinstance(value, str)


def as_config(kind: Any, config: Mapping[str, Any]) -> Any:
    """The config of class `kind`, one of `CONFIGS`, with the settings of a config.json; those that
    it lacks have their defaults.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    said = {name: value for name, value in config.items() if name in names}
    return kind(**{name: tupled(value) for name, value in said.items()})


def own_parts(config: Mapping[str, Any]) -> bool:
    """Whether the run of a config.json has an agent that the user's own function made."""
    return "activation" not in config


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json, and for those that were added to this package after it was
    written, the values that its algorithm has.
    """
    if own_parts(config):
        return dict(config)
    fields = {field.name: field.default for one in CONFIGS for field in dataclasses.fields(one)}
    fields = describe({**fields, **config})
    with contextlib.suppress(UserError, TypeError):  # settings that can no longer be trained
        filled = describe(agents.resolve(as_config(agents.AgentConfig, fields)).config)
        fields |= {name: filled[name] for name in filled.keys() - config.keys()}
    return fields


def compare(path: Path, config: dict[str, Any], flag: str = "logdir") -> dict[str, Any]:
    """The settings in the config.json at `path`, where that run may go on as `config` says: it may
    have more steps, or other intervals of recording (`MAY_CHANGE`).

    Raises UserError if anything else differs; `flag`, for the message, is the one that would name
    another directory.
    """
    try:
        said = read_config(path, flag)
        old = {k: v for k, v in with_defaults(said).items() if k in config or k in said}
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
