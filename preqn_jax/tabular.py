"""Section 3 of the paper on finite Markov decision processes: Bellman backups, the operators U to
U3, and their moduli.

Q is a table `[S, A]`, and so is rho. A kernel is `[N, N]` with N = S A and pairs in the table's
order, i = s A + a. The functions are pure and jitted, and take any numbers of the right shape: pass
user input through `check` and `check_update` first.

Two states; action 0 stays, action 1 changes to the other, and staying in the second is rewarded:

>>> from preqn_jax import tabular
>>> stay, change = np.eye(2), np.eye(2)[::-1]
>>> reward = np.array([[0.0, 0.0], [1.0, 0.0]])
>>> mdp = tabular.check(tabular.MDP(np.stack([stay, change], axis=1), reward, 0.5))
>>> tabular.value_iteration(mdp).q.round(3).tolist()
[[0.5, 1.0], [2.0, 0.5]]
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import solve
from preqn_jax.types import Array, Key, Number, dot, inexact

Operator = Callable[[Array], Array]
"""`q [S, A] -> q [S, A]`, as ``lambda q: u2(mdp, q, alpha, rho)``."""


class MDP(NamedTuple):
    """A finite Markov decision process with discounted return. A terminal state is an absorbing one
    with reward 0.
    """

    transition: Array | np.ndarray  # `[S, A, S]`, P(s' | s, a)
    reward: Array | np.ndarray  # `[S, A]`, R(s, a), or `[S, A, S]`, R(s, a, s')
    gamma: Number  # `[]`, the discount, in [0, 1)


class Learned(NamedTuple):
    """The result of Q-learning."""

    q: Array  # `[S, A]`
    visits: Array  # `[S, A]` int32, how often each pair was met


class Solution(NamedTuple):
    """The result of value iteration."""

    q: Array  # `[S, A]`
    error: Array  # `[]`, an upper bound of max |Q - Q*|
    steps: Array  # `[]` int32, backups taken


def check(mdp: MDP) -> MDP:
    """The same MDP as JAX arrays. Raises ValueError, which names the wrong field, what it is and
    what it should be.
    """
    transition, reward = np.asarray(mdp.transition), np.asarray(mdp.reward)
    shape = transition.shape
    if transition.ndim != 3 or shape[0] != shape[2] or 0 in shape:
        raise ValueError(
            f"transition has the shape {shape}, expected [S, A, S]: states, actions, states"
        )
    _check_probabilities("transition", transition)
    sums = transition.astype(np.float64).sum(axis=2)
    s, a = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
    if abs(sums[s, a] - 1) > _tolerance(transition):
        raise ValueError(
            f"transition[{s}, {a}] sums to {sums[s, a]:.6g}, expected 1: the probabilities of "
            f"every successor"
        )
    if reward.shape not in (shape[:2], shape):
        raise ValueError(f"reward has the shape {reward.shape}, expected {shape[:2]} or {shape}")
    _check_finite("reward", reward)
    gamma = np.asarray(mdp.gamma)
    if gamma.shape != () or not 0 <= gamma < 1 or jnp.asarray(gamma, float) == 1:
        raise ValueError(
            f"gamma is {mdp.gamma}, expected a number in [0, 1), as float32: at 1 nothing contracts"
        )
    return MDP(*(jnp.asarray(field, jnp.result_type(float)) for field in mdp))


def check_update(
    mdp: MDP,
    alpha: float,
    rho: np.ndarray | Array | None = None,
    kernel: np.ndarray | Array | None = None,
) -> None:
    """Raises ValueError where alpha is not positive, rho is no distribution on the pairs of `mdp`,
    or K is no kernel on them (Eqs. 12-14).

    K may be singular, as with fewer features than pairs: Lemma 3 holds for it. The closed forms of
    Lemmas 1 and 2 also need alpha below 1 and 1 / max rho; `measures` has the slacks.
    """
    pairs = np.shape(mdp.transition)[:2]
    if np.ndim(alpha) != 0 or not 0 < alpha < np.inf:
        raise ValueError(f"alpha is {alpha}, expected a positive number")
    if rho is not None:
        rho = np.asarray(rho)
        _fit("rho", rho, pairs, "a probability for every state and action")
        _check_probabilities("rho", rho)
        total = rho.astype(np.float64).sum()
        if abs(total - 1) > _tolerance(rho):
            raise ValueError(f"rho sums to {total:.6g}, expected 1")
    if kernel is not None:
        _check_kernel(np.asarray(kernel), pairs[0] * pairs[1])


def _check_kernel(kernel: np.ndarray, size: int) -> None:
    _fit("kernel", kernel, (size, size), "a row and a column for every pair")
    _check_finite("kernel", kernel)
    scale, tolerance = np.abs(kernel).max(), _tolerance(kernel)
    i, j = np.unravel_index(np.abs(kernel - kernel.T).argmax(), kernel.shape)
    if abs(kernel[i, j] - kernel[j, i]) > tolerance * scale:
        raise ValueError(
            f"kernel is not symmetric: entry [{i}, {j}] is {kernel[i, j]:.6g} and [{j}, {i}] is "
            f"{kernel[j, i]:.6g}, expected them to be equal"
        )
    least = np.linalg.eigvalsh(kernel.astype(np.float64))[0]
    if least < -tolerance * scale:
        raise ValueError(
            f"kernel has the eigenvalue {least:.6g}, expected none below 0: a kernel is a matrix "
            f"of inner products"
        )


def _check_probabilities(name: str, values: np.ndarray) -> None:
    _check_finite(name, values)
    if values.min() < 0:
        raise ValueError(f"{name} has the entry {values.min():.6g}, expected probabilities")


def _check_finite(name: str, values: np.ndarray) -> None:
    numeric = values.dtype.kind in "fiub"
    if not numeric or not np.isfinite(values).all():
        at = f" at {np.argwhere(~np.isfinite(values))[0].tolist()}" if numeric else ""
        raise ValueError(f"{name} holds a value that is not a finite number{at}")


def _fit(name: str, array: Array | np.ndarray, expected: tuple[int, ...], words: str) -> None:
    if jnp.shape(array) != expected:
        raise ValueError(f"{name} has the shape {jnp.shape(array)}, expected {expected}: {words}")


def _tolerance(values: np.ndarray) -> float:
    """The rounding error to allow for in a sum over the last axis of `values`."""
    eps = np.finfo(values.dtype).eps if values.dtype.kind == "f" else np.finfo(np.float64).eps
    return 10 * float(max(eps, np.finfo(jnp.result_type(float)).eps)) * values.shape[-1]


# Backups


def expected_reward(mdp: MDP) -> Array:
    """E[R(s, a, s')] over s' ~ P, `[S, A]`."""
    reward = jnp.asarray(mdp.reward)
    return reward if reward.ndim == 2 else jnp.sum(mdp.transition * reward, axis=2)


@jax.jit
def backup(mdp: MDP, q: Array) -> Array:
    """T*Q, the right-hand side of Eq. 2, `[S, A]`: R + gamma E[max_a' Q(s', a')].

    >>> mdp = check(MDP(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), 0.5))  # one state
    >>> backup(mdp, jnp.asarray([[0.0, 4.0]])).tolist()
    [[2.0, 3.0]]
    """
    return _back_up(mdp, jnp.max(_table(mdp, "q", q), axis=1))


@jax.jit
def policy_backup(mdp: MDP, policy: Array, q: Array) -> Array:
    """T^pi Q, `[S, A]`: R + gamma E[Q(s', a')] with a' ~ pi. `policy` holds the probabilities pi(a
    | s), `[S, A]`.
    """
    return _back_up(mdp, jnp.sum(_table(mdp, "policy", policy) * _table(mdp, "q", q), axis=1))


def greedy(q: Array) -> Array:
    """The greedy policy argmax_a Q(s, a) as probabilities, `[S, A]`; of several best actions the
    first has probability 1.
    """
    return jax.nn.one_hot(jnp.argmax(q, axis=1), q.shape[1], dtype=q.dtype)


@jax.jit
def value_iteration(mdp: MDP, tol: Number = 1e-6, max_steps: int = 100_000) -> Solution:
    """Q* by Q_{k+1} = T*Q_k from zero, until it is known to within `tol`, or `max_steps` backups
    are taken.

    >>> mdp = check(MDP(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), 0.5))
    >>> value_iteration(mdp).q.round(4).tolist()
    [[1.0, 2.0]]

    In float32 a `tol` near the rounding of Q is not reached; `Solution.error` says what was
    reached.
    """
    zeros = jnp.zeros(mdp.transition.shape[:2], inexact(mdp.transition).dtype)

    def step(carry: Solution) -> Solution:
        q = backup(mdp, carry.q)
        change = jnp.max(jnp.abs(q - carry.q))
        error = mdp.gamma / (1 - mdp.gamma) * change  # the estimate of Banach's theorem
        return Solution(q, error, carry.steps + 1)

    start = Solution(zeros, jnp.full((), jnp.inf, zeros.dtype), jnp.int32(0))
    unfinished = lambda carry: (carry.error > tol) & (carry.steps < max_steps)  # noqa: E731
    found = jax.lax.while_loop(unfinished, step, start)
    # A backup sums over all successors, with rounding, so its fixed point is only near Q*.
    digits = (zeros.shape[0] + 2) * float(jnp.finfo(zeros.dtype).eps) / 2
    rounded = digits * (jnp.max(jnp.abs(mdp.reward)) + mdp.gamma * jnp.max(jnp.abs(found.q)))
    return found._replace(error=found.error + rounded / (1 - mdp.gamma))


def _back_up(mdp: MDP, values: Array) -> Array:
    return expected_reward(mdp) + mdp.gamma * dot(mdp.transition, values)


def _table(mdp: MDP, name: str, table: Array) -> Array:
    _fit(name, table, mdp.transition.shape[:2], "states, actions")
    return inexact(table)


def _square(mdp: MDP, kernel: Array) -> Array:
    states, actions = mdp.transition.shape[:2]
    _fit(
        "kernel", kernel, (states * actions, states * actions), "a row and a column for every pair"
    )
    return jnp.asarray(kernel)


# Sampled updates


@partial(jax.jit, static_argnums=4)
def q_learning(
    mdp: MDP, q: Array, rho: Array, key: Key, steps: int, alpha: Number = 0.9, power: Number = 0.8
) -> Learned:
    """Eq. 3 from the table `q [S, A]`, `steps` times: Q(s, a) moves by alpha_k times
    r + gamma max_a' Q(s', a') - Q(s, a), for a pair drawn from rho `[S, A]` and a sampled s'.

    alpha_k is alpha / n^power at a pair's n-th visit. With alpha in (0, 1), power in (1/2, 1] and
    rho positive everywhere, the sum of these steps is infinite and that of their squares finite
    (Robbins and Monro 1951), so Q tends to Q* (Watkins and Dayan 1992). With power = 0 they are
    constant, and where successors are random Q keeps wandering around Q*.

    >>> mdp = check(MDP(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), 0.5))
    >>> rho = jnp.full((1, 2), 0.5)
    >>> q_learning(mdp, jnp.zeros((1, 2)), rho, jax.random.key(0), 2000).q.round(2).tolist()
    [[1.0, 2.0]]
    """
    s, a, after = transitions(mdp, rho, key, steps)
    reward = jnp.asarray(mdp.reward)
    r = reward[s, a] if reward.ndim == 2 else reward[s, a, after]

    def visit(carry: Learned, x: tuple[Array, ...]) -> tuple[Learned, None]:
        (q, visits), (s, a, r, after) = carry, x
        visits = visits.at[s, a].add(1)
        step = alpha / visits[s, a].astype(q.dtype) ** power
        error = r + mdp.gamma * jnp.max(q[after]) - q[s, a]
        return Learned(q.at[s, a].add(step * error), visits), None

    start = Learned(_table(mdp, "q", q), jnp.zeros(mdp.transition.shape[:2], jnp.int32))
    return jax.lax.scan(visit, start, (s, a, r, after))[0]


def transitions(mdp: MDP, rho: Array, key: Key, count: int) -> tuple[Array, Array, Array]:
    """Sampled indices of s, a and s', `[count]` each: pairs from rho `[S, A]`, then s' from P."""
    where, whither = jax.random.split(key)
    pairs = jax.random.categorical(where, jnp.log(_table(mdp, "rho", rho)).ravel(), shape=(count,))
    s, a = jnp.divmod(pairs, mdp.transition.shape[1])
    return s, a, jax.random.categorical(whither, jnp.log(jnp.asarray(mdp.transition))[s, a])


# Operators: all `q [S, A] -> [S, A]`, whatever the other arguments


@jax.jit
def u1(mdp: MDP, q: Array, alpha: Number) -> Array:
    """U1 Q = Q + alpha (T*Q - Q), Eq. 12: tabular Q-learning of every pair at once, and what PreQN
    aims at (Eq. 20).
    """
    return q + alpha * (backup(mdp, q) - q)


@jax.jit
def u2(mdp: MDP, q: Array, alpha: Number, rho: Array) -> Array:
    """U2 Q = Q + alpha D_rho (T*Q - Q), Eq. 13: a pair's step is weighted by its rho."""
    return q + alpha * _table(mdp, "rho", rho) * (backup(mdp, q) - q)


