"""What the numbers of `experiments.ntk_init` say: verdicts on the paper's findings of section 5.1,
and its Figures 1 and 4 to 9.

Nothing is computed here: all numbers are read from a data.json, by `load`.
"""

import functools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.judge import published, verdict
from experiments.judge.verdict import Part, Verdict
from experiments.kit import output, style
from preqn_jax.options import UserError

DEPTH = 2  # hidden layers of the networks of `widths`
WIDTH = 64  # hidden units of the networks of `depths`


def load(path: Path) -> dict[str, Any]:
    """The data.json that experiments.ntk_init wrote. Raises UserError for any other file."""
    with output.expecting(
        f"{str(path)!r} does not hold numbers of experiments.ntk_init; give another --out"
    ):
        data = json.loads(path.read_text())
        for cell in measured(data).values():
            np.array([cell["row_ratio"], cell["diagonal"]], np.float64)
        return {**data, **{name: data[name] for name in ("config", "data", "cells")}}


def measured(data: dict[str, Any]) -> dict[tuple[str, str, tuple[int, ...], str], dict[str, Any]]:
    """The cells of `data`, by (env, activation, hidden sizes, initializer)."""
    return {
        (one["env"], one["activation"], tuple(one["hidden_sizes"]), one["initializer"]): one
        for one in data["cells"]
    }


# --- the paper's findings -------------------------------------------------------------------------

COMMON = 0.75  # share of the pairs in which a statement on relu or sin has to be clear

RULES = f"""\
Clear: beyond two standard errors, over initialisations. A series is one environment and one
activation; it rises or falls where the least-squares slope of all its values (against log2 width,
or depth) is clear, its error being that of the spread at each size. An activation rises or falls if
it does so in more than half of the environments. A tendency is borne out if all activations show
it; "neither", if no activation shows either. A statement on relu or sin is borne out if it is clear
for {COMMON:.0%} of all pairs of an environment and a network size, and for more than half of the
sizes in every environment; a diagonal is high if it is clearly above the mean of the other
activations'. A finding is borne out if both of its parts are. x1.2: the largest network's mean
over the smallest's, geometric mean over environments."""


def findings(data: dict[str, Any]) -> dict[str, list[Verdict]]:
    """The four findings of section 5.1 under each initialisation, judged on `data` by `RULES`."""
    return {name: _findings(data, name) for name in data["config"]["initializers"]}


def _findings(data: dict[str, Any], initializer: str) -> list[Verdict]:
    trend, lead = (functools.partial(judge, data, initializer) for judge in (_trend, _lead))
    return [
        Verdict(
            "Diagonal elements tend to increase with width and decrease with depth",
            [trend("width", "diagonal", "rises"), trend("depth", "diagonal", "falls")],
        ),
        Verdict(
            "Row ratios tend to increase with depth, and do not clearly correlate with width",
            [trend("depth", "row_ratio", "rises"), trend("width", "row_ratio", None)],
        ),
        Verdict(
            "Relu nets commonly have the largest diagonal elements and row ratios",
            [lead("relu", "diagonal", "the largest"), lead("relu", "row_ratio", "the largest")],
        ),
        Verdict(
            "Sin nets have high diagonal elements and low off-diagonal elements",
            [lead("sin", "diagonal", "high"), lead("sin", "row_ratio", "the smallest")],
        ),
    ]


def as_json(found: dict[str, list[Verdict]]) -> list[dict[str, Any]]:
    """A row for each finding, for a file."""
    return [
        {"initializer": initializer, "finding": number, **one.as_json()}
        for initializer, four in found.items()
        for number, one in enumerate(four, start=1)
    ]


