"""Whether Q diverges, and by which of the paper's failures (section 3.2), if a number tells."""

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
"""The paper's four (section 3.2), in its order, and what no number here tells."""


class Finding(NamedTuple):
    """A divergence that is building up."""

    mode: str  # of `FAILURES`
    evidence: str  # the numbers that say so
    remedy: str


# The lines below were chosen on the even seeds of experiments.verdicts, and held on its odd ones.
MARGIN = 1.5
"""Of soft divergence: a sound critic whose Q* is at the bound goes beyond it by its errors."""
NEGLIGIBLE = 0.05
"""Of mean |delta| over what rewards add up to: below, Q is where its targets want it."""
# What names a failure, the surest first: the number, its line, the mode, the number in words.
SIGNS = (
    (
        "linearization_error",
        1.0,
        FAILURES[0],
        "updates change Q by {:.2g} times their first order beside it",
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
        "a step at any other example moves a value {:.2g} times as far as one at its own",
    ),
)

_NOT_THE_STEP_ALONE = (
    "; if that only puts it off, as it may where self-excitation is above 0: "
    f"{GLOSSARY['self_excitation'].remedy}, or sin instead of relu"
)


def failure(measured: Mapping[str, float]) -> Finding | None:
    """The failure that is building up, of what `diagnose` measured; None while there is none to
    see.

    >>> from preqn_jax import diagnostics
    >>> measured = {"soft_divergence": 2.0, "q_largest": 20.0, "td_error": 3.0, "gain": 1.5}
    >>> rest = {"linearization_error": 0.1, "extrapolation": 0.0, "row_ratio": 0.5}
    >>> finding = diagnostics.failure({**measured, **rest})
    >>> finding.mode, finding.evidence.split(" and ")[0]
    ('overshooting', '|Q| is 2 times what rewards as large as any seen add up to,')

    Q diverges once |Q| exceeds 1.5 r_max / (1 - gamma), the soft divergence of van Hasselt
    et al. 2018, r_max the largest |r| seen with SAC's entropy added, and its TD errors are above 5
    % of that. Smaller ones are those of a critic that has settled: at a bound that is not the true
    one, or by rounding.

    From there on the first of these that crosses its line names the failure: linearization error
    above 1, gain above 1, extrapolation above 2, row ratio above 1 (over-generalization). Sound
    critics cross none of them, but most that diverge do not either, and the cause is unnamed.
    Alignment and self-excitation are no signs: with Adam they are as bad where all goes well. But
    where the latter is positive Q may grow at any step size, and the remedies for a step that is
    too long go on to those for a Q that feeds on itself. A Q
    that this calls diverging may yet fall back. Where no reward but 0 was ever seen there is
    nothing to hold Q against, and so no verdict: give the case a `reward_bound`.
    """
    excess = measured["soft_divergence"]
    if measured["q_largest"] == math.inf:
        return Finding(FAILURES[4], "Q is no longer finite", GLOSSARY["soft_divergence"].remedy)
    if not MARGIN < excess < math.inf:
        return None
    share = measured["td_error"] * excess / measured["q_largest"]
    if share <= NEGLIGIBLE:
        return None
    beyond = (
        f"|Q| is {excess:.3g} times what rewards as large as any seen add up to, and its TD errors "
        f"are {share:.2g} times that"
    )
    for name, line, mode, words in SIGNS:
        if line < measured[name] < math.inf:  # an infinity is an overflow
            remedy = GLOSSARY[name].remedy
            if mode in FAILURES[:2] and measured.get("self_excitation", 0) > 0:
                remedy += _NOT_THE_STEP_ALONE
            return Finding(mode, f"{beyond}; {words.format(measured[name])}", remedy)
    return Finding(FAILURES[4], beyond, GLOSSARY["soft_divergence"].remedy)
