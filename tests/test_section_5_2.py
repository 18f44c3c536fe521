"""Section 5.2's rules: statistics against the formulas, verdicts on made-up records both ways."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fabricated import SIX, better, frozen, write

from experiments.judge import power, published, scores, section_5_2, stability, verdict
from experiments.kit import curves

ENVS = ("HalfCheetah-v5", "Swimmer-v5")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Enough to tell where a rule says yes; verdicts here are far from its edges."""
    monkeypatch.setattr(power, "DRAWS", 20)


def one(**fields):
    write("HalfCheetah-v5", "preqn-sin", **fields)
    (run,), notes = curves.gather(Path("r"), ["HalfCheetah-v5"], ["preqn-sin"])
    return run


# --- statistics -----------------------------------------------------------------------------------


def test_a_score_is_the_mean_of_the_last_ten_evaluations_up_to_a_step():
    returns = np.random.default_rng(0).normal(size=(3, 30))
    run = one(returns=lambda seed, t: float(returns[seed, round(20 * t) - 1]), end=30)
    for at, first, last in ((100_000, 10, 20), (104_999, 10, 20), (15_000, 0, 3)):
        np.testing.assert_allclose(
            section_5_2.performances(run.cut(at)), returns[:, first:last].mean(axis=1), rtol=1e-12
        )


@pytest.mark.parametrize("sizes", [(4, 4), (3, 3, 3), (7, 5, 2)])
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(sizes):
    rng = np.random.default_rng(1)
    tasks = [rng.normal(i, 1, size) for i, size in enumerate(sizes)]
    pooled = np.sort(np.concatenate(tasks))
    cut = len(pooled) // 4
    np.testing.assert_allclose(
        scores.interquartile_mean(tasks).value, pooled[cut : len(pooled) - cut].mean(), rtol=1e-12
    )


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


# --- a seed's stability ---------------------------------------------------------------------------


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


def test_half_of_the_gain_and_a_gain_of_the_spread_are_the_lines():
    fall = lambda to: np.array([0.0] + 5 * [100.0] + 5 * [to])
    assert not stability.collapsed(fall(50.0), spread=1.0)
    assert stability.collapsed(fall(49.9), spread=1.0)
    assert stability.collapsed(fall(40.0), spread=99.9)
    dip = np.array([0.0, -400.0] + 5 * [100.0] + 5 * [60.0])
    assert not stability.collapsed(dip, spread=1.0)  # a gain is one over the first evaluation
    assert not stability.collapsed(fall(40.0), spread=100.0)


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
    halves = section_5_2.on_benchmark([run], ["HalfCheetah-v5"])[0].halves
    assert [half.borne_out for half in halves] == [True, None if end == 5 else True, True]
    assert ("5 evaluations or fewer" in halves[1].evidence) == (end == 5)


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


# --- verdicts -------------------------------------------------------------------------------------


def find(words, envs=ENVS):
    runs, _ = curves.gather(Path("r"), envs, SIX)
    standing = [run.cut(curves.common_step(runs)) for run in runs]
    both = section_5_2.on_benchmark(standing, envs) + section_5_2.on_alignment(standing, envs)
    (found,) = [one for one in both if words in one.statement]
    assert all(half.refuted_by for half in found.halves)
    return found


STATEMENTS = {
    # words of the statement -> what makes it so, and what makes it not so: {variant: fields of
    # `write`}
    "is stable": ({}, {"preqn-sin": {"q": 200.0}}),
    "comparing favorably": (
        {"preqn-sin": {"returns": better(-5)}, "td3-relu": {"returns": better(-20)}},
        {"preqn-sin": {"returns": better(-100)}},
    ),
    "regardless of architecture": ({}, {"preqn-relu": {"align": 0.9}}),
    "better-aligned": (
        {"td3-sin": {"align": 0.6}, "td3-relu": {"align": 0.4}},
        {"td3-sin": {"align": 0.3}},
    ),
    "TD3-sin was generally weaker": (
        {"td3-sin": {"returns": better(-500)}},
        {"td3-sin": {"returns": better(0)}},
    ),
    "PreQN-relu was generally weaker": (
        {"preqn-relu": {"returns": lambda seed, t: 1000 * (t if t < 0.6 else 0.0) + seed}},
        {"preqn-relu": {"returns": better(-500)}},  # weaker, but not because it is less stable
    ),
}


@pytest.mark.parametrize("so", [True, False])
@pytest.mark.parametrize("words", STATEMENTS)
def test_a_statement_is_borne_out_or_not(words, so):
    changes = STATEMENTS[words][0 if so else 1]
    for env in ENVS:
        for variant in SIX:
            write(env, variant, **changes.get(variant, {}))
    assert find(words).borne_out is so


