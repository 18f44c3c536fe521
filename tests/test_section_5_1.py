"""Section 5.1's rules, on made-up numbers."""

from pathlib import Path

import numpy as np
import pytest

from experiments.judge import section_5_1
from preqn_jax.options import UserError

WIDTHS, DEPTHS, SEEDS = (32, 64, 128, 256), (1, 2, 3, 4), (0, 1, 2)


def diagonal(activation, width, depth):
    """Diagonals for which all four findings are borne out."""
    return {"tanh": 100, "relu": 600, "sin": 400}[activation] * (1 + np.log2(width) - depth)


def row_ratio(activation, width, depth):
    return {"tanh": 0.2, "relu": 0.4, "sin": 0.1}[activation] * (1 + 0.1 * depth)


def made_up(
    diagonal=diagonal,
    row_ratio=row_ratio,
    spread=0.01,
    activations=("tanh", "relu", "sin"),
    **config,
):
    """Data whose cells are these functions of (activation, width, depth), times 1 + spread * (-1,
    0, 1).
    """
    lists = {"envs": ["a", "b", "c"], "initializers": ["glorot"], "activations": list(activations)}
    config = {
        **lists,
        "widths": list(WIDTHS),
        "depths": list(DEPTHS),
        "seeds": list(SEEDS),
        **config,
    }
    noise, cells = 1 + spread * np.array([-1, 0, 1]), []
    sizes = {*((w, 2) for w in config["widths"]), *((64, d) for d in config["depths"])}
    for env in config["envs"]:
        for activation in activations:
            for width, depth in sorted(sizes):
                cell = {
                    "env": env,
                    "initializer": "glorot",
                    "activation": activation,
                    "hidden_sizes": [width] * depth,
                }
                cell["diagonal"] = list(diagonal(activation, width, depth) * noise)
                cell["row_ratio"] = list(row_ratio(activation, width, depth) * noise)
                cells.append(cell)
    return {"config": config, "data": {}, "cells": cells}


def verdicts(data):
    return [verdict.borne_out for verdict in section_5_1.findings(data)["glorot"]]


def parts(data, finding):
    return [part.borne_out for part in section_5_1.findings(data)["glorot"][finding - 1].parts]


def test_findings_that_hold():
    assert verdicts(made_up()) == [True] * 4


@pytest.mark.parametrize(
    ("finding", "expected", "change"),
    [
        # 1: no growth with width; none with relu alone; no decrease with depth; slopes that the
        # spread swallows
        (1, [False, True], {"diagonal": lambda a, w, d: diagonal(a, 64, d)}),
        (1, [False, True], {"diagonal": lambda a, w, d: diagonal(a, 64 if a == "relu" else w, d)}),
        (1, [True, False], {"diagonal": lambda a, w, d: diagonal(a, w, 2)}),
        (1, [True, False], {"diagonal": lambda a, w, d: diagonal(a, w, 5 - d)}),
        (1, [False, False], {"spread": 3.0}),
        # 2: no growth with depth; a correlation with width in either direction, or of one
        # activation alone
        (2, [False, True], {"row_ratio": lambda a, w, d: row_ratio(a, w, 1)}),
        (2, [True, False], {"row_ratio": lambda a, w, d: row_ratio(a, w, d) * np.log2(w)}),
        (2, [True, False], {"row_ratio": lambda a, w, d: row_ratio(a, w, d) / np.log2(w)}),
        (
            2,
            [True, False],
            {"row_ratio": lambda a, w, d: row_ratio(a, w, d) * (np.log2(w) if a == "sin" else 1)},
        ),
        # 3: relu below another, in diagonal or row ratio; ahead by less than the spread
        (
            3,
            [False, True],
            {"diagonal": lambda a, w, d: diagonal(a, w, d) * (0.5 if a == "relu" else 1)},
        ),
        (
            3,
            [True, False],
            {"row_ratio": lambda a, w, d: row_ratio(a, w, d) * (0.4 if a == "relu" else 1)},
        ),
        (3, [False, False], {"spread": 3.0}),
        # 4: sin with the smallest diagonal, or nearer to the least than to the largest; with a row
        # ratio between the others'
        (
            4,
            [False, True],
            {"diagonal": lambda a, w, d: diagonal(a, w, d) * (0.1 if a == "sin" else 1)},
        ),
        (
            4,
            [False, True],
            {"diagonal": lambda a, w, d: diagonal(a, w, d) * (0.8 if a == "sin" else 1)},
        ),
        (
            4,
            [True, False],
            {"row_ratio": lambda a, w, d: row_ratio(a, w, d) * (3 if a == "sin" else 1)},
        ),
    ],
)
def test_findings_that_do_not(finding, expected, change):
    data = made_up(**change)
    assert parts(data, finding) == expected and verdicts(data)[finding - 1] == all(expected)


def test_most_is_more_than_half():
    """Two of three environments are enough for a tendency, one of two is not."""
    for envs, expected in ((["a", "b", "c"], True), (["a", "c"], False)):
        data = made_up(envs=envs)
        for cell in data["cells"]:
            if cell["env"] == "c":
                cell["diagonal"] = [100.0 - cell["hidden_sizes"][0] / 10, 100.0, 100.0]
        assert parts(data, 1)[0] is expected


