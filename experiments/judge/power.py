"""The rule by which PreQN "compares favorably" with its rivals, and how often the rule answers yes
or no.

    python -m experiments.judge.power

simulates the rule, and prints the probabilities that `section_5_2.RULES` and docs/results quote.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.judge import scores

MARGIN = 0.05  # PreQN may fall short of the better rival's interquartile mean by this share
TOO_LITTLE = 0.8  # an agent that truly attains this share of the better rival should get no yes
LEVEL = 0.05  # the greatest probability of such a yes
SHARES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)  # of the rivals' level that a simulated agent attains
WRONGED = (1.0, 1.1)  # shares at which a no is wrong: as good as the rivals, or better
DRAWS = 500

Scores = Sequence[np.ndarray]  # `[S]` of each of T tasks


def threshold(rivals: Sequence[np.ndarray] | Sequence[float]) -> np.ndarray:
    """The least interquartile mean that compares favorably with the rivals', `[...]` each."""
    best = np.max(rivals, axis=0)
    return np.maximum(best - MARGIN * np.abs(best), np.min(rivals, axis=0))


def favorable(own: Scores, rivals: Sequence[Scores]) -> bool | None:
    """The rule: whether `own` compares favorably; None where it cannot be judged. A score that is
    not finite, of a seed that diverged, counts as below all others: `own` with one does not. Beside
    a rival with one there is no yes, but the others can give a no. It cannot be judged if `own`
    attains the `threshold`, but an agent that truly attains only TOO_LITTLE might do so too, given
    how these scores spread.
    """
    found, *others = (float(scores.middle(*one)) for one in (own, *rivals))
    known = [other for other in others if np.isfinite(other)]
    if np.isfinite(found) and len(known) < len(others):
        short = any(found < other - MARGIN * abs(other) for other in known)
        return False if short else None
    if not found >= threshold(others):
        return False
    levels = np.array([values.mean() for values in rivals[int(np.argmax(others))]])
    risk = chance(found - max(others), levels, deviations([own, *rivals]), seeds([own, *rivals]))
    return True if risk <= LEVEL else None


def chance(lead: float, levels: np.ndarray, deviations: np.ndarray, seeds: int) -> float:
    """The probability that an agent that truly attains TOO_LITTLE of a rival's `levels [T]` is
    found ahead of it by at least `lead`, which may be negative; 1 where the spread is not known.
    """
    rng = np.random.default_rng(0)
    own, rival = (_draw(rng, share, levels, deviations, seeds) for share in (TOO_LITTLE, 1))
    ahead = scores.middle(own.reshape(DRAWS, -1)) - scores.middle(rival.reshape(DRAWS, -1))
    return 1 - float(np.mean(ahead < lead))


class Odds(NamedTuple):
    """The probabilities of a yes and of a no; the rest cannot be judged."""

    yes: float
    no: float


def power(levels: np.ndarray, deviations: np.ndarray, seeds: int) -> dict[float, Odds]:
    """The `Odds` of an agent that truly attains a share of both its rivals, for each of SHARES.

    Scores are normal around the rivals' `levels [T]` on T tasks, with standard deviations over
    seeds of `deviations [T]`; an agent that attains a share of the levels has that share of the
    deviations.
    """
    return {share: odds(share, levels, deviations, seeds) for share in SHARES}


def odds(
    share: float,
    levels: np.ndarray,
    deviations: np.ndarray,
    seeds: int,
    others: Sequence[float] = (1.0, 1.0),
) -> Odds:
    """The `Odds` of an agent that truly attains `share` of the `levels [T]`, where each rival
    attains its entry in `others`.
    """
    rng = np.random.default_rng(0)
    own, *rivals = (_draw(rng, one, levels, deviations, seeds) for one in (share, *others))
    middles = [scores.middle(one.reshape(DRAWS, -1)) for one in (own, *rivals)]
    above = np.flatnonzero(middles[0] >= threshold(middles[1:]))  # the rest is a no, and cheap
    yes = sum(favorable(own[i].T, [one[i].T for one in rivals]) is True for i in above)
    return Odds(yes / DRAWS, 1 - len(above) / DRAWS)


def _draw(
    rng: np.random.Generator,
    share: float,
    levels: np.ndarray,
    deviations: np.ndarray,
    seeds: int,
) -> np.ndarray:
    """Random scores `[DRAWS, S, T]` of an agent that attains `share` of the levels; below a
    negative level, a smaller share means lower scores.
    """
    attained = levels - (1 - share) * np.abs(levels)
    return attained + share * deviations * rng.normal(size=(DRAWS, seeds, len(levels)))


def deviations(runs: Sequence[Scores]) -> np.ndarray:
    """The standard deviation over seeds for each task, `[T]`: the root mean square over the runs.
    NaN if any task has a single seed.
    """
    if seeds(runs) < 2:
        return np.full(len(runs[0]), np.nan)
    return np.sqrt(np.mean([[values.var(ddof=1) for values in one] for one in runs], axis=0))


def seeds(runs: Sequence[Scores]) -> int:
    """The smallest number of seeds of any task."""
    return min(len(values) for one in runs for values in one)


def words(found: dict[float, Odds]) -> str:
    """The result of `power` as text: the probability of a yes at each share, and of a no at
    WRONGED.
    """
    yes = ", ".join(f"{one.yes:.2f}" for one in found.values())
    no = ", ".join(f"{found[share].no:.2f}" for share in WRONGED)
    return f"a yes has probability {yes} at {_percent(found)}, and a no {no} at {_percent(WRONGED)}"


def _percent(shares: Iterable[float]) -> str:
    return f"{', '.join(f'{100 * share:.0f}' for share in shares)} %"


CASES = {  # levels of tasks, and deviations as shares of these
    "five tasks, spread 25 %": ((1.0, 1.0, 1.0, 1.0, 1.0), 0.25),
    "one task, spread 30 %": ((1.0,), 0.3),
    "three tasks, spread 25 %": ((0.42, 0.12, 0.55), 0.25),
    "three tasks, spread 50 %": ((0.42, 0.12, 0.55), 0.5),
    "three tasks, spreads 45, 15, 20 %": ((0.42, 0.12, 0.55), np.array([0.45, 0.15, 0.2])),
    "five tasks, spreads 45, 10, 35, 20, 30 %": (
        (0.55, 0.17, 0.56, 0.12, 0.27),
        np.array([0.45, 0.1, 0.35, 0.2, 0.3]),
    ),
}


def main() -> None:
    for seeds in (3, 7):
        found = words(power(np.ones(5), np.full(5, 0.25), seeds))
        print(f"five tasks, spread 25 %, {seeds} seeds, of both rivals: {found}")
    print(
        "\na yes at 80 % of both rivals, and where the lesser attains half (by thresholds alone);"
    )
    print("a no at 100 and 110 % of both")
    for name, (tasks, spread) in CASES.items():
        levels = np.array(tasks)
        for seeds in (3, 7):
            found = [
                odds(TOO_LITTLE, levels, spread * levels, seeds, (1.0, lesser))
                for lesser in (1.0, 0.5)
            ]
            shown = ", ".join(f"{one.yes:.2f} ({1 - one.no:.2f})" for one in found)
            wronged = [odds(share, levels, spread * levels, seeds).no for share in WRONGED]
            print(f"{name}, {seeds} seeds: {shown}; {', '.join(f'{no:.2f}' for no in wronged)}")


if __name__ == "__main__":
    main()