@jax.jit
def u(mdp: MDP, q: Array, alpha: Number, rho: Array, kernel: Array) -> Array:
    """U Q = Q + alpha K D_rho (T*Q - Q), Eq. 11: what Eq. 5 does to Q, to first order in alpha
    (Theorem 1).

    K is the kernel of Eq. 9 at the parameters that Q comes from, as `ntk.kernel` gives it.

    >>> mdp = check(MDP(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), 0.0))
    >>> u(mdp, jnp.zeros((1, 2)), 0.5, jnp.full((1, 2), 0.5), jnp.ones((2, 2))).tolist()
    [[0.25, 0.25]]
    """
    weighted = _table(mdp, "rho", rho) * (backup(mdp, q) - q)
    moved = dot(_square(mdp, kernel), weighted.reshape(-1))
    return q + alpha * moved.reshape(q.shape)


u3 = u
"""U3 of Eqs. 14-15 is U with a constant kernel; with K = Phi^T Phi of linear features it is the
update of Eq. 5, exactly.
"""


@jax.jit
def preconditioned(mdp: MDP, q: Array, alpha: Number, rho: Array, kernel: Array) -> Array:
    """Q + alpha K Z with K Z = T*Q - Q by least squares on the pairs with rho > 0 (Eqs. 21-23):
    PreQN's step, to first order.

    Where the K of those pairs has full rank, it is U1 on them; the others move by generalization
    alone. Where that K is singular, it moves Q by the projection of T*Q - Q onto K's range, which
    need not contract. Rank is numerical (`solve.eigh`): of N pairs, a K with a condition number
    above 1 / (N eps) is singular.
    """
    batch = (_table(mdp, "rho", rho) > 0).reshape(-1).astype(q.dtype)
    delta = batch * (backup(mdp, q) - q).reshape(-1)
    z, _ = solve.eigh()(_square(mdp, kernel) * batch[:, None] * batch[None, :], delta)
    return q + alpha * dot(kernel, batch * z).reshape(q.shape)