@pytest.mark.parametrize(("lost", "expected"), [(5, True), (6, False)])
def test_commonly_is_three_quarters_of_all_pairs(lost, expected):
    """Of 21 pairs; those in which relu falls behind are spread over the environments."""
    data = made_up()
    relu = [cell for cell in data["cells"] if cell["activation"] == "relu"]
    for cell in sorted(relu, key=lambda cell: cell["hidden_sizes"])[:lost]:
        cell["diagonal"] = [1.0, 1.01, 1.02]
    assert parts(data, 3) == [expected, True]


def test_commonly_is_in_every_environment():
    data = made_up()
    for cell in data["cells"]:
        if cell["env"] == "c" and cell["activation"] == "relu" and cell["hidden_sizes"][0] == 64:
            cell["diagonal"] = [1.0, 1.01, 1.02]  # 4 of its 7 sizes, 4 of all 21
    assert parts(data, 3) == [False, True]


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ({"a": [[64]], "b": [[64]], "c": [[64]]}, True),  # 9 of 12 are three quarters
        ({"a": [[64]], "b": [[64]], "c": [[64], [32, 32]]}, False),
        ({"c": [[64], [32, 32]]}, False),  # 2 of 4 are not more than half
    ],
)
def test_where_three_quarters_and_half_begin(lost, expected):
    data = made_up(widths=[32, 64, 128], depths=[1, 2])
    for cell in data["cells"]:
        if cell["activation"] == "relu" and cell["hidden_sizes"] in lost.get(cell["env"], []):
            cell["diagonal"] = [1.0, 1.01, 1.02]
    assert parts(data, 3) == [expected, True]


def test_clear_is_more_than_two_standard_errors():
    at = lambda mean: np.array([mean - 1, mean + 1])  # its mean has a standard error of 1
    for mean, clear in ((2.0, False), (2.001, True)):
        assert section_5_1._clear(at(mean), np.zeros(2)) is clear


def test_what_is_constant_neither_rises_nor_falls():
    data = made_up(spread=0.0, row_ratio=lambda a, w, d: 0.25 * d, diagonal=lambda a, w, d: 4.0)
    assert parts(data, 2) == [True, True] and parts(data, 1) == [False, False]


def test_every_part_says_what_makes_it_a_no():
    rows = section_5_1.as_json(section_5_1.findings(made_up()))
    assert all(part["refuted_by"] for row in rows for part in row["parts"])
    assert [row["finding"] for row in rows] == [1, 2, 3, 4]


def test_what_the_numbers_cannot_tell_is_not_judged():
    assert verdicts(made_up(depths=[])) == [None, None, True, True]
    assert verdicts(made_up(activations=("tanh", "relu"))) == [True, True, True, None]
    assert verdicts(made_up(activations=("sin",))) == [True, True, None, None]


def test_slopes_are_of_least_squares_with_their_standard_error_over_initialisations():
    """A slope is linear in the means at each size, whose errors are independent."""
    rng = np.random.default_rng(0)
    x, values = np.array([5.0, 6.0, 9.0]), rng.normal(size=(3, 4)) * [[0.1], [1.0], [3.0]]
    weights = [np.polyfit(x, unit, 1)[0] for unit in np.eye(3)]
    terms = [w * values[i].std(ddof=1) / 2 for i, w in enumerate(weights)]
    slope = np.polyfit(np.repeat(x, 4), values.ravel(), 1)[0]
    np.testing.assert_allclose(section_5_1._slope(x, values), (slope, np.hypot.reduce(terms)))


@pytest.mark.parametrize(("spread", "clear"), [(0.01, True), (0.5, False)])
def test_a_line_that_fits_badly_is_clear_where_every_initialisation_has_it(spread, clear):
    """Means of 5, 1, 6 and 4.5 rise by .35 per doubling. By their distances from the line the error
    would be .52, whatever the spread over initialisations.
    """
    at = dict(zip(WIDTHS, (500.0, 100.0, 600.0, 450.0), strict=True))
    data = made_up(spread=spread, diagonal=lambda a, w, d: at[w] * 2.0**-d)
    assert parts(data, 1)[0] is clear


def test_figures_are_named_after_the_papers(tmp_path):
    data = made_up(envs=["Walker2d-v5", "Ant-v5"], points=1000)
    paths = section_5_1.draw(data, tmp_path / "deep")
    assert sorted(p.name for p in paths) == [
        "figure_1.png",
        "figure_4.png",
        "figure_6.png",
        "figure_7.png",
        "figure_9.png",
    ]
    assert all(p.stat().st_size > 5000 for p in paths)


def test_unfinished_numbers_are_not_drawn_or_judged():
    data = made_up()
    data["cells"].pop(0)
    for read in (section_5_1.findings, lambda data: section_5_1.draw(data, Path("out"))):
        with pytest.raises(UserError, match="unfinished run"):
            read(data)


def test_a_slope_over_widths_is_against_their_logarithm():
    """The residual of log2 width after a linear fit in width: it has no slope against width, but
    one against log2 width.
    """
    widths = 2 ** np.arange(5, 13)
    left = np.log2(widths) - np.polyval(np.polyfit(widths, np.log2(widths), 1), widths)
    at = dict(zip(widths.tolist(), left, strict=True))
    data = made_up(diagonal=lambda a, w, d: 10 + at[w] - d, spread=1e-4, widths=widths.tolist())
    assert parts(data, 1) == [True, True]
