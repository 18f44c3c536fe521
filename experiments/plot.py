"""Learning curves of any runs, with the spread over seeds, and panels of Q, alignment and TD error below them.

python -m experiments.plot RUN [RUN ...] --out=curve.png
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments import flags, output
from preqn_jax.options import UserError, option
from preqn_jax.training.record import read

PANELS = (
    ("eval/return_mean", "noiseless return"),
    ("critic/q_mean", "mean Q of the minibatch"),
    ("critic/alignment", r"alignment $\cos(Q'-Q,\ y-Q)$"),
    ("critic/td_abs", "mean |TD error|"),
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, colour-blind safe


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Where the figure goes."""

    out: str = option("curve.png", "the picture to write: .png, .pdf or .svg")


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        raise UserError("no run given; name run directories, as in: python -m experiments.plot runs/x --out=curve.png")
    out = Path(flags.parse(PlotConfig).out)
    draw([Path(run) for run in argv[1:]], out)
    print(out)
    return 0


def draw(runs: Sequence[Path], out: Path) -> None:
    """A figure of `runs`: a column for each environment, a line for each configuration. Raises UserError for what is no run."""
    groups = _group([_load(run) for run in runs])
    envs = sorted({config["env"] for config, _ in groups})
    labels = _labels([config for config, _ in groups])
    figure, axes = plt.subplots(
        len(PANELS), len(envs), figsize=(1.5 + 4.5 * len(envs), 10), sharex="col", squeeze=False, constrained_layout=True
    )
    most_seeds = 0
    for (config, curves), label in zip(groups, labels, strict=True):
        column = envs.index(config["env"])
        most_seeds = max(most_seeds, len(curves))
        colour = COLOURS[sorted(set(labels)).index(label) % len(COLOURS)]
        for row, (name, _) in enumerate(PANELS):
            steps, values = _matrix(curves, name)
            if not len(steps):
                continue
            mean, spread = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
            axes[row, column].plot(
                steps, mean, color=colour, label=f"{label} ({len(curves)} seed{'s' * (len(curves) > 1)})", lw=1.5
            )
            axes[row, column].fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
    for column, env in enumerate(envs):
        axes[0, column].set_title(env)
        axes[-1, column].set_xlabel("environment steps")
        axes[0, column].legend(frameon=False, fontsize=8)
    for row, (_, words) in enumerate(PANELS):
        axes[row, 0].set_ylabel(words)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    if most_seeds > 1:
        figure.suptitle("mean over seeds; bands: one standard deviation over seeds", fontsize=9)
    output.save_figure(figure, out)


def _load(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        config = json.loads((run / "config.json").read_text())["config"]
        lines = read(run / "metrics.jsonl")
    except (OSError, KeyError, json.JSONDecodeError):
        raise UserError(f"{str(run)!r} is not a run directory: it needs a config.json and a metrics.jsonl") from None
    if not lines:
        raise UserError(f"the run {str(run)!r} has no metrics yet")
    return config, lines


def _group(runs: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> list[tuple[dict[str, Any], list[list[dict[str, Any]]]]]:
    """Runs with the same configuration but for the seeds are one group; a group is (config, the lines of each seed)."""
    groups: dict[str, tuple[dict[str, Any], list[list[dict[str, Any]]]]] = {}
    for config, lines in runs:
        key = json.dumps({name: value for name, value in config.items() if name != "seeds"}, sort_keys=True)
        curves = groups.setdefault(key, (config, []))[1]
        curves.extend([line for line in lines if line["seed"] == seed] for seed in config["seeds"])
    return list(groups.values())


def _labels(configs: list[dict[str, Any]]) -> list[str]:
    """ "preqn-sin", and whatever else tells the groups of one environment apart."""
    ignored = {"seeds", "env", "algorithm", "activation"}
    base = [f"{c['algorithm']}-{c['activation']}" for c in configs]
    labels = []
    for config, label in zip(configs, base, strict=True):
        twins = [c for c, other in zip(configs, base, strict=True) if other == label]
        names = [n for n in config if n not in ignored and any(c.get(n) != config[n] for c in twins)]
        labels.append(", ".join([label, *(f"{name}={config[name]}" for name in names)]))
    return labels


def _matrix(curves: list[list[dict[str, Any]]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[T]` and values `[seeds, T]` of one metric, NaN where a seed has none."""
    rows = [{line["step"]: line[name] for line in lines if line.get(name) is not None} for lines in curves]
    steps = sorted(set().union(*rows))
    return np.array(steps), np.array([[row.get(step, np.nan) for step in steps] for row in rows])


if __name__ == "__main__":
    flags.define(PlotConfig)
    flags.run(main)
