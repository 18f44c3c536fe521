"""The rule of "comparing favorably": how often it says yes or no, wrongly or rightly, and when it
leaves the question open.
"""

import numpy as np
import pytest
from scipy import stats

from experiments.judge import power, section_5_2


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 7])
def test_the_rules_state_their_power_which_is_none_at_four_fifths(seeds):
    found = power.power(np.ones(5), np.full(5, 0.25), seeds)
    rules = " ".join(section_5_2.RULES.split())
    yes, no = [one.yes for one in found.values()], [found[share].no for share in (1.0, 1.1)]
    for stated in (yes, no):
        assert ", ".join(f"{one:.2f}" for one in stated) in rules
    assert max(yes[:3]) < 0.01 and yes[-1] > 0.85 and yes == sorted(yes)


@pytest.mark.parametrize("share", [1.0, 1.1])
def test_a_no_to_one_who_equals_its_rivals_is_as_likely_as_is_told(share):
    """One task and three seeds, of which no quarter can be left out: the score is a mean, and
    normal.
    """
    own, *rivals = np.random.default_rng(5).normal(1, 0.3 / np.sqrt(3), size=(3, 200_000))
    needed = np.maximum(0.95 * np.maximum(*rivals), np.minimum(*rivals))
    found = power.odds(share, np.ones(1), np.full(1, 0.3), 3)
    assert found.no == pytest.approx(np.mean(share * own < needed), abs=0.06)
    assert found.no > 0.3 and found.yes + found.no < 1  # the rest cannot be judged


def test_the_words_are_of_a_yes_at_every_share_and_of_a_no_where_it_is_wrong():
    found = {share: power.Odds(share / 10, share / 5) for share in power.SHARES}
    assert power.words(found) == (
        "a yes has probability 0.06, 0.07, 0.08, 0.09, 0.10, 0.11 at 60, 70, 80, 90, 100, 110 %, "
        "and a no 0.20, 0.22 at 100, 110 %"
    )


def drawn(rng, levels, spread, count=3):
    """Random scores `[S]` for each task."""
    return list((levels * (1 + spread * rng.normal(size=(count, len(levels))))).T)


@pytest.mark.parametrize(("levels", "spread"), [
    ([1.0, 1.0, 1.0], 0.25),
    ([1.0], 0.3),
    ([0.42, 0.12, 0.55], 0.5),
    ([0.42, 0.12, 0.55], [0.45, 0.15, 0.2]),
])  # fmt: skip
def test_four_fifths_do_not_pass_however_scores_spread(levels, spread):
    """The level of the rule, which does not know the true spread; by its thresholds alone, 80 % of
    both rivals would pass more often if scores spread widely.
    """
    rng, levels, repeats = np.random.default_rng(6), np.array(levels), 150
    answers, above = [], 0
    for _ in range(repeats):
        own, *rivals = (drawn(rng, x * levels, np.array(spread)) for x in (0.8, 1, 1))
        answers.append(power.favorable(own, rivals))
        middles = [np.sort(np.concatenate(one)) for one in (own, *rivals)]
        cut = len(middles[0]) // 4
        found, *others = (one[cut : len(one) - cut].mean() for one in middles)
        above += found >= max(0.95 * max(others), min(others))
    assert answers.count(True) <= 0.05 * repeats
    assert answers.count(True) + answers.count(None) == above


def test_what_passes_but_might_be_four_fifths_is_not_judged():
    """One task, PreQN level with its rivals: with scores that hardly spread it is, with scores that
    spread by half it cannot be told."""
    level = lambda spread: [np.array([1 - spread, 1.0, 1 + spread])]
    for spread, so in ((0.01, True), (0.5, None)):
        assert power.favorable(level(spread), [level(spread)] * 2) is so
    assert power.favorable([np.array([1.0])], [[np.array([1.0])]] * 2) is None  # a single seed
    assert power.favorable([np.array([0.9])], [[np.array([1.0])]] * 2) is False


def test_the_risk_is_that_four_fifths_lead_by_as_much(monkeypatch):
    """One task and three seeds, of which no quarter can be left out: a difference of two means,
    with standard errors of .8 and 1 times 20 % / sqrt(3).
    """
    monkeypatch.setattr(power, "DRAWS", 20_000)
    deviation = 0.2 * np.sqrt((0.8**2 + 1) / 3)
    for lead in (-0.3, -0.2, 0.0):
        found = power.chance(lead, np.ones(1), np.full(1, 0.2), 3)
        assert found == pytest.approx(stats.norm.sf(lead, -0.2, deviation), abs=0.012)


def test_a_score_near_zero_says_nothing_of_how_far_scores_spread():
    """An environment on which PreQN attains nothing yet, so that its scores hardly spread."""
    rival = [np.array([1.0, 1.02, 0.98]), np.array([0.5, 0.51, 0.49])]
    own = [np.array([1.3, 1.31, 1.29]), np.array([-0.02, 0.0, 0.02])]
    np.testing.assert_allclose(power.deviations([own, rival]) ** 2, [0.00025, 0.00025])
    assert power.favorable([own[0], rival[1] + 0.01], [rival] * 2) is True
    assert power.favorable([own[0], rival[1] - rival[1].mean()], [rival] * 2) is False


def test_below_zero_who_attains_less_is_further_below(monkeypatch):
    monkeypatch.setattr(power, "DRAWS", 100)
    found = power.chance(0.0, np.full(1, -1.0), np.full(1, 1e-6), 3)
    assert found == 0 == power.chance(0.0, np.full(1, 1.0), np.full(1, 1e-6), 3)


def test_what_is_needed_below_zero_is_further_below():
    assert power.threshold([-1.0, -2.0]) == -1.05 and power.threshold([1.0, 0.5]) == 0.95


def test_seeds_are_the_fewest_of_any_task_and_a_single_one_has_no_spread():
    own, rival = [np.ones(3), np.ones(2)], [np.ones(3), np.ones(1)]
    assert power.seeds([own, own]) == 2 and power.seeds([own, rival]) == 1
    assert np.isnan(power.deviations([own, rival])).all()
