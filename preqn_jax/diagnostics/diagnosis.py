"""The diagnosis of a critic: is its Q about to diverge, and if so, by which of the paper's failures
(section 3.2)?

    case = Case(params, batch, next_action, moved=params_after_the_step)
    print(failure(diagnose(q, case)))

`q` may be any critic, from here or elsewhere: all numbers come from one linearization at the pairs
of the batch, X = (s, a), and one at the pairs that it bootstraps from, X* = (s', a').
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg

from preqn_jax import measures, ntk
from preqn_jax.batching import batch_size, batched, one_example, parameters
from preqn_jax.diagnostics.glossary import GLOSSARY
from preqn_jax.types import Array, Inputs, Params, QFunction, Transition, dot, wide

_DENSE = 64  # rows; up to this size, all eigenvalues take no longer than one
_DORMANT = 0.025  # tau of Sokar et al. 2023
_SRANK = 0.01  # delta of Kumar et al. 2021
_BOUND = 0.95  # |action| beyond which the slope of its tanh is below a tenth
_ROUNDING = 1e-2  # tolerance for actions at a bound, in bfloat16
_PARTS = ("params", "batch", "next_action", "targets", "moved", "bonus")  # all must be finite


class Case(NamedTuple):
    """A critic, a minibatch, and the update in question."""

    params: Params  # theta
    batch: Transition  # transitions `[B]`
    next_action: Any  # `[B, act]`, the policy's actions at `batch.next_obs`
    targets: Any = None  # y `[B]` of the update; r + gamma (1 - d) (Q(s', a') + bonus) if None
    moved: Params | None = None  # theta after the update; Eq. 5's with `alpha` if None
    gamma: float = 0.99  # the discount, in [0, 1)
    alpha: float | None = None
    """The step size of Eq. 5. If None: 1e-3 without `moved`; with `moved`, the step size at which
    Eq. 5 changes Q most like the update to `moved`.
    """
    # r_max, the largest |r| there can be; the batch's if None, which is too large where each holds
    # the rewards of n steps
    reward_bound: float | None = None
    bonus: Any = None  # `[B]`, what y adds to Q(s', a'), as SAC's -alpha log pi(a'|s'); 0 if None
    returns: tuple[Inputs, Any] | None = None
    """State-action pairs and the policy's discounted Monte-Carlo returns G from there, if known:
    ((obs `[M, obs]`, action `[M, act]`), G `[M]`).
    """


def diagnose(q: QFunction, case: Case) -> dict[str, float]:
    """All numbers of `GLOSSARY`, for one critic and one minibatch.

    >>> import jax.numpy as jnp
    >>> from preqn_jax import diagnostics
    >>> from preqn_jax.types import Transition
    >>> q = lambda params, obs, action: params @ jnp.concatenate([obs, action])
    >>> obs, action, one = jnp.eye(3), jnp.ones((3, 1)), jnp.ones(3)
    >>> batch = Transition(obs, action, one, one, 2 * obs)  # bootstraps from 2 Q, nearly
    >>> case = diagnostics.Case(jnp.asarray([1.0, 2.0, 3.0, 0.0]), batch, action, gamma=0.9)
    >>> measured = diagnostics.diagnose(q, case)
    >>> measured["q_mean"], round(measured["td_error"], 3), measured["self_excitation"] > 0
    (2.0, 2.6, True)

    Args:
      q: `q(params, obs, action) -> scalar`, for one example. Compiled once for each q: pass the
        same function again.
      case: the parameters, minibatch and update to diagnose.

    Returns:
      Numbers by name. "feature_rank", "dormant_share", "coadaptation" are left out if no dense
      hidden layer is found (in `ntk.Linearization.layers`; all but the first count as hidden, even
      an action that enters at a later layer), "saturation" if actions are integers or not all in
      [-1, 1], "bias" and "bias_relative" without `returns`.

    Raises:
      ValueError: shapes that disagree, gamma outside of [0, 1), an alpha or reward_bound that is
        not positive, a NaN or an infinity in the case.
    """
    batch = Transition(*(_arrays(part) for part in case.batch))
    case = case._replace(
        params=parameters(case.params),
        batch=batch,
        next_action=_alike(case.next_action, batch.action),
        moved=None if case.moved is None else parameters(case.moved),
    )
    _check(case)
    measured, excitation, finite = jax.device_get(_measure(q, case._replace(returns=None)))
    for name in _PARTS:
        if not finite[name]:
            raise ValueError(
                f"{name} holds a NaN or an infinity, expected finite numbers: diagnose the critic "
                f"before it holds any"
            )
    scale = measured.pop("scale")
    if np.isnan(measured["saturation"]):
        del measured["saturation"]
    numbers = {name: float(value) for name, value in measured.items()}
    numbers["self_excitation"] = rightmost(excitation.astype(np.float64)) / float(scale)
    if case.returns is not None:
        numbers.update(bias(q, case.params, *case.returns))
    return {name: numbers[name] for name in GLOSSARY if name in numbers}


def bias(q: QFunction, params: Params, inputs: Inputs, returns: Any) -> dict[str, float]:
    """The "bias" and "bias_relative" of `GLOSSARY`: Q at `inputs` `[M]`, compared with the returns
    G `[M]` from there.

    Raises ValueError where the two do not fit, or are not finite.
    """
    returns = wide(returns)
    size = batch_size(inputs)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((inputs, returns))):
        raise ValueError("returns holds a NaN or an infinity, expected finite numbers")
    if returns.shape != (size,):
        raise ValueError(
            f"returns holds G of the shape {returns.shape}, expected {(size,)}, one for each input"
        )
    off = jnp.mean(_values(q, params, inputs) - returns)
    return {"bias": float(off), "bias_relative": float(_ratio(off, jnp.mean(jnp.abs(returns))))}


def _arrays(part: Any) -> Any:
    """`part` as an array, or as a mapping of arrays, for an observation of several parts."""
    return jax.tree.map(jnp.asarray, part) if isinstance(part, Mapping) else jnp.asarray(part)


def _alike(next_action: Any, action: Array) -> Array:
    """a' in the dtype of a: a policy may compute in another precision than the replay buffer."""
    next_action = jnp.asarray(next_action)
    both = all(jnp.issubdtype(a.dtype, jnp.floating) for a in (next_action, action))
    return next_action.astype(action.dtype) if both else next_action


