"""Two runs compared where seeds diverged, on made-up records."""

from pathlib import Path

import numpy as np
from fabricated import SIX, better, frozen, one, write

from experiments.judge import comparison, power
from experiments.kit import curves

ENVS = ("HalfCheetah-v5", "Swimmer-v5")


def test_enough_seeds_that_diverge_decide_unless_the_others_say_the_opposite():
    for env, by in (("HalfCheetah-v5", 5), ("Swimmer-v5", 900)):
        seven = {"seeds": tuple(range(7))}
        write(env, "preqn-sin", **seven)
        gone = [frozen(61_050, seed) for seed in (0, 1, 4, 5, 6)]  # of 7: p = .021
        write(env, "preqn-relu", returns=better(by), extra=gone, **seven)
    runs = {run.name: run for run in curves.gather(Path("r"), ENVS, SIX)[0]}
    for env, so in (("HalfCheetah-v5", 1), ("Swimmer-v5", None)):
        sin, relu = (runs[f"{env}/{variant}"] for variant in ("preqn-sin", "preqn-relu"))
        assert comparison.compare(sin, relu, comparison.performances)[0] == so


def test_all_seeds_lost_beside_few_decide():
    seven = {"seeds": tuple(range(7))}
    sin = one("preqn-sin", extra=[frozen(61_050, 3)], **seven)
    relu = one("preqn-relu", extra=[frozen(61_050, seed) for seed in range(7)], **seven)
    assert comparison.compare(sin, relu, comparison.performances)[0] == 1  # p = .005
    assert comparison.compare(relu, sin, comparison.performances)[0] == -1


def test_a_baseline_that_diverged_hides_no_defeat_by_the_other():
    nan, low, high = np.array([np.nan, 9.0]), np.array([2.0, 3.0]), np.array([5.0, 6.0])
    assert power.favorable([low], [[nan], [high]]) is False
    assert power.favorable([high], [[nan], [low]]) is None
    assert power.favorable([nan], [[nan], [low]]) is False
