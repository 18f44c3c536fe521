"""`ValueStep`: how the parameters of a value function move, given inputs and the targets their
values should take.

Every algorithm of the paper is this record and a rule for the targets. Targets are numbers,
computed outside: no step can differentiate through the bootstrap.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from preqn_jax import diagnostics, linesearch, ntk
from preqn_jax import solve as solvers
from preqn_jax.types import Array, Inputs, Metrics, Params, QFunction

State = Any
Targets = Array


class StepInfo(NamedTuple):
    """What a step saw and did."""

    values: Array  # `[B]`, Q before the step
    delta: Array  # `[B]`, y - Q, the TD errors
    metrics: Metrics  # scalars: at least "critic/alignment" (section 5.2)


class ValueStep(NamedTuple):
    """An optax-shaped pair of pure functions; `update` takes targets where optax takes gradients.

    init: `params -> state`, the step's own memory (an optimiser's moments, or nothing).
    update: `(params, state, inputs, targets [B]) -> (params, state, StepInfo)`. Keeps the types and
      shapes of its arguments. It leaves `params` as they are where it finds no acceptable step, and
      reports that.
    """

    init: Callable[[Params], State]
    update: Callable[[Params, State, Inputs, Targets], tuple[Params, State, StepInfo]]


def gradient(q: QFunction, optimizer: optax.GradientTransformation) -> ValueStep:
    """The usual critic step, Eq. 5: a descent direction of the mean of half the squared TD error.

    With ``optax.sgd(alpha)`` it is Eq. 5 itself, theta' = theta + alpha E[delta grad Q].
    """
    batch = _batched(q)

    def update(
        params: Params, state: State, inputs: Inputs, targets: Targets
    ) -> tuple[Params, State, StepInfo]:
        values, vjp = jax.vjp(lambda p: batch(p, inputs), params)
        delta = targets - values
        (grads,) = vjp(-delta / delta.shape[0])
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        change = batch(params, inputs) - values
        return (
            params,
            state,
            StepInfo(values, delta, {"critic/alignment": diagnostics.alignment(change, delta)}),
        )

    return ValueStep(optimizer.init, update)


def preconditioned(
    q: QFunction,
    learning_rate: float = 0.1,
    eta: float = 0.97,
    solve: solvers.Solve | None = None,
    *,
    method: ntk.Method = "structured",
    decay: float = 0.5,
    max_steps: int = 12,
) -> ValueStep:
    """PreQN, Algorithm 1, lines 10-13: TD errors preconditioned by the inverse of the minibatch
    kernel.

    Args:
      q: `q(params, *inputs) -> scalar`.
      learning_rate: alpha of Eq. 23, the share of each TD error that a step should remove.
      eta: the alignment threshold of Eq. 24, in (-1, 1).
      solve: the solution of Eq. 22; `solve.cholesky()` if None.
      method: how K is computed, see `ntk`.
      decay: the linesearch's factor between candidates.
      max_steps: candidates at most; if none passes, theta stays and "linesearch/accepted" is 0.

    Raises:
      ValueError: an argument out of range.
    """
    if not -1 < eta < 1:
        raise ValueError(f"eta is a cosine and must lie in (-1, 1), got {eta}")
    _check_positive("learning_rate", learning_rate)
    solve = solvers.cholesky() if solve is None else solve
    batch = _batched(q)

    def update(
        params: Params, state: State, inputs: Inputs, targets: Targets
    ) -> tuple[Params, State, StepInfo]:
        lin = ntk.linearize(q, params, inputs, method=method)
        delta = targets - lin.values
        z, fit = solve(lin.gram, delta)  # Eq. 22
        move = lin.pullback(z)  # Eq. 23

        def candidate(scale: Array) -> Params:
            return jax.tree.map(
                lambda p, m: (p + learning_rate * scale.astype(p.dtype) * m).astype(p.dtype),
                params,
                move,
            )

        def accept(scale: Array) -> tuple[Array, Array]:
            change = batch(candidate(scale), inputs) - lin.values
            cos = diagnostics.alignment(change, delta)
            nothing_to_do = jnp.all(delta == 0) & jnp.all(change == 0)
            return (cos >= eta) | nothing_to_do, cos  # Eq. 24; a NaN is no acceptance

        search = linesearch.backtrack(accept, decay=decay, max_steps=max_steps)
        moved = candidate(search.scale)
        params = jax.tree.map(lambda new, old: jnp.where(search.accepted, new, old), moved, params)
        image = jnp.dot(lin.gram, z, precision=jax.lax.Precision.HIGHEST)
        metrics = {
            "critic/alignment": jnp.where(search.accepted, search.aux, 0),
            "linesearch/backtracks": search.backtracks.astype(delta.dtype),
            "linesearch/accepted": search.accepted.astype(delta.dtype),
            "solve/alignment": diagnostics.alignment(image, delta),
            **_solve_metrics(fit, delta),
            **_kernel_metrics(lin.gram),
        }
        return params, state, StepInfo(lin.values, delta, metrics)

    return ValueStep(lambda params: (), update)


def natural_gradient(
    q: QFunction,
    learning_rate: float = 0.1,
    damping: float = 1e-3,
    *,
    primal: bool = False,
    max_steps: int = 100,
) -> ValueStep:
    """NGQL, Eqs. 25-27: ``theta' = theta + alpha (F + lambda I)^-1 g``, F and g from the same
    samples.

    By Lemma 4 (with damping: by the push-through identity) ``(Phi Phi^T + c I)^-1 Phi = Phi (K + c
    I)^-1``, so the `d x d` system of Eq. 27 is solved through the `B x B` kernel unless `primal`
    asks for the system itself, by conjugate gradients on Fisher-vector products; the tests hold the
    two against each other.

    Args:
      q: `q(params, *inputs) -> scalar`.
      learning_rate: alpha of Eq. 25.
      damping: lambda, in units of tr(F) / B: the same number and the same update as
        `solve.cholesky(damping)`.
      primal: solve in parameter space.
      max_steps: conjugate-gradient iterations at most, primal only.

    Raises:
      ValueError: an argument out of range.
    """
    _check_positive("learning_rate", learning_rate)
    if damping < 0:
        raise ValueError(f"damping must not be negative, got {damping}")
    direction = _primal_direction(q, damping, max_steps) if primal else _dual_direction(q, damping)
    batch = _batched(q)

    def update(
        params: Params, state: State, inputs: Inputs, targets: Targets
    ) -> tuple[Params, State, StepInfo]:
        values, move, metrics = direction(params, inputs, targets)
        delta = targets - values
        params = jax.tree.map(lambda p, m: (p + learning_rate * m).astype(p.dtype), params, move)
        change = batch(params, inputs) - values
        return (
            params,
            state,
            StepInfo(
                values, delta, {"critic/alignment": diagnostics.alignment(change, delta), **metrics}
            ),
        )

    return ValueStep(lambda params: (), update)


def ensemble(step: ValueStep) -> ValueStep:
    """The same step for M value functions at once: parameters and state lead with `[M]`, inputs and
    targets are shared.

    `StepInfo.values` and `delta` are `[M, B]`; metrics are means over members.
    """

    def update(
        params: Params, state: State, inputs: Inputs, targets: Targets
    ) -> tuple[Params, State, StepInfo]:
        params, state, info = jax.vmap(step.update, in_axes=(0, 0, None, None))(
            params, state, inputs, targets
        )
        return (
            params,
            state,
            info._replace(metrics=jax.tree.map(lambda m: jnp.mean(m, axis=0), info.metrics)),
        )

    return ValueStep(jax.vmap(step.init), update)


def _dual_direction(q: QFunction, damping: float) -> Callable:
    solve = solvers.cholesky(damping)

    def direction(
        params: Params, inputs: Inputs, targets: Targets
    ) -> tuple[Array, Params, Metrics]:
        lin = ntk.linearize(q, params, inputs)
        delta = targets - lin.values
        z, fit = solve(lin.gram, delta)
        return (
            lin.values,
            lin.pullback(z),
            {**_solve_metrics(fit, delta), **_kernel_metrics(lin.gram)},
        )

    return direction


def _primal_direction(q: QFunction, damping: float, max_steps: int) -> Callable:
    batch = _batched(q)

    def direction(
        params: Params, inputs: Inputs, targets: Targets
    ) -> tuple[Array, Params, Metrics]:
        values, pushforward = jax.linearize(lambda p: batch(p, inputs), params)
        pull = jax.linear_transpose(pushforward, params)
        size = values.shape[0]
        per_example = jax.vmap(jax.grad(q), in_axes=(None, *[0] * len(inputs)))(params, *inputs)
        trace = sum(jnp.sum(g**2) for g in jax.tree.leaves(per_example)) / size  # tr F, Eq. 26
        shift = damping * trace / size

        def fisher(v: Params) -> Params:  # (F + lambda I) v
            (image,) = pull(pushforward(v) / size)
            return jax.tree.map(lambda a, b: a + shift * b, image, v)

        (g,) = pull((targets - values) / size)  # Eq. 5
        # Past convergence the iterates would run away, along directions that F knows only as
        # rounding.
        tol = 10 * float(jnp.finfo(values.dtype).eps)
        move, _ = jax.scipy.sparse.linalg.cg(fisher, g, tol=tol, maxiter=max_steps)
        return values, move, {}

    return direction


def _batched(q: QFunction) -> Callable[[Params, Inputs], Array]:
    """`(params, inputs) -> values [B]`."""
    return lambda params, inputs: jax.vmap(q, in_axes=(None, *[0] * len(inputs)))(params, *inputs)


def _solve_metrics(fit: solvers.SolveInfo, delta: Array) -> Metrics:
    return {
        "solve/residual": fit.residual,
        "solve/rank": fit.rank.astype(delta.dtype),
        "solve/finite": fit.finite.astype(delta.dtype),
    }


def _kernel_metrics(gram: Array) -> Metrics:
    return {
        "ntk/diagonal_mean": jnp.mean(jnp.diagonal(gram)),
        "ntk/row_ratio_mean": jnp.mean(diagnostics.row_ratio(gram)),
    }


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
