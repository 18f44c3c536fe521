"""What finished and unfinished runs recorded, as arrays."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from preqn_jax.options import UserError
from preqn_jax.training.record import read

Lines = list[dict[str, Any]]  # of one seed


class Curves(NamedTuple):
    """The records of one run `<env>/<variant>`."""

    env: str
    variant: str
    config: dict[str, Any]
    seeds: tuple[int, ...]  # S of them
    lines: list[Lines]  # `[S]`
    diverged: tuple[int, int] | None  # (step, seed) at which the run ended, if it did so

    @property
    def name(self) -> str:
        return f"{self.env}/{self.variant}"

    @property
    def reached(self) -> int:
        """The last step at which every seed was evaluated; 0 before that."""
        last = (
            max((line["step"] for line in lines if "eval/return_mean" in line), default=0)
            for lines in self.lines
        )
        return min(last, default=0)

    @property
    def finished(self) -> bool:
        return self.reached >= self.config["num_steps"]

    def metric(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps `[T]` and values `[S, T]`, NaN where a seed has none."""
        return matrix(self.lines, name)


def load(folder: Path) -> tuple[dict[str, Any], Lines]:
    """The configuration and the records of a run directory. Raises UserError if it is none, or has
    no records yet.
    """
    try:
        config = json.loads((folder / "config.json").read_text())["config"]
        lines = read(folder / "metrics.jsonl")
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(
            f"{str(folder)!r} is not a run directory: it needs a config.json and a metrics.jsonl"
        ) from None
    if not lines:
        raise UserError(f"the run {str(folder)!r} has no metrics yet")
    return config, lines


def matrix(curves: Sequence[Lines], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[T]` and values `[S, T]` of one metric, NaN where a seed has none."""
    rows = [
        {line["step"]: line[name] for line in lines if line.get(name) is not None}
        for lines in curves
    ]
    steps = sorted(set().union(*rows))
    return np.array(steps), np.array([[row.get(step, np.nan) for step in steps] for row in rows])


def gather(
    root: Path, envs: Iterable[str], variants: Iterable[str], seeds: Sequence[int] | None = None
) -> tuple[list[Curves], list[str]]:
    """The runs `<root>/<env>/<variant>` that have been evaluated at all, and a sentence on each
    that is not there, or not whole.

    `seeds` picks some of a run's seeds; None takes them all. Raises UserError for a folder that is
    damaged.
    """
    found, notes = [], []
    for env in envs:
        for variant in variants:
            folder = root / env / variant
            if not (folder / "metrics.jsonl").exists() or not read(folder / "metrics.jsonl"):
                notes.append(f"{env}/{variant} is missing")
                continue
            run = _select(env, variant, *load(folder), seeds)
            if run.diverged:
                step, seed = run.diverged
                notes.append(
                    f"{run.name} diverged at step {step:,}, seed {seed}, which ended all its seeds"
                )
            if not run.seeds or not run.reached:
                notes.append(f"{run.name} has no evaluation of these seeds yet")
                continue
            found.append(run)
            if not run.diverged and not run.finished:
                notes.append(
                    f"{run.name} stands at step {run.reached:,} of {run.config['num_steps']:,}"
                )
    return found, notes


def _select(
    env: str, variant: str, config: dict[str, Any], lines: Lines, seeds: Sequence[int] | None
) -> Curves:
    chosen = tuple(seed for seed in config["seeds"] if seeds is None or seed in seeds)
    diverged = next(
        ((line["step"], line["seed"]) for line in lines if line.get("run/diverged") is not None),
        None,
    )
    by_seed = [[line for line in lines if line["seed"] == seed] for seed in chosen]
    return Curves(env, variant, config, chosen, by_seed, diverged)


def count_seeds(runs: Iterable[Curves]) -> str:
    """ "3 seeds", or "2 to 3 seeds"."""
    counts = sorted({len(run.seeds) for run in runs})
    return (
        f"{counts[0]} seed{'s' * (counts[0] > 1)}"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} seeds"
    )
