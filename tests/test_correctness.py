"""docs/correctness.md is true: every statement has its code, and a test that fails without it."""

import os
import re
import shutil
import subprocess
import sys

import correctness
import pytest

ROWS = [
    pytest.param(row, id=f"{row.what} ({row.test.rpartition('::')[2]})")
    for rows in correctness.sections().values()
    for row in rows
]


def test_the_page_is_what_the_table_says():
    again = "run `PYTHONPATH=. python tests/correctness.py`"
    assert correctness.PAGE.read_text() == correctness.page(), again


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_its_code_and_its_test(row):
    text = (correctness.ROOT / correctness.source(row)).read_text()
    assert text.count(row.right) == 1, f"{row.right!r} is not once in {correctness.source(row)}"
    file, _, test = row.test.partition("::")
    assert f"def {test}(" in (correctness.TESTS / file).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_row_that_is_wrong_fails_its_test(row, tmp_path):
    for part in ("preqn_jax", "experiments", "tests"):
        ignore = shutil.ignore_patterns("__pycache__", "results", "notebooks")
        shutil.copytree(correctness.ROOT / part, tmp_path / part, ignore=ignore)
    shutil.copy(correctness.ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / correctness.source(row)
    file.write_text(file.read_text().replace(row.right, row.wrong))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "slow or not slow"]
    command += ["-p", "no:cacheprovider", f"tests/{row.test}"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stdout  # a test failed, and none was in error
    assert "AssertionError" in ended.stdout or "\nE   " in ended.stdout
    for accident in ("NameError", "SyntaxError", "AttributeError", "TypeError"):
        assert f"E   {accident}" not in ended.stdout


def test_the_page_on_faults_names_tests_that_are_there():
    text = (correctness.ROOT / "docs" / "faults.md").read_text()
    named = re.findall(r"\[`(\w+)`\]\(\.\./([\w/.]+)\)", text)
    assert len(named) > 20
    for test, file in named:
        assert f"def {test}(" in (correctness.ROOT / file).read_text(), f"{file} has no {test}"
