"""What made a run, or a measurement: the command, the code, the device, and JAX's own options."""

import contextlib
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from preqn_jax.options import UserError

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


# Options of JAX that may be set for some lines only, and others.
_SCOPED = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_random_seed_offset",
)
_OF_ALL = ("jax_disable_most_optimizations",)
_NUMERIC = re.compile("fast_math|fast_min_max|precision|tf32|deterministic")


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = ((name, _version(name)) for name in packages)
    return {name: version for name, version in found if version is not None}


@functools.cache
def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


@functools.cache  # git looks at every file, and the members of a sweep are many
def commit() -> str | None:
    """The commit of the checkout that this package lies in, with "-dirty" where files differ from
    it; None where the package was installed, or git cannot tell.
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
    """The options of JAX that a run's numbers depend on: with others it would have other
    numbers.
    """
    scoped = {name: getattr(jax.config, name) for name in _SCOPED}
    return {**scoped, **{name: jax.config.values[name] for name in _OF_ALL}}


def xla() -> dict[str, str]:
    """Those of XLA's flags that a run's numbers depend on, likewise, as its variable has them."""
    given = os.environ.get("XLA_FLAGS", "").split()
    return {"XLA_FLAGS": " ".join(sorted(flag for flag in given if _NUMERIC.search(flag)))}


def check_ways(path: Path) -> None:
    """Raises UserError where the run of a config.json was begun with other JAX options than this
    process has (`ways` and `xla`).
    """
    begun = json.loads(path.read_text()).get("jax")
    begun = begun if isinstance(begun, dict) else {}  # of a version that did not say
    for name, now in {**ways(), **xla()}.items():
        if (old := begun.get(name, now)) != now:
            mend = f"unset {name.upper()}" if old in (None, "") else f"set {name.upper()}={old}"
            raise UserError(
                f"{path} says {name}={old}, but here it is {now}, so the run would resume with "
                f"other numbers: {mend}, or give another `logdir`"
            )


def of_process() -> dict[str, Any]:
    """Command, versions, device and precision of this process."""
    device = jax.local_devices()[0]
    return {
        "command": [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]],  # without Python's path
        "commit": commit(),
        "versions": {"python": sys.version.split()[0], **versions(*_PACKAGES)},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.local_device_count(),
        },
        "jax": {**ways(), **xla()},
        "precision": {
            "type": "float64" if jax.config.jax_enable_x64 else "float32",  # pyright: ignore
            "policy": getattr(jax.config, "jax_default_matmul_precision", None) or "default",
            "critic": "highest",
        },
    }


def device() -> str:
    """The first device, as text."""
    first = jax.devices()[0]
    return f"{first.platform} ({first.device_kind})"


def machine() -> str:
    """All that a measured speed depends on, as text."""
    xla_flags = os.environ.get("XLA_FLAGS", "")
    return f"{device()}, {os.cpu_count()} cores, jax {jax.__version__}, XLA_FLAGS={xla_flags!r}"
