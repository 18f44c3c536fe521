"""How all figures look: one palette, one way to draw a mean with its spread."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.kit.curves import Curves, at_common_steps, seeds_of

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe and Ito, colour-blind safe
SPREAD = "mean over seeds; bands: one standard deviation over seeds"
RETURN = "mean return of noiseless episodes"
LETTER = 0.075  # the most inches that a letter of 9 points takes
Looks = dict[str, dict[str, Any]]
"""The arguments of a line, by its label."""

PAPER: Looks = {  # the paper's variants, in every figure; dashes differ as well as colours
    "preqn-sin": {"color": COLOURS[0], "ls": "-"},
    "td3-relu": {"color": COLOURS[1], "ls": "--"},
    "sac-relu": {"color": COLOURS[2], "ls": "-."},
    "ddpg-relu": {"color": COLOURS[3], "ls": ":"},
    "preqn-relu": {"color": COLOURS[5], "ls": (0, (6, 1, 1, 1, 1, 1))},
    "td3-sin": {"color": COLOURS[4], "ls": (0, (2, 1))},
}


def tidy(ax: Any) -> None:
    """Adds a grid, and removes the frame above and to the right."""
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def looks(labels: Sequence[str]) -> Looks:
    """A look for each label: first the colours differ, then the dashes as well."""
    dashes = ("-", "--", ":", "-.")
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "ls": dashes[i // len(COLOURS) % len(dashes)],
        }
        for i, label in enumerate(labels)
    }


def deviation(values: np.ndarray) -> np.ndarray:
    """The sample's standard deviation over seeds, `values [S, ...]` -> `[...]`. NaN is left out,
    and the deviation of a single seed is 0.
    """
    count = np.isfinite(values).sum(axis=0)
    return np.nanstd(values, axis=0) * np.sqrt(count / np.maximum(count - 1, 1))


def spread(ax: Any, steps: np.ndarray, values: np.ndarray, **look: Any) -> None:
    """Draws the mean of `values [S, T]` over seeds against `steps [T]`, in a band of one standard
    deviation; NaN is left out.
    """
    mean, off = np.nanmean(values, axis=0), deviation(values)
    ax.plot(steps, mean, lw=1.5, marker="o" if len(steps) == 1 else "", **look)
    ax.fill_between(steps, mean - off, mean + off, color=look["color"], alpha=0.2, lw=0)


def panel(ax: Any, runs: Iterable[Curves], name: str, looks: Looks = PAPER) -> None:
    """Draws one metric of several variants against environment steps, with a cross where a seed
    diverged.
    """
    for run in runs:
        look = looks[run.variant]
        steps, values = at_common_steps(run.lines, name)
        spread(ax, steps, values, label=run.variant, **look)
        lost = [seed in run.diverged for seed in run.seeds]
        crosses(ax, steps, values[lost], look["color"])
    thousands(ax)
    tidy(ax)


def crosses(ax: Any, steps: np.ndarray, values: np.ndarray, color: str) -> None:
    """Draws a cross at the last finite entry of each row of `values [S, T]`, the curves of those
    seeds that diverged.
    """
    for row in values:
        last = np.flatnonzero(np.isfinite(row))[-1:]
        ax.plot(steps[last], row[last], "x", color=color, ms=8, mew=2)


def by_environment(
    runs: Sequence[Curves],
    envs: Iterable[str],
    name: str,
    words: str,
    title: str,
    looks: Looks = PAPER,
    **options: Any,
) -> Any:
    """A figure of one metric, with the label `words`: a panel for each environment that has runs,
    three in a row. `looks` are those of `panel`; further options go to `plt.subplots`.
    """
    names = [env for env in envs if any(run.env == env for run in runs)]
    columns, rows = min(len(names), 3), -(-len(names) // 3)
    size = max(6.5, 1 + 3.6 * columns), 0.6 + 3.2 * rows
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", **options
    )
    for ax, env in zip(axes.flat, names, strict=False):
        panel(ax, [run for run in runs if run.env == env], name, looks)
        ax.set_title(env, fontsize=10)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(words)
    finish(figure, axes, f"{title} ({seeds_of(runs)})")
    return figure


def thousands(ax: Any) -> None:
    """Labels the x axis as environment steps, in thousands or millions."""
    ax.set_xlabel("environment steps")
    ax.xaxis.set_major_formatter(
        lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x >= 1e3 else f"{x:g}"
    )


def finish(figure: Any, axes: Any, title: str) -> None:
    """Adds a legend below all panels, with every label once and no wider than the figure, and the
    title above.
    """
    handles = {
        label: handle
        for ax in axes.flat
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        frameon=False,
        fontsize=9,
        ncols=_columns(figure, handles),
        loc="outside lower center",
    )
    lost = any(line.get_marker() == "x" for ax in axes.flat for line in ax.lines)
    words = textwrap.wrap(
        title + "; x: diverged, from there on the mean of the others" * lost,
        max(1, int(figure.get_figwidth() / LETTER)),
    )
    figure.suptitle("\n".join(words), fontsize=9)


def _columns(figure: Any, labels: Iterable[str]) -> int:
    """How many columns a legend can have that is no wider than its figure."""
    widths, room = [LETTER * len(label) + 0.6 for label in labels], figure.get_figwidth()
    if sum(widths) <= room:
        return max(1, len(widths))
    return max(1, int(room / max(widths)))