def _trend(
    data: dict[str, Any], initializer: str, sweep: str, quantity: str, direction: str | None
) -> Part:
    """Whether `quantity` "rises" or "falls" with width or depth for every activation; or, with a
    `direction` of None, does neither for any.
    """
    said = f"{_WORDS[quantity]} {direction or 'neither rises nor falls'} with {sweep}"
    does = "does not" if direction else "does either"
    refuted_by = f"one activation {does} in most environments"
    sizes, config = _sizes(data, sweep), data["config"]
    if len(sizes) < 2:
        return Part(said, f"needs two {sweep}s", None, refuted_by)
    x = np.log2(list(sizes)) if sweep == "width" else np.array(list(sizes), np.float64)
    ways, evidence = [], []  # for each activation
    for activation in config["activations"]:
        series = [
            _values(data, env, activation, sizes.values(), initializer, quantity)
            for env in config["envs"]
        ]
        slopes = [_slope(x, values) for values in series]
        clear = {
            "rises": sum(slope > 2 * error for slope, error in slopes),
            "falls": sum(-slope > 2 * error for slope, error in slopes),
        }
        ways.append(next((way for way, count in clear.items() if 2 * count > len(series)), None))
        factor = math.exp(
            np.mean([np.log(values[-1].mean() / values[0].mean()) for values in series])
        )
        counts = (
            ", ".join(f"{way} in {count}" for way, count in clear.items() if count)
            or "no clear trend"
        )
        evidence.append(f"{activation} x{factor:.2f}, {counts} of {len(series)}")
    return Part(said, "; ".join(evidence), all(way == direction for way in ways), refuted_by)


def _lead(
    data: dict[str, Any], initializer: str, activation: str, quantity: str, place: str
) -> Part:
    """Whether an activation's `quantity` holds `place` (a key of AHEAD) among the activations, in
    most pairs of an environment and a network size.
    """
    said, config = f"{activation}'s {_WORDS[quantity]} is {place}", data["config"]
    refuted_by = f"it is so in less than {COMMON:.0%} of all, or in half of an environment's"
    others = [name for name in config["activations"] if name != activation]
    if activation not in config["activations"] or not others:
        return Part(said, f"needs {activation} and another activation", None, refuted_by)
    sizes = {
        tuple(hidden) for sweep in ("width", "depth") for hidden in _sizes(data, sweep).values()
    }
    won = []  # for each environment
    for env in config["envs"]:
        found = [
            _values(data, env, name, sorted(sizes), initializer, quantity)
            for name in (activation, *others)
        ]
        won.append(sum(AHEAD[place](own, rest) for own, *rest in zip(*found, strict=True)))
    total = len(sizes) * len(won)
    good = sum(won) >= COMMON * total and 2 * min(won) > len(sizes)
    evidence = (
        f"in {sum(won)} of {total}, at the least in {min(won)} of an environment's {len(sizes)}"
    )
    return Part(said, evidence, good, refuted_by)


