"""When PreQN "compares favorably" with its rivals, and how often that rule says so.

    python -m experiments.judge.power

simulates the rule, and prints the probabilities that `section_5_2.RULES` quotes.
"""

from collections.abc import Sequence

import numpy as np

from experiments.judge import scores

MARGIN = 0.05  # of the better rival's interquartile mean
TOO_LITTLE = 0.8  # of what the better rival attains: a yes must not come from this share of it
LEVEL = 0.05  # but with this probability
SHARES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)  # of what its rivals attain
RIVALS, DRAWS = 2, 500

Scores = Sequence[np.ndarray]  # `[S]` of each of T tasks


def needed(rivals: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The interquartile mean that compares favorably with those of the rivals, `[...]` each."""
    best = np.max(rivals, axis=0)
    return np.maximum(best - MARGIN * np.abs(best), np.min(rivals, axis=0))


def favorable(own: Scores, rivals: Sequence[Scores]) -> bool | None:
    """The rule. None, "cannot be judged": it attains what is needed, but with scores that spread
    like these so might one that truly attains TOO_LITTLE.
    """
    found, *others = (float(scores.middle(np.concatenate(one))) for one in (own, *rivals))
    if not found >= needed(others):
        return False
    levels = np.array([values.mean() for values in rivals[int(np.argmax(others))]])
    risk = chance(found - max(others), levels, spread([own, *rivals]), seeds([own, *rivals]))
    return True if risk <= LEVEL else None


def chance(lead: float, levels: np.ndarray, spread: np.ndarray | float, seeds: int) -> float:
    """The probability that one who truly attains TOO_LITTLE of a rival's `levels [T]` is found
    ahead of it by `lead`, which may be negative, or more; 1 where the spread is not known.
    """
    rng = np.random.default_rng(0)
    ahead = _pooled(rng, TOO_LITTLE * levels, spread, seeds) - _pooled(rng, levels, spread, seeds)
    return 1 - float(np.mean(ahead < lead))


def power(levels: np.ndarray, spread: np.ndarray | float, seeds: int) -> list[float]:
    """The probability of a yes, for one who truly attains each of SHARES of both its rivals.

    Scores are normal around the rivals' `levels [T]` on T tasks, with a standard deviation over
    seeds of `spread` times the level.
    """
    return [_yes(share, levels, spread, seeds) for share in SHARES]


def _yes(share: float, levels: np.ndarray, spread: np.ndarray | float, seeds: int) -> float:
    rng = np.random.default_rng(0)
    own, *rivals = (
        _draw(rng, one * levels, spread, seeds) for one in (share, *[1.0] * RIVALS)
    )  # `[DRAWS, S, T]`
    pools = [scores.middle(one.reshape(len(one), -1)) for one in (own, *rivals)]
    passing = np.flatnonzero(pools[0] >= needed(pools[1:]))  # the rest is a no, and cheap
    return sum(favorable(own[i].T, [one[i].T for one in rivals]) is True for i in passing) / DRAWS


def _pooled(
    rng: np.random.Generator, levels: np.ndarray, spread: np.ndarray | float, seeds: int
) -> np.ndarray:
    return scores.middle(_draw(rng, levels, spread, seeds).reshape(DRAWS, -1))


def _draw(
    rng: np.random.Generator, levels: np.ndarray, spread: np.ndarray | float, seeds: int
) -> np.ndarray:
    return levels * (1 + spread * rng.normal(size=(DRAWS, seeds, len(levels))))


def spread(runs: Sequence[Scores]) -> np.ndarray:
    """The standard deviation over seeds as a share of the mean, by task `[T]`: its root mean square
    over the runs. NaN where a task has a single seed.
    """
    if seeds(runs) < 2:
        return np.full(len(runs[0]), np.nan)
    shares = [[values.std(ddof=1) / abs(values.mean()) for values in one] for one in runs]
    return np.sqrt(np.mean(np.square(shares), axis=0))


def seeds(runs: Sequence[Scores]) -> int:
    """The fewest of any task."""
    return min(len(values) for one in runs for values in one)


def words(probabilities: Sequence[float]) -> str:
    """Of what `power` returns."""
    shares = ", ".join(f"{100 * share:.0f}" for share in SHARES)
    return f"{', '.join(f'{p:.2f}' for p in probabilities)} at {shares} %"


if __name__ == "__main__":
    for count in (3, 7):
        print(f"{count} seeds: {words(power(np.ones(5), 0.25, count))}")
