"""Section 5.2's rules: made-up records for which each verdict is yes, and others for which it is
no.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fabricated import SIX, better, frozen, one, write

from experiments.judge import comparison, power, section_5_2, verdict
from experiments.kit import curves

ENVS = ("HalfCheetah-v5", "Swimmer-v5")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Few draws are enough, as the verdicts here are far from the thresholds."""
    monkeypatch.setattr(power, "DRAWS", 20)


def find(words, envs=ENVS):
    runs, _ = curves.gather(Path("r"), envs, SIX)
    standing = [run.cut(curves.common_step(runs)) for run in runs]
    both = section_5_2.on_benchmark(standing, envs) + section_5_2.on_alignment(standing, envs)
    (found,) = [one for one in both if words in one.statement]
    assert all(part.refuted_by for part in found.parts)
    return found


def collapse(seeds=(0, 1, 2)):
    """Returns of which those of these seeds fall to nothing after 60 % of the run."""
    return lambda seed, t: 1000 * (0.0 if t >= 0.6 and seed in seeds else t) + seed


STATEMENTS = {
    # words of the statement -> records that make it true, and records that make it false: {variant:
    # fields of `write`}
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
        {"td3-sin": {"returns": better(500)}},
    ),
    "PreQN-relu was generally weaker": (
        {"preqn-relu": {"returns": collapse()}},
        {"preqn-sin": {"returns": collapse()}, "preqn-relu": {"returns": better(-5000)}},
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
    (0, "Swimmer-v5", "outperforms", None),
    (-500, "Swimmer-v5", "outperforms", False),
    (-500, "Hopper-v5", "underperforms", True),
    (0, "Hopper-v5", "underperforms", None),
    (500, "Hopper-v5", "underperforms", False),
])  # fmt: skip
def test_statements_on_single_environments(by, env, words, so):
    for variant in SIX:
        write(env, variant, **({"returns": better(by)} if variant == "preqn-sin" else {}))
    part = find(f" {words}", [env]).parts[0]
    assert part.borne_out is so and "over ddpg-relu" in part.evidence
    assert ("undecided: the interval holds zero" in part.evidence) == (so is None)
    assert find(" outperforms", [env]).parts[1][1:3] == ("needs runs on Ant", None)


@pytest.mark.parametrize(("sac", "so"), [(0, True), (500, None), (900, False)])
def test_better_than_one_baseline_is_not_better_than_both(sac, so):
    """If it is level with the other, the verdict is open; a clear defeat by it decides."""
    for variant in SIX:
        returns = better({"preqn-sin": 500, "sac-relu": sac}.get(variant, 0))
        write("Swimmer-v5", variant, returns)
    part = find(" outperforms", ["Swimmer-v5"]).parts[0]
    assert part.borne_out is so and part.refuted_by == "it is clearly worse than one of the two"
    told = [one for one in part.evidence.split("; ") if "the interval holds zero" in one]
    assert [part.split(" over ")[1].split(",")[0] for part in told] == ["sac-relu"] * (so is None)


def test_generally_needs_no_environment_to_say_the_opposite():
    for env, by in zip((*ENVS, "Ant-v5"), (-500, -500, 500), strict=True):
        write(env, "td3-relu")
        write(env, "td3-sin", returns=better(by))
    assert find("TD3-sin was", (*ENVS, "Ant-v5")).borne_out is False
    assert find("TD3-sin was", ENVS).borne_out is True


def test_where_nothing_is_clear_nothing_is_said_in_general():
    for env in ENVS:
        write(env, "td3-relu")
        write(env, "td3-sin", returns=better(0))
    assert find("TD3-sin was").borne_out is None


@pytest.mark.parametrize("by", [1, 0])
def test_generally_is_by_the_mean_on_more_than_half(by):
    """Clearly ahead on one of two, and a little ahead or level on the other."""
    for env, less in zip(ENVS, (-500, by), strict=True):
        write(env, "td3-relu")
        write(env, "td3-sin", returns=better(less))
    assert find("TD3-sin was").borne_out is False
    assert find("TD3-sin was", ENVS[:1]).borne_out is True


