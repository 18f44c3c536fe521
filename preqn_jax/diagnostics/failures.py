"""Whether Q diverges, and by which of the paper's failures (section 3.2), if the numbers tell."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from preqn_jax.diagnostics.glossary import GLOSSARY

FAILURES = (
    "linearization breaks",
    "overshooting",
    "over-generalization",
    "extrapolation error",
    "an unnamed cause",
)
"""The paper's four failures (section 3.2), in its order, and one that no number here names."""


class Finding(NamedTuple):
    """A divergence that is building up."""

    mode: str  # of `FAILURES`
    evidence: str  # the numbers that say so
    remedy: str


# These thresholds were chosen on the even seeds of experiments.verdicts, and confirmed on the odd.
MARGIN = 1.5
"""Soft divergence above which Q may diverge; not 1, since errors take a sound Q past its bound."""
NEGLIGIBLE = 0.05
"""Mean |TD error|, as a share of r_max / (1 - gamma), up to which Q counts as settled."""
# The signs of a failure, the surest first: the number, its threshold, the mode, words for it.
SIGNS = (
    (
        "linearization_error",
        1.0,
        FAILURES[0],
        "updates change Q {:.2g} times as much beyond first order as to first order",
    ),
    ("gain", 1.0, FAILURES[1], "updates change Q by {:.2g} times the TD errors"),
    (
        "extrapolation",
        2.0,
        FAILURES[3],
        "Q at the policy's next actions is {:.2g} standard deviations above the data's",
    ),
    (
        "row_ratio",
        1.0,
        FAILURES[2],
        "a step for another example moves Q {:.2g} times as far as one for the example itself",
    ),
)

_NOT_THE_STEP_ALONE = (
    "; if that only delays it, as it may where self-excitation is above 0: "
    f"{GLOSSARY['self_excitation'].remedy}, or sin instead of relu"
)


def failure(measured: Mapping[str, float]) -> Finding | None:
    """The failure that the numbers of `diagnose` show; None if Q does not seem to diverge.

    >>> from preqn_jax import diagnostics
    >>> measured = {"soft_divergence": 2.0, "q_largest": 20.0, "td_error": 3.0, "gain": 1.5}
    >>> rest = {"linearization_error": 0.1, "extrapolation": 0.0, "row_ratio": 0.5}
    >>> finding = diagnostics.failure({**measured, **rest})
    >>> finding.mode, finding.evidence.split(" and ")[0]
    ('overshooting', '|Q| is 2 times the most that the rewards seen allow, r_max / (1 - gamma),')

    Q counts as diverging if max |Q| exceeds 1.5 r_max / (1 - gamma) and the mean |TD error| is
    above 5 % of r_max / (1 - gamma). The first is the soft divergence of van Hasselt et al. 2018;
    r_max is the largest |r| seen, plus SAC's entropy bonus. With smaller TD errors the critic has
    settled, and is above the bound by rounding, or because the bound is not the true one.

    Then the first of these numbers above its threshold names the failure: linearization error above
    1, gain above 1, extrapolation above 2, row ratio above 1 (over-generalization). Sound critics
    exceed none of them, but neither do most that diverge; then the cause is unnamed. Alignment and
    self-excitation are no signs: with Adam they are as bad where all goes well. But where
    self-excitation is positive, Q may grow at any step size, so the remedy for too long a step also
    names the remedies for self-excitation. A Q that is called diverging may still recover. If no
    reward but 0 was seen, there is no bound, and the result is None: set the case's `reward_bound`.
    """
    excess = measured["soft_divergence"]
    if not math.isfinite(measured["q_largest"]):
        return Finding(FAILURES[4], "Q is no longer finite", GLOSSARY["soft_divergence"].remedy)
    if not MARGIN < excess < math.inf:
        return None
    share = measured["td_error"] * excess / measured["q_largest"]
    if share <= NEGLIGIBLE:
        return None
    beyond = (
        f"|Q| is {excess:.3g} times the most that the rewards seen allow, r_max / (1 - gamma), and "
        f"its TD errors are {share:.2g} times that"
    )
    for name, line, mode, words in SIGNS:
        if line < measured[name] < math.inf:  # an infinity is an overflow
            remedy = GLOSSARY[name].remedy
            if mode in FAILURES[:2] and measured.get("self_excitation", 0) > 0:
                remedy += _NOT_THE_STEP_ALONE
            return Finding(mode, f"{beyond}; {words.format(measured[name])}", remedy)
    return Finding(FAILURES[4], beyond, GLOSSARY["soft_divergence"].remedy)
