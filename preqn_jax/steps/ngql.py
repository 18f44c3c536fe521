"""The natural gradient's step, section 4.1."""

import jax
import jax.numpy as jnp

from preqn_jax import measures, ntk
from preqn_jax import solve as solvers
from preqn_jax.batching import batched
from preqn_jax.steps.base import (
    LearningRate,
    Memory,
    StepInfo,
    ValueStep,
    checked,
    delta_of,
    schedule,
    solve_metrics,
    within_range,
)
from preqn_jax.types import Array, Inputs, Number, Params, QFunction


def natural_gradient(
    q: QFunction,
    learning_rate: LearningRate = 0.1,
    damping: Number = 1e-3,
) -> ValueStep:
    """NGQL, Eqs. 25-27: ``theta' = theta + alpha (F + lambda I)^-1 g``, F and g from the same
    samples.

    By Lemma 4 (with damping: by the push-through identity) ``(Phi Phi^T + c I)^-1 Phi = Phi (K + c
    I)^-1``, so the `d x d` system of Eq. 27 is solved through the `B x B` kernel. The tests compare
    both solutions.

    Args:
      q: `q(params, *inputs) -> scalar`.
      learning_rate: alpha of Eq. 25, or a schedule of it, as for `preconditioned`.
      damping: lambda, in units of tr(F) / B; the update is the same as with
        `solve.cholesky(damping)`.

    Raises:
      ValueError: an argument out of range.
    """
    init, rate = schedule(learning_rate)
    solve, batch = solvers.cholesky(damping), batched(q)

    def update(
        params: Params, memory: Memory, inputs: Inputs, targets: Array
    ) -> tuple[Params, Memory, StepInfo]:
        params = checked(params, inputs, targets)
        alpha, memory = rate(memory)
        lin = ntk.linearize(q, params, inputs)
        delta = delta_of(targets, lin.values)
        z, fit = solve(lin.gram, delta)
        move = lin.pullback(z)
        moved = jax.tree.map(lambda p, m: (p + alpha * m).astype(p.dtype), params, move)
        good = fit.finite & within_range(moved)
        params = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, params)
        cos = measures.alignment(batch(params, inputs) - lin.values, delta)
        fit = fit._replace(finite=good)  # also where theta itself overflowed
        metrics = {"critic/alignment": cos, **solve_metrics(fit, lin.gram, delta)}
        return params, memory, StepInfo(lin.values, delta, metrics)

    return ValueStep(init, update)
