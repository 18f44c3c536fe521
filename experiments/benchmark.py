"""The paper's benchmark (section 5.2, Figure 2): PreQN beside TD3, SAC and DDPG on five
environments.

    python -m experiments.benchmark --root=runs/paper --seeds=0,1,2 --num_steps=100000 \\
        --envs=HalfCheetah-v5,Walker2d-v5

trains the runs that are not in --root yet, each in a process of its own, and reports on all: Figure
2, returns with intervals beside published ones, and verdicts on what section 5.2 says, all at the
last step that every run of PreQN, TD3 and SAC has reached. Stop it with Ctrl-C at any time: the
same command continues it. The plan in --root remembers --seeds, --num_steps and --envs, so that
they may then be left out; with more of them it grows. Flags after -- are passed on to every run,
and remembered too, as in -- --solver=eigh. --report trains nothing, and only reports.
--launcher=ray and --launcher=submitit train the runs on a cluster (docs/clusters.md).
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.judge import published, scores, section_5_2, standing
from experiments.kit import curves, flags, output, plan

KIND = plan.Kind(
    "benchmark",
    plan.by_activation("preqn-sin", "td3-relu", "sac-relu", "ddpg-relu"),
    tuple(range(7)),
)


def main(argv: list[str]) -> int:
    return plan.main(KIND, plan.parse(), argv[1:], report)


def report(root: Path, envs: Sequence[str], seeds: Sequence[int] | None, out: Path) -> None:
    """Prints tables and verdicts on the runs in `root`, and writes them to `out`. Raises UserError
    if there are no runs yet.
    """
    runs, notes = plan.gather(KIND, root, envs, seeds)
    # No statement needs the others, which are only shown where they have come as far.
    needed = [run for run in runs if run.variant in section_5_2.NEEDED] or runs
    step = curves.common_step(needed)
    cut = [run.cut(step) for run in runs if run.reached >= step or run.ended]
    pooled = standing.together([run for run in cut if run.variant in section_5_2.NEEDED])
    cells = standing.table(runs, standing.checkpoints(runs))
    judged = section_5_2.on_benchmark(cut, envs)
    standing.show(runs, cells)
    standing.show_together(pooled, step)
    section_5_2.show(judged, curves.judged_on(needed, envs), notes)
    content = {
        "rules": [scores.RULES, published.SCALE_RULE, section_5_2.RULES],
        "notes": notes,
        "step": step,
        "scores": [standing.plain(row) for row in cells],
        "together": [standing.plain(row) for row in pooled],
        "published": [
            row._asdict()
            for env in envs
            for at in standing.checkpoints(runs)
            for row in published.of(env, at)
        ],
        "sources": published.SOURCES,
        "verdicts": [one.as_json() for one in judged],
    }
    output.write_json(out / "report.json", content, "out")
    standing.draw(runs, envs, out / "figure_2.png")
    print(out / "figure_2.png")


if __name__ == "__main__":
    plan.define()
    flags.run(main, takes_words=True, keeps=True)
