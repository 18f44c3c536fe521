"""`ValueStep`: how the parameters of a value function move, given inputs and the targets their
values should take.

Every algorithm of the paper is this record and a rule for the targets. Targets are numbers,
computed outside: no step can differentiate through the bootstrap.

Numbers such as a learning rate may be arrays that JAX traces, so `jax.vmap` over a function that
makes a step and takes it is a sweep. Only a number of Python's own is checked.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from preqn_jax import linesearch, measures, ntk
from preqn_jax import solve as solvers
from preqn_jax.batching import batch_size, batched, parameters
from preqn_jax.options import require
from preqn_jax.types import Array, Inputs, Metrics, Number, Params, QFunction, wide

Memory = Any
"""What a step keeps from one update to the next."""

Direction = Callable[[Params, Inputs, Array], tuple[Array, Params, Metrics]]
"""`(params, inputs, targets [B]) -> (values [B], a move of params, metrics)`."""

LearningRate = Number | optax.Schedule
"""A number, or `updates so far -> number`."""


class StepInfo(NamedTuple):
    """What a step saw and did."""

    values: Array  # `[B]`, Q before the step
    delta: Array  # `[B]`, y - Q, the TD errors
    metrics: Metrics  # scalars: at least "critic/alignment" (section 5.2)


class ValueStep(NamedTuple):
    """An optax-shaped pair of pure functions; `update` takes targets where optax takes gradients.

    init: `params -> memory`, the step's own (an optimiser's moments, a count, or nothing).
    update: `(params, memory, inputs, targets [B]) -> (params, memory, StepInfo)`. Keeps the types
      and shapes of its arguments. It leaves `params` as they are where it finds no acceptable step,
      and reports that. Raises ValueError, as it is traced, where the shapes do not fit.
    """

    init: Callable[[Params], Memory]
    update: Callable[[Params, Memory, Inputs, Array], tuple[Params, Memory, StepInfo]]


def gradient(
    q: QFunction, optimizer: optax.GradientTransformation, huber: Number | None = None
) -> ValueStep:
    """The usual critic step, Eq. 5: a descent direction of the mean of half the squared TD error.

    With ``optax.sgd(alpha)`` it is Eq. 5 itself, theta' = theta + alpha E[delta grad Q]. TD errors
    count up to `huber` there, if it is given: the gradient of Huber's loss (Mnih et al. 2015).

    >>> from preqn_jax import steps
    >>> step = steps.gradient(lambda params, x: x @ params, optax.sgd(0.5))
    >>> params, inputs, targets = jnp.zeros(2), (jnp.eye(2),), jnp.asarray([4.0, -8.0])
    >>> params, memory, info = step.update(params, step.init(params), inputs, targets)
    >>> params.tolist(), info.delta.tolist()
    ([1.0, -2.0], [4.0, -8.0])
    """
    require(huber, lambda x: x > 0, "huber must be positive, or None for no bound")
    batch = batched(q)

    def update(
        params: Params, memory: Memory, inputs: Inputs, targets: Array
    ) -> tuple[Params, Memory, StepInfo]:
        params = _checked(params, inputs, targets)
        values, vjp = jax.vjp(lambda p: batch(p, inputs), params)
        delta = _delta(targets, values)
        pull = delta if huber is None else jnp.clip(delta, -huber, huber)
        (grads,) = vjp(-pull / delta.shape[0])
        updates, memory = optimizer.update(grads, memory, params)
        params = optax.apply_updates(params, updates)
        cos = measures.alignment(batch(params, inputs) - values, delta)
        return params, memory, StepInfo(values, delta, {"critic/alignment": cos})

    return ValueStep(optimizer.init, update)


def preconditioned(
    q: QFunction,
    learning_rate: LearningRate = 0.1,
    eta: Number = 0.97,
    solve: solvers.Solve | None = None,
    *,
    method: ntk.Method = "structured",
    decay: Number = 0.5,
    max_steps: int = 12,
) -> ValueStep:
    """PreQN, Algorithm 1, lines 10-13: TD errors preconditioned by the inverse of the minibatch
    kernel.

    >>> from preqn_jax import solve, steps
    >>> step = steps.preconditioned(lambda params, x: x @ params, 0.5, solve=solve.eigh())
    >>> params, inputs = jnp.zeros(2), (jnp.asarray([[1.0, 1.0], [1.0, 0.0]]),)
    >>> params, _, info = step.update(params, (), inputs, jnp.asarray([4.0, -8.0]))
    >>> (inputs[0] @ params).round(3).tolist()  # half of the way to the targets
    [2.0, -4.0]

    Args:
      q: `q(params, *inputs) -> scalar`.
      learning_rate: alpha of Eq. 23, the share of each TD error that a step should remove. With an
        optax schedule the step's memory counts its updates.
      eta: the alignment threshold of Eq. 24, in (-1, 1).
      solve: the solution of Eq. 22; `solve.cholesky()` if None.
      method: how K is computed, see `ntk`.
      decay: the linesearch's factor between candidates.
      max_steps: candidates at most; if none passes, theta stays and "linesearch/accepted" is 0.

    Raises:
      ValueError: an argument out of range, or `solve` is no such function.
    """
    require(eta, lambda x: -1 < x < 1, "eta is a cosine and must lie in (-1, 1)")
    linesearch.check(decay, max_steps)
    ntk.check_method(method)
    solve = solvers.cholesky() if solve is None else _checked_solve(solve)
    init, rate = _schedule(learning_rate)
    batch = batched(q)

    def update(
        params: Params, memory: Memory, inputs: Inputs, targets: Array
    ) -> tuple[Params, Memory, StepInfo]:
        params = _checked(params, inputs, targets)
        alpha, memory = rate(memory)
        lin = ntk.linearize(q, params, inputs, method=method)
        delta = _delta(targets, lin.values)
        z, fit = solve(lin.gram, delta)  # Eq. 22
        move = lin.pullback(z)  # Eq. 23

        def candidate(scale: Array) -> Params:
            return jax.tree.map(
                lambda p, m: (p + alpha * scale.astype(p.dtype) * m).astype(p.dtype), params, move
            )

        def accept(scale: Array) -> tuple[Array, Array]:
            change = batch(candidate(scale), inputs) - lin.values
            cos = measures.alignment(change, delta)
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
            "solve/alignment": measures.alignment(image, delta),
            **_solve_metrics(fit, lin.gram, delta),
        }
        return params, memory, StepInfo(lin.values, delta, metrics)

    return ValueStep(init, update)


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
    init, rate = _schedule(learning_rate)
    direction = _primal_direction(q, damping, max_steps) if primal else _dual_direction(q, damping)
    batch = batched(q)

    def update(
        params: Params, memory: Memory, inputs: Inputs, targets: Array
    ) -> tuple[Params, Memory, StepInfo]:
        params = _checked(params, inputs, targets)
        alpha, memory = rate(memory)
        values, move, metrics = direction(params, inputs, targets)
        delta = _delta(targets, values)
        params = jax.tree.map(lambda p, m: (p + alpha * m).astype(p.dtype), params, move)
        cos = measures.alignment(batch(params, inputs) - values, delta)
        return params, memory, StepInfo(values, delta, {"critic/alignment": cos, **metrics})

    return ValueStep(init, update)


def ensemble(step: ValueStep) -> ValueStep:
    """The same step for M value functions at once: parameters and memory lead with `[M]`, inputs
    and targets are shared.

    `StepInfo.values` and `delta` are `[M, B]`; metrics are means over members.
    """
    members = jax.vmap(step.update, in_axes=(0, 0, None, None))

    def update(
        params: Params, memory: Memory, inputs: Inputs, targets: Array
    ) -> tuple[Params, Memory, StepInfo]:
        params, memory, info = members(params, memory, inputs, targets)
        means = jax.tree.map(lambda m: jnp.mean(m, axis=0), info.metrics)
        return params, memory, info._replace(metrics=means)

    return ValueStep(jax.vmap(step.init), update)


def _dual_direction(q: QFunction, damping: Number) -> Direction:
    solve = solvers.cholesky(damping)

    def direction(params: Params, inputs: Inputs, targets: Array) -> tuple[Array, Params, Metrics]:
        lin = ntk.linearize(q, params, inputs)
        delta = _delta(targets, lin.values)
        z, fit = solve(lin.gram, delta)
        return lin.values, lin.pullback(z), _solve_metrics(fit, lin.gram, delta)

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
            return jax.tree.map(lambda a, b: a + shift * b, image, v)

        (g,) = pull(_delta(targets, values) / size)  # Eq. 5
        # Past convergence the iterates would run away, along directions that F knows only as
        # rounding.
        tol = 10 * float(jnp.finfo(values.dtype).eps)
        move, _ = jax.scipy.sparse.linalg.cg(fisher, g, tol=tol, maxiter=max_steps)
        return values, move, {}

    return direction


def _checked_solve(solve: solvers.Solve) -> solvers.Solve:
    """`solve`, if it is a solve. Raises ValueError for its name, or for what makes one."""
    makers = {"cholesky": solvers.cholesky, "eigh": solvers.eigh}
    makers |= {"lstsq": solvers.lstsq, "cg": solvers.cg}
    if callable(solve) and solve not in makers.values():
        return solve
    name = getattr(solve, "__name__", solve)
    raise ValueError(
        f"solve is {solve!r}, expected a function (gram, delta) -> (z, info), as "
        f"preqn_jax.solve.{name if name in list(makers) else 'cholesky'}() makes one"
    )


def _schedule(
    learning_rate: LearningRate,
) -> tuple[Callable[[Params], Memory], Callable[[Memory], tuple[Any, Memory]]]:
    """The memory that a learning rate asks for, and how to get the rate of an update from it."""
    if callable(learning_rate):

        def counted(count: Memory) -> tuple[Any, Memory]:
            if not hasattr(count, "dtype"):
                raise ValueError(
                    f"memory is {count!r}, expected what step.init(params) returns: with a "
                    f"schedule as learning rate it counts the updates"
                )
            return learning_rate(count), optax.safe_increment(count)

        return lambda params: jnp.zeros((), jnp.int32), counted
    if not isinstance(learning_rate, numbers.Real) and not hasattr(learning_rate, "dtype"):
        raise ValueError(
            f"learning_rate is {learning_rate!r}, expected a number, or an optax schedule"
        )
    require(learning_rate, lambda x: x > 0, "learning_rate must be positive")
    return lambda params: (), lambda memory: (learning_rate, memory)


def _checked(params: Params, inputs: Inputs, targets: Array) -> Params:
    """theta as arrays. Raises ValueError where it is none, there is nothing to learn from, or the
    shapes do not fit.
    """
    seen, expected = jnp.shape(targets), (batch_size(inputs),)
    if expected == (0,):
        raise ValueError("inputs hold no example, expected one at least to learn from")
    if seen != expected:
        cure = ", as targets[:, 0] is" if seen == (*expected, 1) else ""
        raise ValueError(
            f"targets has the shape {seen}, expected {expected}{cure}: one number for each input"
        )
    return parameters(params)


def _delta(targets: Array, values: Array) -> Array:
    """y - Q `[B]`, in Q's type, float32 at least."""
    return jnp.asarray(targets, values.dtype) - values


def _solve_metrics(fit: solvers.SolveInfo, gram: Array, delta: Array) -> Metrics:
    return {
        "solve/residual": fit.residual,
        "solve/rank": fit.rank.astype(delta.dtype),
        "solve/finite": fit.finite.astype(delta.dtype),
        "ntk/diagonal_mean": jnp.mean(jnp.diagonal(gram)),
        "ntk/row_ratio_mean": jnp.mean(measures.row_ratio(gram)),
    }
