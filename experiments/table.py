"""Print a table of any runs, with a row for each.

    python -m experiments.table runs/*
    python -m experiments.table runs/a runs/b --format=tex --out=table.tex

Returns are those of noiseless episodes: the last evaluation, the best one, and the mean of the last
three, each as mean +- one standard deviation over seeds. Seeds that diverged are counted in a
column of their own, and count for the best return alone. Alignment is cos(Q' - Q, y - Q), and
accepted is the share of steps that the linesearch took; both are means past step update_after.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.kit import curves, flags, given_runs, output
from preqn_jax.options import choose, option
from preqn_jax.training import directory

RETURNS = ("last return", "best return", "last three")
MEANS = {"alignment": "critic/alignment", "accepted": "linesearch/accepted"}
_SAID = {"env", "algorithm", "activation", "seeds", "num_steps"}  # that have a column of their own

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """How the table is written, and where."""

    format: str = option("md", "csv, md or tex")
    out: str = option("", "the file to write (standard output)")


def main(argv: list[str]) -> int:
    runs = given_runs.parse_several(argv, "table runs/x runs/y")
    given = flags.parse(TableConfig)
    write = WRITERS[choose("format", given.format, WRITERS)]
    output.check("out", given.out)
    text = write(rows(runs))
    if given.out:
        output.write(Path(given.out), text.encode())
        print(given.out)
    else:
        print(text, end="")
    return 0


def rows(runs: Sequence[Path]) -> list[Row]:
    """A row for each run: column -> a text, an integer, a number, (mean, standard deviation) over
    seeds (the latter None for one seed), or None for what was not recorded. Raises UserError for a
    folder that is no run.
    """
    loaded = [curves.load(run) for run in runs]
    return [
        _row(run, config, lines, settings)
        for run, (config, lines), settings in zip(
            runs, loaded, _settings([config for config, _ in loaded]), strict=True
        )
    ]


def _row(run: Path, config: dict[str, Any], lines: curves.Lines, settings: str) -> Row:
    ends = {
        seed: curves.ends(curves.evaluations(mine))
        for seed, mine in curves.of_seeds(config["seeds"], lines).items()
        if any("eval/return_mean" in line for line in mine)
    }
    lost = curves.diverged(lines)
    going = [end for seed, end in ends.items() if seed not in lost]
    first = config.get("update_after", 0)
    means = {column: curves.mean(lines, name, first) for column, name in MEANS.items()}
    return {
        "run": str(run),
        "environment": config["env"],
        "algorithm": curves.variant(config),
        "settings": settings,
        "seeds": len(config["seeds"]),
        "diverged": len(lost),
        "steps": max(line["step"] for line in lines),
        "last return": _over_seeds([last for last, _, _ in going]),
        "best return": _over_seeds([best for _, _, best in ends.values() if np.isfinite(best)]),
        "last three": _over_seeds([three for _, three, _ in going]),
        **means,
    }


def _over_seeds(values: Sequence[float]) -> tuple[float, float | None] | None:
    """The mean and the sample standard deviation, which is None for a single seed; None without
    seeds.
    """
    if not values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _settings(configs: Sequence[dict[str, Any]]) -> list[str]:
    """For each run the settings that tell it from others of its algorithm and activation, as text:
    "eta=0.9, ...".
    """
    complete = [directory.with_defaults(config) for config in configs]
    variants = [curves.variant(config) for config in complete]
    texts = []
    for config, variant in zip(complete, variants, strict=True):
        twins = [c for c, other in zip(complete, variants, strict=True) if other == variant]
        names = sorted(curves.differing(config, twins, _SAID))
        texts.append(", ".join(f"{name}={config.get(name)}" for name in names))
    return texts


# --- how it is written ----------------------------------------------------------------------------


def as_csv(table: Sequence[Row]) -> str:
    """CSV, for machines: numbers that are not rounded, with a mean and its deviation in separate
    columns.
    """
    file = io.StringIO()
    flat = [_flat(row) for row in table]
    writer = csv.DictWriter(file, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _flat(row: Row) -> Row:
    spread = {name: row[name] or (None, None) for name in RETURNS}
    columns = {}
    for name, value in row.items():
        if name in spread:
            columns |= dict(zip((f"{name} mean", f"{name} std"), spread[name], strict=True))
        else:
            columns[name] = value
    return columns


def as_md(table: Sequence[Row]) -> str:
    """Markdown, aligned so that it can also be read as plain text."""
    head, *body = _cells(table, "±")
    return output.markdown(head, body)


def as_tex(table: Sequence[Row]) -> str:
    """A LaTeX tabular that needs no package."""
    cells = [[_escaped(text) for text in line] for line in _cells(table, "+-")]
    lines = [" & ".join(line) + r" \\" for line in cells]
    columns = "".join("l" if isinstance(value, str) else "r" for value in table[0].values())
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", lines[0], r"\hline"]
    return "\n".join([*head, *lines[1:], r"\hline", r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    text = re.sub(r"[\\~^&%$#_{}]", lambda m: named.get(m[0], "\\" + m[0]), text)
    return re.sub(r"(\S+) \+- (\S+)", r"$\1 \\pm \2$", text)


def _cells(table: Sequence[Row], sign: str) -> list[list[str]]:
    """The names of the columns, and then the rows, all as text."""

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return f" {sign} ".join(_rounded(part) for part in value if part is not None)
        if isinstance(value, float):
            return f"{value:.3f}"
        return "" if value is None else f"{value:,}" if isinstance(value, int) else value

    return [list(table[0]), *([text(value) for value in row.values()] for row in table)]


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or not np.isfinite(value) else f"{value:.3g}"


WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {"csv": as_csv, "md": as_md, "tex": as_tex}


if __name__ == "__main__":
    flags.define(TableConfig)
    flags.run(main, takes_words=True)
