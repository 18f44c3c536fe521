"""Why did my Q explode? The diagnoses of a run say when it went wrong, by which of the paper's
failure modes, and on what evidence.

    python -m experiments.train --algorithm=ddpg --notarget_networks --env=Hopper-v5 \\
        --diagnose_every=500 --logdir=runs/x
    python -m experiments.diagnose runs/x

prints the report, and writes diagnosis.png and diagnosis.json into the run directory, or into
--out. If the run has a checkpoint and its environment can be made, the report also names the
members of a minibatch (its transitions) that move Q most where |Q| is largest. A run that was
trained without --diagnose_every is diagnosed at its newest checkpoint.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.kit import curves, flags, given_runs, last_look, output, style
from preqn_jax import diagnostics
from preqn_jax.diagnostics.failures import SIGNS
from preqn_jax.options import UserError, option

LINES = {name: line for name, line, *_ in SIGNS}
PANELS = (  # measurement, title, the line that matters, scale of the y axis
    ("q_largest", "largest |Q| of the minibatch", None, "log"),
    ("alignment", "alignment of the update", None, "linear"),
    ("gain", "gain: |change of Q| over |TD error|", LINES["gain"], "log"),
    ("linearization_error", "linearization error", LINES["linearization_error"], "log"),
    ("self_excitation", "self-excitation", 0.0, "symlog"),
    ("extrapolation", "extrapolation, standard deviations", LINES["extrapolation"], "linear"),
    ("row_ratio", "row ratio of K", LINES["row_ratio"], "linear"),
    ("coadaptation", "co-adaptation of the features", None, "linear"),
)
SCALES = {"linear": {}, "log": {"nonpositive": "mask"}, "symlog": {"linthresh": 1}}
RETURNS = ("train/return", "eval/return_mean")


@dataclasses.dataclass(frozen=True)
class DiagnoseConfig:
    """Where the report goes."""

    out: str = option("", "folder for diagnosis.png and diagnosis.json (the run directory)")
    trust: bool = given_runs.trust()


def main(argv: list[str]) -> int:
    run = given_runs.parse_one(argv, "diagnose")
    given = flags.parse(DiagnoseConfig)
    out = Path(given.out or run)
    config, seeds, looks = read(run)
    seen, why = None, ""
    try:
        seen = last_look.take(run, config, given.trust)
    except UserError as error:  # everything else is known without a checkpoint
        why = flags.in_flags(str(error))
    alone = seen is not None and not any(looks)
    if seen and alone:
        looks = [[{"step": seen.step, **found}] * bool(found) for found in seen.measured()]
    reports = reported(run, config, seeds, looks, why)
    print(
        f"{curves.variant(config)} on {config['env']}, {curves.count_seeds(len(reports))}, "
        f"in {str(run)!r}{': its last checkpoint alone' * alone}"
    )
    for one in reports:
        show(one)
    early = curves.diverged(line for mine in seeds for line in mine)
    for one in reports:
        early.pop(one["seed"], None)
    for seed, step in early.items():
        print(f"\nseed {seed}: diverged at step {step:,}, before its first diagnosis")
    moved = last_look.attribution(seen) if seen else []
    if why:
        print(f"\nthe transitions that moved Q cannot be named: {why}")
    show_attribution(moved)
    output.write_json(
        out / "diagnosis.json",
        {
            "run": str(run),
            "seeds": [_short(one) for one in reports],
            "diverged_before": {str(seed): step for seed, step in early.items()},
            "attribution": moved,
        },
        "out",
    )
    draw(config, reports, seeds, out / "diagnosis.png")
    print(out / "diagnosis.png")
    return 0


def redraw(run: Path, path: Path) -> None:
    """Draws diagnosis.png from the records of a run. Raises UserError where the run was not
    diagnosed, or cannot be read.
    """
    config, seeds, looks = read(run)
    draw(config, reported(run, config, seeds, looks), seeds, path)


Looks = list[list[dict[str, Any]]]  # the diagnoses of each seed


def read(run: Path) -> tuple[dict[str, Any], list[curves.Lines], Looks]:
    """The configuration of a run, and for each seed its records and its diagnoses. Raises UserError
    where the run cannot be read.
    """
    config, lines = curves.load(run)
    seeds = list(curves.of_seeds(config["seeds"], lines).values())
    looks = [[_look(line) for line in mine if "diagnose/q_mean" in line] for mine in seeds]
    return config, seeds, looks


def reported(
    run: Path, config: dict[str, Any], seeds: Sequence[curves.Lines], looks: Looks, blind: str = ""
) -> list[dict[str, Any]]:
    """The `report` of each diagnosed seed. Raises UserError if no seed was diagnosed; `blind` then
    says why the run's checkpoint does not help either, where that was tried.
    """
    found = [
        report(seed, look, mine)
        for seed, look, mine in zip(config["seeds"], looks, seeds, strict=True)
        if look
    ]
    if found:
        return found
    every, why = config.get("diagnose_every"), "was not diagnosed"
    why += f", and {blind}" * bool(blind)
    lost = curves.diverged(line for mine in seeds for line in mine).values()
    cure = "train it further by the same command with {}, and a larger --num_steps if it has ended"
    if every:
        ended = f"diverged at step {max(lost):,}" if lost else "has not come that far yet"
        why = f"is diagnosed every {every:,} steps, and {ended}"
    if len(lost) == len(seeds):
        cure = "train it again with {} and another --logdir"
    option = f"--diagnose_every={max(1, min(1000, (every or 2000) // 2))}"
    raise UserError(f"the run {str(run)!r} {why}; {cure.format(option)}")


def _short(one: dict[str, Any]) -> dict[str, Any]:
    """A report with only those diagnoses whose steps are in its "at"."""
    return {**one, "looks": [look for look in one["looks"] if look["step"] in one["at"].values()]}


def _look(line: dict[str, Any]) -> dict[str, Any]:
    """One diagnosis: its step, and its numbers by their names in `diagnostics.GLOSSARY`."""
    return {
        "step": line["step"],
        **{k.removeprefix("diagnose/"): v for k, v in line.items() if k.startswith("diagnose/")},
    }


# --- when, which, and why -------------------------------------------------------------------------


def report(seed: int, looks: Sequence[dict[str, Any]], lines: curves.Lines) -> dict[str, Any]:
    """What happened to one seed. "failed" is the step of its first failure, None without a failure.

    "at" names the steps of three diagnoses: the first, that of the first failure (without a failure
    the last but one), and the last.
    """
    found = [(look, diagnostics.failure(_numbers(look))) for look in looks]
    failed = next(((look, finding) for look, finding in found if finding), None)
    look, finding = failed or (looks[max(0, len(looks) - 2)], None)
    returns = [
        line[name]
        for line in lines
        if line["step"] <= look["step"]
        for name in RETURNS
        if line.get(name) is not None
    ]
    modes = [one.mode for _, one in found if one]
    return {
        "seed": seed,
        "failed": look["step"] if finding else None,
        "mode": finding.mode if finding else None,
        "evidence": finding.evidence if finding else None,
        "remedy": flags.in_flags(finding.remedy) if finding else None,
        "diagnoses": len(looks),
        "failing": {mode: modes.count(mode) for mode in diagnostics.FAILURES if mode in modes},
        "diverged": curves.diverged(lines).get(seed),
        "best_return": max(returns, default=None),  # seen by that step
        "looks": list(looks),
        "at": {"first": looks[0]["step"], "then": look["step"], "last": looks[-1]["step"]},
    }


def _numbers(look: dict[str, Any]) -> dict[str, float]:
    """The measurements of a diagnosis; a null in the records stands for an overflow, and becomes
    infinity.
    """
    return {
        name: np.inf if value is None else value
        for name, value in look.items()
        if name in diagnostics.GLOSSARY
    }


def show(one: dict[str, Any]) -> None:
    print(f"\nseed {one['seed']}: ", end="")
    if one["mode"] is None:
        print(f"healthy in all of {one['diagnoses']} diagnoses")
    else:
        shares = ", ".join(f"{mode} {count}" for mode, count in one["failing"].items())
        print(f"went wrong at step {one['failed']:,}, by {one['mode']}: {one['evidence']}")
        if one["best_return"] and one["best_return"] > 0:
            largest = next(
                look["q_largest"] for look in one["looks"] if look["step"] == one["failed"]
            )
            print(
                f"  by then |Q| was {largest / one['best_return']:.2g} times the largest return "
                f"seen, {one['best_return']:.4g}"
            )
        print(f"  what to do: {one['remedy']}")
        print(f"  failures in {one['diagnoses']} diagnoses: {shares}")
    if one["diverged"] is not None:
        print(f"  it diverged at step {one['diverged']:,}, and was not trained further")
    by_step = {look["step"]: look for look in one["looks"]}
    steps = list(dict.fromkeys(one["at"].values()))
    lines = [["", *(f"step {step:,}" for step in steps), "meaning of a high value, or as it says"]]
    for name, entry in diagnostics.GLOSSARY.items():
        values = [by_step[step].get(name) for step in steps]
        if any(value is not None for value in values):
            cells = ("" if value is None else f"{value:.4g}" for value in values)
            lines.append([name, *cells, entry.high])
    print(textwrap.indent(output.aligned(lines, f"l{'r' * len(steps)}l"), "  "), end="")


# --- who moved Q ----------------------------------------------------------------------------------


def show_attribution(moved: Sequence[dict[str, Any]]) -> None:
    for one in moved:
        print(
            f"\nseed {one['seed']}, checkpoint of step {one['step']:,}: how a plain step (Eq. 5) "
            f"would move Q where |Q| is largest, Q = {one['q']:.4g}. Its own TD error has a share "
            f"of {one['own_share']:+.1%}; the largest shares:"
        )
        print(
            f"  {'member':>8}{'share':>9}{'TD error':>12}{'Q':>12}"
            f"{'reward':>10}{'distance of s':>16}"
        )
        for row in one["members"]:
            print(
                f"  {row['member']:>8}{row['share']:>+9.1%}{row['td_error']:>12.4g}"
                f"{row['q']:>12.4g}{row['reward']:>10.3g}"
                f"{row['distance']:>16.3g}"
            )


# --- the picture ----------------------------------------------------------------------------------


def draw(
    config: dict[str, Any],
    reports: Sequence[dict[str, Any]],
    seeds: Sequence[curves.Lines],
    path: Path,
) -> None:
    """Draws a panel for each group of numbers, with a line for each seed, and a vertical line where
    a seed went wrong.
    """
    figure, axes = plt.subplots(2, 4, figsize=(13.5, 6.2), layout="constrained", sharex=True)
    for ax, (name, words, line, scale) in zip(axes.flat, PANELS, strict=True):
        for i, one in enumerate(reports):
            colour = style.COLOURS[i % len(style.COLOURS)]
            steps, values = curves.matrix([one["looks"]], name)
            if len(steps):
                ax.plot(steps, values[0], color=colour, lw=1.3, label=f"seed {one['seed']}")
            if one["failed"] is not None:
                ax.axvline(one["failed"], color=colour, lw=0.8, ls="--")
        if line is not None:
            label = "line that a failure crosses" if name in LINES else None
            ax.axhline(line, color="black", lw=0.9, ls=(0, (1, 1)), label=label)
        ax.set_title(words, fontsize=10)
        style.thousands(ax)
        style.tidy(ax)
        ax.set_yscale(scale, **SCALES[scale])
        if scale == "symlog":  # without this its axis marks every power of ten
            ax.yaxis.get_major_locator().set_params(numticks=7)
    for ax in axes[0]:
        ax.set_xlabel("")
    _attainable(axes[0, 0], seeds)
    modes = [one["mode"] for one in reports if one["mode"]]
    title = f"{curves.variant(config)} on {config['env']}"
    counts = ", ".join(
        f"{mode} in {curves.count_seeds(modes.count(mode))}"
        for mode in diagnostics.FAILURES
        if mode in modes
    )
    dashes = f"; dashed: where a seed went wrong ({counts})" if modes else "; no failure found"
    style.finish(figure, axes, title + dashes)
    output.save_figure(figure, path)


def _attainable(ax: Any, seeds: Sequence[curves.Lines]) -> None:
    """Draws two levels that Q can attain: the largest |r| seen, over 1 - gamma, and the largest
    discounted return.
    """
    bounds = [
        look["q_largest"] / look["soft_divergence"]
        for look in (_look(line) for lines in seeds for line in lines)
        if look.get("soft_divergence") and look.get("q_largest")
    ]
    if bounds:
        ax.axhline(
            max(bounds),  # the largest |r| seen only grows
            color="black",
            lw=0.7,
            label=r"largest $|r|$ seen, over $1-\gamma$",
        )
    best = [
        line["eval/discounted_max"]
        for lines in seeds
        for line in lines
        if line.get("eval/discounted_max")
    ]
    if best and max(best) > 0:
        ax.axhline(max(best), color="gray", lw=0.9, ls="-.", label="largest discounted return")


if __name__ == "__main__":
    flags.define(DiagnoseConfig)
    flags.run(main, takes_words=True)