@partial(jax.jit, static_argnums=0)
def _values(q: QFunction, params: Params, inputs: Inputs) -> Array:
    return batched(q)(params, inputs)


def rightmost(matrix: np.ndarray) -> float:
    """The largest real part of the eigenvalues of a matrix `[N, N]`, for large N up to an error of
    1e-4 of the norm; NaN if the matrix is not finite.

    ARPACK's tolerance is relative to the eigenvalue, so the spectrum is shifted away from zero,
    where the eigenvalues of a kernel crowd. If it does not converge, all are computed.
    """
    if not np.isfinite(matrix).all():
        return float("nan")
    size, shift = len(matrix), float(np.linalg.norm(matrix))
    if size > _DENSE:
        options = {"ncv": 32, "tol": 1e-4, "maxiter": 30, "return_eigenvectors": False}
        # If the first vector is an eigenvector, as for -I, ARPACK draws the next by this rng too.
        rng = np.random.default_rng(0)
        start = rng.normal(size=size)
        shifted = matrix + shift * np.eye(size)
        try:
            found = scipy.sparse.linalg.eigs(shifted, k=1, which="LR", v0=start, rng=rng, **options)
            return float(np.real(found[0]) - shift)
        except scipy.sparse.linalg.ArpackError:
            pass
    return float(np.real(np.linalg.eigvals(matrix)).max())


