"""When PreQN "compares favorably" with its rivals, and how often that rule says so.

    python -m experiments.judge.power

simulates the rule, and prints the probabilities that `section_5_2.RULES` quotes.
"""

from collections.abc import Sequence

import numpy as np

from experiments.judge import scores

MARGIN = 0.05  # of the better rival's interquartile mean
SHARES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)  # of what its rivals attain
RIVALS, DRAWS = 2, 10_000


def needed(rivals: Sequence[np.ndarray]) -> np.ndarray:
    """The interquartile mean that compares favorably with those of the rivals, `[...]` each."""
    best = np.max(rivals, axis=0)
    return np.maximum(best - MARGIN * np.abs(best), np.min(rivals, axis=0))


def power(levels: np.ndarray, spread: float, seeds: int) -> list[float]:
    """The probability of a yes, for one who truly attains each of SHARES of both its rivals.

    Scores are normal around the rivals' `levels [T]` on T tasks, with a standard deviation over
    seeds of `spread` times the level.
    """
    rng = np.random.default_rng(0)

    def pooled(share: float) -> np.ndarray:
        noise = 1 + spread * rng.normal(size=(DRAWS, seeds, len(levels)))
        return scores.middle((share * levels * noise).reshape(DRAWS, -1))

    rivals = needed([pooled(1) for _ in range(RIVALS)])
    return [float(np.mean(pooled(share) >= rivals)) for share in SHARES]


def words(probabilities: Sequence[float]) -> str:
    """Of what `power` returns."""
    shares = ", ".join(f"{100 * share:.0f}" for share in SHARES)
    return f"{', '.join(f'{p:.2f}' for p in probabilities)} at {shares} %"


if __name__ == "__main__":
    for seeds in (3, 7):
        print(f"{seeds} seeds: {words(power(np.ones(5), 0.25, seeds))}")
