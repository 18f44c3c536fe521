"""Compare PreQN with its variants and with its rivals, most of them without target networks: their
returns, and beside each what the kernel said of the run.

    python -m experiments.rivals --root=runs/rivals --seeds=0,1,2 --num_steps=100000 \\
        --envs=HalfCheetah-v5,Walker2d-v5,Hopper-v5 --only='*/preqn,*/preqn-twin,*/crossq,*/td3'

trains the runs that are not in --root yet, as `experiments.benchmark` does; it may be stopped and
started again. --report trains nothing. Every run is diagnosed at its evaluations. The report has
learning curves, returns with intervals, their interquartile mean over tasks, the probability that
each variant improves on plain PreQN, the mean return on the way (which shows sample efficiency),
and how strongly the measurements of `diagnose` at a quarter, half and the end of a run go with its
return. --cost=FILE, a file that `experiments.cost --rivals --json=FILE` wrote, adds the time of an
update.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from experiments.judge import scores, standing
from experiments.kit import curves, flags, output, plan, style
from experiments.kit.curves import Curves, evaluations
from experiments.kit.variants import VARIANTS
from preqn_jax.options import UserError, option


@dataclasses.dataclass(frozen=True)
class RivalsConfig:
    """A file that the report reads besides the runs."""

    cost: str = option("", "times of updates, in a file of `experiments.cost --rivals --json=FILE`")


BASE = "preqn"  # what the others are compared with
EVERY = f"--diagnose_every={plan.EVERY}"
KIND = plan.Kind(
    "rivals", {name: (*words, EVERY) for name, words in VARIANTS.items()}, tuple(range(3))
)
# Measurements of `diagnose`, and the shares of a run at which they are taken.
MEASURED = ("alignment", "row_ratio", "bias_relative", "soft_divergence", "feature_rank")
SHARES = (0.25, 0.5, 1.0)
RULES = f"""\
"on the way": the mean of all evaluations up to the step, and so the area below the learning curve.
P(better): how likely a seed of a variant is to score above one of {BASE}, the mean over tasks
(Agarwal et al. 2021); its interval is narrow with few seeds too, and there is none at 0 and 1,
where all resamples agree, and none where a seed diverged. Goes with: Spearman's rank correlation of
a measurement, at a share of a run, with the run's score at the end; both are ranked within their
environment, so that it is not the tasks that differ. With few seeds it is a hint: their number
stands beside it. A seed that diverged has no score: a mean with it is not finite, in P(better) it
is below all others, "on the way" has the evaluations it came to, and "goes with" leaves it out."""


def main(argv: list[str]) -> int:
    cost = _costs(flags.parse(RivalsConfig).cost)

    def told(root: Path, envs: Sequence[str], seeds: Sequence[int] | None, out: Path) -> None:
        report(root, envs, seeds, out, cost)

    return plan.main(KIND, plan.parse(), argv[1:], told)


def _costs(path: str) -> dict[str, float]:
    """Milliseconds per update, by variant. Raises UserError for a file that does not hold them."""
    if not path:
        return {}
    words = f"{path!r} is not a file of `experiments.cost --rivals --json={path}`"
    with output.expecting(words):
        rows = json.loads(Path(path).read_text())["rows"]
        found = {row["name"]: float(row["ms"]) for row in rows}
    found = {name: found[name] for name in VARIANTS if name in found}
    if not found:
        raise UserError(f"{words}: it has no row of any variant")
    return found


def report(
    root: Path,
    envs: Sequence[str],
    seeds: Sequence[int] | None,
    out: Path,
    cost: dict[str, float] | None = None,
) -> None:
    """Prints tables on the runs in `root`, and writes them and two figures to `out`. Raises
    UserError if there are no runs yet.
    """
    runs, notes = plan.gather(KIND, root, envs, seeds)
    at = standing.checkpoints(runs)
    step = curves.common_step(runs)
    cut = [run.cut(step) for run in runs]
    cells, pooled = standing.table(runs, at), standing.together(cut)
    way, better, measured = on_the_way(runs, at), improvements(cut), measurements(cut)
    related = relations(measured)
    standing.show(runs, cells)
    standing.show_together(pooled, step)
    _show(way, better, related, cost or {}, step)
    for note in notes:
        if not note.endswith("is missing"):
            print(note, file=sys.stderr)
    content = {
        "rules": [scores.RULES, RULES],
        "notes": notes,
        "step": step,
        "scores": [standing.plain(row) for row in cells],
        "together": [standing.plain(row) for row in pooled],
        "on_the_way": [standing.plain(row) for row in way],
        "better": [standing.plain(row) for row in better],
        "measurements": measured,
        "relations": related,
        "cost": cost or {},
    }
    output.write_json(out / "report.json", content, "out")
    looks = style.looks([name for name in VARIANTS if name in {run.variant for run in runs}])
    title = "PreQN, its variants and its rivals: " + style.SPREAD
    standing.draw(runs, envs, out / "rivals.png", title, looks)
    draw_relations(measured, looks, out / "measurements.png")
    print(f"{out / 'rivals.png'}\n{out / 'measurements.png'}")


# --- numbers --------------------------------------------------------------------------------------


def on_the_way(runs: Iterable[Curves], at: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each run, and each step of `at` that all its seeds reached: {"env", "variant",
    "step", "estimate"}, where the estimate is of the mean of a seed's evaluations up to that step.
    """
    rows = []
    for run in runs:
        for step in (step for step in at if step <= run.reached):
            each = map(evaluations, run.cut(step).lines)
            values = np.array([mine.mean() if len(mine) else np.nan for mine in each])
            row = {"env": run.env, "variant": run.variant, "step": step}
            rows.append({**row, "estimate": scores.mean(values)})
    return rows


