"""Diagnostics of a value function's stability: the paper's measures, and `diagnose`, which takes
all of them for one critic.

`diagnosis` measures, `glossary` explains every number, `failures` draws the conclusion; `exact`
measures where the whole problem is known.
"""

from preqn_jax.diagnostics.diagnosis import Case, bias, diagnose
from preqn_jax.diagnostics.exact import exact
from preqn_jax.diagnostics.failures import FAILURES, Finding, failure
from preqn_jax.diagnostics.glossary import GLOSSARY, Entry
from preqn_jax.measures import (
    alignment,
    attribution,
    contraction_bound,
    gain,
    generalization_slack,
    interference,
    overshoot_slack,
    row_ratio,
)

__all__ = [
    "FAILURES",
    "GLOSSARY",
    "Case",
    "Entry",
    "Finding",
    "alignment",
    "attribution",
    "bias",
    "contraction_bound",
    "diagnose",
    "exact",
    "failure",
    "gain",
    "generalization_slack",
    "interference",
    "overshoot_slack",
    "row_ratio",
]
