"""The paper's benchmark (section 5.2, Figure 2): PreQN beside TD3, SAC and DDPG on five
environments.

    python -m experiments.benchmark --root=runs/paper --seeds=0,1,2 --num_steps=100000
    --envs=HalfCheetah-v5,Walker2d-v5

makes the runs that are not there yet, one process each, and reports on them: Figure 2, returns with
  intervals beside what
others published, and verdicts on what section 5.2 says. Stop it with Ctrl-C whenever you like: the
same command, or one without the flags that the plan in root knows, goes on from there. What follows
-- goes to every run, as in -- --solver=eigh. --report makes no runs.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from experiments import curves, flags, output, plan, published, scores, style, verdicts
from experiments.curves import Curves
from preqn_jax.options import UserError

KIND = plan.Kind("benchmark", ("preqn-sin", "td3-relu", "sac-relu", "ddpg-relu"), tuple(range(7)))
ALSO = ("preqn-relu", "td3-sin")  # of experiments.alignment, in the same root
STEPS = (100_000, 300_000, 500_000, 1_000_000)


def main(argv: list[str]) -> int:
    return plan.main(KIND, flags.parse(plan.PlanConfig), argv[1:], report)


def report(root: Path, envs: Sequence[str], seeds: Sequence[int] | None, out: Path) -> None:
    """Prints tables and verdicts on the runs in `root`, and writes them to `out`. Raises UserError
    if there is nothing yet.
    """
    runs, notes = curves.gather(root, envs, KIND.variants, seeds)
    if not runs:
        raise UserError(
            f"there is nothing to report in {str(root)!r}; make runs with: python -m "
            f"experiments.benchmark --root={root}"
        )
    judged = verdicts.judge([*runs, *curves.gather(root, envs, ALSO, seeds)[0]], envs)
    at = checkpoints(runs)
    cells, pooled = table(runs, at), together(runs, at)
    show(runs, cells, pooled)
    verdicts.show(judged, runs, envs)
    for note in notes:
        print(note, file=sys.stderr)
    content = {
        "rules": [scores.RULES, published.SCALE_RULE, verdicts.RULES],
        "notes": notes,
        "scores": cells,
        "together": pooled,
        "published": [
            row._asdict() for env in envs for step in at for row in published.of(env, step)
        ],
        "sources": published.SOURCES,
        "verdicts": verdicts.as_json(judged),
    }
    output.write_json(out / "report.json", content, "out")
    draw(runs, envs, out / "figure_2.png")
    print(out / "figure_2.png")


# --- numbers --------------------------------------------------------------------------------------


def checkpoints(runs: Sequence[Curves]) -> list[int]:
    """The customary steps that some run has reached, where the furthest stands, and where all stand
    that did not diverge.
    """
    reached = {run.reached for run in runs}
    going = {run.reached for run in runs if not run.diverged} or reached
    return sorted({step for step in STEPS if step <= max(reached)} | {min(going), max(reached)})


def table(runs: Iterable[Curves], at: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each run and step that all its seeds reached: {"env", "variant", "step", "scores"
    `[S]`, "mean", "interval"}.
    """
    rows = []
    for run in runs:
        for step in at:
            if step <= run.reached:
                values = verdicts.performances(run, step)
                row = {
                    "env": run.env,
                    "variant": run.variant,
                    "step": step,
                    "seeds": list(run.seeds),
                }
                rows.append({**row, "scores": values.tolist(), **_estimate(scores.mean(values))})
    return rows


def together(runs: Sequence[Curves], at: Sequence[int]) -> list[dict[str, Any]]:
    """Interquartile means over tasks: a row for each variant and step, over the tasks that all
    variants reached.
    """
    variants = list(dict.fromkeys(run.variant for run in runs))
    rows = []
    for step in at:
        there = {
            (run.env, run.variant): run
            for run in runs
            if run.reached >= step and published.scale(run.env)
        }
        envs = [
            env
            for env in dict.fromkeys(run.env for run in runs)
            if all((env, variant) in there for variant in variants)
        ]
        for variant in variants if envs else ():
            values = [
                verdicts.performances(there[env, variant], step) / (published.scale(env) or 1)
                for env in envs
            ]
            row = {"variant": variant, "step": step, "envs": envs}
            rows.append({**row, **_estimate(scores.interquartile_mean(values))})
    return rows


