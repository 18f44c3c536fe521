"""The examples in docstrings do what they say."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

NAMES = {"jax": jax, "jnp": jnp, "np": np, "optax": optax}  # what every example may use
MODULES = {  # and what has an example there
    "batching": ["batched"],
    "diagnostics.diagnosis": ["diagnose"],
    "diagnostics.verdict": ["failure"],
    "linesearch": ["backtrack"],
    "measures": ["alignment", "row_ratio"],
    "ntk.api": ["kernel", "linearize"],
    "problems": [""],
    "solve": ["cholesky"],
    "steps.base": ["gradient"],
    "steps.preqn": ["preconditioned"],
    "training.monitor": ["rejecting", "stuck"],
    "tabular": ["", "backup", "modulus", "q_learning", "u", "value_iteration"],
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run_as_they_say(name):
    module = importlib.import_module(f"preqn_jax.{name}")
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = finder.find(module, extraglobs=NAMES)
    found = [t.name.removeprefix(module.__name__).removeprefix(".") for t in tests if t.examples]
    assert sorted(found) == MODULES[name]
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.failures == 0