def test_a_seeds_alignment_is_the_mean_of_its_updates():
    """Rejected updates count as 0: one line of 21 that is 0 turns .99 into .943."""
    for variant in ("preqn-sin", "preqn-relu"):
        rejected = {"step": 52_000, "seed": 1, "critic/alignment": 0.0}
        write("HalfCheetah-v5", variant, extra=[rejected] if variant == "preqn-sin" else [])
    found = find("regardless of architecture", ["HalfCheetah-v5"])
    assert [part.borne_out for part in found.parts] == [False, True]
    assert f"{0.99 * 20 / 21:.4f}" in found.parts[0].evidence


def test_the_line_of_the_first_updates_is_no_part_of_a_mean():
    """It may cover 50 updates, while the others cover 5,000."""
    first = {"step": 5000, "seed": 1, "critic/alignment": 0.0}
    found = comparison.alignments(one(extra=[first], update_after=5000))
    np.testing.assert_allclose(found, [0.99] * 3)


def test_an_alignment_of_eta_is_enough(monkeypatch):
    for variant in ("preqn-sin", "preqn-relu"):
        write("HalfCheetah-v5", variant, align=0.5)
    for eta, so in ((0.5, True), (0.51, False)):
        monkeypatch.setattr(section_5_2, "ETA", eta)
        assert find("regardless of architecture", ["HalfCheetah-v5"]).borne_out is so


@pytest.mark.parametrize(
    ("sin", "relu", "lost", "so"),
    [
        (0, -900, (2,), True),  # the others are clearly the weaker too
        (-900, 0, (2,), None),  # they are clearly the stronger
        (0, 5, (2,), None),  # nor do they tell, as one of three may be chance
        (0, 900, (0, 1, 2), True),  # all are lost
    ],
)
def test_a_seed_that_diverges_decides_only_with_the_others(sin, relu, lost, so):
    env = "HalfCheetah-v5"
    write(env, "preqn-sin", returns=better(sin))
    write(env, "preqn-relu", returns=better(relu), extra=[frozen(61_050, s) for s in lost])
    (part, _) = find("PreQN-relu was", [env]).parts
    assert part.borne_out is so and f"{len(lost)} of 3 of preqn-relu" in part.evidence


def test_a_task_that_stays_open_beside_a_lost_seed_hides_no_other():
    for env, by in (("HalfCheetah-v5", -900), ("Swimmer-v5", 5)):
        write(env, "preqn-sin")
        lost = [frozen(61_050, 2)] if env == "Swimmer-v5" else []
        write(env, "preqn-relu", returns=better(by), extra=lost)
    (part, _) = find("PreQN-relu was").parts
    assert part.borne_out is False  # ahead by the mean on one of two, and so not open
    runs = {run.name: run for run in curves.gather(Path("r"), ENVS, SIX)[0]}
    sin, relu = (runs[f"Swimmer-v5/{variant}"] for variant in ("preqn-sin", "preqn-relu"))
    assert comparison.compare(sin, relu, comparison.performances)[0] == 0


def test_a_seed_that_diverged_did_not_live_to_break_the_other_rules():
    for variant in ("preqn-sin", "td3-relu"):
        write("HalfCheetah-v5", variant, extra=[frozen(16_050, 1)])
    a, b, c = find("is stable", ["HalfCheetah-v5"]).parts
    assert a.borne_out is False and b.borne_out is c.borne_out is True
    assert "2 of 3 seeds, not HalfCheetah-v5 seed 1; of the baselines td3-relu 1 of 3" in a.evidence
    for part in (b, c):
        assert part.evidence.startswith("2 of 2 seeds; of the baselines td3-relu 0 of 2 break it")
    for variant in ("preqn-sin", "td3-relu"):
        shutil.rmtree(f"r/HalfCheetah-v5/{variant}")
    write("HalfCheetah-v5", "preqn-sin", extra=[frozen(16_050, seed) for seed in range(3)])
    a, b, c = find("is stable", ["HalfCheetah-v5"]).parts
    assert a.borne_out is False and b.borne_out is c.borne_out is None


