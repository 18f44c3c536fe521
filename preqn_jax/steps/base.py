"""The interface of steps, the usual gradient step (Eq. 5), and helpers that all steps share."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from preqn_jax import measures
from preqn_jax import solve as solvers
from preqn_jax.batching import batch_size, batched, parameters
from preqn_jax.options import require
from preqn_jax.types import Array, Inputs, Metrics, Number, Params, QFunction

Memory = Any
"""The state that a step carries from one update to the next."""

LearningRate = Number | optax.Schedule
"""A number, or a schedule: a function `number of updates so far -> number`."""


class StepInfo(NamedTuple):
    """Values, TD errors and metrics of one step."""

    values: Array  # `[B]`, Q before the step
    delta: Array  # `[B]`, y - Q, the TD errors
    metrics: Metrics  # scalars: at least "critic/alignment" (section 5.2)


class ValueStep(NamedTuple):
    """Two pure functions in the style of optax; `update` takes targets where optax takes gradients.

    init: `params -> memory`, the state of the step (an optimizer's moments, a count, or nothing).
    update: `(params, memory, inputs, targets [B]) -> (params, memory, StepInfo)`. Keeps the types
      and shapes of its arguments. If it finds no acceptable step, it leaves `params` as they are
      and says so in the metrics. Raises ValueError, at trace time, if the shapes do not fit.
    """

    init: Callable[[Params], Memory]
    update: Callable[[Params, Memory, Inputs, Array], tuple[Params, Memory, StepInfo]]


def check_optimizer(optimizer: Any) -> None:
    """Raises ValueError for what is no optimizer, as a class or a learning rate."""
    if isinstance(optimizer, type) or not hasattr(optimizer, "init"):
        raise ValueError(f"optimizer is {optimizer!r}, expected one of optax, as optax.adam(1e-3)")


def gradient(
    q: QFunction, optimizer: optax.GradientTransformation, huber: Number | None = None
) -> ValueStep:
    """The usual critic step, Eq. 5: `optimizer` descends the mean of half the squared TD error.

    With ``optax.sgd(alpha)`` it is Eq. 5 itself, theta' = theta + alpha E[delta grad Q]. If `huber`
    is given, TD errors are clipped to [-huber, huber], as in Huber's loss (Mnih et al. 2015).

    >>> import jax.numpy as jnp, optax
    >>> from preqn_jax import steps
    >>> step = steps.gradient(lambda params, x: x @ params, optax.sgd(0.5))
    >>> params, inputs, targets = jnp.zeros(2), (jnp.eye(2),), jnp.asarray([4.0, -8.0])
    >>> params, memory, info = step.update(params, step.init(params), inputs, targets)
    >>> params.tolist(), info.delta.tolist()
    ([1.0, -2.0], [4.0, -8.0])
    """
    require(huber, lambda x: x > 0, "huber must be positive, or None for no bound")
    check_optimizer(optimizer)
    batch = batched(q)

    def update(
        params: Params, memory: Memory, inputs: Inputs, targets: Array
    ) -> tuple[Params, Memory, StepInfo]:
        params = checked(params, inputs, targets)
        values, vjp = jax.vjp(lambda p: batch(p, inputs), params)
        delta = delta_of(targets, values)
        pull = delta
        if huber is not None:
            bound = jnp.asarray(huber, delta.dtype)
            pull = jnp.clip(delta, -bound, bound)
        (grads,) = vjp(-pull / delta.shape[0])
        updates, memory = optimizer.update(grads, memory, params)
        params = optax.apply_updates(params, updates)
        cos = measures.alignment(batch(params, inputs) - values, delta)
        return params, memory, StepInfo(values, delta, {"critic/alignment": cos})

    return ValueStep(optimizer.init, update)


def ensemble(step: ValueStep) -> ValueStep:
    """The same step for M value functions at once: parameters and memory have a leading `[M]`,
    inputs and targets are shared.

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


def schedule(
    learning_rate: LearningRate,
) -> tuple[Callable[[Params], Memory], Callable[[Memory], tuple[Any, Memory]]]:
    """Two functions of a learning rate: `params -> memory`, and `memory -> (rate, next memory)`."""
    if callable(learning_rate):

        def counted(count: Memory) -> tuple[Any, Memory]:
            if not hasattr(count, "dtype"):
                raise ValueError(
                    f"memory is {count!r}, expected what step.init(params) returns: with a "
                    f"schedule as learning rate, the count of updates"
                )
            return learning_rate(count), optax.safe_increment(count)

        return lambda params: jnp.zeros((), jnp.int32), counted
    if not isinstance(learning_rate, numbers.Real) and not hasattr(learning_rate, "dtype"):
        raise ValueError(
            f"learning_rate is {learning_rate!r}, expected a number, or an optax schedule"
        )
    require(learning_rate, lambda x: x > 0, "learning_rate must be positive")
    return lambda params: (), lambda memory: (learning_rate, memory)


def checked(params: Params, inputs: Inputs, targets: Array) -> Params:
    """theta as arrays. Raises ValueError if a leaf of theta is not real and floating-point, the
    minibatch is empty, or the shapes do not fit.
    """
    seen, expected = jnp.shape(targets), (batch_size(inputs),)
    if expected == (0,):
        raise ValueError("inputs hold no example, expected at least one to learn from")
    if seen != expected:
        cure = ", as targets[:, 0] is" if seen == (*expected, 1) else ""
        raise ValueError(
            f"targets has the shape {seen}, expected {expected}{cure}: one number for each input"
        )
    return parameters(params)


def delta_of(targets: Array, values: Array) -> Array:
    """TD errors y - Q `[B]`, in the type of Q's values, float32 at least."""
    return jnp.asarray(targets, values.dtype) - values


def within_range(params: Params) -> Array:
    """Whether all parameters of types with a smaller range than float32 are finite, `[]`.

    Q may stay finite if they are not, where activations saturate. Infinite float32 parameters show
    in the logged norms; checking each of them here would cost 3 % of a step's time.
    """
    narrow = [x for x in jax.tree.leaves(params) if jnp.finfo(x.dtype).maxexp < 128]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in narrow], bool))


def solve_metrics(fit: solvers.SolveInfo, gram: Array, delta: Array) -> Metrics:
    return {
        "solve/residual": fit.residual,
        "solve/rank": fit.rank.astype(delta.dtype),
        "solve/finite": fit.finite.astype(delta.dtype),
        "ntk/diagonal_mean": jnp.mean(jnp.diagonal(gram)),
        "ntk/row_ratio_mean": jnp.mean(measures.row_ratio(gram)),
    }
