"""What can be seen of a value function's stability: the paper's measures, and one look at a critic
that puts them together.
"""

from preqn_jax.diagnostics.diagnosis import (
    FAILURES,
    GLOSSARY,
    Entry,
    Finding,
    bias,
    diagnose,
    failure,
)
from preqn_jax.diagnostics.measures import (
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
    "Entry",
    "Finding",
    "alignment",
    "attribution",
    "bias",
    "contraction_bound",
    "diagnose",
    "failure",
    "gain",
    "generalization_slack",
    "interference",
    "overshoot_slack",
    "row_ratio",
]