def test_shares_are_of_the_tasks_on_which_a_baseline_has_runs():
    write("HalfCheetah-v5", "preqn-sin")
    write("Swimmer-v5", "preqn-sin", q=200.0)
    write("HalfCheetah-v5", "td3-relu")
    evidence = find("is stable").parts[2].evidence
    assert "3 of 6 seeds, not Swimmer-v5 seed 0, 1, 2; of the baselines td3-relu 0 of 3" in evidence
    assert "equal shares, where they have runs (0 of 3): p = 1" in evidence


def test_what_diverged_is_the_weaker_whatever_it_returned():
    write("HalfCheetah-v5", "preqn-sin")
    write(
        "HalfCheetah-v5",
        "preqn-relu",
        returns=better(900),
        end=12,
        extra=[{"step": 61_050, "seed": 2, "run/diverged": 1.0}],
    )
    stronger, less_stable = find("PreQN-relu was", ["HalfCheetah-v5"]).parts
    assert stronger.borne_out is True and "diverged: 1 of 3 of preqn-relu" in stronger.evidence
    assert less_stable.borne_out is None  # one seed of three


@pytest.mark.parametrize(
    ("relu", "sin", "so", "p_value"),
    [  # seeds of seven that collapse
        (1, 0, None, "1"),
        (3, 3, None, "1"),
        (0, 0, None, "1"),
        (4, 0, None, "0.07"),
        (5, 0, True, "0.021"),
        (0, 4, None, "0.07"),
        (0, 5, False, "0.021"),
    ],
)
def test_what_is_less_stable_is_so_beyond_chance(relu, sin, so, p_value):
    """5 of 7 against 0 of 7: twice C(7, 5) of C(14, 5), as either side could have them."""
    for variant, count in (("preqn-relu", relu), ("preqn-sin", sin)):
        write("HalfCheetah-v5", variant, collapse(range(count)), seeds=range(7))
    part = find("PreQN-relu was", ["HalfCheetah-v5"]).parts[1]
    assert part.borne_out is so and part.evidence.endswith(f"equal shares: p = {p_value}")
    assert f"preqn-relu {relu} of 7" in part.evidence and f"preqn-sin {sin} of 7" in part.evidence


def test_beside_the_seeds_that_are_not_stable_stand_those_of_the_baselines():
    """On the same tasks, as far as records tell; the verdict is about PreQN alone."""
    write("HalfCheetah-v5", "preqn-sin")
    write("HalfCheetah-v5", "td3-relu", collapse([1]), q=200.0)
    write("HalfCheetah-v5", "sac-relu", worth=None)
    write("Swimmer-v5", "td3-relu", collapse())  # where PreQN has no runs
    finite, falls, overvalued = find("is stable", ["HalfCheetah-v5"]).parts
    assert finite.evidence == (
        "3 of 3 seeds; of the baselines td3-relu 0 of 3 and sac-relu 0 of 3 break it; "
        "equal shares: p = 1"
    )
    assert "td3-relu 1 of 3 (HalfCheetah-v5 seed 1) and sac-relu 0 of 3" in falls.evidence
    assert "td3-relu 3 of 3 (HalfCheetah-v5 seed 0, 1, 2) break it" in overvalued.evidence
    assert overvalued.evidence.endswith("p = 0.1")
    assert [one.borne_out for one in (finite, falls, overvalued)] == [True] * 3