# --- the numbers, compiled ------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def _measure(q: QFunction, case: Case) -> tuple[dict[str, Array], Array, dict[str, Array]]:
    """All numbers of a minibatch but "self_excitation": its eigenvalue problem is not symmetric,
    and so is solved on the host.

    Returns the numbers, the matrix of that problem, and whether each part of the case is finite.
    """
    batch, gamma, reward = case.batch, case.gamma, wide(case.batch.reward)
    inputs, bootstrapped = (batch.obs, batch.action), (batch.next_obs, case.next_action)
    own = jax.eval_shape(q, case.params, *one_example(inputs)).dtype  # the dtype of Q
    lin = ntk.linearize(q, case.params, inputs)
    there = lin.elsewhere(bootstrapped)
    ahead = gamma * wide(batch.discount)
    bonus = jnp.zeros_like(reward) if case.bonus is None else wide(case.bonus)
    y = reward + ahead * (there.values + bonus) if case.targets is None else wide(case.targets)
    delta = y - lin.values
    moved, alpha, linear = _update(case, lin, delta)
    change = batched(q)(moved, inputs) - lin.values
    bound = jnp.max(jnp.abs(reward)) if case.reward_bound is None else case.reward_bound
    diagonal = jnp.mean(jnp.diagonal(lin.gram))
    goes, spread = wide(batch.discount), jnp.std(lin.values)
    measured = {
        "q_mean": jnp.mean(lin.values),
        "q_largest": jnp.max(jnp.abs(lin.values)),
        "td_error": jnp.mean(jnp.abs(delta)),
        "diagonal_mean": diagonal,
        "alpha": alpha,
        "alignment": measures.alignment(change, delta),
        "gain": measures.gain(change, delta),
        "linearization_error": _ratio(
            _beyond_rounding(change - linear, lin.values, jnp.finfo(own).eps),
            jnp.linalg.norm(linear),
        ),
        "soft_divergence": _soft_divergence(lin.values, bound, ahead * bonus, gamma),
        "interference": measures.interference(lin.gram, delta),
        "extrapolation": _ratio(_mean(there.values - lin.values, goes), spread),
        "saturation": _saturation(case.next_action),
        "scale": jnp.where(diagonal > 0, diagonal, 1),
        **_of_kernel(lin.gram, alpha, gamma),
        **_of_hidden_layers(lin.layers[1:], there.layers[1:], goes),
    }
    parts = {name: jax.tree.leaves(getattr(case, name)) for name in _PARTS}
    finite = {
        name: jnp.all(jnp.asarray([jnp.isfinite(leaf).all() for leaf in leaves]))
        for name, leaves in parts.items()
    }
    return measured, ahead[:, None] * there.kernel - lin.gram, finite


def _update(
    case: Case, lin: ntk.Linearization, delta: Array
) -> tuple[Params, Array | float, Array]:
    """theta after the update, alpha, and the update's change of Q to first order."""
    size = delta.shape[0]
    plain = dot(lin.gram, delta) / size  # Eq. 5's change for alpha = 1
    if case.moved is None:
        alpha = jnp.asarray(1e-3) if case.alpha is None else case.alpha
        step = jax.tree.map(lambda g: alpha * g, lin.pullback(delta / size))
        return jax.tree.map(jnp.add, case.params, step), alpha, alpha * plain
    difference = lambda new, old: wide(new) - wide(old)  # noqa: E731
    linear = lin.pushforward(jax.tree.map(difference, case.moved, case.params))
    alpha = measures.gain(linear, plain) if case.alpha is None else case.alpha
    return case.moved, alpha, linear


def _saturation(action: Array) -> Array:
    """The share of coordinates of actions near their bounds; NaN if the bounds are not known."""
    size = jnp.abs(action)
    known = jnp.issubdtype(action.dtype, jnp.floating) & (jnp.max(size) <= 1 + _ROUNDING)
    return jnp.where(known, jnp.mean(size > _BOUND), jnp.nan)


def _of_kernel(gram: Array, alpha: Array | float, gamma: Array | float) -> dict[str, Array]:
    share = 1 / gram.shape[0]
    return {
        "row_ratio": jnp.mean(measures.row_ratio(gram)),
        "contraction_bound": measures.contraction_bound(gram, share, alpha, gamma),
        "overshoot_slack": jnp.min(measures.overshoot_slack(gram, share, alpha)),
        "generalization_slack": jnp.min(measures.generalization_slack(gram, share, gamma)),
        "effective_rank": _ratio(jnp.trace(gram) ** 2, jnp.sum(gram**2)),
        "condition": _condition(gram),
    }


def _of_hidden_layers(hidden: list[Array], ahead: list[Array], goes: Array) -> dict[str, Array]:
    """Numbers of the hidden layers at X and X*, `[B, width]`; `goes` `[B]` is 0 at terminals."""
    if not hidden:
        return {}
    last, after = hidden[-1], ahead[-1]
    # Of the layer, not of its Gram matrix, whose squares would lose half of the digits, and so the
    # rank.
    sigma = jnp.linalg.svd(last, compute_uv=False)
    total = jnp.sum(sigma)
    rank = 1 + jnp.sum(jnp.cumsum(sigma) < (1 - _SRANK) * total)
    activity = [jnp.mean(jnp.abs(layer), axis=0) for layer in hidden]
    dormant = jnp.concatenate([a <= _DORMANT * jnp.mean(a) for a in activity])
    return {
        "feature_rank": jnp.where(total > 0, rank, 0),
        "dormant_share": jnp.mean(dormant),
        "coadaptation": _mean(jax.vmap(measures.alignment)(last, after), goes),
    }


