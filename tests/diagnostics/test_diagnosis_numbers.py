"""A diagnosis of a critic: every number of `diagnose` against its formula."""

import functools

import numpy as np
import pytest

from diagnosis_cases import (
    CASES,
    formulas,
    look,
)
from preqn_jax.diagnostics import GLOSSARY


@functools.cache
def measured(name):
    return look(CASES[name]())


@functools.cache
def expected(name):
    return formulas(CASES[name](), alpha=measured(name)["alpha"])


def numbers_of(name):
    """The names of the numbers that can be measured in a case."""
    without = {"feature_rank", "dormant_share", "coadaptation"} if name == "linear" else set()
    without |= set() if name in ("own step", "moved and alpha") else {"bias", "bias_relative"}
    return [number for number in GLOSSARY if number not in without]


@pytest.mark.parametrize(
    "name, number", [(name, number) for name in CASES for number in numbers_of(name)]
)
def test_every_number_equals_its_formula(name, number):
    # A mean of booleans is float32 everywhere.
    tolerance = 1e-7 if number in ("dormant_share", "saturation") else 1e-8
    np.testing.assert_allclose(
        measured(name)[number], expected(name)[number], rtol=tolerance, atol=1e-11
    )


def test_the_cases_can_tell_formulas_apart():
    """They have the signs, terminals and thresholds for which wrong formulas give other numbers."""
    found = {name: expected(name) for name in CASES}
    moved, idle, own = found["moved"], found["moved and alpha"], found["own step"]
    assert idle["q_mean"] < 0 < idle["q_largest"]
    assert all(1 < found[name]["feature_rank"] < 9 for name in ("moved", "own step"))
    assert own["dormant_share"] == 3 / 17 <= idle["dormant_share"] < 1
    assert sum(0 < one["saturation"] < 1 for one in found.values()) > 2
    assert moved["linearization_error"] > 0.01 and own["linearization_error"] > 0.01
    assert {np.sign(found[name]["self_excitation"]) for name in CASES} == {-1, 1}
    assert own["bias"] < 0 < own["alignment"] < 1
    for name, side in (("bonus", 1), ("cost", -1)):  # a bonus counts if it has the sign of Q
        case = CASES[name]()
        without = formulas(case.replace(bonus=0 * case.options["bonus"]))["soft_divergence"]
        turned = formulas(case.replace(bonus=-case.options["bonus"]))["soft_divergence"]
        assert found[name]["soft_divergence"] < 0.9 * without and side * found[name]["q_mean"] > 0
        assert abs(turned / found[name]["soft_divergence"] - 1) > 0.1
    assert found["LayerNorm"]["overshoot_slack"] < 0 < own["overshoot_slack"]
    for name in CASES:
        assert 0 < np.sum(CASES[name]().batch.discount == 0) < len(CASES[name]().batch.reward)


@pytest.mark.parametrize("name", CASES)
def test_numbers_come_by_name_in_the_order_of_the_glossary(name):
    found = measured(name)
    assert list(found) == numbers_of(name)
    assert all(type(value) is float and np.isfinite(value) for value in found.values())


def test_in_float32_every_number_is_near_its_formula():
    """As agents run it: rounding of 1e-7, times a condition of some 1e2."""
    case = CASES["own step"]()
    got, wanted = look(case, "float32"), formulas(case)
    for number in GLOSSARY:
        np.testing.assert_allclose(
            got[number], wanted[number], rtol=1e-4, atol=1e-6, err_msg=number
        )