def test_the_p_value_beside_a_fault_is_of_both_baselines_together():
    write("HalfCheetah-v5", "preqn-sin", collapse(range(4)), seeds=range(7))
    for variant in ("td3-relu", "sac-relu"):
        write("HalfCheetah-v5", variant, seeds=range(7))
    falls = find("is stable", ["HalfCheetah-v5"]).parts[1]
    expected = 4 * 5 * 6 * 7 / (18 * 19 * 20 * 21)  # all four faults among 7 of 21
    assert falls.borne_out is False and falls.evidence.endswith(f"p = {expected:.2g}")


@pytest.mark.parametrize(("preqn", "td3", "sac", "words"), [
    (0, -10, 10, "td3-relu and sac-relu"),
    (0, -60, 15, "sac-relu"),
    (500, 0, 0, "neither baseline"),
    (-500, 0, 0, "neither baseline"),
])  # fmt: skip
def test_it_is_told_whose_intervals_overlap(preqn, td3, sac, words):
    """Each interval is 20 wide."""
    for variant, by in (("preqn-sin", preqn), ("td3-relu", td3), ("sac-relu", sac)):
        write("HalfCheetah-v5", variant, better(by))
    part = find("comparing favorably", ["HalfCheetah-v5"]).parts[0]
    assert f"; its interval overlaps that of {words}; with 3 seeds" in part.evidence


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
        parts = find(words, (*ENVS, "Hopper-v5")).parts
        assert {part.borne_out for part in parts} == {None}


def test_a_clear_answer_stands_beside_what_is_open():
    """Swimmer has one seed; on HalfCheetah TD3-sin is clearly ahead, or behind."""
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
    (part,) = find("comparing favorably", ["HalfCheetah-v5"]).parts
    assert (
        part.borne_out is so
        and f"not every seed of {' and '.join(lost)} has a score" in part.evidence
    )
    assert "nan" not in part.evidence + part.refuted_by


def test_a_run_that_diverged_holds_back_no_other_and_stands_as_it_ended():
    ended = [{"step": 61_050, "seed": 2, "run/diverged": 1.0}]
    write("HalfCheetah-v5", "preqn-sin", end=12, extra=ended)
    write("HalfCheetah-v5", "td3-relu", end=15, num_steps=1_000_000)
    write("HalfCheetah-v5", "sac-relu", end=18, num_steps=1_000_000)
    runs, _ = curves.gather(Path("r"), ["HalfCheetah-v5"], SIX)
    diverged = runs[0]
    assert curves.common_step(runs) == 75_000 and curves.common_step([diverged]) == 61_050
    assert diverged.cut(75_000).diverged == {2: 61_050} and diverged.cut(75_000).reached == 60_000
    assert not diverged.cut(60_000).diverged and diverged.cut(50_000).reached == 50_000
    assert find("is stable", ["HalfCheetah-v5"]).parts[0].borne_out is False


def test_seeds_that_all_diverged_before_an_evaluation_are_not_stable():
    write("HalfCheetah-v5", "preqn-sin", end=0, extra=[frozen(2_351, seed) for seed in range(3)])
    for variant in SIX[1:3]:
        write("HalfCheetah-v5", variant)
    runs, notes = curves.gather(Path("r"), ["HalfCheetah-v5"], SIX[:3])
    assert [run.reached for run in runs] == [0, 100_000, 100_000] and len(notes) == 3
    assert curves.common_step(runs) == 100_000
    stable = find("is stable", ["HalfCheetah-v5"]).parts[0]
    assert stable.borne_out is False and "0 of 3 seeds" in stable.evidence
    assert find("comparing favorably", ["HalfCheetah-v5"]).parts[0].borne_out is False


def test_a_statement_cannot_be_judged_while_a_run_is_missing():
    for env, variant in ((ENVS[0], "td3-sin"), (ENVS[0], "td3-relu"), (ENVS[1], "td3-relu")):
        write(env, variant)
    found = find("better-aligned")
    assert found.borne_out is None and found.parts[0].evidence == "needs Swimmer-v5/td3-sin"


