"""The failure modes of section 3.2, each on a small problem where its quantity crosses its
threshold, Q diverges, and a remedy works.

Everything is exact and deterministic: whole problems and expected updates. Only a network's first
weights are sampled.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from preqn_jax import diagnostics, measures, networks, ntk, problems, steps, tabular
from preqn_jax.batching import batched
from preqn_jax.types import Array, QFunction


class Trajectory(NamedTuple):
    """How the error develops under one kind of update."""

    name: str
    remedy: bool  # whether it makes Q right; keeping Q bounded is not enough
    error: np.ndarray  # max |Q - Q*|, at the start and every so many updates; infinite: overflow
    # Where K moves with Q: max_i alpha K_ii rho_i (Eq. 16) at the same times.
    overshoot: np.ndarray | None = None


class Mode(NamedTuple):
    """A failure mode made visible."""

    name: str
    parameter: str  # what is varied
    quantity: str  # what is watched
    xs: np.ndarray  # `[n]`, values of the parameter
    ys: np.ndarray  # `[n]`, the quantity there, which should stay below 1
    bad: float  # the parameter of the failing run
    good: float  # the parameter of the remedied run; `bad` if the remedy changes no parameter
    runs: list[Trajectory]


def linearization(updates: int, seed: int) -> Mode:
    """A critic on a chain with large rewards, trained by Eq. 5 with the whole chain as its
    minibatch.

    The quantity is |Q' - U Q| / |U Q - Q| at the first step. Larger rewards increase it, but not
    the left side of Eq. 16: so the first step tells the two modes apart. Later steps do not: theta
    grows towards what it has to represent, and K with it.
    """
    problem = problems.chain(5)
    mdp = problem.mdp._replace(reward=100 * problem.mdp.reward)
    states, actions = problem.rho.shape
    critic = networks.Critic((32,))
    q: QFunction = critic.apply
    state, action = (index.ravel() for index in np.indices((states, actions)))
    inputs = (jnp.eye(states)[state], jnp.linspace(-1, 1, actions)[action][:, None])
    first = critic.init(jax.random.key(seed), inputs[0][0], inputs[1][0])

    def table(params: Any) -> Array:
        return batched(q)(params, inputs).reshape(states, actions)

    def gradient(alpha: Array | float) -> steps.ValueStep:
        return steps.gradient(q, optax.sgd(alpha))

    def update(params: Any, step: steps.ValueStep) -> Any:
        targets = tabular.backup(mdp, table(params)).reshape(-1)
        return step.update(params, step.init(params), inputs, targets)[0]

    kernel = ntk.kernel(q, first, inputs)

    @jax.jit
    def remainder(alpha: Array) -> Array:
        before, after = table(first), table(update(first, gradient(alpha)))
        leading = tabular.u(mdp, before, alpha, problem.rho, kernel)
        return jnp.max(jnp.abs(after - leading)) / jnp.max(jnp.abs(leading - before))

    star = tabular.value_iteration(mdp, 1e-4).q

    def run(alpha: float | None, remedy: bool = False) -> Trajectory:
        name = "PreQN, with its linesearch" if alpha is None else f"gradient, alpha = {alpha:g}"
        step = steps.preconditioned(q, 0.5) if alpha is None else gradient(alpha)

        def advance(params: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
            lin = ntk.linearize(q, params, inputs)
            slack = measures.overshoot_slack(lin.gram, problem.rho.ravel(), alpha or 0.0)
            seen = jnp.max(jnp.abs(table(params) - star)), 1 - jnp.min(slack)
            return update(params, step), seen

        path = jax.jit(lambda p: jax.lax.scan(advance, p, length=updates + 1)[1])(first)
        error, overshoot = (np.asarray(values) for values in path)
        return Trajectory(name, remedy, error, None if alpha is None else overshoot)

    alphas, bad, good = np.geomspace(0.001, 3, 60), 0.3, 0.003
    return Mode(
        "1. linearization breaks",
        r"step $\alpha$",
        r"$|Q'-UQ|\,/\,|UQ-Q|$ at the first step",
        alphas,
        np.array([remainder(jnp.float32(alpha)) for alpha in alphas]),
        bad,
        good,
        [run(bad), run(1.0), run(good, remedy=True), run(None, remedy=True)],
    )


def overshooting(updates: int) -> Mode:
    """A table on a chain: K is the identity but for one entry of its diagonal, and alpha and rho
    move every other pair by half of its error.
    """
    problem = problems.chain(5, width=0.01)
    mdp, rho, size = problem.mdp, problem.rho, problem.rho.size
    alpha = 0.5 * size

    def kernel(scale: Array | float) -> Array:
        return jnp.eye(size).at[5, 5].set(scale)

    scales, bad = np.linspace(0.25, 6, 47), 5.0
    run = functools.partial(_run, problem, updates)
    return Mode(
        "2. overshooting",
        "one entry of K's diagonal",
        r"$\max_i\ \alpha K_{ii}\rho_i$ (Eq. 16)",
        scales,
        np.array(
            [1 - diagnostics.overshoot_slack(kernel(s), rho.ravel(), alpha).min() for s in scales]
        ),
        bad,
        bad,
        [
            run("U3", False, lambda q: tabular.u3(mdp, q, alpha, rho, kernel(bad))),
            run(
                "U3, a third of the step",
                True,
                lambda q: tabular.u3(mdp, q, alpha / 3, rho, kernel(bad)),
            ),
            run(
                "preconditioned",
                True,
                lambda q: tabular.preconditioned(mdp, q, 0.5, rho, kernel(bad)),
            ),
        ],
    )


def generalization(updates: int) -> Mode:
    """Two states with K = [[1, 2c], [2c, 4]]; c = 1 is the kernel of the one weight of w-to-2w."""
    problem = problems.w_to_2w(gamma=0.9)
    mdp, rho = problem.mdp, problem.rho
    cs, bad = np.linspace(0, 0.95, 39), 0.95
    run = functools.partial(_run, problem, updates)

    def ratio(c: float) -> float:  # between the sides of Eq. 17, in the tightest row
        gamma, k = float(mdp.gamma), np.asarray(_two_states(c)) * np.asarray(rho).ravel()
        return float(np.max((1 + gamma) * k[[0, 1], [1, 0]] / ((1 - gamma) * np.diagonal(k))))

    return Mode(
        "3. over-generalization",
        "off-diagonal of K, as c in [[1, 2c], [2c, 4]]",
        "left over right side of Eq. 17",
        cs,
        np.array([ratio(c) for c in cs]),
        bad,
        bad,
        [
            run("U3", False, lambda q: tabular.u3(mdp, q, 0.4, rho, _two_states(bad))),
            run(
                "preconditioned",
                True,
                lambda q: tabular.preconditioned(mdp, q, 0.4, rho, _two_states(bad)),
            ),
        ],
    )


def extrapolation(updates: int) -> Mode:
    """Two states with c = 0.6, which does no harm with uniform data. The quantity is the spectral
    radius of the update, which is linear as there is a single action.

    Without data on the second state the radius is 1 as long as 2 c gamma <= 1: with c = 0.5 the
    missing value stays near its start, and Q ends, wrong, where the first state's error is zero.
    """
    problem, kernel = problems.w_to_2w(gamma=0.9), _two_states(0.6)
    mdp = problem.mdp
    shares, bad, good = np.linspace(0, 0.5, 51), 0.0, 0.5
    run = functools.partial(_run, problem, updates)

    def rho(share: float | Array) -> Array:
        return jnp.stack([1 - jnp.asarray(share), jnp.asarray(share)])[:, None]

    def matrix(share: Array) -> Array:
        return jax.jacobian(lambda q: tabular.u3(mdp, q[:, None], 0.4, rho(share), kernel)[:, 0])(
            jnp.zeros(2)
        )

    radii = np.abs(np.linalg.eigvals(jax.vmap(matrix)(jnp.asarray(shares)))).max(axis=1)
    return Mode(
        "4. extrapolation error",
        r"$\rho$ of the second state",
        "spectral radius of the update",
        shares,
        radii,
        bad,
        good,
        [
            run("U3, no data there", False, lambda q: tabular.u3(mdp, q, 0.4, rho(bad), kernel)),
            run(
                "preconditioned, no data there",
                False,
                lambda q: tabular.preconditioned(mdp, q, 0.4, rho(bad), kernel),
            ),
            run(
                "U3, no data, c = 0.5: bounded, wrong",
                False,
                lambda q: tabular.u3(mdp, q, 0.4, rho(bad), _two_states(0.5)),
            ),
            run(
                "U3, half of the data there",
                True,
                lambda q: tabular.u3(mdp, q, 0.4, rho(good), kernel),
            ),
        ],
    )


def _two_states(c: float) -> Array:
    return jnp.array([[1, 2 * c], [2 * c, 4]])


def _run(
    problem: problems.Problem, updates: int, name: str, remedy: bool, operator: Callable
) -> Trajectory:
    path = tabular.iterate(operator, problem.start, updates)
    star = np.asarray(tabular.value_iteration(problem.mdp, 1e-5).q)
    return Trajectory(name, remedy, np.abs(np.asarray(path) - star).max(axis=(1, 2)))
