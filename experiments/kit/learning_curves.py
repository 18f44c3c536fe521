"""A figure of any runs: learning curves, with panels of Q, alignment and TD error beside them; and
a table of the numbers at their ends.
"""

import collections
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.kit import curves, output, style
from preqn_jax.training import directory
from preqn_jax.training.config import RunConfig, named

PANELS = (  # metric, label, and a short label for the table
    ("eval/return_mean", "noiseless return", "return"),
    ("critic/q_mean", "mean Q of the minibatch", "Q"),
    ("critic/alignment", r"alignment $\cos(Q'-Q,\ y-Q)$", "alignment"),
    ("critic/td_abs", "mean |TD error|", "|TD error|"),
)
# Settings that change no number of what a run learns: how long it is, how often it is evaluated,
# who steps its environments.
_LOOKING = {f.name for f in dataclasses.fields(RunConfig)} - {
    "env",
    "env_kwargs",
    "wrappers",
    "eval_max_steps",
}
_LOOKING |= {"seeds", "num_steps"}

# The first columns of the table, and so the words with which it begins.
HEAD = ("environment", "runs", "seeds", "diverged", "step")


class Group(NamedTuple):
    """Runs of one environment that differ in their seeds alone."""

    config: dict[str, Any]
    folders: list[str]
    seeds: dict[int, curves.Lines]  # seed -> its records
    alone: bool = False  # whether runs with the same settings have a seed in common


def draw(
    runs: Sequence[Path], out: Path, size: tuple[float, float] = (0, 0), flag: str = "out"
) -> str:
    """Draws a figure of `runs`: four panels if they are of one environment, else a column of panels
    for each environment; a line for each configuration. Returns its table. Raises UserError for a
    folder that is no run, and where the figure cannot be written, of which `--flag` is the place.
    """
    groups = _group(_given_once(runs))
    labels = _labels(groups)
    figure, axes = _panels(sorted({group.config["env"] for group in groups}), size)
    looks = style.looks(sorted(set(labels)))
    for group, label in zip(groups, labels, strict=True):
        for ax, (name, _, _) in zip(axes[group.config["env"]], PANELS, strict=True):
            steps, values = curves.at_common_steps([*group.seeds.values()], name)
            if len(steps):
                style.spread(ax, steps, values, label=label, **looks[label])
                lost = [bool(curves.diverged(mine)) for mine in group.seeds.values()]
                style.crosses(ax, steps, values[lost], looks[label]["color"])
    counts = [len(group.seeds) for group in groups]
    words = [*axes] * (len(axes) == 1)
    words += [f"{style.SPREAD} ({curves.count_seeds(*counts)})"] * (max(counts) > 1)
    style.finish(figure, np.array(figure.axes), ": ".join(words))
    output.save_figure(figure, out, flag)
    return _table(groups, labels)


def _panels(envs: Sequence[str], size: tuple[float, float]) -> tuple[Any, dict[str, list[Any]]]:
    """A figure, and for each environment the axes of `PANELS`: two by two for a single one, else a
    column for each.
    """
    alone = len(envs) == 1
    columns, rows = (2, 2) if alone else (len(envs), len(PANELS))
    needed = (9.5, 6.4) if alone else (1.2 + 3.6 * columns, 8.8)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=[given or own for given, own in zip(size, needed, strict=True)],
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    axes = {env: list(grid.flat if alone else grid[:, i]) for i, env in enumerate(envs)}
    for i, env in enumerate(envs):
        for ax, (_, words, short) in zip(axes[env], PANELS, strict=True):
            style.thousands(ax)
            style.tidy(ax)
            if alone or i == 0:
                ax.set_ylabel(words if alone else short)
        if not alone:
            axes[env][0].set_title(env)
    for ax in grid[:-1].flat:
        ax.set_xlabel("")
    return figure, axes


