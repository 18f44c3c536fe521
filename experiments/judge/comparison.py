"""Two runs on one environment, compared by their seeds."""

from collections.abc import Callable, Mapping

import numpy as np

from experiments.judge import scores
from experiments.judge.scores import performances
from experiments.kit.curves import Curves

Measure = Callable[[Curves], np.ndarray]  # a number for each seed, `[S]`


def alignments(run: Curves) -> np.ndarray:
    """The mean alignment cos(Q'-Q, y-Q) of each seed's updates, `[S]`; NaN before any update."""
    steps, values = run.metric("critic/alignment")
    later = values[:, steps > run.config.get("update_after", 0)]  # the first line covers one round
    finite = [row[np.isfinite(row)] for row in later]
    return np.array([row.mean() if len(row) else np.nan for row in finite])


def compare(one: Curves, other: Curves, measure: Measure) -> tuple[int | None, float, str]:
    """Compares two runs on one environment. Returns 1, 0 or -1 (clearly more, neither, clearly
    less; None where it cannot be told), the difference, and the numbers as text.
    """
    lost = {run.variant: run for run in (one, other) if run.diverged}
    if measure is performances and lost:
        return _compare_rest(one, other, lost)
    difference = scores.difference(measure(one), measure(other))
    digits = "+.3f" if measure is alignments else "+,.0f"
    way = scores.clearly(difference) if difference.interval else None
    return way, difference.value, f"{one.env} {difference:{digits}}"


def _compare_rest(
    one: Curves, other: Curves, lost: Mapping[str, Curves]
) -> tuple[int | None, float, str]:
    """As `compare` of performances, where seeds of the `lost` runs diverged: by the others, and by
    the shares of seeds that did not diverge.
    """
    words = ", ".join(f"{len(r.diverged)} of {len(r.seeds)} of {v}" for v, r in lost.items())
    said, rest = f"{one.env}: seeds that diverged: {words}", []
    for run in (one, other):
        values = performances(run)
        # Where divergence ended a run, no seed came to the step at which the others are judged.
        rest.append(values[np.isfinite(values) & (not run.ended)])
    stayed = [(len(found), len(run.seeds)) for found, run in zip(rest, (one, other), strict=True)]
    shares = [count / total for count, total in stayed]
    fewer_lost = int(np.sign(shares[0] - shares[1]))
    told = {*shares} == {0.0, 1.0} or scores.same_share(*stayed) <= 1 - scores.LEVEL
    by_shares = fewer_lost if told else 0
    if not all(map(len, rest)):
        return by_shares or None, float(fewer_lost), said
    difference = scores.difference(*rest)
    way = scores.clearly(difference) if difference.interval else None
    found = way or by_shares or way  # 0 where neither tells, None where there is no interval
    if way and way == -fewer_lost:  # the two contradict each other
        found = None
    return found, difference.value, f"{said}; of the others {difference:+,.0f}"
