"""Statements of the paper: where each is in the code, and which test would notice if it were wrong.

`PYTHONPATH=. python tests/correctness.py` writes docs/correctness.md from correctness.toml.
test_correctness.py checks page, code and tests against one another; in the slow tier it makes the
code of every row wrong, and expects its test to fail.
"""

import importlib
import inspect
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGE = ROOT / "docs" / "correctness.md"


class Row(NamedTuple):
    """One statement of the paper."""

    what: str  # its number there
    says: str
    code: str  # full name of the function or class that implements it
    test: str  # file::function, below tests/
    right: str  # text that occurs once in the code's file
    wrong: str  # text to put in its place, so that the test fails


def sections() -> dict[str, list[Row]]:
    """The rows of correctness.toml, by the titles of their sections."""
    read = tomllib.loads((TESTS / "correctness.toml").read_text())
    return {part["title"]: [Row(**row) for row in part["row"]] for part in read["section"]}


def source(row: Row) -> Path:
    """The file of a row's code. Raises AttributeError or ModuleNotFoundError if there is none."""
    module, _, name = row.code.rpartition(".")
    found: Any = inspect.unwrap(getattr(importlib.import_module(module), name))
    return Path(inspect.getsourcefile(found) or "").relative_to(ROOT)


def page() -> str:
    """The text of docs/correctness.md."""
    lines = [
        "# The paper, the code, and the test that would see it go wrong",
        "",
        "Every row was made wrong, and its test failed: `python -m pytest -m slow",
        "tests/test_correctness.py` does that again, row by row, in copies of the tree.",
        "`PYTHONPATH=. python tests/correctness.py` writes the page; a test holds it to the code.",
    ]
    for title, rows in sections().items():
        lines += ["", f"## {title}", "", "| paper | says | code | test |", "|---|---|---|---|"]
        for row in rows:
            code = f"[`{row.code.removeprefix('preqn_jax.')}`](../{source(row)})"
            file, _, test = row.test.partition("::")
            lines.append(f"| {row.what} | {row.says} | {code} | [`{test}`](../tests/{file}) |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
