"""PreQN's step: Algorithm 1, lines 10 to 13."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax import linesearch, measures, ntk
from preqn_jax import solve as solvers
from preqn_jax.batching import batched
from preqn_jax.options import choose, require
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
from preqn_jax.types import Array, Inputs, Number, Params, QFunction, dot, power_of_two


class Adaptive(NamedTuple):
    """A damping that follows the curvature (Levenberg 1944, Marquardt 1963; the rule is that of
    Nocedal and Wright 2006, Algorithm 4.1).

    After each step the decrease of the squared TD errors is compared with the decrease that the
    linearization predicted. Above 3/4 of that, the next damping is divided by `factor`; below 1/4,
    or if no step was accepted, it is multiplied by `factor`.
    """

    solve: Callable[[Number], solvers.Solve] = solvers.cholesky  # makes it from a damping
    start: Number = 1e-3
    minimum: Number = 1e-4  # at a tenth of it, the Cholesky of a singular K may be NaN in float32
    maximum: Number = 1.0
    factor: Number = 1.5

    def check(self) -> "Adaptive":
        """Raises ValueError for numbers out of range, and a maker whose first argument is no
        damping.
        """
        if self.solve in (solvers.cg, solvers.eigh, solvers.lstsq):
            name, damped = self.solve.__name__, self.solve is solvers.cg
            raise ValueError(
                f"solve of an adaptive damping is solve.{name}, whose first argument is none: give "
                f"{'lambda x: solve.cg(damping=x)' if damped else 'solve.cholesky'}"
            )
        require(self.minimum, lambda x: x >= 0, "minimum must not be negative")
        require(self.maximum, lambda x: not x < self.minimum, "maximum must not be below minimum")
        require(
            self.start,
            lambda x: self.minimum <= x <= self.maximum,
            f"start of an adaptive damping must lie in [{self.minimum}, {self.maximum}]",
        )
        require(self.factor, lambda x: x > 1, "factor must be above 1")
        return self

    def after(self, damping: Array, ratio: Array, accepted: Array) -> Array:
        """The next damping; `ratio` is actual over predicted decrease, and NaN counts as low."""
        good, bad = accepted & (ratio > 0.75), ~accepted | ~(ratio >= 0.25)
        factor = jnp.where(bad, self.factor, jnp.where(good, 1 / self.factor, 1.0))
        return jnp.clip(damping * factor, self.minimum, self.maximum).astype(damping.dtype)


class PreconditionedMemory(NamedTuple):
    """The memory of a preconditioned step with momentum or an adaptive damping."""

    rate: Memory  # of the learning rate
    move: Params  # the last accepted move, before alpha and the linesearch; () without momentum
    damping: Any  # `[]`, of the next solve; () where it is fixed


def preconditioned(
    q: QFunction,
    learning_rate: LearningRate = 0.1,
    eta: Number = 0.97,
    solve: solvers.Solve | Adaptive | None = None,
    *,
    method: ntk.Method = "structured",
    decay: Number = 0.5,
    max_steps: int = 12,
    momentum: Number | None = None,
    relative: bool = False,
) -> ValueStep:
    """PreQN, Algorithm 1, lines 10-13: TD errors preconditioned by the inverse of the minibatch
    kernel.

    >>> import jax.numpy as jnp
    >>> from preqn_jax import solve, steps
    >>> step = steps.preconditioned(lambda params, x: x @ params, 0.5, solve=solve.eigh())
    >>> params, inputs = jnp.zeros(2), (jnp.asarray([[1.0, 1.0], [1.0, 0.0]]),)
    >>> params, _, info = step.update(params, (), inputs, jnp.asarray([4.0, -8.0]))
    >>> (inputs[0] @ params).round(3).tolist()  # half of the way to the targets
    [2.0, -4.0]

    Args:
      q: `q(params, *inputs) -> scalar`.
      learning_rate: alpha of Eq. 23, the share of each TD error that a step should remove, in
        (0, 1) as in Eq. 20: a larger one overshoots, which the alignment does not see. With an
        optax schedule the step's memory counts its updates.
      eta: the alignment threshold of Eq. 24, in (-1, 1).
      solve: how Eq. 22 is solved; `solve.cholesky()` if None. With `Adaptive` the damping is part
        of the step's memory.
      method: how K is computed, see `ntk`.
      decay: factor between successive candidates of the linesearch.
      max_steps: the largest number of candidates; if none passes, theta stays and
        "linesearch/accepted" is 0.
      momentum: mu in [0, 1), the share of the last move m' that this one begins with, as in SPRING
        for variational Monte Carlo (Goldshlager, Abrahamsen and Lin 2024): m = mu m' + Phi Z, where
        K Z = Delta - mu Phi^T m' replaces Eq. 22. Only that part of m' remains which this
        minibatch's kernel does not see, so that one batch does not undo what others taught. After a
        step that was not accepted, m' is zero. None for the paper's algorithm.
      relative: replace eta in Eq. 24 by eta * cos(K Z, Delta). This cosine is the alignment of the
        solve itself, which a step's alignment approaches as the step gets shorter. It is well below
        1 where K cannot tell the pairs of a minibatch apart: damping then keeps K Z away from
        Delta, and no step reaches eta itself. False for the paper's algorithm.

    Raises:
      ValueError: an argument out of range, or `solve` is no such function.
    """
    require(eta, lambda x: -1 < x < 1, "eta is a cosine and must lie in (-1, 1)")
    require(momentum, lambda x: 0 <= x < 1, "momentum must lie in [0, 1)")
    linesearch.check(decay, max_steps)
    choose("method", method, ntk.METHODS)
    adaptive = solve.check() if isinstance(solve, Adaptive) else None
    keeps = momentum is not None or adaptive is not None
    (start, rate), batch = schedule(learning_rate), batched(q)
    fixed: Any = solvers.cholesky() if solve is None or adaptive else _checked_solve(solve)

    def update(
        params: Params, memory: Memory, inputs: Inputs, targets: Array
    ) -> tuple[Params, Memory, StepInfo]:
        params = checked(params, inputs, targets)
        kept = _checked_memory(memory) if keeps else PreconditionedMemory(memory, (), ())
        alpha, rate_memory = rate(kept.rate)
        lin = ntk.linearize(q, params, inputs, method=method)
        delta = delta_of(targets, lin.values)
        solved = adaptive.solve(kept.damping) if adaptive else fixed
        move, image, fit = _direction(lin, delta, solved, momentum, kept.move)
        reach = measures.alignment(image, delta)
        threshold = eta * jnp.maximum(reach, 0) if relative else eta

        def accept(scale: Array) -> tuple[Array, tuple[Array, Any]]:
            change = batch(theta := _along(params, move, alpha, scale), inputs) - lin.values
            cos = measures.alignment(change, delta)
            nothing_to_do = jnp.all(delta == 0) & jnp.all(change == 0)
            gain = _gain(delta, change, alpha * scale * image) if adaptive else ()
            return ((cos >= threshold) | nothing_to_do) & within_range(theta), (cos, gain)  # Eq. 24

        search = linesearch.backtrack(accept, decay=decay, max_steps=max_steps)
        ok, (cos, gain) = search.accepted, search.aux
        moved = _along(params, move, alpha, search.scale)
        params = jax.tree.map(lambda new, old: jnp.where(ok, new, old), moved, params)
        metrics = {
            "critic/alignment": jnp.where(ok, cos, 0),
            "linesearch/backtracks": search.backtracks.astype(delta.dtype),
            "linesearch/accepted": ok.astype(delta.dtype),
            "solve/alignment": reach,
            **solve_metrics(fit, lin.gram, delta),
        }
        metrics |= {"solve/damping": kept.damping.astype(delta.dtype)} if adaptive else {}
        carry = () if momentum is None else jax.tree.map(lambda m: jnp.where(ok, m, 0), move)
        damping = adaptive.after(kept.damping, gain, ok) if adaptive else ()
        after = PreconditionedMemory(rate_memory, carry, damping) if keeps else rate_memory
        return params, after, StepInfo(lin.values, delta, metrics)

    return ValueStep(_starting(start, momentum, adaptive) if keeps else start, update)


def _checked_memory(memory: Memory) -> PreconditionedMemory:
    if isinstance(memory, PreconditionedMemory):
        return memory
    raise ValueError(
        f"memory is {memory!r}, expected what step.init(params) returns: it holds the last move "
        "and the damping"
    )


def _along(params: Params, move: Params, alpha: Number, scale: Array) -> Params:
    """theta + alpha * scale * move, in the types of theta."""
    return jax.tree.map(
        lambda p, m: (p + alpha * scale.astype(m.dtype) * m).astype(p.dtype), params, move
    )


def _direction(
    lin: ntk.Linearization,
    delta: Array,
    solve: solvers.Solve,
    momentum: Number | None,
    last: Params,
) -> tuple[Params, Array, solvers.SolveInfo]:
    """The move of Eq. 23 for alpha = 1, its first-order change of Q `[B]`, and the information on
    the solve of Eq. 22.
    """

    def image(z: Array) -> Array:
        return dot(lin.gram, z)

    if momentum is None:
        z, fit = solve(lin.gram, delta)  # Eq. 22
        return lin.pullback(z), image(z), fit  # Eq. 23
    before = jax.tree.map(lambda m: (momentum * m).astype(m.dtype), last)
    carried = lin.pushforward(before)
    z, fit = solve(lin.gram, delta - carried)
    move = jax.tree.map(lambda m, b: (m + b).astype(b.dtype), lin.pullback(z), before)
    return move, carried + image(z), fit


def _starting(
    start: Callable[[Params], Memory], momentum: Number | None, adaptive: Adaptive | None
) -> Callable[[Params], PreconditionedMemory]:
    """The `init` of a step with momentum or an adaptive damping."""

    def init(params: Params) -> PreconditionedMemory:
        move = () if momentum is None else jax.tree.map(jnp.zeros_like, params)
        damping = jnp.asarray(adaptive.start, jnp.float32) if adaptive else ()
        return PreconditionedMemory(start(params), move, damping)

    return init


def _gain(delta: Array, change: Array, linear: Array) -> Array:
    """The decrease of |delta|^2 by a change of Q, divided by the one that the linearization
    predicts; 1 if both are 0, minus infinity if only the predicted one is.
    """
    unit = power_of_two(delta)
    off = delta / unit

    def decrease(change: Array) -> Array:
        c = change / unit
        return dot(c, 2 * off - c)

    real, predicted = decrease(change), decrease(linear)
    none = predicted == 0
    return jnp.where(none, jnp.where(real == 0, 1, -jnp.inf), real / jnp.where(none, 1, predicted))


def _checked_solve(solve: Any) -> Any:
    """`solve`, if it can be one. Raises ValueError for a name, or a maker such as `solve.eigh`."""
    makers = {"cholesky": solvers.cholesky, "eigh": solvers.eigh}
    makers |= {"lstsq": solvers.lstsq, "cg": solvers.cg, "Adaptive": Adaptive}
    if callable(solve) and solve not in makers.values():
        return solve
    name = getattr(solve, "__name__", solve)
    raise ValueError(
        f"solve is {solve!r}, expected a function (gram, delta) -> (z, info), or an Adaptive, as "
        f"preqn_jax.{'steps' if name == 'Adaptive' else 'solve'}."
        f"{name if name in list(makers) else 'cholesky'}() returns"
    )
