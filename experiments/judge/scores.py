"""Scores, one number for the returns of a seed, and intervals for means over a few seeds."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.kit.curves import Curves, evaluations

WINDOW = 10  # evaluations in a score
LEVEL = 0.95
RESAMPLES = 9999
RULES = f"""\
A score is the mean of a seed's last {WINDOW} evaluations up to a step (of all, where there are
fewer). Brackets hold {LEVEL:.0%} percentile bootstrap intervals of {RESAMPLES:,} resamples of the
seeds. With few seeds these are narrow: of normal scores they hold the true mean 50 % of the time
with two seeds, 75 % with three, 88 % with seven."""


class Estimate(NamedTuple):
    """A statistic over a few seeds, and its interval; None where there is none, as with a single
    seed.
    """

    value: float
    interval: tuple[float, float] | None

    def __format__(self, digits: str) -> str:
        low_high = self.interval
        shown = f" [{low_high[0]:{digits}}, {low_high[1]:{digits}}]" if low_high else ""
        return f"{self.value:{digits}}{shown}" if np.isfinite(self.value) else "not finite"


def performances(run: Curves) -> np.ndarray:
    """The score of each seed, `[S]`, at the last step that the run reached; NaN for a seed that
    diverged, or has no evaluation.
    """
    by_seed = zip(run.seeds, map(evaluations, run.cut(run.reached).lines), strict=True)
    return np.array(
        [
            np.nan if seed in run.diverged or not len(returns) else returns[-WINDOW:].mean()
            for seed, returns in by_seed
        ]
    )


def mean(scores: np.ndarray) -> Estimate:
    """The mean of `scores [S]`."""
    return _estimate((scores,), np.mean)


def difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    """mean(a) - mean(b) of scores `[S]` and `[S']`, with Welch's interval, whose level is right
    even with few seeds.
    """
    value = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2 or not np.isfinite(value):
        return Estimate(value, None)
    spread, size = max(np.ptp(a), np.ptp(b)), max(np.abs(a).max(), np.abs(b).max())
    if spread <= 1e-9 * size:  # only rounding errors, for which Welch's formula fails
        return Estimate(value, (value, value))
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return Estimate(value, (float(low), float(high)))


def interquartile_mean(scores: Sequence[np.ndarray]) -> Estimate:
    """The interquartile mean of the scores `[S]` of several tasks, taken together (`middle`). The
    bootstrap is stratified: seeds are resampled task by task.
    """
    return _estimate(scores, middle)


def middle(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """The interquartile mean of the scores of several tasks along an axis: the mean without the
    smallest and the largest quarter (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge
    of the Statistical Precipice").

    Every task has the same weight: the scores of a task with fewer seeds are repeated.

    >>> import numpy as np
    >>> from experiments.judge import scores
    >>> float(scores.middle(np.array([1.0, 3.0]), np.array([5.0])))  # of 1, 3, 5, 5
    4.0
    """
    size = math.lcm(*(task.shape[axis] for task in tasks))
    alike = [np.repeat(task, size // task.shape[axis], axis=axis) for task in tasks]
    return stats.trim_mean(np.concatenate(alike, axis=axis), 0.25, axis=axis)


def improvement(own: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> Estimate:
    """The probability that a score of `own` is above one of `other`, where a tie counts as a half:
    the mean over tasks, with scores `[S]` and `[S']` of each, and an interval stratified as in
    `interquartile_mean`. NaN, the score of a seed that diverged, counts as below all others. There
    is no interval where all scores of one side are above the other's: all resamples agree there.

    Agarwal et al. 2021, whose probability of improvement is Mann and Whitney's U, scaled.

    >>> import numpy as np
    >>> from experiments.judge import scores
    >>> scores.improvement([np.array([1.0, 3.0])], [np.array([2.0, 2.0, 3.0])]).value.__round__(3)
    0.417
    """
    count = len(own)
    samples = [np.where(np.isnan(sample), -np.inf, sample) for sample in (*own, *other)]

    def chance(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        pairs = zip(samples[:count], samples[count:], strict=True)
        return np.mean([_above(a, b) for a, b in pairs], axis=0)

    found = _estimate(samples, chance)
    return found._replace(interval=None) if found.value in (0.0, 1.0) else found


def _above(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of pairs of `[..., S]` and `[..., S']` in which the first is above, ties counting a
    half.
    """
    first, second = a[..., :, None], b[..., None, :]
    return np.mean((first > second) + 0.5 * (first == second), axis=(-2, -1))


def _estimate(samples: Sequence[np.ndarray], statistic: Callable[..., Any]) -> Estimate:
    value = float(statistic(*samples))
    if any(len(sample) < 2 or not np.isfinite(sample).all() for sample in samples):
        return Estimate(value, None)
    result = stats.bootstrap(
        tuple(samples),
        statistic,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return Estimate(value, (float(low), float(high)))


def clearly(estimate: Estimate) -> int:
    """1 where the whole interval is above zero, -1 where it is below, else 0."""
    if estimate.interval is None:
        return 0
    low, high = estimate.interval
    return int(low > 0) - int(high < 0)


def same_share(one: tuple[int, int], other: tuple[int, int]) -> float:
    """Fisher's exact test, two-sided: the probability that two shares, each (count, total), differ
    at least as much as these if the true shares are equal.

    >>> from experiments.judge import scores
    >>> round(scores.same_share((4, 12), (2, 24)), 3)
    0.149
    """
    found: Any = stats.fisher_exact([[k, n - k] for k, n in (one, other)])
    return float(found.pvalue)