def _estimate(estimate: scores.Estimate) -> dict[str, Any]:
    """For a file, where what is not a number has no place."""
    return {
        "mean": estimate.value if math.isfinite(estimate.value) else None,
        "interval": estimate.interval,
    }


# --- what is shown --------------------------------------------------------------------------------


def show(
    runs: Sequence[Curves], cells: Sequence[dict[str, Any]], pooled: Sequence[dict[str, Any]]
) -> None:
    """Prints a block for each environment, what others published below it, and the interquartile
    means.
    """
    for env in dict.fromkeys(run.env for run in runs):
        steps = sorted({row["step"] for row in cells if row["env"] == env})
        print(f"\n{env:<28}" + "".join(f"{step:>26,}" for step in steps))
        for run in (run for run in runs if run.env == env):
            mine = {
                row["step"]: row
                for row in cells
                if (row["env"], row["variant"]) == (env, run.variant)
            }
            shown = [_cell(mine[step], ",.0f") if step in mine else _why(run) for step in steps]
            print(
                f"{f'{run.variant} ({len(run.seeds)} seeds)':<28}"
                + "".join(f"{text:>26}" for text in shown)
            )
        others = {
            (row.source, row.algorithm): None for step in steps for row in published.of(env, step)
        }
        for source, algorithm in others:
            by_step = {
                row.step: row
                for step in steps
                for row in published.of(env, step)
                if row[0::2][:2] == (source, algorithm)
            }
            shown = [_published(by_step[step]) if step in by_step else "" for step in steps]
            print(f"{f'  {algorithm}, {source}':<28}" + "".join(f"{text:>26}" for text in shown))
    if pooled:
        print("\ninterquartile mean over tasks")
        for row in pooled:
            print(
                f"{row['step']:>10,}  {row['variant']:<12}{_cell(row, '.3f'):>24}  "
                f"({', '.join(row['envs'])})"
            )
    print(
        f"\n{scores.RULES}\n{published.SCALE_RULE}\nPublished, mean ± standard deviation over "
        f"seeds:"
    )
    for source, words in published.SOURCES.items():
        print(f"  {source}: {words}")


def _cell(row: dict[str, Any], digits: str) -> str:
    if row["mean"] is None:
        return "not finite"
    low_high = row["interval"]
    return f"{row['mean']:{digits}}" + (
        f" [{low_high[0]:{digits}}, {low_high[1]:{digits}}]" if low_high else ""
    )


def _why(run: Curves) -> str:
    return f"diverged at {run.diverged[0]:,}" if run.diverged else f"at {run.reached:,}"


def _published(row: published.Return) -> str:
    return f"{row.mean:,.0f}" + (f" ± {row.deviation:,.0f}" if row.deviation is not None else "")


def draw(runs: Sequence[Curves], envs: Iterable[str], path: Path) -> None:
    """Figure 2: learning curves, a panel for each environment. Raises UserError where it cannot be
    written.
    """
    names = [env for env in envs if any(run.env == env for run in runs)]
    figure, axes = plt.subplots(
        1,
        len(names),
        figsize=(max(6.5, 1 + 3.6 * len(names)), 3.8),
        squeeze=False,
        layout="constrained",
    )
    for ax, env in zip(axes[0], names, strict=True):
        style.panel(ax, [run for run in runs if run.env == env], "eval/return_mean")
        ax.set_title(env, fontsize=10)
    axes[0, 0].set_ylabel(style.RETURN)
    style.finish(
        figure, axes, "As Figure 2 of the paper: " + style.SPREAD + f" ({curves.count_seeds(runs)})"
    )
    output.save_figure(figure, path)


if __name__ == "__main__":
    flags.define(plan.PlanConfig)
    flags.run(main)
