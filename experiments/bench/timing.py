"""What the benchmarks share: rows timed in turn, random data, results as JSON."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.kit import output, provenance
from preqn_jax.options import option
from preqn_jax.types import Transition


@dataclasses.dataclass(frozen=True)
class SizesConfig:
    """The sizes of a minibatch and a critic."""

    batch_size: int = option(256, "B, transitions in a minibatch", at_least=1)
    hidden_sizes: tuple[int, ...] = option((256, 256), "widths of the hidden layers", at_least=1)
    obs_size: int = option(17, "numbers in an observation (HalfCheetah: 17)", at_least=1)
    action_size: int = option(6, "numbers in an action (HalfCheetah: 6)", at_least=1)


def in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, `repeats` times, in turn, so that a drift of the machine's speed hits
    all alike.

    Each is called once before, untimed, to compile. A run returns arrays, and is over when they are
    there.
    """
    for run in tqdm(runs.values(), desc="compiling"):
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(repeats), desc="timing"):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return times


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes, until its arrays are there."""
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


def transitions(obs_size: int, action_size: int, n: int) -> Transition:
    """`n` random transitions, the same ones at every call."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(n, *shape)).astype(np.float32)

    action = np.clip(normal(action_size), -1, 1)
    return Transition(normal(obs_size), action, normal(), np.ones(n, np.float32), normal(obs_size))


def write(path: str, config: Any, results: dict[str, Any]) -> None:
    """Config, machine and results as one JSON object. Raises UserError where the file cannot be
    written.
    """
    made = {"config": dataclasses.asdict(config), "machine": provenance.machine()}
    output.write_json(Path(path), {**made, **results})