def _given_once(runs: Sequence[Path]) -> list[Path]:
    """`runs` without repetitions, which are reported on stderr."""
    found: dict[Path, Path] = {}
    for run in runs:
        if found.setdefault(run.resolve(), run) is not run:
            print(f"{str(run)!r} is given twice, but is drawn once", file=sys.stderr)
    return list(found.values())


def _group(folders: Sequence[Path]) -> list[Group]:
    """Groups runs: those that have the same settings, except for the seeds, are one group."""
    alike: dict[str, list[Group]] = {}
    for folder in folders:
        made, lines = curves.load(folder)
        config = directory.with_defaults(made)
        key = json.dumps({k: v for k, v in config.items() if k not in _LOOKING}, sort_keys=True)
        one = Group(config, [str(folder)], curves.of_seeds(config["seeds"], lines))
        alike.setdefault(key, []).append(one)
    return [group for several in alike.values() for group in _joined(several)]


def _joined(alike: Sequence[Group]) -> list[Group]:
    """Joins groups of the same settings into one; or, if any seed is in two of them, leaves each
    alone, so that no seed counts twice.
    """
    held = collections.Counter(seed for group in alike for seed in group.seeds)
    folders = [folder for group in alike for folder in group.folders]
    if shared := sorted(seed for seed, count in held.items() if count > 1):
        print(
            f"{', '.join(map(repr, folders))} have the same settings, and {named(shared)} more "
            "than once: each run gets a line of its own",
            file=sys.stderr,
        )
        return [group._replace(alone=True) for group in alike]
    seeds = {seed: lines for group in alike for seed, lines in group.seeds.items()}
    return [Group(alike[0].config, folders, seeds)]


def _labels(groups: Sequence[Group]) -> list[str]:
    """A label for each group: "preqn-sin", and what distinguishes the groups of one environment.
    These are the settings that change the numbers, or the folders if such settings are the same.
    """
    labels, folders = [], _told_apart([group.folders[0] for group in groups])
    for group in groups:
        config, base = group.config, curves.variant(group.config)
        twins = [
            other.config
            for other in groups
            if other.config["env"] == config["env"] and curves.variant(other.config) == base
        ]
        differ = curves.differing(config, twins, _LOOKING)
        words = [base, *(f"{name}={curves.short(config.get(name))}" for name in differ)]
        labels.append(", ".join(words) + f" ({folders[group.folders[0]]})" * group.alone)
    return labels


def _told_apart(folders: Sequence[str]) -> dict[str, str]:
    """For each folder the last two parts of its path, or as many as it takes for all to differ."""
    parts = [Path(folder).absolute().parts for folder in folders]
    count = 2
    while len({one[-count:] for one in parts}) < len(parts):
        count += 1
    return {folder: "/".join(one[-count:]) for folder, one in zip(folders, parts, strict=True)}


def _table(groups: Sequence[Group], labels: Sequence[str]) -> str:
    """A text table of each group's numbers, each at the last step that all its seeds have, except
    those that diverged; the "step" is that of the first number.
    """
    rows = [[*HEAD, *(short for _, _, short in PANELS)]]
    for group, label in zip(groups, labels, strict=True):
        going = [mine for mine in group.seeds.values() if not curves.diverged(mine)]
        cells, at = [], []
        for name, _, _ in PANELS:
            told = [{line["step"]: line[name] for line in mine if name in line} for mine in going]
            steps = set.intersection(*map(set, told)) if told else set()
            if not steps:
                cells.append("")
                continue
            at.append(max(steps))
            column = np.array([mine[at[-1]] for mine in told], float)
            if not np.isfinite(column).all():
                cells.append("not finite")
                continue
            spread = f" +- {style.deviation(column):.4g}" if len(column) > 1 else ""
            cells.append(f"{column.mean():.4g}{spread}")
        counts = len(group.seeds), len(group.seeds) - len(going)
        step = f"{at[0]:,}" if at else ""
        rows.append([group.config["env"], label, *map(str, counts), step, *cells])
    return output.aligned(rows, "l")
