"""What documents say, and the kept records they say it of."""

import json
import re
from pathlib import Path

from experiments import figures
from experiments.kit import curves

RESULTS = Path(figures.__file__).parent / "results"
DOCS = RESULTS.parent.parent / "docs" / "results"


def rows(page, *columns):
    """The table of a page whose header has these columns, as one dictionary per row."""
    tables = (DOCS / page).read_text().split("\n\n")
    (table,) = [one for one in tables if all(f"| {column} |" in one for column in columns)]
    lines = [line for line in table.split("\n") if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(head, line, strict=True)) for line in body]


def numbers(text):
    found = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", text)
    return [float(number.replace(",", "")) for number in found]


def kept(folder, end=100_000, updates=False):
    """A function from a metric's name to its values `[S, T]` in a stored run up to a step; of its
    `updates` alone, the first line of which is left out.
    """
    config, lines = curves.load(RESULTS / folder)
    first = config["update_after"] if updates else 0
    lines = [line for line in lines if first < line["step"] <= end]
    by_seed = [[x for x in lines if x["seed"] == s] for s in config["seeds"]]
    return lambda name: curves.matrix(by_seed, name)[1]


def last_ten(returns):
    return returns[:, -10:].mean(axis=1)


def last_three(of):
    return [round(x) for x in of("eval/return_mean")[:, -3:].mean(axis=1)]


def benchmark_of(root):
    return json.loads((RESULTS / root / "benchmark/report.json").read_text())["verdicts"]


def flat(page):
    return " ".join((DOCS / page).read_text().split())