@partial(jax.jit, static_argnums=(0, 2))
def iterate(operator: Operator, q: Array, steps: int) -> Array:
    """Q_0 = q, Q_1 = U Q_0, ...: `[steps + 1, S, A]`. Compiled anew for every `operator` object."""
    q = inexact(q).astype(jax.eval_shape(operator, inexact(q)).dtype)  # which may be wider
    return jax.lax.scan(lambda q, _: (operator(q), q), q, length=steps + 1)[1]


# Moduli in the sup norm. `measures` has the paper's bound and slacks, which need K, rho, alpha
# and gamma alone.


@jax.jit
def modulus(mdp: MDP, alpha: Number, rho: Array, kernel: Array) -> Array:
    """The Lipschitz modulus of U (Eq. 11) for a constant K, `[]`: the largest value of max |U Q1 -
    U Q2| / max |Q1 - Q2|, exactly.

    On the tables whose greedy policy is pi, U is affine with the matrix I - alpha K D + alpha gamma
    K D P_pi, and every pi is greedy somewhere. So the modulus is the largest absolute row sum of
    any of these matrices, and the worst pi for a row is found one successor at a time. It is at
    most `measures.contraction_bound`, which ignores that terms of unlike sign cancel. U1 has kernel
    = I and rho = 1, U2 has kernel = I.

    >>> mdp = check(MDP(np.ones((1, 2, 1)), np.zeros((1, 2)), 0.9))
    >>> round(float(modulus(mdp, 0.5, jnp.ones((1, 2)), jnp.eye(2))), 4)  # Lemma 1: 1 - 0.1 alpha
    0.95
    """
    states, actions = mdp.transition.shape[:2]
    size = states * actions
    weighted = alpha * _square(mdp, kernel) * _table(mdp, "rho", rho).reshape(1, size)
    stay = (jnp.eye(size, dtype=weighted.dtype) - weighted).reshape(size, states, actions)
    reach = dot(weighted, mdp.transition.reshape(size, states))
    # How much a row's sum grows when an action becomes the greedy one.
    gain = jnp.max(jnp.abs(stay + mdp.gamma * reach[:, :, None]) - jnp.abs(stay), axis=2)
    return jnp.max(jnp.sum(jnp.sum(jnp.abs(stay), axis=2) + gain, axis=1))


