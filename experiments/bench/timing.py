"""What the benchmarks share: the agents to time, timing in turn, random data, results as JSON."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.kit import output
from preqn_jax.options import option
from preqn_jax.training import provenance
from preqn_jax.types import Spec, Transition

ROWS: dict[str, dict[str, Any]] = {
    "PreQN sin, Jacobian kernel": {"algorithm": "preqn", "kernel": "jacobian"},
    "PreQN sin": {"algorithm": "preqn"},
    "PreQN relu": {"algorithm": "preqn", "activation": "relu"},
    "PreQN sin, eigh": {"algorithm": "preqn", "solver": "eigh"},
    "NGQL sin": {"algorithm": "ngql"},
    "DDPG relu": {"algorithm": "ddpg"},
    "TD3 relu": {"algorithm": "td3"},
    "SAC relu": {"algorithm": "sac"},
}
REFERENCE = "TD3 relu"


@dataclasses.dataclass(frozen=True)
class SizesConfig:
    """The sizes of a minibatch and a critic."""

    batch_size: int = option(256, "B, transitions in a minibatch", at_least=1)
    hidden_sizes: tuple[int, ...] = option((256, 256), "widths of the hidden layers", at_least=1)
    obs_size: int = option(17, "numbers in an observation (HalfCheetah: 17)", at_least=1)
    action_size: int = option(6, "numbers in an action (HalfCheetah: 6)", at_least=1)

    @property
    def spec(self) -> Spec:
        """The spec of an environment of these sizes, with actions in [-1, 1]."""
        high = np.ones(self.action_size)
        return Spec(self.obs_size, self.action_size, -high, high)


def in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each run, `repeats` times. The runs take turns, so that drift in the machine's
    speed affects all alike.

    Each is called once before, untimed, to compile. A run returns arrays, and is over when they are
    computed.
    """
    for run in tqdm(runs.values(), desc="compiling"):
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(repeats), desc="timing"):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return times


def several(name: str, seeds: int) -> str:
    """The name of the row of an algorithm with so many seeds."""
    return name if seeds == 1 else f"{name}, {seeds} seeds"


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes, until its arrays are computed."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """The median of `values` under `name`, and their `min` and `max`."""
    return {
        name: float(np.median(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def transitions(sizes: SizesConfig, n: int) -> Transition:
    """`n` random transitions, the same ones at every call."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(n, *shape)).astype(np.float32)

    action, obs = np.clip(normal(sizes.action_size), -1, 1), normal(sizes.obs_size)
    return Transition(obs, action, normal(), np.ones(n, np.float32), normal(sizes.obs_size))


def head(what: str, median: str, references: Sequence[str]) -> str:
    """The header of the rows that `line` makes."""
    ratios = "   ".join(f"ratio to {name}" for name in references)
    return f"{what:<28} {median:>9} {'min':>9} {'max':>9}   {ratios}"


def line(name: str, cells: Sequence[str], ratios: Mapping[str, float]) -> str:
    """A row of a table: its median, least and largest, and its ratio to each reference."""
    numbers = " ".join(f"{cell:>9}" for cell in cells)
    shown = (f"{ratio:>{11 + len(reference)}.2f}" for reference, ratio in ratios.items())
    return f"{name:<28} {numbers} {''.join(shown)}"


def write(config: Any, **results: Any) -> None:
    """Writes config, machine and results as one JSON object to the file `config.json`, if it names
    one; a result that is None is left out. Raises UserError where the file cannot be written.
    """
    if config.json:
        made = {"config": dataclasses.asdict(config), "machine": provenance.machine()}
        made |= {name: result for name, result in results.items() if result is not None}
        output.write_json(Path(config.json), made)
