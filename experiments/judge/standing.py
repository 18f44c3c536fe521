"""The results of a plan's runs so far: returns with intervals, beside those that others published;
returns pooled over tasks; and learning curves.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.judge import published, scores, section_5_2
from experiments.kit import curves, output, style
from experiments.kit.curves import Curves

STEPS = (100_000, 300_000, 500_000, 1_000_000)  # at which others publish returns


def checkpoints(runs: Sequence[Curves]) -> list[int]:
    """The steps at which returns are listed: those of `STEPS` that some run has reached, the last
    step of the furthest run, and the step at which all are compared.
    """
    furthest = max(run.reached for run in runs)
    customary = {step for step in STEPS if step <= furthest}
    return sorted(customary | {curves.common_step(runs), furthest})


def table(runs: Iterable[Curves], at: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each run and step that all its seeds reached: {"env", "variant", "step", "seeds",
    "scores" `[S]`, "estimate"}.
    """
    rows = []
    for run in runs:
        for step in (step for step in at if step <= run.reached):
            values = scores.performances(run.cut(step))
            row = {"env": run.env, "variant": run.variant, "step": step, "seeds": list(run.seeds)}
            rows.append({**row, "scores": values.tolist(), "estimate": scores.mean(values)})
    return rows


def together(standing: Sequence[Curves]) -> list[dict[str, Any]]:
    """The interquartile mean over tasks of each variant, from its runs so far, over those tasks
    that have a scale and runs of all variants.
    """
    there = {(run.env, run.variant): run for run in standing if published.scale(run.env)}
    envs, variants = (
        (list(dict.fromkeys(names)) for names in zip(*there, strict=True)) if there else ((), ())
    )
    envs = [env for env in envs if all((env, variant) in there for variant in variants)]
    rows = []
    for variant in variants if envs else ():
        values = section_5_2.normalised(there[env, variant] for env in envs)
        estimate = scores.interquartile_mean(values)
        rows.append({"variant": variant, "envs": envs, "estimate": estimate})
    return rows


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its estimate split into mean and interval, for a JSON file."""
    row = dict(row)
    value, interval = row.pop("estimate")
    return {**row, "mean": value, "interval": interval}


# --- what is shown --------------------------------------------------------------------------------


def show(runs: Sequence[Curves], cells: Sequence[dict[str, Any]]) -> None:
    """Prints a block for each environment, with published returns below it."""
    by_place = {(row["env"], row["variant"], row["step"]): row["estimate"] for row in cells}
    for env in dict.fromkeys(run.env for run in runs):
        steps = sorted({step for e, _, step in by_place if e == env})
        _line(env, [f"{step:,}" for step in steps])
        for run in (run for run in runs if run.env == env):
            mine = [by_place.get((env, run.variant, step)) for step in steps]
            words = f"{run.variant} ({curves.count_seeds(len(run.seeds))})"
            _line(words, [f"{estimate:,.0f}" if estimate else _why(run) for estimate in mine])
        others: dict[tuple[str, str], dict[int, str]] = {}
        for step in steps:
            for row in published.of(env, step):
                others.setdefault((row.source, row.algorithm), {})[step] = _published(row)
        for (source, algorithm), shown in others.items():
            _line(f"  {algorithm}, {source}", [shown.get(step, "") for step in steps])
        print()
    print(f"{scores.RULES}\nPublished, mean ± standard deviation over seeds:")
    for source, words in published.SOURCES.items():
        print(f"  {source}: {words}")


def _line(first: str, cells: Iterable[str]) -> None:
    print(f"{first:<28}" + "".join(f"{text:>26}" for text in cells))


def show_together(pooled: Sequence[dict[str, Any]], step: int) -> None:
    if pooled:
        print(f"\ninterquartile mean over {', '.join(pooled[0]['envs'])} at step {step:,}")
        for row in pooled:
            print(f"  {row['variant']:<16}{row['estimate']:.3f}")
        print(published.SCALE_RULE)


def _why(run: Curves) -> str:
    if not run.ended:
        return f"at {run.reached:,}"
    return f"diverged at {', '.join(f'{step:,}' for step in run.diverged.values())}"


def _published(row: published.Return) -> str:
    return f"{row.mean:,.0f}" + (f" ± {row.deviation:,.0f}" if row.deviation is not None else "")


def draw(
    runs: Sequence[Curves],
    envs: Iterable[str],
    path: Path,
    title: str = "As Figure 2 of the paper: " + style.SPREAD,
    looks: style.Looks = style.PAPER,
) -> None:
    """Draws Figure 2: learning curves, a panel for each environment. Raises UserError where it
    cannot be written.
    """
    figure = style.by_environment(runs, envs, "eval/return_mean", style.RETURN, title, looks=looks)
    output.save_figure(figure, path)