def improvements(standing: Sequence[Curves]) -> list[dict[str, Any]]:
    """For each variant that shares an environment with `BASE`: {"variant", "envs", "estimate"}, the
    probability that it improves on `BASE`.
    """
    there = {(run.env, run.variant): scores.performances(run) for run in standing}
    rows = []
    for variant in (v for v in VARIANTS if v != BASE):
        envs = [env for env, v in there if v == variant and (env, BASE) in there]
        if envs:
            pairs = [(there[env, variant], there[env, BASE]) for env in envs]
            estimate = scores.improvement(*zip(*pairs, strict=True))
            rows.append({"variant": variant, "envs": envs, "estimate": estimate})
    return rows


def measurements(runs: Iterable[Curves]) -> list[dict[str, Any]]:
    """What `diagnose` measured for each seed at each share of its run: {"env", "variant", "seed",
    "score", "share"}, and those of `MEASURED` that are in the records.
    """
    rows = []
    for run in runs:
        ends = scores.performances(run)
        for share in SHARES:
            upto = run.cut(round(share * run.reached))
            found = {name: _last(upto, f"diagnose/{name}") for name in MEASURED}
            for i, seed in enumerate(run.seeds):
                values = {name: value[i] for name, value in found.items() if value[i] is not None}
                where = {"env": run.env, "variant": run.variant, "seed": seed, "share": share}
                rows.append({**where, "score": float(ends[i]), **values})
    return rows


def _last(run: Curves, name: str) -> list[float | None]:
    """The last value of a metric for each seed; None where there is none."""
    return [
        next((line[name] for line in reversed(lines) if line.get(name) is not None), None)
        for lines in run.lines
    ]


def relations(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """{"measured", "share", "seeds", "rank_correlation"} for each measurement and share of a run:
    its rank correlation with the score at the end.
    """
    found = []
    for name in MEASURED:
        for share in SHARES:
            mine = [row for row in rows if row["share"] == share and name in row]
            mine = [row for row in mine if np.isfinite([row[name], row["score"]]).all()]
            x, y = (_ranked(mine, key) for key in (name, "score"))
            sure = len(mine) > 2 and min(np.ptp(x), np.ptp(y)) > 0
            value = float(np.corrcoef(x, y)[0, 1]) if sure else None
            row = {"measured": name, "share": share, "seeds": len(mine)}
            found.append({**row, "rank_correlation": value})
    return found


def _ranked(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Ranks within each environment, in (0, 1)."""
    ranks = np.zeros(len(rows))
    for env in {row["env"] for row in rows}:
        where = [i for i, row in enumerate(rows) if row["env"] == env]
        ranks[where] = stats.rankdata([rows[i][key] for i in where]) / (len(where) + 1)
    return ranks


# --- what is shown --------------------------------------------------------------------------------


def _show(
    way: Sequence[dict[str, Any]],
    better: Sequence[dict[str, Any]],
    related: Sequence[dict[str, Any]],
    cost: dict[str, float],
    step: int,
) -> None:
    print("\nmean return on the way")
    for env, at in dict.fromkeys((row["env"], row["step"]) for row in way):
        mine = [row for row in way if (row["env"], row["step"]) == (env, at)]
        words = ", ".join(f"{row['variant']} {row['estimate']:,.0f}" for row in mine)
        print(f"  {env} to {at:,}: {words}")
    print(f"\nP(better than {BASE}) at step {step:,}")
    for row in better:
        print(f"  {row['variant']:<16}{row['estimate']:.2f}, over {', '.join(row['envs'])}")
    if cost:
        print("\nmilliseconds an update")
        for name, ms in cost.items():
            ratio = f", {ms / cost[BASE]:.2f} times {BASE}'s" if BASE in cost else ""
            print(f"  {name:<16}{ms:.2f}{ratio}")
    print("\nmeasured            goes with the score at the end (seeds)")
    print(f"{'':<18}" + "".join(f"{f'at {share:.0%}':>14}" for share in SHARES))
    for name in MEASURED:
        mine = [row for row in related if row["measured"] == name]
        print(f"{name:<18}" + "".join(f"{_correlation(row):>14}" for row in mine))
    print("\n" + RULES)


def _correlation(row: dict[str, Any]) -> str:
    value = row["rank_correlation"]
    return f"{'-' if value is None else f'{value:+.2f}'} ({row['seeds']})"


def draw_relations(measured: Sequence[dict[str, Any]], looks: style.Looks, path: Path) -> None:
    """Plots measurements at the end against scores at the end, as ranks within the environment,
    with a dot for each seed that has both. Raises UserError where the figure cannot be written.
    """
    rows = [row for row in measured if row["share"] == 1 and not row.keys().isdisjoint(MEASURED)]
    figure, axes = plt.subplots(
        1, len(MEASURED), figsize=(13, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, name in zip(axes[0], MEASURED, strict=True):
        mine = [row for row in rows if name in row]
        mine = [row for row in mine if np.isfinite([row[name], row["score"]]).all()]
        x, y = _ranked(mine, name), _ranked(mine, "score")
        for variant, look in looks.items():
            which = [i for i, row in enumerate(mine) if row["variant"] == variant]
            if which:
                ax.plot(x[which], y[which], "o", ms=5, color=look["color"], label=variant)
        ax.set(xlabel=f"rank of {name}", xlim=(0, 1), ylim=(0, 1))
        style.tidy(ax)
    axes[0, 0].set_ylabel("rank of the score")
    title = "What diagnose measured at the end, and the score: ranks within environments"
    title += f" ({curves.plural(len(rows), 'seed')})"
    style.finish(figure, axes, title)
    output.save_figure(figure, path)


if __name__ == "__main__":
    plan.define()
    flags.define(RivalsConfig)
    flags.run(main, takes_words=True, keeps=True)