@pytest.mark.parametrize(("by", "env", "words", "so"), [
    (500, "Swimmer-v5", "outperforms", True),
    (0, "Swimmer-v5", "outperforms", False),
    (-500, "Hopper-v5", "underperforms", True),
    (500, "Hopper-v5", "underperforms", False),
])  # fmt: skip
def test_statements_on_single_environments(by, env, words, so):
    for variant in SIX:
        write(env, variant, **({"returns": better(by)} if variant == "preqn-sin" else {}))
    half = find(f" {words}", [env]).halves[0]
    assert half.borne_out is so and "over ddpg-relu" in half.evidence
    assert find(" outperforms", [env]).halves[1][1:3] == ("needs runs on Ant", None)


def test_better_than_one_baseline_is_not_better_than_both():
    for variant in SIX:
        write(
            "Swimmer-v5",
            variant,
            returns=better({"preqn-sin": 500, "sac-relu": 500}.get(variant, 0)),
        )
    assert find(" outperforms", ["Swimmer-v5"]).halves[0].borne_out is False


def test_generally_needs_no_environment_to_say_the_opposite():
    for env, by in zip((*ENVS, "Ant-v5"), (-500, -500, 500), strict=True):
        write(env, "td3-relu")
        write(env, "td3-sin", returns=better(by))
    assert find("TD3-sin was", (*ENVS, "Ant-v5")).borne_out is False
    assert find("TD3-sin was", ENVS).borne_out is True


@pytest.mark.parametrize("by", [1, 0])
def test_generally_is_by_the_mean_on_more_than_half(by):
    """Clear on one of two, and on the other a little ahead, or level."""
    for env, less in zip(ENVS, (-500, by), strict=True):
        write(env, "td3-relu")
        write(env, "td3-sin", returns=better(less))
    assert find("TD3-sin was").borne_out is False
    assert find("TD3-sin was", ENVS[:1]).borne_out is True


def test_a_seeds_alignment_is_the_mean_of_its_updates():
    """Rejected ones count as 0: one line of 21 that is 0 takes .99 to .943."""
    for variant in ("preqn-sin", "preqn-relu"):
        rejected = {"step": 52_000, "seed": 1, "critic/alignment": 0.0}
        write("HalfCheetah-v5", variant, extra=[rejected] if variant == "preqn-sin" else [])
    found = find("regardless of architecture", ["HalfCheetah-v5"])
    assert [half.borne_out for half in found.halves] == [False, True]
    assert f"{0.99 * 20 / 21:.4f}" in found.halves[0].evidence


def test_the_line_of_the_first_updates_is_no_part_of_a_mean():
    """It may be of 50 updates, where the others are of 5,000."""
    first = {"step": 5000, "seed": 1, "critic/alignment": 0.0}
    found = section_5_2.alignments(one(extra=[first], update_after=5000))
    np.testing.assert_allclose(found, [0.99] * 3)


def test_an_alignment_of_eta_is_enough(monkeypatch):
    for variant in ("preqn-sin", "preqn-relu"):
        write("HalfCheetah-v5", variant, align=0.5)
    for eta, so in ((0.5, True), (0.51, False)):
        monkeypatch.setattr(section_5_2, "ETA", eta)
        assert find("regardless of architecture", ["HalfCheetah-v5"]).borne_out is so


def test_what_diverged_is_the_weaker_whatever_it_returned():
    write("HalfCheetah-v5", "preqn-sin")
    write(
        "HalfCheetah-v5",
        "preqn-relu",
        returns=better(900),
        end=12,
        extra=[{"step": 61_050, "seed": 2, "run/diverged": 1.0}],
    )
    verdict = find("PreQN-relu was", ["HalfCheetah-v5"])
    assert verdict.borne_out is True and "preqn-relu diverged" in verdict.halves[0].evidence


@pytest.mark.filterwarnings("ignore:Precision loss")  # scores without any spread
def test_unfinished_runs_are_judged_where_all_of_them_stand():
    for variant in SIX:
        # PreQN is ahead up to step 60,000, and far behind later.
        ahead = lambda seed, t: 2000 * t if t <= 0.6 else 0.0
        changed = {"returns": ahead} if variant == "preqn-sin" else {}
        end = 12 if variant == "sac-relu" else 30 if variant == "td3-sin" else 20
        write("HalfCheetah-v5", variant, end=end, num_steps=1_000_000, **changed)
    runs, _ = curves.gather(Path("r"), ["HalfCheetah-v5"], SIX)
    assert curves.common_step(runs) == 60_000
    assert {run.cut(60_000).reached for run in runs} == {60_000}
    assert find("comparing favorably", ["HalfCheetah-v5"]).borne_out is True
    assert find("is stable", ["HalfCheetah-v5"]).borne_out is True  # no collapse by then