@partial(jax.jit, static_argnums=(0, 1, 3))
def estimate_modulus(
    operator: Operator, shape: tuple[int, int], key: Key, points: int = 32
) -> Array:
    """The largest max |U Q1 - U Q2| / max |Q1 - Q2| that a search finds, `[]`: a lower bound of any
    operator's modulus.

    From each of `points` random tables of `shape`, with a random action raised above the others in
    every state, it tries steps of all pairs alike, in the signs of every row of the derivative, in
    random signs and in random directions. (A step of one pair alone is the mean of two sign
    patterns, so never better than the better one.) The operator need only be differentiable almost
    everywhere. The estimate reaches the modulus of U if the worst policy is among the points.
    """
    size = shape[0] * shape[1]

    def search(key: Key) -> Array:
        where, raised, signs, spread = jax.random.split(key, 4)
        policy = jax.nn.one_hot(jax.random.randint(raised, shape[:1], 0, shape[1]), shape[1])
        q = jax.random.normal(where, shape) + 8 * policy
        rows = jnp.sign(jax.jacrev(operator)(q).reshape(size, size))
        directions = [
            jnp.ones((1, size)),
            jnp.where(rows == 0, 1, rows),
            jax.random.rademacher(signs, (size, size), q.dtype),
            jax.random.normal(spread, (size, size)),
        ]
        step = jnp.concatenate(directions).reshape(-1, *shape)
        change = jax.vmap(lambda d: operator(q + d) - operator(q))(step)
        return jnp.max(jnp.max(jnp.abs(change), axis=(1, 2)) / jnp.max(jnp.abs(step), axis=(1, 2)))

    return jnp.max(jax.vmap(search)(jax.random.split(key, points)))
