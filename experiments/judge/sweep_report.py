"""The report on a sweep: a table, `summary.json`, `summary.md` and `sweep.png`."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.judge import comparison, scores, stability
from experiments.kit import curves, learning_curves, output, style
from preqn_jax.options import UserError
from preqn_jax.training import directory
from preqn_jax.training.record import NAME
from preqn_jax.training.sweep import Member, Sweep

RULES = f"""\
Returns are scores, of all members at the same step. {scores.RULES}
Means and intervals are over the seeds that did not diverge. Best is the highest mean return of an
evaluation, of any seed. Stable are seeds without a number that is not finite and without a collapse
of the return (rules (a) and (b) of docs/results); up to {stability.FEW} evaluations cannot tell of
a collapse. Alignment is the mean over the lines of records past step update_after, empty without
any."""


class Row(NamedTuple):
    """One setting, with all its seeds that have records."""

    setting: dict[str, Any]
    run: curves.Curves
    returns: np.ndarray  # `[S]`, scores; NaN of a seed that diverged

    @property
    def words(self) -> str:
        return ", ".join(f"{k}={curves.short(v)}" for k, v in self.setting.items()) or "the setting"

    @property
    def mean(self) -> scores.Estimate:
        finite = self.returns[np.isfinite(self.returns)]
        return scores.mean(finite) if len(finite) else scores.Estimate(math.nan, None)

    @property
    def best(self) -> float:
        returns = self.run.metric("eval/return_mean")[1]
        return float(np.nanmax(returns)) if np.isfinite(returns).any() else math.nan

    @property
    def stable(self) -> int:
        faults = stability.faults(self.run)
        return len({*self.run.seeds} - {*faults.a, *(faults.b or ())})

    @property
    def alignment(self) -> float:
        values = comparison.alignments(self.run)
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def report(sweep: Sweep) -> dict[str, int]:
    """Prints the table and writes the files, for the members that have records. Returns the members
    that diverged, each with its step.

    Raises UserError where no member has been evaluated yet.
    """
    rows, step = gather(sweep)
    table, path = _table(rows), sweep.logdir
    print(f"noiseless returns at step {step:,}\n{table}", end="")
    there = {(repr(row.setting), seed) for row in rows for seed in row.run.seeds}
    left = [one.name for one in sweep.members if (repr(one.setting), one.seed) not in there]
    bare = [name for name in left if directory.finished(path / name)]
    for names, words in (
        ([name for name in left if name not in bare], "not evaluated yet"),
        (bare, f"finished, but {NAME} is missing or incomplete (put it back)"),
    ):
        if names:
            print(f"{words}, and left out: {'; '.join(names)}", file=sys.stderr)
    content = {
        "step": step,
        "axes": {name: list(values) for name, values in sweep.axes.items()},
        "seeds": list(sweep.loop.seeds),
        "settings": [_described(row) for row in rows],
    }
    output.write_json(path / "summary.json", content, "logdir")
    output.write(path / "summary.md", f"{table}\n{RULES}\n".encode(), "logdir")
    draw(sweep, rows, step)
    print(f"{path / 'summary.md'}, {path / 'summary.json'}, {path / 'sweep.png'}")
    return {
        f"{row.words}, seed {seed}": at for row in rows for seed, at in row.run.diverged.items()
    }


def gather(sweep: Sweep) -> tuple[list[Row], int]:
    """A row for each setting that has records, and the last step that all their members have
    reached, not counting those that diverged.
    """
    found: dict[str, tuple[dict[str, Any], list[tuple[dict[str, Any], curves.Lines]]]] = {}
    for member, run in _recorded(sweep).values():
        runs = found.setdefault(repr(member.setting), (member.setting, []))[1]
        runs.append(run)
    pooled = [(setting, _pool(runs)) for setting, runs in found.values()]
    if not pooled:
        raise UserError(f"no member of the sweep in {str(sweep.logdir)!r} was evaluated yet")
    step = curves.common_step(run for _, run in pooled)
    cut = [(setting, run.cut(step)) for setting, run in pooled]
    return [Row(setting, run, scores.performances(run)) for setting, run in cut], step


def _recorded(sweep: Sweep) -> dict[Path, tuple[Member, tuple[dict[str, Any], curves.Lines]]]:
    """The members that have been evaluated, or diverged before, and their records, by folder."""
    folders = {sweep.logdir / member.name: member for member in sweep.members}
    loaded = {
        folder: (member, curves.load(folder))
        for folder, member in folders.items()
        if curves.recorded(folder)
    }
    return {folder: found for folder, found in loaded.items() if _told(found[1][1])}


def _told(lines: curves.Lines) -> bool:
    return any("eval/return_mean" in line for line in lines) or bool(curves.diverged(lines))


def _pool(runs: Sequence[tuple[dict[str, Any], curves.Lines]]) -> curves.Curves:
    config = runs[0][0]
    seeds = tuple(one["seeds"][0] for one, _ in runs)
    by_seed = [lines for _, lines in runs]
    diverged = curves.diverged(line for lines in by_seed for line in lines)
    return curves.Curves(config["env"], curves.variant(config), config, seeds, by_seed, diverged)


def _described(row: Row) -> dict[str, Any]:
    return {
        "setting": row.setting,
        "seeds": list(row.run.seeds),
        "returns": list(row.returns),
        "mean": row.mean.value,
        "interval": row.mean.interval,
        "best": row.best,
        "stable": row.stable,
        "alignment": row.alignment,
        "diverged": {str(seed): step for seed, step in row.run.diverged.items()},
    }


def _table(rows: Sequence[Row]) -> str:
    """The table in Markdown, the best setting first."""
    names = list(rows[0].setting)
    head = [*names, "return", "best", "stable", "alignment", "diverged"]
    body = []
    for row in sorted(rows, key=lambda row: -np.nan_to_num(row.mean.value, nan=-np.inf)):
        lost = ", ".join(f"seed {s} at {step:,}" for s, step in row.run.diverged.items())
        numbers = [f"{row.mean:.1f}", f"{row.best:.1f}", f"{row.stable} of {len(row.run.seeds)}"]
        body.append(
            [
                *map(curves.short, row.setting.values()),
                *numbers,
                "" if math.isnan(row.alignment) else f"{row.alignment:.3f}",
                lost or "none",
            ]
        )
    return output.markdown(head, body)


# --- the picture ----------------------------------------------------------------------------------


def draw(sweep: Sweep, rows: Sequence[Row], step: int) -> None:
    """Draws the return over each axis, and a map if there are two axes, with a row of panels for
    each environment. If only seeds were swept, draws learning curves.
    """
    out = sweep.logdir / "sweep.png"
    names = [name for name in sweep.axes if name != "env"]
    if not names:
        learning_curves.draw(list(_recorded(sweep)), out, flag="logdir")
        return
    envs = list(dict.fromkeys(row.run.env for row in rows))
    columns = len(names) + (len(names) == 2)
    figure, axes = plt.subplots(
        len(envs),
        columns,
        figsize=(1 + 4.2 * columns, 0.6 + 3.2 * len(envs)),
        squeeze=False,
        constrained_layout=True,
    )
    for env, line in zip(envs, axes, strict=True):
        mine = [row for row in rows if row.run.env == env]
        for ax, name in zip(line, names, strict=False):
            _over(ax, mine, name, names)
        line[0].set_ylabel(f"{env}\n{style.RETURN}")
        if len(names) == 2:
            _map(figure, line[-1], mine, names)
    seeds = curves.seeds_of(row.run for row in rows)
    words = f"{seeds} at step {step:,}; dots: members, lines: means over seeds; x: diverged"
    figure.suptitle(words, fontsize=9)
    output.save_figure(figure, out, "logdir")


def _over(ax: Any, rows: Sequence[Row], name: str, names: Sequence[str]) -> None:
    """Plots returns against one axis, with a line for each setting of the other axes."""
    values = list(dict.fromkeys(row.setting[name] for row in rows))
    others = [other for other in names if other != name]
    lines = list(dict.fromkeys(tuple(row.setting[other] for other in others) for row in rows))
    low = min((s for row in rows for s in row.returns if np.isfinite(s)), default=0.0)
    for i, line in enumerate(lines):
        mine = [row for row in rows if tuple(row.setting[other] for other in others) == line]
        places = np.array([values.index(row.setting[name]) for row in mine])
        shift = 0.12 * (i - (len(lines) - 1) / 2) * min(1, 4 / len(lines))
        colour = style.COLOURS[i % len(style.COLOURS)]
        label = ", ".join(f"{o}={curves.short(v)}" for o, v in zip(others, line, strict=True))
        ax.plot(places + shift, [row.mean.value for row in mine], color=colour, label=label or None)
        for place, row in zip(places, mine, strict=True):
            at = np.full(len(row.returns), place + shift)
            lost = np.isnan(row.returns)
            ax.plot(at, row.returns, "o", color=colour, ms=4, alpha=0.5, mew=0)
            ax.plot(at[lost], np.full(lost.sum(), low), "x", color=colour, ms=7, mew=2)
    ax.set_xticks(range(len(values)), [curves.short(value) for value in values])
    ax.set_xlabel(name)
    if others:
        ax.legend(frameon=False, fontsize=8)
    style.tidy(ax)


def _map(figure: Any, ax: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Draws a map of mean returns over two axes, with the number in each cell."""
    across, up = (list(dict.fromkeys(row.setting[name] for row in rows)) for name in names)
    grid, there = np.full((len(up), len(across)), np.nan), set()
    for row in rows:
        at = up.index(row.setting[names[1]]), across.index(row.setting[names[0]])
        grid[at], there = row.mean.value, {*there, at} if len(row.returns) else there
    image = ax.imshow(grid, origin="lower", aspect="auto", cmap="viridis")
    middle = np.nanmean(grid) if np.isfinite(grid).any() else 0
    for (y, x), value in np.ndenumerate(grid):
        none = "none left" if (y, x) in there else "no score yet"
        words, dark = (none, True) if np.isnan(value) else (f"{value:.0f}", value > middle)
        ax.text(x, y, words, ha="center", va="center", color="black" if dark else "white")
    ax.set_xticks(range(len(across)), [curves.short(v) for v in across])
    ax.set_yticks(range(len(up)), [curves.short(v) for v in up])
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    figure.colorbar(image, ax=ax, label="mean return")
