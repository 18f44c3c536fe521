"""`GLOSSARY`: the formula and source of every number of `diagnose`, what a high value means, and
what to do about it.

Remedies name the arguments of the library; a program with flags for these translates them.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """The explanation of one number of `diagnose`."""

    formula: str
    source: str
    high: str  # what a high value (or, where it says so, a low one) means
    remedy: str


_SMALLER = "take smaller steps, or PreQN's (steps.preconditioned)"
_PRECONDITION = "precondition (steps.preconditioned), or use sin instead of relu"
_SLOW = "use target networks (target=) or the minimum of two critics (members=2)"
_DATA = "collect data where the policy acts, or keep the policy near the data"
_PLASTIC = (
    "fewer updates for each environment step, a smaller learning rate, or a re-initialized last "
    "layer"
)

GLOSSARY: dict[str, Entry] = {
    "q_mean": Entry("mean Q(X)", "", "alone it says little: see soft_divergence and bias", _SLOW),
    "q_largest": Entry(
        "max |Q(X)|", "", "alone it says little: see soft_divergence and bias", _SLOW
    ),
    "td_error": Entry(
        "mean |delta|, delta = y - Q(X)",
        "section 2.2",
        "Q chases targets that its own updates move",
        _SLOW,
    ),
    "diagonal_mean": Entry(
        "mean K_ii", "Eq. 9; section 5.1", "a given step size moves Q far: overshooting", _SMALLER
    ),
    "row_ratio": Entry(
        "mean_i sum_{j != i} |K_ij| / (N K_ii)",
        "section 5.1",
        "a step for one pair moves Q at all others",
        _PRECONDITION,
    ),
    "alpha": Entry(
        "argmin_a |dQ - a K delta / B|, dQ to first order, unless given",
        "Eq. 5",
        "Eq. 5 would need a large step size to change Q as this update does",
        _SMALLER,
    ),
    "contraction_bound": Entry(
        "beta(K) = max_i sum_j (|1_ij - alpha K_ij / B| + |alpha| gamma |K_ij| / B)",
        "proof of Theorem 2",
        "above 1 Theorem 2 says nothing, as for nearly all networks; below 1 the update contracts, "
        "if these pairs bootstrap from one another alone, as those of a minibatch do not",
        _PRECONDITION,
    ),
    "overshoot_slack": Entry(
        "min_i (1 - alpha K_ii / B)",
        "Eq. 16",
        "low: below 0 a value moves beyond its target and its TD error changes sign, below -1 it "
        "grows",
        _SMALLER,
    ),
    "generalization_slack": Entry(
        "min_i ((1 - gamma) K_ii - (1 + gamma) sum_{j != i} |K_ij|) / B",
        "Eq. 17",
        "low: below 0 steps for other pairs may cancel the contraction of a pair's own step",
        _PRECONDITION,
    ),
    "alignment": Entry(
        "cos(dQ, delta)",
        "section 5.2",
        "low: updates do not move Q towards their targets",
        _PRECONDITION,
    ),
    "gain": Entry(
        "<dQ, delta> / |delta|^2",
        "Eq. 16 along delta",
        "above 1 an update overshoots its targets, above 2 errors grow",
        _SMALLER,
    ),
    "linearization_error": Entry(
        "|dQ - grad Q (theta' - theta)| / |grad Q (theta' - theta)|, for Eq. 5 |dQ - alpha K delta "
        "/ B| / |alpha K delta / B|",
        "Eq. 6",
        "at 1 the change beyond first order is as large as the first-order one: U (Eq. 11) no "
        "longer describes the update",
        _SMALLER,
    ),
    "effective_rank": Entry(
        "(tr K)^2 / |K|_F^2",
        "participation ratio",
        "low: few directions carry all of Q; all pairs move together",
        _PRECONDITION,
    ),
    "condition": Entry(
        "lambda_max(K) / lambda_min(K), at most 1 / eps",
        "section 4",
        "K^-1 amplifies rounding and noise",
        "more damping (damping=), or a solver with a cut-off (solve.eigh)",
    ),
    "self_excitation": Entry(
        "max Re eig(gamma (1 - d) K(X*, X) - K(X, X)) / mean K_ii",
        "Yue et al. 2023",
        "above 0 a rise of Q raises its own targets by more, so that Q grows by itself",
        _SLOW + ", or LayerNorm in the critic",
    ),
    "soft_divergence": Entry(
        "max |Q(X)| / (r_max / (1 - gamma)), r_max the largest |r| seen, or the given "
        "reward_bound, plus the largest gamma (1 - d) bonus of Q's sign",
        "van Hasselt et al. 2018",
        "above 1 Q is larger than rewards as large as any seen can add up to",
        _SLOW,
    ),
    "interference": Entry(
        "sum_{i != j} delta_i delta_j K_ij / ((N - 1) sum_i delta_i^2 K_ii)",
        "Bengio et al. 2020",
        "near 1 all examples pull the parameters the same way, as when Q drifts as a whole",
        _PRECONDITION,
    ),
    "extrapolation": Entry(
        "mean (Q(X*) - Q(X)) / std Q(X), the mean without terminals",
        "section 3.2, failure mode 4; Fujimoto et al. 2018a",
        "above 1 Q at (s', a'), which targets use, is far above Q on the data",
        _DATA,
    ),
    "saturation": Entry(
        "share of the coordinates of a' with |a'| > 0.95, actions being in [-1, 1]",
        "",
        "actions are at their bounds, where tanh is flat, so the policy hardly learns; no harm "
        "if the best actions are there",
        "a smaller learning rate of the policy, or observations scaled to size 1",
    ),
    "feature_rank": Entry(
        "smallest k with sum_{i <= k} sigma_i >= 0.99 sum_i sigma_i, sigma of the last hidden "
        "layer `[N, width]`",
        "Kumar et al. 2021",
        "low: the features have collapsed",
        _PLASTIC,
    ),
    "dormant_share": Entry(
        "share of hidden units with mean |h| at most 0.025 of their layer's mean",
        "Sokar et al. 2023",
        "many hidden units are inactive and no longer learn",
        _PLASTIC,
    ),
    "coadaptation": Entry(
        "mean cos(h(s, a), h(s', a')) of the last hidden layer, without terminals",
        "Kumar et al. 2022, who use the inner product instead of the cosine",
        "near 1 Q cannot tell a pair from the one it bootstraps from",
        _PRECONDITION,
    ),
    "bias": Entry(
        "mean (Q(s, a) - G), G the discounted Monte-Carlo return from (s, a)",
        "Fujimoto et al. 2018b",
        "Q overestimates; with an entropy bonus Q includes up to gamma mean bonus / (1 - gamma) "
        "that the return G leaves out",
        _SLOW,
    ),
    "bias_relative": Entry(
        "bias / mean |G|", "", "at 1 the bias is as large as the returns", _SLOW
    ),
}
