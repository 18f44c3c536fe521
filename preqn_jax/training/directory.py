"""The run directory: what is in it, whether a command may go on with it, and what made it.

It holds config.json, metrics.jsonl, tensorboard/, checkpoints/, environment.log where one raised,
and DONE once `num_steps` is reached.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax

from preqn_jax.options import UserError, check_same

DONE = "DONE"
CHECKPOINTS = "checkpoints"
ENVIRONMENT_LOG = "environment.log"  # what environments themselves raised
# A run may be moved, and go on with other processes, or after all.
_NOT_OF_THE_RUN = ("logdir", "workers", "env_timeout", "stop_on_divergence")
_MAY_CHANGE = ("num_steps", "checkpoint_every")
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
)


def describe(*configs: Any) -> dict[str, Any]:
    """What config.json says of a run: all that its numbers depend on, as plain JSON."""
    fields = {name: value for config in configs for name, value in _fields(config)}
    return json.loads(json.dumps({k: v for k, v in fields.items() if k not in _NOT_OF_THE_RUN}))


def _fields(config: Any) -> list[tuple[str, Any]]:
    return list((config if isinstance(config, dict) else dataclasses.asdict(config)).items())


def open_(logdir: str | Path, config: dict[str, Any], defaults: dict[str, Any]) -> Path:
    """The run directory with its config.json, made or gone on with.

    Args:
      logdir: the directory.
      config: what `describe` says of the run.
      defaults: of fields that a config.json of an earlier version does not name.

    Raises:
      UserError: the directory holds another run, a longer one, or cannot be written to.
    """
    logdir = Path(logdir)
    path = logdir / "config.json"
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            begun = compare(path, config, defaults)
            if (logdir / DONE).exists() and begun["num_steps"] < config["num_steps"]:
                _check_extension(logdir, begun)
                # Before config.json, or the longer run would count as finished.
                (logdir / DONE).unlink()
        elif any(logdir.iterdir()):
            raise UserError(
                f"logdir {str(logdir)!r} holds other files and no config.json; "
                "give an empty or a new directory"
            )
        else:
            begun = None
        if begun != config:
            temporary = path.with_suffix(".tmp")
            content = {"config": config, **provenance()}
            temporary.write_text(json.dumps(content, indent=2) + "\n")
            os.replace(temporary, path)
        if not os.access(logdir, os.W_OK):
            raise PermissionError("not writable")
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"cannot write to logdir {str(logdir)!r}: {why}; give another `logdir`"
        ) from error
    return logdir


def _check_extension(logdir: Path, begun: dict[str, Any]) -> None:
    if not any((logdir / CHECKPOINTS).glob("*")):
        raise UserError(
            f"logdir {str(logdir)!r} holds a run of {begun['num_steps']} steps without its "
            "checkpoints, so there is nothing to go on from; give another `logdir` to make it anew"
        )


def read_config(path: Path, flag: str = "logdir") -> dict[str, Any]:
    """What a run's config.json says of the run. Raises UserError if it is none."""
    try:
        return dict(json.loads(path.read_text())["config"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a run's config.json; give another `{flag}`") from error


def compare(
    path: Path, config: dict[str, Any], defaults: dict[str, Any], flag: str = "logdir"
) -> dict[str, Any]:
    """What the config.json at `path` says; `config` may have more steps, and checkpoints at others.

    Raises UserError if anything else differs; `flag` is the one that would lead elsewhere.
    """
    known = {k: v for k, v in json.loads(json.dumps(defaults)).items() if k in config}
    old = {**known, **read_config(path, flag)}
    if old["num_steps"] > config["num_steps"]:
        raise UserError(
            f"logdir {str(path.parent)!r} holds a run with num_steps={old['num_steps']}, but this "
            f"command says {config['num_steps']}; a run can be made longer, not shorter: use at "
            f"least as many, or another `{flag}`"
        )
    free = dict.fromkeys(_MAY_CHANGE)
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


def provenance() -> dict[str, Any]:
    """Versions, device and precision of this process."""
    device = jax.devices()[0]
    return {
        "versions": {"python": sys.version.split()[0], **versions(*_PACKAGES)},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "precision": {
            "type": "float32",
            "networks": getattr(jax.config, "jax_default_matmul_precision", None) or "default",
            "kernel": "highest",
        },
    }
