"""Preconditioned Q-networks in JAX, and the analysis behind them.

The public names, each imported when it is first used:

* the kernel: `linearize`, `kernel`, `solve`, `linesearch`, `steps`, `networks`
* the theory: `tabular`, `diagnose`, `failure`
* the agents: `agents`, and by name `preqn`, `ngql`, `ddpg`, `td3`, `sac`, `crossq`; for finitely
  many actions `preqn_discrete`, `dqn`
* training: `train`, `load`, `records`
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from preqn_jax import agents, diagnostics, linesearch, networks, solve, steps, tabular
    from preqn_jax.agents import crossq, ddpg, dqn, ngql, preqn, preqn_discrete, sac, td3
    from preqn_jax.diagnostics import diagnose, failure
    from preqn_jax.ntk import kernel, linearize
    from preqn_jax.training.run import train
    from preqn_jax.training.trained import load, records

__all__ = [
    "__version__",
    "agents",
    "crossq",
    "ddpg",
    "diagnose",
    "diagnostics",
    "dqn",
    "failure",
    "kernel",
    "linearize",
    "linesearch",
    "load",
    "networks",
    "ngql",
    "preqn",
    "preqn_discrete",
    "records",
    "sac",
    "solve",
    "steps",
    "tabular",
    "td3",
    "train",
]

_HOMES = {  # the module of each name that is not a module itself
    **dict.fromkeys(("linearize", "kernel"), "ntk"),
    **dict.fromkeys(("diagnose", "failure"), "diagnostics"),
    **dict.fromkeys(
        ("preqn", "ngql", "ddpg", "td3", "sac", "crossq", "preqn_discrete", "dqn"), "agents"
    ),
    "train": "training.run",
    **dict.fromkeys(("load", "records"), "training.trained"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("preqn_jax")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    return getattr(home, name) if name in _HOMES else home


def __dir__() -> list[str]:
    return __all__
