"""Learning curves of any runs, with the spread over seeds, and panels of Q, alignment and TD error
below them.

    python -m experiments.plot RUN [RUN ...] --out=curve.png
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from experiments.kit import curves, flags, output, style
from preqn_jax.options import UserError, option
from preqn_jax.training import run as training

PANELS = (
    ("eval/return_mean", "noiseless return"),
    ("critic/q_mean", "mean Q of the minibatch"),
    ("critic/alignment", r"alignment $\cos(Q'-Q,\ y-Q)$"),
    ("critic/td_abs", "mean |TD error|"),
)


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Where the figure goes."""

    out: str = option("curve.png", "the picture to write: .png, .pdf or .svg")


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        raise UserError(
            "no run given; name run directories, as in: python -m experiments.plot runs/x "
            "--out=curve.png"
        )
    out = Path(flags.parse(PlotConfig).out)
    output.check("out", str(out), picture=True)
    draw([Path(run) for run in argv[1:]], out)
    print(out)
    return 0


def draw(runs: Sequence[Path], out: Path) -> None:
    """A figure of `runs`: a column for each environment, a line for each configuration. Raises
    UserError for what is no run.
    """
    groups = _group([curves.load(run) for run in runs])
    envs = sorted({config["env"] for config, _ in groups})
    labels = _labels([config for config, _ in groups])
    figure, axes = plt.subplots(
        len(PANELS),
        len(envs),
        figsize=(1.5 + 4.5 * len(envs), 10),
        sharex="col",
        squeeze=False,
        constrained_layout=True,
    )
    most_seeds = 0
    for (config, seeds), label in zip(groups, labels, strict=True):
        column = envs.index(config["env"])
        most_seeds = max(most_seeds, len(seeds))
        colour = style.COLOURS[sorted(set(labels)).index(label) % len(style.COLOURS)]
        for row, (name, _) in enumerate(PANELS):
            steps, values = curves.matrix(seeds, name)
            if len(steps):
                words = f"{label} ({curves.count_seeds(len(seeds))})"
                style.spread(axes[row, column], steps, values, color=colour, label=words)
    for column, env in enumerate(envs):
        axes[0, column].set_title(env)
        axes[-1, column].set_xlabel("environment steps")
        axes[0, column].legend(frameon=False, fontsize=8)
    for row, (_, words) in enumerate(PANELS):
        axes[row, 0].set_ylabel(words)
    for ax in axes.flat:
        style.tidy(ax)
    if most_seeds > 1:
        figure.suptitle(style.SPREAD, fontsize=9)
    output.save_figure(figure, out)


def _group(
    runs: list[tuple[dict[str, Any], curves.Lines]],
) -> list[tuple[dict[str, Any], list[curves.Lines]]]:
    """Runs with the same configuration but for the seeds are one group; a group is (config, the
    lines of each seed).
    """
    groups: dict[str, tuple[dict[str, Any], list[curves.Lines]]] = {}
    defaults = json.loads(json.dumps(training.DEFAULTS))
    for made, lines in runs:
        # A version before may not have had a field yet.
        config = {**defaults, **made} if "activation" in made else made
        key = json.dumps(
            {name: value for name, value in config.items() if name != "seeds"}, sort_keys=True
        )
        seeds = groups.setdefault(key, (config, []))[1]
        seeds.extend([line for line in lines if line["seed"] == seed] for seed in config["seeds"])
    return list(groups.values())


def _labels(configs: list[dict[str, Any]]) -> list[str]:
    """ "preqn-sin", and whatever else tells the groups of one environment apart."""
    ignored = {"seeds", "env", "algorithm", "activation"}
    base = [curves.variant(c) for c in configs]
    labels = []
    for config, label in zip(configs, base, strict=True):
        twins = [c for c, other in zip(configs, base, strict=True) if other == label]
        names = [
            n for n in config if n not in ignored and any(c.get(n) != config[n] for c in twins)
        ]
        labels.append(", ".join([label, *(f"{name}={config[name]}" for name in names)]))
    return labels


if __name__ == "__main__":
    flags.define(PlotConfig)
    flags.run(main, takes_words=True)