def _soft_divergence(
    values: Array, bound: Array | float, bonus: Array, gamma: Array | float
) -> Array:
    """The largest |Q|, divided by the most that rewards within `bound`, each with a bonus, can sum
    up to with the sign of Q. `values` and `bonus` are `[B]`.
    """
    signs = jnp.asarray([1, -1], values.dtype)
    most = bound + jnp.maximum(jnp.max(jnp.outer(signs, bonus), axis=1), 0)
    return jnp.max(_ratio(jnp.max(jnp.outer(signs, values), axis=1) * (1 - gamma), most))


def _mean(values: Array, weights: Array) -> Array:
    """The weighted mean; 0 if all weights are 0."""
    return _ratio(jnp.sum(jnp.where(weights > 0, weights * values, 0)), jnp.sum(weights))


def _ratio(a: Array, b: Array | float) -> Array:
    """a / b; 0 / 0 is 0."""
    return jnp.where(a == 0, 0, a / b)


def _beyond_rounding(error: Array, values: Array, eps: Any) -> Array:
    """|error|, or 0 if it is no larger than the rounding error in a difference of `values`."""
    size = jnp.linalg.norm(error)
    return jnp.where(size <= 2 * eps * jnp.linalg.norm(values), 0, size)


def _condition(gram: Array) -> Array:
    eigenvalues, eps = jnp.linalg.eigvalsh(gram), jnp.finfo(gram.dtype).eps
    floor = jnp.maximum(eps * eigenvalues[-1], jnp.finfo(gram.dtype).tiny)
    ratio = eigenvalues[-1] / jnp.maximum(eigenvalues[0], floor)
    return jnp.where(eigenvalues[-1] > 0, ratio, 1 / eps)


# --- checks of the arguments ----------------------------------------------------------------------


def _check(case: Case) -> None:
    batch, size = case.batch, np.shape(case.batch.reward)
    if np.ndim(case.gamma) != 0 or not 0 <= case.gamma < 1 or np.float32(case.gamma) == 1:
        raise ValueError(f"gamma is {case.gamma}, expected a number in [0, 1), in float32 too")
    for name, value in (("alpha", case.alpha), ("reward_bound", case.reward_bound)):
        if value is not None and not (np.ndim(value) == 0 and 0 < value < np.inf):
            raise ValueError(f"{name} is {value}, expected a positive number")
    if len(size) != 1 or size[0] < 2:
        raise ValueError(f"batch.reward has the shape {size}, expected [B] with B of at least 2")
    expected = {
        "batch.discount": (batch.discount, size),
        "batch.next_obs": (batch.next_obs, _shapes(batch.obs)),
        "next_action": (case.next_action, np.shape(batch.action)),
        **{
            name: (value, size)
            for name, value in (("targets", case.targets), ("bonus", case.bonus))
            if value is not None
        },
    }
    for name, (value, shape) in expected.items():
        if _shapes(value) != shape:
            raise ValueError(
                f"{name} has the shape {_shapes(value)}, expected {shape}, to fit the rest of batch"
            )
    for name, value in (("batch.obs", batch.obs), ("batch.action", batch.action)):
        if any(np.shape(leaf)[:1] != size for leaf in jax.tree.leaves(value)):
            raise ValueError(
                f"{name} has the shape {_shapes(value)}, expected {size[0]} rows, as many as "
                f"batch.reward"
            )
    if case.moved is not None and _form(case.moved) != _form(case.params):
        raise ValueError(
            "moved has another structure than params, expected the same parameters after an update"
        )


def _shapes(part: Any) -> Any:
    """The shape of an array, or of each array in a mapping."""
    return jax.tree.map(np.shape, part) if isinstance(part, Mapping) else np.shape(part)


def _form(params: Params) -> Any:
    return jax.tree.structure(params), [np.shape(leaf) for leaf in jax.tree.leaves(params)]
