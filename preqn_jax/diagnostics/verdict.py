"""Which of the paper's failures (section 3.2) is building up, if any."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from preqn_jax.diagnostics.glossary import GLOSSARY

FAILURES = ("linearization breaks", "overshooting", "over-generalization", "extrapolation error")
"""The paper's four (section 3.2), in its order."""


class Finding(NamedTuple):
    """A divergence that is building up."""

    mode: str  # of `FAILURES`
    evidence: str  # the numbers that say so
    remedy: str


# What names a failure, the surest first: the number, whether it is beyond its line, the mode, the
# number in words.
_SIGNS = (
    (
        "linearization_error",
        lambda x: x > 1,
        FAILURES[0],
        "updates change Q by {:.2g} times their first order beside it",
    ),
    ("gain", lambda x: x > 1, FAILURES[1], "updates change Q by {:.2g} times the TD errors"),
    (
        "extrapolation",
        lambda x: x > 1,
        FAILURES[3],
        "Q at the policy's next actions is {:.2g} standard deviations above the data's",
    ),
    (
        "alignment",
        lambda x: x < math.sqrt(0.5),
        FAILURES[2],
        "updates have an alignment of {:.2f} with the TD errors",
    ),
)
_BEYOND_DOUBT = 10.0  # of soft divergence


def failure(measured: Mapping[str, float]) -> Finding | None:
    """The failure that is building up, of what `diagnose` measured; None while there is none to
    see.

    >>> from preqn_jax import diagnostics
    >>> measured = {"soft_divergence": 2.0, "linearization_error": 0.1, "gain": 1.5}
    >>> finding = diagnostics.failure({**measured, "extrapolation": 0.0, "alignment": 0.9})
    >>> finding.mode, finding.evidence.split(", and ")[0]
    ('overshooting', '|Q| is 2 times what any policy can earn')

    A critic may be on its way once |Q| passes r_max / (1 - gamma), the soft divergence of van
    Hasselt et al. 2018. Before that the other numbers are no verdict: healthy critics cross their
    lines now and then, Theorem 2's nearly always. From there on the first of these that crosses its
    line names the failure: linearization error above 1, gain above 1, extrapolation above 1,
    alignment below cos 45 degrees, where an update moves Q as much aside as towards its targets
    (over-generalization). If none does, Q is too high and yet follows its targets: that may pass.
    Ten times beyond r_max / (1 - gamma) it will not, and the targets themselves must be what runs
    away: extrapolation error. Where no reward but 0 was ever seen there is nothing to hold Q
    against, and so no verdict: give the case a `reward_bound`.
    """
    excess = measured["soft_divergence"]
    if not 1 < excess < math.inf:
        return None
    signs = [
        (name, mode, words.format(measured[name]))
        for name, beyond, mode, words in _SIGNS
        if beyond(measured[name])
    ]
    if not signs and excess > _BEYOND_DOUBT:
        signs = [("extrapolation", FAILURES[3], "updates follow their targets, so these run away")]
    if not signs:
        return None
    name, mode, words = signs[0]
    evidence = f"|Q| is {excess:.3g} times what any policy can earn, and {words}"
    return Finding(mode, evidence, GLOSSARY[name].remedy)