def _clear(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the mean of `a` is above that of `b` by two standard errors of their difference."""
    return bool(
        a.mean() - b.mean() > 2 * math.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size)
    )


AHEAD: dict[str, Callable[[np.ndarray, Sequence[np.ndarray]], bool]] = {  # (own, others')
    "the largest": lambda own, others: all(_clear(own, other) for other in others),
    "the smallest": lambda own, others: all(_clear(other, own) for other in others),
    "high": lambda own, others: _clear(own, np.mean(others, axis=0)),
}


def _slope(x: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The least-squares slope of `values [sizes, S]` against `x [sizes]`, and its standard error
    over initialisations. The error is computed from the spread at each size, not from how far the
    means lie from the line, which other initialisations would not change.
    """
    weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    means, variances = values.mean(axis=1), values.var(axis=1, ddof=1) / values.shape[1]
    slope = weights @ (means - means[0])  # exactly 0 if they are constant
    return float(slope), math.sqrt(weights**2 @ variances)


def _sizes(data: dict[str, Any], sweep: str) -> dict[int, list[int]]:
    """Width or depth -> the hidden sizes of the network with it, smallest first."""
    if sweep == "width":
        return {width: [width] * DEPTH for width in sorted(data["config"]["widths"])}
    return {depth: [WIDTH] * depth for depth in sorted(data["config"]["depths"])}


def _values(
    data: dict[str, Any],
    env: str,
    activation: str,
    networks: Iterable[Sequence[int]],
    initializer: str,
    quantity: str,
) -> np.ndarray:
    """A quantity for each network and initialisation, `[networks, S]`. Raises UserError where
    `data` is that of an unfinished run.
    """
    rows, cells = [], measured(data)
    for hidden_sizes in networks:
        cell = cells.get((env, activation, tuple(hidden_sizes), initializer))
        if cell is None:
            raise UserError(
                f"data has no cell for {env}, {initializer}, {activation}, {list(hidden_sizes)}: "
                f"it is of an unfinished run; the command that began it goes on with it"
            )
        rows.append(cell[quantity])
    return np.array(rows)


def show(found: dict[str, list[Verdict]]) -> None:
    """Prints the findings and the rules."""
    for initializer, four in found.items():
        print(f"\ninitialisation: {initializer}")
        verdict.show(four)
    print("\n" + RULES)


# --- the figures ----------------------------------------------------------------------------------

_WORDS = {"row_ratio": "average row ratio", "diagonal": "average diagonal"}
_LABELS = {"row_ratio": r"average row ratio $R_i(K)$", "diagonal": r"average diagonal $K_{ii}$"}
_PAPER = {  # (sweep, environment without its version) -> the paper's figure
    ("width", "Ant"): 4,
    ("width", "HalfCheetah"): 5,
    ("width", "Walker2d"): 6,
    ("depth", "Ant"): 7,
    ("depth", "HalfCheetah"): 8,
    ("depth", "Walker2d"): 9,
}


def draw(data: dict[str, Any], out_dir: Path) -> list[Path]:
    """Draws Figures 1 and 4 to 9 from `data` (see `load`), and similar figures for other
    environments; nothing is computed.

    Returns the pictures' paths in `out_dir`. Raises UserError where one cannot be written, and for
    unfinished data.
    """
    config, paths = data["config"], []
    for env in config["envs"]:
        name = published.the_only(env, config["envs"]) or ""
        if name == "Walker2d" and config["widths"]:
            paths.append(_figure(data, env, "width", ("row_ratio",), 1, out_dir / "figure_1.png"))
        for sweep in ("width", "depth"):
            if config[sweep + "s"]:
                number = _PAPER.get((sweep, name))
                stem = f"figure_{number}" if number else f"{sweep}_{env}".replace("/", "_")
                paths.append(
                    _figure(
                        data, env, sweep, ("row_ratio", "diagonal"), number, out_dir / f"{stem}.png"
                    )
                )
    return paths


def _figure(
    data: dict[str, Any],
    env: str,
    sweep: str,
    quantities: Sequence[str],
    number: int | None,
    path: Path,
) -> Path:
    """Draws a panel for each initialisation (across) and quantity (down): bars by size and
    activation.
    """
    config = data["config"]
    figure, axes = plt.subplots(
        len(quantities),
        len(config["initializers"]),
        figsize=(1 + 3.3 * len(config["initializers"]), 1.2 + 2.5 * len(quantities)),
        squeeze=False,
        constrained_layout=True,
    )
    for column, initializer in enumerate(config["initializers"]):
        for row, quantity in enumerate(quantities):
            _bars(axes[row, column], data, env, sweep, initializer, quantity)
        axes[0, column].set_title(f"{initializer} initialisation", fontsize=10)
        axes[-1, column].set_xlabel(
            "units in each of 2 hidden layers"
            if sweep == "width"
            else f"hidden layers of {WIDTH} units"
        )
    for row, quantity in enumerate(quantities):
        axes[row, 0].set_ylabel(_LABELS[quantity])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, fontsize=9, ncols=len(labels), loc="outside lower center"
    )
    after = f"As Figure {number} of the paper: " if number else ""
    figure.suptitle(
        f"{after}K of {config['points']:,} rails-random pairs of {env}, critics at initialisation\n"
        f"bars: mean and standard deviation over {len(config['seeds'])} initialisations, same "
        f"pairs",
        fontsize=10,
    )
    output.save_figure(figure, path, dpi=100)
    return path


def _bars(
    ax: Any, data: dict[str, Any], env: str, sweep: str, initializer: str, quantity: str
) -> None:
    sizes, activations = _sizes(data, sweep), data["config"]["activations"]
    width = 0.8 / len(activations)
    for i, activation in enumerate(activations):
        values = _values(data, env, activation, sizes.values(), initializer, quantity)
        ax.bar(
            np.arange(len(sizes)) + (i - (len(activations) - 1) / 2) * width,
            values.mean(axis=1),
            width,
            yerr=values.std(axis=1, ddof=1),
            color=style.COLOURS[i % len(style.COLOURS)],
            label=activation,
            capsize=2,
            error_kw={"lw": 1},
        )
    ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    style.tidy(ax)
    ax.grid(visible=False, axis="x")
