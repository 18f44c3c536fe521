"""Scores, their intervals and published returns, against the formulas."""

import math

import numpy as np
import pytest
from fabricated import frozen, one

from experiments.judge import published, scores


def test_a_score_is_the_mean_of_the_last_ten_evaluations_up_to_a_step():
    returns = np.random.default_rng(0).normal(size=(3, 30))
    run = one(returns=lambda seed, t: float(returns[seed, round(20 * t) - 1]), end=30)
    for at, first, last in ((100_000, 10, 20), (104_999, 10, 20), (15_000, 0, 3)):
        np.testing.assert_allclose(
            scores.performances(run.cut(at)), returns[:, first:last].mean(axis=1), rtol=1e-12
        )


@pytest.mark.parametrize("sizes", [(4, 4), (3, 3, 3), (7,)])
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(sizes):
    rng = np.random.default_rng(1)
    tasks = [rng.normal(i, 1, size) for i, size in enumerate(sizes)]
    pooled = np.sort(np.concatenate(tasks))
    cut = len(pooled) // 4
    np.testing.assert_allclose(
        scores.interquartile_mean(tasks).value, pooled[cut : len(pooled) - cut].mean(), rtol=1e-12
    )


def test_a_task_weighs_the_same_however_many_seeds_it_has():
    rng = np.random.default_rng(1)
    tasks = [rng.normal(i, 1, size) for i, size in enumerate((6, 3, 2))]
    as_often = [np.tile(task, 6 // len(task)) for task in tasks]
    for seeds, alike in ((tasks, as_often), (tasks[::-1], as_often)):
        found, expected = (scores.interquartile_mean(one) for one in (seeds, alike))
        assert found.value == pytest.approx(expected.value, rel=1e-12)
    few, many = [np.zeros(3), np.ones(3)], [np.zeros(3), np.ones(21)]
    assert scores.middle(*few) == scores.middle(*many) == 0.5


def test_a_seed_that_diverged_has_no_score_also_where_all_did():
    extra = [frozen(30_000, 0), frozen(40_000, 1), frozen(50_000, 2)]
    assert np.isnan(scores.performances(one(extra=extra))).all()
    assert np.isfinite(scores.performances(one(variant="td3-relu", extra=extra[:1]))[1:]).all()


def test_an_evaluation_that_was_not_finite_counts():
    run = one(returns=lambda seed, t: None if t == 1 else t)
    assert np.isnan(scores.performances(run)).all()


def test_the_bootstrap_of_several_tasks_resamples_within_each():
    apart = scores.interquartile_mean([np.full(3, 0.0), np.full(3, 1.0), np.full(3, 5.0)])
    np.testing.assert_allclose(np.array(apart.interval), [apart.value, apart.value])
    rng = np.random.default_rng(2)
    tasks = [rng.normal(10 * i, 1, 5) for i in range(3)]
    drawn = []
    for _ in range(4000):
        pooled = np.sort(np.concatenate([rng.choice(task, 5) for task in tasks]))
        drawn.append(pooled[3:12].mean())
    np.testing.assert_allclose(
        np.array(scores.interquartile_mean(tasks).interval),
        np.quantile(drawn, [0.025, 0.975]),
        atol=0.06,
    )


@pytest.mark.parametrize(("seeds", "stated"), [(3, 0.75), (7, 0.88)])
def test_intervals_hold_the_mean_as_often_as_is_said(monkeypatch, seeds, stated):
    monkeypatch.setattr(scores, "RESAMPLES", 400)
    rng = np.random.default_rng(3)
    intervals = np.array([scores.mean(rng.normal(7, 2, seeds)).interval for _ in range(600)])
    assert abs(((intervals[:, 0] <= 7) & (intervals[:, 1] >= 7)).mean() - stated) < 0.05
    assert f"{stated:.0%}".replace("%", " %") in scores.RULES


def test_the_interval_of_a_difference_is_welchs():
    a, b = np.array([3.0, 4.0, 8.0]), np.array([1.0, 0.0, 2.0, 2.5])
    variance = a.var(ddof=1) / 3, b.var(ddof=1) / 4
    freedom = sum(variance) ** 2 / (variance[0] ** 2 / 2 + variance[1] ** 2 / 3)
    draws = np.random.default_rng(4).standard_t(freedom, 2_000_000)
    half = np.quantile(np.abs(draws), 0.95) * np.sqrt(sum(variance))
    found = scores.difference(a, b)
    assert found.value == pytest.approx(a.mean() - b.mean())
    np.testing.assert_allclose(
        np.array(found.interval), [found.value - half, found.value + half], rtol=0.02
    )


def test_where_there_is_no_spread_there_is_no_interval_or_an_empty_one():
    assert scores.mean(np.array([3.0])) == scores.Estimate(3.0, None)
    assert scores.difference(np.array([3.0]), np.array([1.0, 2.0])).interval is None
    assert scores.difference(np.full(2, 3.0), np.full(3, 1.0)) == scores.Estimate(2.0, (2.0, 2.0))
    assert scores.mean(np.array([3.0, np.nan])).interval is None


@pytest.mark.parametrize(
    ("interval", "sign"),
    [
        ((1.0, 2.0), 1),
        ((-2.0, -1.0), -1),
        ((-1.0, 2.0), 0),
        ((0.0, 2.0), 0),
        ((-2.0, 0.0), 0),
        (None, 0),
    ],
)
def test_clearly_is_all_of_an_interval_beside_zero(interval, sign):
    assert scores.clearly(scores.Estimate(0.5, interval)) == sign


def test_shares_are_the_same_as_likely_as_draws_without_replacement_say():
    """The probability of all outcomes with the same total that are at most as likely as the one
    found.
    """
    for (k, n), (j, m) in (((4, 12), (2, 24)), ((0, 5), (5, 9)), ((3, 3), (0, 3))):
        ways = [math.comb(n, i) * math.comb(m, k + j - i) for i in range(k + j + 1)]
        likely = sum(one for one in ways if one <= ways[k]) / sum(ways)
        assert scores.same_share((k, n), (j, m)) == pytest.approx(likely)
        assert scores.same_share((j, m), (k, n)) == pytest.approx(likely)
    assert scores.same_share((0, 9), (0, 18)) == 1


def test_every_environment_of_the_paper_has_a_scale_and_every_number_a_source():
    assert [
        published.scale(env)
        for env in ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5", "Ant-v5", "Swimmer-v5")
    ] == [
        9755,
        3998,
        2859,
        3808,
        78,
    ]
    assert published.scale("probe/delay") is None
    assert {row.source for row in published.RETURNS} == set(published.SOURCES)
    assert {row.step for row in published.of("Swimmer-v5", 100_000)} == {100_000} and len(
        published.of("Ant-v5", 1_000_000)
    ) == 9