def test_comparing_favorably_is_by_thresholds_that_are_told():
    """PreQN on either side of 95 % of the better baseline, and of the lesser baseline."""
    for share, td3, so in ((0.96, 0.9, True), (0.94, 0.9, False), (0.96, 0.97, False)):
        for variant, level in (("preqn-sin", share), ("td3-relu", td3), ("sac-relu", 1.0)):
            (Path("r") / "HalfCheetah-v5" / variant).exists() and shutil.rmtree(
                Path("r") / "HalfCheetah-v5" / variant
            )
            write("HalfCheetah-v5", variant, returns=lambda seed, t, x=level: x * (9755 + seed))
        (part,) = find("comparing favorably", ["HalfCheetah-v5"]).parts
        assert part.borne_out is so and f"below {max(0.95, td3):.3f}" in part.refuted_by
        assert "a yes has probability" in part.evidence and "td3-relu" in part.evidence
        assert "and a no " in part.evidence and "its interval overlaps" in part.evidence


def test_environments_without_a_scale_are_not_put_together():
    for variant in SIX:
        write("probe/delay", variant)
    words = "no published returns to scale probe/delay by"
    assert find("comparing favorably", ["probe/delay"]).parts[0][1:3] == (words, None)


def test_one_part_that_fails_decides_even_where_another_cannot_be_judged():
    part = verdict.Part("x", "y", None, "z")
    assert verdict.Verdict("s", [part, part._replace(borne_out=False)]).borne_out is False
    assert verdict.Verdict("s", [part, part._replace(borne_out=True)]).borne_out is None
    assert verdict.Verdict("s", [part._replace(borne_out=True)]).borne_out is True


@pytest.mark.parametrize(("by", "so"), [(-500, False), (500, None)])
def test_a_baseline_that_cannot_be_told_does_not_hide_a_clear_defeat_by_the_other(by, so):
    write("Swimmer-v5", "preqn-sin", better(by))
    write("Swimmer-v5", "sac-relu")
    write("Swimmer-v5", "td3-relu", seeds=(0,))
    assert find(" outperforms", ["Swimmer-v5"]).parts[0].borne_out is so


def test_of_two_that_diverged_neither_is_the_weaker():
    lost = [{"step": 61_050, "seed": 2, "run/diverged": 1.0}]
    for variant in ("preqn-sin", "preqn-relu"):
        write("HalfCheetah-v5", variant, end=12, extra=lost)
    write("HalfCheetah-v5", "td3-relu")  # all are judged at its step
    part = find("PreQN-relu was", ["HalfCheetah-v5"]).parts[0]
    both = "diverged: 1 of 3 of preqn-sin, 1 of 3 of preqn-relu"
    assert part.borne_out is None and part.evidence.endswith(both)


def test_where_all_ended_by_divergence_the_step_is_the_end_of_the_last():
    """At the last evaluation before, it would stand as a run that did not diverge."""
    for variant, end in (("preqn-sin", 12), ("td3-relu", 8)):
        ended = [{"step": 5000 * end + 50, "seed": 2, "run/diverged": 1.0}]
        write("HalfCheetah-v5", variant, end=end, extra=ended)
    runs, _ = curves.gather(Path("r"), ["HalfCheetah-v5"], SIX)
    assert curves.common_step(runs) == 60_050
    assert find("is stable", ["HalfCheetah-v5"]).parts[0].borne_out is False


def test_a_seed_that_breaks_the_rule_refutes_it_whatever_is_missing():
    write("HalfCheetah-v5", "preqn-sin", q=200.0)  # above all it attained; Swimmer is not there
    parts = find("is stable").parts
    told = {part.words.partition(": ")[2]: part for part in parts}
    overvalued = told["no seed's mean Q is above what its evaluations attained"]
    assert overvalued.borne_out is False and "needs Swimmer-v5/preqn-sin" in overvalued.evidence
    assert told["finite in every seed"].borne_out is None
