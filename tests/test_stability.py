"""When a seed counts as stable, on made-up records."""

import shutil

import numpy as np
import pytest
from fabricated import frozen, one

from experiments.judge import section_5_2, stability


def test_a_return_collapses_if_it_loses_half_of_what_it_gained():
    rise = np.linspace(0, 100, 20)
    assert not stability.collapsed(rise, spread=1.0)
    assert stability.collapsed(np.concatenate([rise, np.full(5, 40.0)]), spread=1.0)
    assert not stability.collapsed(np.concatenate([rise, np.full(5, 60.0)]), spread=1.0)
    assert not stability.collapsed(
        np.concatenate([rise, np.full(4, 40.0), [100.0]]), spread=1.0
    )  # no five in a row
    assert not stability.collapsed(
        np.concatenate([rise, np.full(5, 40.0)]), spread=200.0
    )  # it never learned
    assert not stability.collapsed(np.array([0.0, 100.0, 0.0]), spread=1.0)  # too few to tell
    # What comes after does not mend a collapse, so that a later cut cannot change the verdict.
    again = np.concatenate([rise, np.full(5, 40.0), np.linspace(50, 200, 20)])
    assert stability.collapsed(again, spread=1.0)


def test_half_of_the_gain_and_a_gain_of_the_spread_are_the_lines():
    fall = lambda to: np.array([0.0] + 5 * [100.0] + 5 * [to])
    assert not stability.collapsed(fall(50.0), spread=1.0)
    assert stability.collapsed(fall(49.9), spread=1.0)
    assert stability.collapsed(fall(40.0), spread=99.9)
    dip = np.array([0.0, -400.0] + 5 * [100.0] + 5 * [60.0])
    assert not stability.collapsed(dip, spread=1.0)  # a gain is one over the first evaluation
    assert not stability.collapsed(fall(40.0), spread=100.0)


def test_no_later_evaluation_takes_a_collapse_back():
    """Not even one whose episodes differ by far more than those of before."""
    rng, some = np.random.default_rng(0), 0
    for _ in range(200):
        returns, spread = (
            np.cumsum(rng.normal(size=30)),
            np.geomspace(0.1, 100, 30) * rng.random(30),
        )
        told = [stability.collapsed(returns[:n], spread[:n]) for n in range(1, 31)]
        assert told == sorted(told)
        some += told[-1] and not stability.collapsed(returns, spread.mean())
    assert some  # which the mean of all spreads would have called stable


@pytest.mark.filterwarnings("error")
def test_without_the_spread_over_episodes_no_collapse_can_be_told():
    run = one(returns=lambda seed, t: 100 * (t if t < 0.6 else 0.0))
    lines = [[{**line, "eval/return_std": None} for line in seed] for seed in run.lines]
    assert stability.faults(run).b == [0, 1, 2]
    assert stability.faults(run._replace(lines=lines)).b is None
    for seed in lines:
        for line in seed:
            del line["eval/return_std"]
    assert stability.faults(run._replace(lines=lines)).b is None


@pytest.mark.filterwarnings("error")
def test_a_run_that_diverged_before_an_evaluation_is_told_without_a_warning():
    run = one(extra=[frozen(100, 0)])
    lines = [line for line in run.lines[0] if "eval/return_mean" not in line]
    assert stability.faults(run._replace(lines=[lines, *run.lines[1:]])).a == [0]


def test_a_run_without_faults_has_none():
    assert stability.faults(one()) == stability.Faults([], [], [])


def test_a_number_that_is_not_finite_is_a_fault_of_its_seed():
    assert stability.faults(one(extra=[{"step": 99_000, "seed": 1, "critic/q_mean": None}])).a == [
        1
    ]


def test_a_divergence_is_a_fault_of_its_seed_alone():
    run = one(end=12, extra=[frozen(61_050, 2)])
    assert (
        run.diverged == {2: 61_050}
        and stability.faults(run).a == [2]
        and run.reached == 60_000
        and not run.finished
    )


def test_a_run_has_reached_what_its_last_seed_has():
    run = one(extra=[{"step": 105_000, "seed": 1, "eval/return_mean": 1.0, "eval/return_std": 1.0}])
    assert run.reached == 100_000 and np.isnan(
        run.metric("eval/return_mean")[1][:, -1]
    ).tolist() == [True, False, True]


def test_a_metric_that_failed_to_be_measured_is_no_fault():
    assert (
        stability.faults(one(extra=[{"step": 99_000, "seed": 1, "solve/residual": None}])).a == []
    )


def test_a_collapse_is_a_fault_of_its_seed():
    assert stability.faults(
        one(returns=lambda seed, t: 100 * (t if seed != 1 or t < 0.6 else 0.0))
    ).b == [1]


@pytest.mark.parametrize("end", [5, 6])
def test_a_collapse_takes_more_evaluations_than_one_mean(end):
    run = one(returns=lambda seed, t: 100.0 * t, end=end)
    assert stability.faults(run).b == (None if end == 5 else [])
    parts = section_5_2.on_benchmark([run], ["HalfCheetah-v5"])[0].parts
    assert [part.borne_out for part in parts] == [True, None if end == 5 else True, True]
    assert ("5 evaluations or fewer" in parts[1].evidence) == (end == 5)


def test_q_above_what_evaluations_attained_is_a_fault():
    high = [{"step": 99_000, "seed": 2, "critic/q_mean": 100.5}]
    assert stability.faults(one(extra=high)).c == [2]


def test_q_is_judged_on_every_line_against_the_largest_of_all_evaluations():
    high = [{"step": 40_000, "seed": 2, "critic/q_mean": 100.5}]
    later = [*high, {"step": 99_000, "seed": 2, "critic/q_mean": 1.0}]
    assert stability.faults(one(extra=later)).c == [2]  # also if it came down again
    shutil.rmtree("r")
    level = [{"step": 99_000, "seed": 2, "critic/q_mean": 100.0}]
    assert stability.faults(one(extra=level)).c == []  # what was attained is not above it
    shutil.rmtree("r")
    attained = [*high, {"step": 10_000, "seed": 2, "eval/discounted_max": 101.0}]
    assert stability.faults(one(extra=attained)).c == []


def test_q_cannot_be_judged_on_records_without_attained_returns():
    assert stability.faults(one(worth=None)).c is None


def test_q_of_one_seed_is_told_whatever_another_lacks():
    run = one(extra=[{"step": 99_000, "seed": 2, "critic/q_mean": 100.5}])
    bare = [{k: v for k, v in line.items() if k != "eval/discounted_max"} for line in run.lines[0]]
    assert stability.faults(run._replace(lines=[bare, *run.lines[1:]])).c == [2]
    assert stability.faults(run._replace(lines=[bare, run.lines[1], run.lines[1]])).c is None


def test_q_is_judged_against_the_largest_evaluation_also_where_later_ones_attain_less():
    worth = lambda step, value: [
        {"step": step, "seed": seed, "eval/discounted_max": value} for seed in (0, 1, 2)
    ]
    high = {"step": 99_000, "seed": 2, "critic/q_mean": 100.5}
    run = one(worth=None, extra=[*worth(10_000, 101.0), *worth(100_000, 1.0), high])
    assert stability.faults(run).c == []
