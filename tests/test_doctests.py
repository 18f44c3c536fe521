"""The examples in docstrings run as they are, and print what they say."""

import doctest
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
NAMES = {"jax": jax, "jnp": jnp, "np": np}  # for the examples of `tabular`, and its own
ELSEWHERE = {"preqn_jax.training.trained", "preqn_jax.training.exported"}  # they need a run
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "preqn_jax").rglob("*.py")
    if ">>> " in path.read_text()
}


@pytest.mark.parametrize("name", sorted(MODULES - ELSEWHERE))
def test_examples_in_docstrings_run_as_they_say(name):
    module = importlib.import_module(name)
    # All others import what they use, for readers who paste them.
    globs = {**vars(module), **NAMES} if name == "preqn_jax.tabular" else {}
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, globs=globs)
    assert any(test.examples for test in tests)
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.failures == 0
