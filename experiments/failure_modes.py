"""The four failure modes of section 3.2, a small experiment for each: a quantity crosses its
threshold, Q diverges, and a remedy works.

    python -m experiments.failure_modes --out=failure_modes.png --json=failure_modes.json

1. Linearization breaks: a network, with steps so long that the second-order terms of Eq. 10 are as
   large as the first-order ones. With alpha = 0.3 Q stalls far from Q*, with alpha = 1 it diverges.
   The mode does not stay alone: K grows with theta, and both runs soon violate Eq. 16 as well, as
   printed below the table.
2. Overshooting: a table with one entry that moves too far, alpha K_ii rho_i > 1 (Eq. 16).
3. Over-generalization: two states whose values pull each other up (Eq. 17).
4. Extrapolation error: the same two states with a little less generalization, and no data on the
   second one (Lemma 2). With still less generalization (c = 0.5) Q stays bounded, though wrong:
   what diverges is the loop of extrapolation and over-generalization.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from experiments.judge import section_3_2
from experiments.judge.section_3_2 import Mode, Trajectory
from experiments.kit import flags, output, style
from preqn_jax.options import UserError, check, option

EVERY = 5  # updates between the errors that --json keeps


@dataclasses.dataclass(frozen=True)
class FailureModesConfig:
    """The experiment, and the files it writes."""

    updates: int = option(1000, "updates in every run", at_least=1)
    seed: int = option(0, "random seed of the network's initial weights", at_least=0)
    out: str = option("failure_modes.png", "the picture to write: .png, .pdf or .svg")
    json: str = option("", "also write the table to this file")


def main(argv: list[str]) -> int:
    config = flags.parse(FailureModesConfig)
    check(config)
    if not config.out:
        raise UserError("out is empty; name a picture, as in --out=failure_modes.png")
    output.check("out", config.out, picture=True)
    output.check("json", config.json)
    makers = (
        partial(section_3_2.linearization, seed=config.seed),
        section_3_2.overshooting,
        section_3_2.generalization,
        section_3_2.extrapolation,
    )
    modes = [make(config.updates) for make in tqdm(makers, desc="failure modes")]
    table = [row for mode in modes for row in _rows(mode)]
    _print(table, config)
    draw(modes, Path(config.out), config.seed)
    print(config.out)
    if config.json:
        _write(config, table, modes)
    return 0


def _rows(mode: Mode) -> list[dict[str, Any]]:
    """A row for each run of a mode; `quantity` is that of the failing setting, with its threshold
    at 1.
    """
    quantity = float(np.interp(mode.bad, mode.xs, mode.ys))
    return [
        {
            "mode": mode.name,
            "quantity": quantity,
            "run": run.name,
            "remedy": run.remedy,
            "first": run.error[0],
            "last": run.error[-1],
            **({} if run.overshoot is None else {"eq_16": _overshoot(run.overshoot)}),
        }
        for run in mode.runs
    ]


def _overshoot(values: np.ndarray) -> dict[str, float | int]:
    """Statistics of max_i alpha K_ii rho_i along a run: its first and its largest finite value, and
    the number of updates after which it is above 1, where Eq. 16 is violated.
    """
    finite = values[np.isfinite(values)]
    above = int(np.sum(~(values[1:] <= 1)))  # the first is that of the start
    return {"first": float(finite[0]), "largest": float(finite.max()), "updates_above_1": above}


def _print(table: list[dict[str, Any]], config: FailureModesConfig) -> None:
    print(
        f"max |Q - Q*| at the start and after {config.updates} updates; the quantity is that of "
        f"the failing setting, with a threshold of 1"
    )
    print(f"{'':<26}{'quantity':>9}  {'':<38}{'start':>10}{'end':>10}")
    for row in table:
        end = f"{row['last']:.3g}" if np.isfinite(row["last"]) else "overflow"
        print(
            f"{row['mode']:<26}{row['quantity']:>9.3g}  "
            f"{row['run']:<38}{row['first']:>10.3g}{end:>10}"
        )
    print("\nmax alpha K_ii rho_i (Eq. 16), where K changes: first, largest, updates above 1")
    for row in table:
        if seen := row.get("eq_16"):
            numbers = f"{seen['first']:>9.3g}{seen['largest']:>10.3g}{seen['updates_above_1']:>7}"
            print(f"{row['mode']:<26}{row['run']:<32}{numbers}")


def draw(modes: list[Mode], out: Path, seed: int, every: int = 1) -> None:
    """Draws each mode's quantity above, and its runs below, whose errors are `every` updates apart.
    Raises UserError if the figure cannot be written.
    """
    figure, axes = plt.subplots(2, len(modes), figsize=(13.2, 7.2), layout="constrained")
    for mode, top, bottom in zip(modes, axes[0], axes[1], strict=True):
        top.plot(mode.xs, mode.ys, color=style.COLOURS[0])
        top.axhline(1, color="k", lw=0.8, ls="--")
        top.set(title=mode.name, xlabel=mode.parameter, ylabel=mode.quantity)
        if mode.xs[0] > 0 and mode.xs[-1] / mode.xs[0] > 100:
            top.set(xscale="log", yscale="log")
        fails = float(np.interp(mode.bad, mode.xs, mode.ys))
        top.plot(mode.bad, fails, "x", color=style.COLOURS[1], ms=9, mew=2, label="fails")
        for (name, x, y), marker in zip(_remedies(mode, fails), ("o", "s"), strict=False):
            top.plot(x, y, marker, color=style.COLOURS[2], ms=7, label=name)
        top.legend(frameon=False, fontsize=9)
        colours = {
            remedy: iter(style.COLOURS[i] for i in pair)
            for remedy, pair in ((False, (1, 4, 3)), (True, (2, 0)))
        }
        for run, dashes in zip(mode.runs, ("-", "--", "-.", ":"), strict=False):
            error = np.where(np.isfinite(run.error), run.error, np.nan)
            bottom.semilogy(
                every * np.arange(error.size),
                error,
                dashes,
                color=next(colours[run.remedy]),
                label=run.name.replace("U3", "plain"),
            )
        bottom.set(xlabel="update", ylabel=r"$\max\ |Q - Q^*|$")
        bottom.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.05, -0.2))
    figure.suptitle(
        f"above: what must stay below 1; below: the error. Plain: the expected step of Q-learning "
        f"with a constant kernel, U3 of Eq. 15. The network of panel 1 is from seed {seed}",
        fontsize=10,
    )
    for ax in axes.flat:
        style.tidy(ax)
    output.save_figure(figure, out)


def _remedies(mode: Mode, fails: float) -> list[tuple[str, float, float]]:
    """(name, parameter, quantity) of each remedy of a mode. A shorter step scales the quantity; a
    preconditioned one moves each value by alpha = 0.5 of its own error, and by none of the others'.
    """
    if mode.good != mode.bad:
        return [("remedy", mode.good, float(np.interp(mode.good, mode.xs, mode.ys)))]
    whole = ("preconditioned", mode.bad, 0.5 if mode.name.startswith("2") else 0.0)
    shorter = [("a third of the step", mode.bad, fails / 3)]
    return [whole, *shorter * any("a third of the step" in run.name for run in mode.runs)]


def _write(config: FailureModesConfig, rows: list[dict[str, Any]], modes: list[Mode]) -> None:
    last = [_number(row["last"]) for row in rows]
    rows = [
        {**row, "first": float(row["first"]), "last": end}
        for row, end in zip(rows, last, strict=True)
    ]
    curves = [
        {
            **mode._asdict(),
            "xs": [_number(x) for x in mode.xs],
            "ys": [_number(y) for y in mode.ys],
            "runs": [
                {
                    **run._asdict(),
                    "error": [_number(e) for e in run.error[::EVERY]],
                    "overshoot": None
                    if run.overshoot is None
                    else [_number(o) for o in run.overshoot[::EVERY]],
                }
                for run in mode.runs
            ],
        }
        for mode in modes
    ]
    output.write_json(
        Path(config.json),
        {"config": dataclasses.asdict(config), "rows": rows, "every": EVERY, "modes": curves},
    )


def _number(value: float) -> float | None:
    """A value for JSON: rounded to seven digits, and None where it is not finite."""
    return float(f"{value:.7g}") if np.isfinite(value) else None


def redraw(path: Path, out: Path) -> None:
    """Draws the figure from a file that `--json` wrote. Raises UserError if it is another kind of
    file.
    """
    with output.expecting(
        f"{str(path)!r} holds no curves of experiments.failure_modes; make it again with its --json"
    ):
        data = json.loads(path.read_text())
        modes = [
            Mode(
                **{
                    **mode,
                    "xs": np.array(mode["xs"]),
                    "ys": np.array(mode["ys"], np.float64),
                    "runs": _runs(mode["runs"]),
                }
            )
            for mode in data["modes"]
        ]
        every, seed = data["every"], data["config"]["seed"]
    draw(modes, out, seed, every)


def _runs(rows: list[dict[str, Any]]) -> list[Trajectory]:
    return [
        Trajectory(row["name"], row["remedy"], np.array(row["error"], np.float64)) for row in rows
    ]


if __name__ == "__main__":
    flags.define(FailureModesConfig)
    flags.run(main)
