"""The paper's alignment experiment (section 5.2, Figures 3 and 10 to 14): PreQN and TD3, each with
sin and with relu.

    python -m experiments.alignment --root=runs/paper --seeds=0,1,2 --num_steps=100000 \\
        --envs=HalfCheetah-v5,Walker2d-v5

trains the runs that are not in --root yet, each in a process of its own, and plots the alignment
cos(Q'-Q, y-Q) beside the learning curves. Runs that `experiments.benchmark` made in the same root
are used as they are. Stop it with Ctrl-C at any time: the same command continues it. The plan in
--root remembers --seeds, --num_steps and --envs, so that they may then be left out. Flags after --
are passed on to every run, and remembered too. --report trains nothing, and only reports.
--launcher=ray and --launcher=submitit train the runs on a cluster (docs/clusters.md).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments.judge import comparison, published, scores, section_5_2
from experiments.kit import curves, flags, output, plan, style
from experiments.kit.curves import Curves

KIND = plan.Kind(
    "alignment",
    plan.by_activation("preqn-sin", "preqn-relu", "td3-sin", "td3-relu"),
    tuple(range(3)),
)
PAPER = {
    "HalfCheetah": 10,
    "Hopper": 11,
    "Walker2d": 12,
    "Swimmer": 13,
    "Ant": 14,
}  # task -> the paper's figure, in Appendix D
ALIGNMENT = r"alignment $\cos(Q'-Q,\ y-Q)$"


def main(argv: list[str]) -> int:
    return plan.main(KIND, plan.parse(), argv[1:], report)


def report(root: Path, envs: Sequence[str], seeds: Sequence[int] | None, out: Path) -> None:
    """Prints alignments and verdicts on the runs in `root`, and writes them, with the figures, to
    `out`.

    Raises UserError if there are no runs yet.
    """
    runs, notes = plan.gather(KIND, root, envs, seeds)
    standing = [run.cut(curves.common_step(runs)) for run in runs]
    rows, judged = table(standing), section_5_2.on_alignment(standing, envs)
    lines = [["mean alignment", "variant", "mean over seeds", "smallest line", "steps"]]
    for row in rows:
        mean = format(scores.Estimate(row["mean"], row["interval"]), ".4f")
        lines.append([row["env"], row["variant"], mean, f"{row['least']:.4f}", f"{row['step']:,}"])
    print(output.aligned(lines, "llr"), end="")
    section_5_2.show(judged, curves.judged_on(runs, envs), notes)
    content = {
        "rules": [scores.RULES, section_5_2.RULES],
        "notes": notes,
        "step": curves.common_step(runs),
        "alignment": rows,
        "verdicts": [one.as_json() for one in judged],
    }
    output.write_json(out / "report.json", content, "out")
    for path in draw(runs, envs, out):
        print(path)


def table(standing: Iterable[Curves]) -> list[dict]:
    """A row for each run: the mean alignment of each seed, the mean of these with its interval, and
    the smallest alignment on any line of the run's records.
    """
    rows = []
    for run in standing:
        values = comparison.alignments(run)
        mean = scores.mean(values)
        row = {
            "env": run.env,
            "variant": run.variant,
            "step": run.reached,
            "seeds": list(run.seeds),
            "alignments": values.tolist(),
        }
        lines = run.metric("critic/alignment")[1]
        least = float(np.fmin.reduce(lines, axis=None, initial=np.nan))  # NaN without any
        rows.append({**row, "mean": mean.value, "interval": mean.interval, "least": least})
    return rows


def draw(runs: Sequence[Curves], envs: Iterable[str], out: Path) -> list[Path]:
    """Draws Figure 3 and Figures 10 to 14, and similar figures for other environments. Returns
    their paths in `out`.
    """
    names = [env for env in envs if any(run.env == env for run in runs)]
    paths = [_figure_3(runs, names, out / "figure_3.png")]
    for env in names:
        number = PAPER.get(published.the_only(env, names) or "")
        stem = f"figure_{number}" if number else f"alignment_{env}".replace("/", "_")
        paths.append(
            _figure(env, [run for run in runs if run.env == env], number, out / f"{stem}.png")
        )
    return paths


def _figure_3(runs: Sequence[Curves], names: Sequence[str], path: Path) -> Path:
    """Draws the alignment alone, a panel for each environment."""
    title = "As Figure 3 of the paper: " + style.SPREAD
    figure = style.by_environment(runs, names, "critic/alignment", ALIGNMENT, title, sharey="all")
    output.save_figure(figure, path)
    return path


def _figure(env: str, runs: Sequence[Curves], number: int | None, path: Path) -> Path:
    """Draws the returns and the alignment of one environment, side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.8), squeeze=False, layout="constrained")
    for ax, name, words in zip(
        axes[0], ("eval/return_mean", "critic/alignment"), (style.RETURN, ALIGNMENT), strict=True
    ):
        style.panel(ax, runs, name)
        ax.set_ylabel(words)
    after = f"As Figure {number} of the paper, {env}: " if number else f"{env}: "
    style.finish(figure, axes, f"{after}{style.SPREAD} ({curves.seeds_of(runs)})")
    output.save_figure(figure, path)
    return path


if __name__ == "__main__":
    plan.define()
    flags.run(main, takes_words=True, keeps=True)
