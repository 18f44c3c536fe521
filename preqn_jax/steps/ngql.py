"""The natural gradient's step, section 4.1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from preqn_jax import measures, ntk
from preqn_jax import solve as solvers
from preqn_jax.batching import batched
from preqn_jax.options import require
from preqn_jax.steps.base import (
    LearningRate,
    Memory,
    StepInfo,
    ValueStep,
    checked,
    delta_of,
    schedule,
    solve_metrics,
)
from preqn_jax.types import Array, Inputs, Metrics, Number, Params, QFunction, wide

Direction = Callable[[Params, Inputs, Array], tuple[Array, Params, Metrics]]
"""`(params, inputs, targets [B]) -> (values [B], a move of params, metrics)`."""


def natural_gradient(
    q: QFunction,
    learning_rate: LearningRate = 0.1,
    damping: Number = 1e-3,
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
      learning_rate: alpha of Eq. 25, or a schedule of it, as for `preconditioned`.
      damping: lambda, in units of tr(F) / B: the same number and the same update as
        `solve.cholesky(damping)`.
      primal: solve in parameter space.
      max_steps: conjugate-gradient iterations at most, primal only.

    Raises:
      ValueError: an argument out of range.
    """
    require(damping, lambda x: x >= 0, "damping must not be negative")
    require(max_steps, lambda x: x >= 1, "max_steps must be at least 1")
    init, rate = schedule(learning_rate)
    direction = _primal_direction(q, damping, max_steps) if primal else _dual_direction(q, damping)
    batch = batched(q)

    def update(
        params: Params, memory: Memory, inputs: Inputs, targets: Array
    ) -> tuple[Params, Memory, StepInfo]:
        params = checked(params, inputs, targets)
        alpha, memory = rate(memory)
        values, move, metrics = direction(params, inputs, targets)
        delta = delta_of(targets, values)
        params = jax.tree.map(lambda p, m: (p + alpha * m).astype(p.dtype), params, move)
        cos = measures.alignment(batch(params, inputs) - values, delta)
        return params, memory, StepInfo(values, delta, {"critic/alignment": cos, **metrics})

    return ValueStep(init, update)


def _dual_direction(q: QFunction, damping: Number) -> Direction:
    solve = solvers.cholesky(damping)

    def direction(params: Params, inputs: Inputs, targets: Array) -> tuple[Array, Params, Metrics]:
        lin = ntk.linearize(q, params, inputs)
        delta = delta_of(targets, lin.values)
        z, fit = solve(lin.gram, delta)
        return lin.values, lin.pullback(z), solve_metrics(fit, lin.gram, delta)

    return direction


def _primal_direction(q: QFunction, damping: Number, max_steps: int) -> Direction:
    batch = batched(q)

    def direction(params: Params, inputs: Inputs, targets: Array) -> tuple[Array, Params, Metrics]:
        theta = jax.tree.map(wide, params)  # so that F moves no vector in less than float32

        def value(theta: Params) -> Array:
            return batch(jax.tree.map(lambda t, p: t.astype(p.dtype), theta, params), inputs)

        values, pushforward = jax.linearize(value, theta)
        pull = jax.linear_transpose(pushforward, theta)
        size = values.shape[0]
        per_example = batched(jax.grad(q))(params, inputs)
        trace = sum(jnp.sum(g**2) for g in jax.tree.leaves(per_example)) / size  # tr F, Eq. 26
        shift = damping * trace / size

        def fisher(v: Params) -> Params:  # (F + lambda I) v
            (image,) = pull(pushforward(v) / size)
            return jax.tree.map(lambda a, b: a + shift.astype(a.dtype) * b, image, v)

        (g,) = pull(delta_of(targets, values) / size)  # Eq. 5
        # Past convergence the iterates would run away, along directions that F knows only as
        # rounding.
        tol = 10 * float(jnp.finfo(values.dtype).eps)
        move, _ = jax.scipy.sparse.linalg.cg(fisher, g, tol=tol, maxiter=max_steps)
        return values, move, {}

    return direction
