"""One look at a critic: is its Q about to diverge, and if so in which of the paper's ways (section
3.2)?

    measured = diagnose(q, params, batch, next_action, moved=params_after_the_step)
    print(failure(measured))

`q` may be any critic, from here or elsewhere: all numbers come from one linearization at the batch,
X = (s, a), and one at what it bootstraps from, X* = (s', a'). `GLOSSARY` says of every number what
it is, where it comes from, what a high value means, and what to do about it.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import ntk
from preqn_jax.diagnostics import measures
from preqn_jax.types import Array, Inputs, Params, QFunction, Transition

_KRYLOV = 32  # steps towards the rightmost eigenvalue
_DORMANT = 0.025  # tau of Sokar et al. 2023
_SRANK = 0.01  # delta of Kumar et al. 2021
_HIGHEST = jax.lax.Precision.HIGHEST


class Entry(NamedTuple):
    """What a number of `diagnose` is."""

    formula: str
    source: str
    high: str  # what a high value (or, where it says so, a low one) means
    remedy: str


_SMALLER = "take smaller steps, or PreQN's (--critic_step=preconditioned)"
_PRECONDITION = "precondition (--critic_step=preconditioned), or use sin instead of relu"
_SLOW = (
    "bootstrap from slow copies (--target_networks) or from the least of two critics "
    "(--num_critics=2)"
)
_DATA = "collect data where the policy acts, or keep the policy near the data"
_PLASTIC = "fewer updates for each environment step, a smaller learning rate, or a fresh last layer"

GLOSSARY: dict[str, Entry] = {
    "q_mean": Entry("mean Q(X)", "", "alone it says little: see soft_divergence and bias", _SLOW),
    "q_largest": Entry(
        "max |Q(X)|", "", "alone it says little: see soft_divergence and bias", _SLOW
    ),
    "td_error": Entry(
        "mean |delta|, delta = y - Q(X)",
        "section 2.2",
        "Q runs after targets that it moves itself",
        _SLOW,
    ),
    "diagonal_mean": Entry(
        "mean K_ii", "Eq. 9; section 5.1", "a given step moves Q far: overshooting", _SMALLER
    ),
    "row_ratio": Entry(
        "mean_i sum_{j != i} |K_ij| / (N K_ii)",
        "section 5.1",
        "a step at one place moves Q at all others",
        _PRECONDITION,
    ),
    "alpha": Entry(
        "argmin_a |dQ - a K delta / B|, dQ to first order, unless given",
        "Eq. 5",
        "the Eq. 5 step that does what this update does is long",
        _SMALLER,
    ),
    "contraction_bound": Entry(
        "beta(K) = max_i sum_j (|1_ij - alpha K_ij / B| + |alpha| gamma |K_ij| / B)",
        "proof of Theorem 2",
        "below 1 the update is a contraction; above, Theorem 2 is silent, as for nearly all "
        "networks",
        _PRECONDITION,
    ),
    "overshoot_slack": Entry(
        "min_i (1 - alpha K_ii / B)",
        "Eq. 16",
        "low: below 0 a TD error comes back larger, with its sign turned",
        _SMALLER,
    ),
    "generalization_slack": Entry(
        "min_i ((1 - gamma) K_ii - (1 + gamma) sum_{j != i} |K_ij|) / B",
        "Eq. 17",
        "low: below 0 what others do to Q_i may outweigh what i does",
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
        "at 1 the second-order change is as large as the first: nothing in section 3 holds",
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
        "a larger --damping, or a solver with a cut-off (--solver=eigh)",
    ),
    "self_excitation": Entry(
        "max Re eig(gamma d K(X*, X) - K(X, X)) / mean K_ii",
        "Yue et al. 2023",
        "above 0 a rise of Q raises its own targets by more: it grows by itself",
        _SLOW + "; LayerNorm in the critic",
    ),
    "soft_divergence": Entry(
        "max |Q(X)| / (r_max / (1 - gamma))",
        "van Hasselt et al. 2018",
        "above 1 Q promises what no policy can earn",
        _SLOW,
    ),
    "interference": Entry(
        "sum_{i != j} delta_i delta_j K_ij / ((N - 1) sum_i delta_i^2 K_ii)",
        "Bengio et al. 2020",
        "near 1 all examples pull the parameters the same way, as when Q drifts as a whole",
        _PRECONDITION,
    ),
    "extrapolation": Entry(
        "(mean Q(X*) - mean Q(X)) / std Q(X)",
        "section 3.2, failure mode 4; Fujimoto et al. 2018",
        "above 1 the policy's own actions are valued beyond what the data's are",
        _DATA,
    ),
    "feature_rank": Entry(
        "least k with sum_{i <= k} sigma_i >= 0.99 sum_i sigma_i, sigma of the last hidden layer "
        "`[N, width]`",
        "Kumar et al. 2021",
        "low: the features have collapsed",
        _PLASTIC,
    ),
    "dormant_share": Entry(
        "share of hidden units with mean |h| at most 0.025 of their layer's mean",
        "Sokar et al. 2023",
        "units no longer learn",
        _PLASTIC,
    ),
    "coadaptation": Entry(
        "mean cos(h(s, a), h(s', a')) of the last hidden layer",
        "Kumar et al. 2022, whose inner product is divided by the lengths here",
        "near 1 Q cannot tell a pair from the one it bootstraps from",
        _PRECONDITION,
    ),
    "bias": Entry(
        "mean (Q(s, a) - G), G the discounted Monte-Carlo return from (s, a)",
        "Fujimoto et al. 2018",
        "Q overestimates",
        _SLOW,
    ),
    "bias_relative": Entry(
        "bias / mean |G|", "", "at 1 Q is off by as much as there is to earn", _SLOW
    ),
}


def diagnose(
    q: QFunction,
    params: Params,
    batch: Transition,
    next_action: Any,
    *,
    gamma: float = 0.99,
    targets: Any = None,
    moved: Params | None = None,
    alpha: float | None = None,
    reward_bound: float | None = None,
    returns: tuple[Inputs, Any] | None = None,
    spectrum_rows: int | None = 64,
) -> dict[str, float]:
    """All of `GLOSSARY` for one critic and one minibatch.

    Args:
      q: `q(params, obs, action) -> scalar`, for one example. Compiled once for each q: pass the
        same function again.
      params: theta.
      batch: transitions `[B]`.
      next_action: `[B, act]`, what the policy would do at `batch.next_obs`.
      gamma: the discount, in [0, 1).
      targets: y `[B]` of the update; r + gamma d Q(s', a') if None.
      moved: theta after the update in question; Eq. 5's with `alpha` if None.
      alpha: the step size of Eq. 5. None, with `moved`: the one whose Eq. 5 update changes Q most
        like that to `moved`; without `moved`: 1e-3.
      reward_bound: r_max, the largest |r| there can be; the batch's if None.
      returns: ((obs `[M, obs]`, action `[M, act]`), G `[M]`), discounted Monte-Carlo returns of the
        policy, if there are any.
      spectrum_rows: rows of the batch whose eigenvalues are taken ("condition", "feature_rank"),
        all if None: an eigendecomposition of all 256 costs more than everything else.

    Returns:
      Numbers by name. "feature_rank", "dormant_share", "coadaptation" are left out where the
      network has no dense hidden layer in sight (`ntk.Linearization.layers`; all but the first
      count as hidden, so an action that joins later does too), "bias" and "bias_relative" without
      `returns`.

    Raises:
      ValueError: shapes that disagree, gamma outside of [0, 1), an alpha or reward_bound that is
        not positive, a NaN or an infinity in an argument.
    """
    batch = Transition(*(jnp.asarray(leaf) for leaf in batch))
    _check(params, batch, next_action, gamma, targets, moved, alpha, reward_bound)
    if spectrum_rows is not None and spectrum_rows < 1:
        raise ValueError(
            f"spectrum_rows is {spectrum_rows}, expected at least 1, or None for all rows"
        )
    rows = min(spectrum_rows or batch.reward.shape[0], batch.reward.shape[0])
    given = {
        "params": params,
        "batch": batch,
        "next_action": next_action,
        "targets": targets,
        "moved": moved,
    }
    measured, hessenberg, finite = jax.device_get(
        _measure(q, rows, given, gamma, alpha, reward_bound)
    )
    for name in given:
        if not finite[name]:
            raise ValueError(
                f"{name} holds a NaN or an infinity, expected finite numbers: a diagnosis is for "
                f"the time before that"
            )
    scale = measured.pop("scale")
    numbers = {name: float(value) for name, value in measured.items()}
    numbers["self_excitation"] = _rightmost(hessenberg.astype(np.float64)) / float(scale)
    if returns is not None:
        numbers.update(bias(q, params, *returns))
    return {name: numbers[name] for name in GLOSSARY if name in numbers}


@partial(jax.jit, static_argnums=(0, 1))
def _measure(
    q: QFunction,
    rows: int,
    given: dict[str, Any],
    gamma: Array,
    alpha: Array | None,
    reward_bound: Array | None,
) -> tuple[dict[str, Array], Array, dict[str, Array]]:
    """Everything but the last eigenvalue problem, which is small and not symmetric, and so for the
    host.

    Returns the numbers, that problem's matrix, and of each of `given` whether it is finite.
    """
    params, batch, moved, targets = (
        given["params"],
        given["batch"],
        given["moved"],
        given["targets"],
    )
    finite = {
        name: jnp.all(jnp.asarray([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))
        for name, tree in given.items()
    }
    inputs, bootstrapped = (batch.obs, batch.action), (batch.next_obs, given["next_action"])
    lin = ntk.linearize(q, params, inputs)
    there = lin.elsewhere(bootstrapped)
    ahead = gamma * jnp.asarray(batch.discount)
    y = batch.reward + ahead * there.values if targets is None else targets
    delta, size = y - lin.values, lin.values.shape[0]
    plain = jnp.dot(lin.gram, delta, precision=_HIGHEST) / size  # Eq. 5's change for alpha = 1

    def values(p: Params) -> Array:
        return jax.vmap(q, in_axes=(None, 0, 0))(p, *inputs)

    if moved is None:
        alpha = jnp.asarray(1e-3) if alpha is None else alpha
        step = jax.tree.map(lambda g: alpha * g, lin.pullback(delta / size))
        moved, linear = jax.tree.map(jnp.add, params, step), alpha * plain
    else:
        linear = lin.pushforward(jax.tree.map(jnp.subtract, moved, params))
    change = values(moved) - lin.values
    if alpha is None:
        alpha = jnp.vdot(linear, plain) / jnp.maximum(
            jnp.vdot(plain, plain), jnp.finfo(plain.dtype).tiny
        )
    excitation = ahead[:, None] * there.kernel - lin.gram
    bound = jnp.max(jnp.abs(batch.reward)) if reward_bound is None else reward_bound
    diagonal = jnp.mean(jnp.diagonal(lin.gram))
    measured = {
        "q_mean": jnp.mean(lin.values),
        "q_largest": jnp.max(jnp.abs(lin.values)),
        "td_error": jnp.mean(jnp.abs(delta)),
        "diagonal_mean": diagonal,
        "row_ratio": jnp.mean(measures.row_ratio(lin.gram)),
        "alpha": alpha,
        "contraction_bound": measures.contraction_bound(lin.gram, 1 / size, alpha, gamma),
        "overshoot_slack": jnp.min(measures.overshoot_slack(lin.gram, 1 / size, alpha)),
        "generalization_slack": jnp.min(measures.generalization_slack(lin.gram, 1 / size, gamma)),
        "alignment": measures.alignment(change, delta),
        "gain": measures.gain(change, delta),
        "linearization_error": _ratio(
            _beyond_rounding(change - linear, lin.values), jnp.linalg.norm(linear)
        ),
        "effective_rank": _ratio(jnp.trace(lin.gram) ** 2, jnp.sum(lin.gram**2)),
        "condition": _condition(lin.gram[:rows, :rows]),
        "soft_divergence": _ratio(jnp.max(jnp.abs(lin.values)) * (1 - gamma), bound),
        "interference": measures.interference(lin.gram, delta),
        "extrapolation": _ratio(jnp.mean(there.values) - jnp.mean(lin.values), jnp.std(lin.values)),
        "scale": jnp.where(diagonal > 0, diagonal, 1),
        **_features(lin.layers[1:], there.layers[1:], rows),
    }
    return measured, _krylov(excitation, min(_KRYLOV, size)), finite


def _ratio(a: Array, b: Array) -> Array:
    """a / b; 0 / 0 is 0."""
    return jnp.where(a == 0, 0, a / b)


def _beyond_rounding(error: Array, values: Array) -> Array:
    """|error|, or 0 where differences of values this large have no digit left for it."""
    size = jnp.linalg.norm(error)
    return jnp.where(size <= 2 * jnp.finfo(values.dtype).eps * jnp.linalg.norm(values), 0, size)


def _condition(gram: Array) -> Array:
    eigenvalues, eps = jnp.linalg.eigvalsh(gram), jnp.finfo(gram.dtype).eps
    floor = jnp.maximum(eps * eigenvalues[-1], jnp.finfo(gram.dtype).tiny)
    return jnp.where(
        eigenvalues[-1] > 0, eigenvalues[-1] / jnp.maximum(eigenvalues[0], floor), 1 / eps
    )


def _features(hidden: list[Array], ahead: list[Array], rows: int) -> dict[str, Array]:
    """Of the hidden layers at X and at X*, `[B, width]` each."""
    if not hidden:
        return {}
    last, after = hidden[-1], ahead[-1]
    if rows <= 128:  # half the time, and rounding does not reach a share of 0.01
        squares = jnp.linalg.eigvalsh(jnp.dot(last[:rows], last[:rows].T, precision=_HIGHEST))
        sigma = jnp.sqrt(jnp.maximum(squares[::-1], 0))
    else:
        sigma = jnp.linalg.svd(last[:rows], compute_uv=False)
    total = jnp.sum(sigma)
    activity = [jnp.mean(jnp.abs(layer), axis=0) for layer in hidden]
    dormant = jnp.concatenate([a <= _DORMANT * jnp.mean(a) for a in activity])
    return {
        "feature_rank": jnp.where(
            total > 0, 1 + jnp.sum(jnp.cumsum(sigma) < (1 - _SRANK) * total), 0
        ),
        "dormant_share": jnp.mean(dormant),
        "coadaptation": jnp.mean(jax.vmap(measures.alignment)(last, after)),
    }


def _krylov(matrix: Array, steps: int) -> Array:
    """Arnoldi's Hessenberg matrix `[steps, steps]`; its eigenvalues approach the outermost of
    `matrix`, the rightmost among them.

    Vectors are orthogonalised twice. Where the space is exhausted the rest is zero.
    """
    dot = partial(jnp.dot, precision=_HIGHEST)
    scale = jnp.max(jnp.abs(matrix))
    scaled = matrix / jnp.where(scale > 0, scale, 1)
    start = jax.random.normal(jax.random.key(0), matrix.shape[:1], matrix.dtype)

    def extend(
        carry: tuple[Array, Array], j: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, v = carry
        basis = basis.at[j].set(v)
        w = dot(scaled, v)
        once = dot(basis, w)
        w = w - dot(once, basis)
        twice = dot(basis, w)
        w = w - dot(twice, basis)
        length = jnp.linalg.norm(w)
        exhausted = length <= 10 * jnp.finfo(w.dtype).eps * matrix.shape[0]
        following = jnp.where(exhausted, 0, w / jnp.where(exhausted, 1, length))
        return (basis, following), (once + twice, jnp.where(exhausted, 0, length))

    empty = jnp.zeros((steps, matrix.shape[0]), matrix.dtype)
    _, (columns, lengths) = jax.lax.scan(
        extend, (empty, start / jnp.linalg.norm(start)), jnp.arange(steps)
    )
    return scale * (columns.T + jnp.diag(lengths[:-1], -1))


def _rightmost(hessenberg: np.ndarray) -> float:
    """The largest real part of an eigenvalue, of as much of the matrix as there was space for."""
    if not np.isfinite(hessenberg).all():
        return float("nan")
    ends = np.flatnonzero(np.diagonal(hessenberg, -1) == 0)
    size = ends[0] + 1 if len(ends) else len(hessenberg)
    return float(np.linalg.eigvals(hessenberg[:size, :size]).real.max())


def bias(q: QFunction, params: Params, inputs: Inputs, returns: Any) -> dict[str, float]:
    """{"bias", "bias_relative"} of `GLOSSARY`: Q at `inputs` `[M]` against the returns G `[M]` from
    there.

    Raises ValueError where the two do not fit, or are not finite.
    """
    returns = jnp.asarray(returns)
    size = ntk.batch_size(inputs)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((inputs, returns))):
        raise ValueError("returns holds a NaN or an infinity, expected finite numbers")
    if returns.shape != (size,):
        raise ValueError(
            f"returns holds G of the shape {returns.shape}, expected {(size,)}, one for each input"
        )
    off = jnp.mean(_values(q, params, inputs) - returns)
    return {"bias": float(off), "bias_relative": float(off / jnp.mean(jnp.abs(returns)))}


@partial(jax.jit, static_argnums=0)
def _values(q: QFunction, params: Params, inputs: Inputs) -> Array:
    return jax.vmap(q, in_axes=(None, 0, 0))(params, *inputs)


def _check(
    params: Params,
    batch: Transition,
    next_action: Any,
    gamma: float,
    targets: Any,
    moved: Params | None,
    alpha: float | None,
    reward_bound: float | None,
) -> None:
    if np.ndim(gamma) != 0 or not 0 <= gamma < 1:
        raise ValueError(f"gamma is {gamma}, expected a number in [0, 1)")
    for name, value in (("alpha", alpha), ("reward_bound", reward_bound)):
        if value is not None and not (np.ndim(value) == 0 and 0 < value < np.inf):
            raise ValueError(f"{name} is {value}, expected a positive number")
    size = batch.reward.shape
    if len(size) != 1 or size[0] < 2:
        raise ValueError(f"batch.reward has the shape {size}, expected [B] with B of at least 2")
    expected = {
        "batch.discount": (batch.discount, size),
        "batch.next_obs": (batch.next_obs, jnp.shape(batch.obs)),
        "next_action": (next_action, jnp.shape(batch.action)),
        **({} if targets is None else {"targets": (targets, size)}),
    }
    for name, (value, shape) in expected.items():
        if jnp.shape(value) != shape:
            raise ValueError(
                f"{name} has the shape {jnp.shape(value)}, expected {shape}, to fit the rest of "
                f"batch"
            )
    for name, value in (("batch.obs", batch.obs), ("batch.action", batch.action)):
        if jnp.shape(value)[:1] != size:
            raise ValueError(
                f"{name} has the shape {jnp.shape(value)}, expected {size[0]} rows, as many as "
                f"batch.reward"
            )
    if moved is not None and (
        jax.tree.structure(moved) != jax.tree.structure(params)
        or any(
            jnp.shape(a) != jnp.shape(b)
            for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(params), strict=True)
        )
    ):
        raise ValueError(
            "moved has another structure than params, expected the same parameters after an update"
        )


# --- which failure is building up -----------------------------------------------------------------

FAILURES = ("linearization breaks", "overshooting", "over-generalization", "extrapolation error")
"""The paper's four (section 3.2), in its order."""


class Finding(NamedTuple):
    """A divergence that is building up."""

    mode: str  # of `FAILURES`
    evidence: str  # the numbers that say so
    remedy: str


# what names a failure, the surest first: the number, whether it is beyond its line, the mode, the
# number in words
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

    A critic may be on its way once |Q| passes r_max / (1 - gamma), the soft divergence of van
    Hasselt et al. 2018. Before that
    the other numbers are no verdict: healthy critics cross their lines now and then, Theorem 2's
      nearly always. From there on the
    first of these that crosses its line names the failure: linearization error above 1, gain above
      1, extrapolation above 1,
    alignment below cos 45 degrees, where an update moves Q as much aside as towards its targets
    (over-generalization). If none
    does, Q is too high and yet follows its targets: that may pass. Ten times beyond r_max / (1 -
      gamma) it will not, and the
    targets themselves must be what runs away: extrapolation error. Where no reward but 0 was ever
      seen there is nothing to hold Q
    against, and so no verdict: give `diagnose` a `reward_bound`.
    """
    excess = measured["soft_divergence"]
    if not 1 < excess < np.inf:
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
    return Finding(
        mode,
        f"|Q| is {excess:.3g} times what any policy can earn, and {words}",
        GLOSSARY[name].remedy,
    )
