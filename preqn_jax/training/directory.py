"""The run directory: what is in it, whether a command may go on with it, and what made it.

It holds config.json, metrics.jsonl, tensorboard/, checkpoints/, environment.log where one raised,
DONE once `num_steps` is reached, lock while a process has it in hand, and added/ while seeds are
trained that are to join it (`added`); beside them curve.png, what trackers were told and said, and
records that could not be read (`_FILES`). None of these may be a link: a run writes to its
directory alone.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import stat
import subprocess
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from preqn_jax import agents, envs
from preqn_jax.options import UserError, check_same, fits
from preqn_jax.training import files, lock, record, trackers
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
_FIRST = {lock.NAME, "config.json.tmp", "config.tmp"}
# A run may be moved, and go on with other processes, or after all.
_NOT_OF_THE_RUN = ("logdir", "workers", "env_timeout", "stop_on_divergence", "track")
# Nothing that is learned depends on how often a run is looked at.
MAY_CHANGE = ("num_steps", "checkpoint_every", "log_every", "eval_every", "diagnose_every")
_PACKAGES = (
    "preqn_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "gymnasium",
    "mujoco",
    "numpy",
    "orbax-checkpoint",
    "brax",
    "mujoco-mjx",
    "playground",
)


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
    logdir, held = Path(logdir), None
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        _look(logdir)
        held = lock.Lock(logdir)
        _look(logdir)  # what there is now stays
        _begin(logdir, config)
        return logdir, held.sign()
    except BaseException as error:
        if held is not None:
            held.release()
        if not isinstance(error, OSError):
            raise
        why = error.strerror or error
        raise UserError(
            f"cannot write to logdir {str(logdir)!r}: {why}; give another `logdir`"
        ) from error


def _look(logdir: Path) -> None:
    """Raises UserError for a directory of other things, or of what is not of the kind a run
    leaves.
    """
    there = {path.name: path.lstat().st_mode for path in logdir.iterdir()}
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
    if CONFIG not in there and not set(there) <= _FIRST:
        raise UserError(
            f"logdir {str(logdir)!r} holds other files and no config.json; "
            "give an empty or a new directory"
        )


def _begin(logdir: Path, config: dict[str, Any]) -> None:
    """Writes config.json, where the run that it tells of may go on as `config` says. Raises
    UserError, OSError.
    """
    path, begun = logdir / CONFIG, None
    if path.exists():
        begun = compare(path, config)
        if begun["num_steps"] < config["num_steps"] or not (logdir / DONE).exists():
            _check_ways(path)
        if (logdir / DONE).exists() and begun["num_steps"] < config["num_steps"]:
            _check_extension(logdir, begun)
        elif (logdir / DONE).exists():
            _check_records(logdir, config)
        else:
            _check_checkpoints(logdir, max(begun["checkpoint_every"], config["checkpoint_every"]))
    longer = begun is None or begun["num_steps"] < config["num_steps"]
    if begun != config and (longer or not (logdir / DONE).exists()):
        content = json.dumps({"config": config, **provenance()}, indent=2) + "\n"
        with files.anew(path) as written:
            written.write_bytes(content.encode())
            # Once there is room for it, and before it is in place, or the longer run would count as
            # finished.
            (logdir / DONE).unlink(missing_ok=True)
    if not os.access(logdir, os.W_OK):
        raise PermissionError("not writable")


def _check_records(logdir: Path, config: dict[str, Any]) -> None:
    """Raises UserError where they do not tell how each seed of a finished run ended."""
    path, end = logdir / record.NAME, config["num_steps"]
    lines = record.read(path) if path.exists() else []
    told = {
        line["seed"]
        for line in lines
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
    path = logdir / record.NAME
    if any((logdir / CHECKPOINTS).glob("*")) or not path.exists():
        return
    reached = max((line["step"] for line in record.read(path)), default=0)
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
    try:
        config = json.loads(path.read_bytes().decode())["config"]
        hints = {name: hint for name, hint in HINTS.items() if name in config}
        wrong = [name for name, hint in hints.items() if not fits(_read(config[name]), hint)]
        needed = [config[name] for name in ("env", "seeds", "algorithm", "num_steps")]
        if not wrong and all(needed):
            return config
    except FileNotFoundError:
        raise
    except (OSError, LookupError, TypeError, ValueError, RecursionError):
        wrong = []
    named = f" ({wrong[0]} is {config[wrong[0]]!r})" if wrong else ""
    raise UserError(f"{path} is not a run's config.json{named}; give another `{flag}`")


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
        raise UserError(
            f"{where} names the environment {env!r}, whose module would be imported and run; if "
            "you trust it, say `trust=True`"
        )
    return env


def source(config: Mapping[str, Any], where: str, trust: bool) -> envs.Source:
    """The environments of a run, as its config.json describes them.

    Raises UserError as `trusted`, and likewise, unless `trust`, for wrappers that are not known to
    do no harm, and for arguments that are texts: one may name a file or a module.
    """
    env = trusted(config["env"], where, trust)
    kwargs, wrappers = config.get("env_kwargs"), config.get("wrappers", ())
    for text in () if trust else wrappers:
        if not envs.Wrapper.parse(text).harmless:
            raise UserError(
                f"{where} names the wrapper {text!r}, whose module would be imported and run; if "
                "you trust it, say `trust=True`"
            )
    for name, value in {} if trust or not kwargs else kwargs.items():
        if _has_text(value):
            raise UserError(
                f"{where} gives its environment {name}={value!r:.60}, a text, which may name a "
                "file or a module; if you trust it, say `trust=True`"
            )
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


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str | None:
    """Of the checkout that this package lies in, with "-dirty" where files differ from it; None of
    one that was installed.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    words = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", str(root), *words]
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10)
        return said.stdout.strip()
    return None


def ways() -> dict[str, Any]:
    """Of JAX, on which a run's numbers depend: those of another are other ones."""
    names = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")
    return {name: getattr(jax.config, name) for name in names}


def _check_ways(path: Path) -> None:
    """Raises UserError where the run that config.json tells of was begun with others."""
    begun = json.loads(path.read_text()).get("jax")
    begun = begun if isinstance(begun, dict) else {}  # of a version that did not say
    for name, now in ways().items():
        if begun.get(name, now) != now:
            raise UserError(
                f"{path} says {name}={begun[name]}, but here it is {now}, so that the run would go "
                f"on with other numbers: set {name.upper()}={begun[name]}, or give another `logdir`"
            )


def provenance() -> dict[str, Any]:
    """Command, versions, device and precision of this process."""
    device = jax.local_devices()[0]
    return {
        "command": [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]],  # whoever's environment
        "commit": commit(),
        "versions": {"python": sys.version.split()[0], **versions(*_PACKAGES)},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.local_device_count(),
        },
        "jax": ways(),
        "precision": {
            "type": "float64" if jax.config.jax_enable_x64 else "float32",  # pyright: ignore
            "policy": getattr(jax.config, "jax_default_matmul_precision", None) or "default",
            "critic": "highest",
        },
    }