def test_a_single_seed_leaves_open_what_has_to_be_clear():
    for env in (*ENVS, "Hopper-v5"):
        for variant in SIX:
            write(env, variant, better(-900) if variant == "td3-sin" else better(0), seeds=(0,))
    for words in ("better-aligned", "TD3-sin was", " outperforms", " underperforms"):
        halves = find(words, (*ENVS, "Hopper-v5")).halves
        assert {half.borne_out for half in halves} == {None}


def test_a_clear_answer_stands_beside_what_is_open():
    """A seed each on Swimmer; on HalfCheetah TD3-sin is clearly ahead, or behind."""
    for by, so in ((500, False), (-500, None)):
        shutil.rmtree("r", ignore_errors=True)
        for env, seeds in zip(ENVS, ((0, 1, 2), (0,)), strict=True):
            write(env, "td3-relu", seeds=seeds)
            write(env, "td3-sin", better(by), seeds=seeds)
        assert find("TD3-sin was").borne_out is so


@pytest.mark.parametrize(
    ("lost", "so"),
    [(["preqn-sin"], False), (["td3-relu"], None), (["preqn-sin", "td3-relu"], False)],
)
def test_a_seed_that_diverged_has_no_score(lost, so):
    for variant in SIX[:3]:
        write("HalfCheetah-v5", variant, better(900) if variant == "preqn-sin" else better(0))
    for variant in lost:
        shutil.rmtree(Path("r/HalfCheetah-v5") / variant)
        write("HalfCheetah-v5", variant, seeds=(0, 1), extra=[frozen(16_000, 1)], end=3)
        with (Path("r/HalfCheetah-v5") / variant / "metrics.jsonl").open("a") as file:
            for i in range(4, 21):
                line = {"step": 5000 * i, "seed": 0, "eval/return_mean": 1.0}
                file.write(f"{json.dumps(line)}\n")
    (half,) = find("comparing favorably", ["HalfCheetah-v5"]).halves
    assert (
        half.borne_out is so
        and f"not every seed of {' and '.join(lost)} has a score" in half.evidence
    )
    assert "nan" not in half.evidence + half.refuted_by


def test_a_run_that_diverged_holds_back_no_other_and_stands_as_it_ended():
    ended = [{"step": 61_050, "seed": 2, "run/diverged": 1.0}]
    write("HalfCheetah-v5", "preqn-sin", end=12, extra=ended)
    write("HalfCheetah-v5", "td3-relu", end=15, num_steps=1_000_000)
    write("HalfCheetah-v5", "sac-relu", end=18, num_steps=1_000_000)
    runs, _ = curves.gather(Path("r"), ["HalfCheetah-v5"], SIX)
    diverged = runs[0]
    assert curves.common_step(runs) == 75_000 and curves.common_step([diverged]) == 60_000
    assert diverged.cut(75_000).diverged == {2: 61_050} and diverged.cut(75_000).reached == 60_000
    assert not diverged.cut(60_000).diverged and diverged.cut(50_000).reached == 50_000
    assert find("is stable", ["HalfCheetah-v5"]).halves[0].borne_out is False


def test_a_statement_cannot_be_judged_while_a_run_is_missing():
    for env, variant in ((ENVS[0], "td3-sin"), (ENVS[0], "td3-relu"), (ENVS[1], "td3-relu")):
        write(env, variant)
    found = find("better-aligned")
    assert found.borne_out is None and found.halves[0].evidence == "needs Swimmer-v5/td3-sin"


def test_comparing_favorably_is_by_thresholds_that_are_told():
    """PreQN on each side of 95 % of the better baseline, and of the lesser one."""
    for share, td3, so in ((0.96, 0.9, True), (0.94, 0.9, False), (0.96, 0.97, False)):
        for variant, level in (("preqn-sin", share), ("td3-relu", td3), ("sac-relu", 1.0)):
            (Path("r") / "HalfCheetah-v5" / variant).exists() and shutil.rmtree(
                Path("r") / "HalfCheetah-v5" / variant
            )
            write("HalfCheetah-v5", variant, returns=lambda seed, t, x=level: x * (9755 + seed))
        (half,) = find("comparing favorably", ["HalfCheetah-v5"]).halves
        assert half.borne_out is so and f"below {max(0.95, td3):.3f}" in half.refuted_by
        assert "a yes has probability" in half.evidence and "td3-relu" in half.evidence


def test_environments_without_a_scale_are_not_put_together():
    for variant in SIX:
        write("probe/delay", variant)
    assert find("comparing favorably", ["probe/delay"]).halves[0][1:3] == ("needs runs", None)


def test_one_half_that_fails_decides_even_where_another_cannot_be_judged():
    half = verdict.Half("x", "y", None, "z")
    assert verdict.Verdict("s", [half, half._replace(borne_out=False)]).borne_out is False
    assert verdict.Verdict("s", [half, half._replace(borne_out=True)]).borne_out is None
    assert verdict.Verdict("s", [half._replace(borne_out=True)]).borne_out is True
