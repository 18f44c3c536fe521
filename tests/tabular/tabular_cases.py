"""Random finite MDPs, and section 3's formulas in float64 NumPy."""

import itertools
from functools import partial
from typing import Any

import jax
import numpy as np

import oracles
from preqn_jax import tabular

S, A = 3, 2
N = S * A
jit = partial(jax.jit, compiler_options=oracles.QUICK)


def random_mdps(seed, count, states=S, actions=A) -> Any:
    """`count` random MDPs, stacked, with discounts from 0.1 to 0.99; a quarter of them are
    deterministic.
    """
    rng = np.random.default_rng(seed)
    spread = rng.choice([0.05, 1.0], size=count)
    transition = np.stack([rng.dirichlet(np.full(states, c), (states, actions)) for c in spread])
    transition[: count // 4] = np.eye(states)[
        rng.integers(states, size=(count // 4, states, actions))
    ]
    return tabular.MDP(
        transition, rng.normal(size=(count, states, actions)), rng.uniform(0.1, 0.99, count)
    )


def one(mdps, k):
    return tabular.check(tabular.MDP(*(field[k] for field in mdps)))


def distributions(seed, count):
    """Random rho `[count, S, A]`, where no pair has less than a hundredth."""
    rho = np.random.default_rng(seed).dirichlet(np.ones(N), count).reshape(count, S, A)
    return 0.01 + (1 - 0.01 * N) * rho


def kernels(seed, count, features=N):
    """Random positive semi-definite K `[count, N, N]`, of rank `features` at most."""
    phi = np.random.default_rng(seed).normal(size=(count, N, features))
    return phi @ phi.transpose(0, 2, 1)


def conforming(seed, rho, gamma, margin):
    """Kernels that satisfy Eq. 17, and step sizes that satisfy Eq. 16. The off-diagonal sum of the
    tightest row is `margin` times what is allowed.
    """
    rng = np.random.default_rng(seed)
    count, rho = len(rho), rho.reshape(len(rho), N)
    off = rng.normal(size=(count, N, N))
    off = (off + off.transpose(0, 2, 1)) * (1 - np.eye(N))
    diagonal = rng.uniform(0.5, 2, (count, N))
    allowed = (
        (1 - gamma[:, None])
        * diagonal
        * rho
        / ((1 + gamma[:, None]) * (np.abs(off) * rho[:, None, :]).sum(axis=2))
    )
    kernel = np.reshape(margin * allowed.min(axis=1), (count, 1, 1)) * off + diagonal[
        :, :, None
    ] * np.eye(N)
    return kernel, 0.9 / (diagonal * rho).max(axis=1)


# The oracles below are written from the formulas, one entry at a time.


def oracle_backup(mdp, q):
    p, r = np.asarray(mdp.transition), np.asarray(mdp.reward)
    out = np.zeros(q.shape)
    for s, a, after in np.ndindex(p.shape):
        reward = r[s, a, after] if r.ndim == 3 else r[s, a]
        out[s, a] += p[s, a, after] * (reward + float(mdp.gamma) * max(q[after]))
    return out


def oracle_beta(kernel, rho, alpha, gamma):
    rho, size = rho.ravel(), len(kernel)
    rows = [
        sum(
            abs((i == j) - alpha * kernel[i, j] * rho[j])
            + alpha * gamma * abs(kernel[i, j]) * rho[j]
            for j in range(size)
        )
        for i in range(size)
    ]
    return max(rows)


def oracle_modulus(mdp, alpha, rho, kernel):
    """The largest norm of the operator's derivative under any deterministic policy."""
    p, size = np.asarray(mdp.transition), rho.size
    kd, largest = kernel @ np.diag(rho.ravel()), 0.0
    for policy in itertools.product(range(p.shape[1]), repeat=p.shape[0]):
        under = np.zeros((size, size))
        for i, (s, a) in enumerate(np.ndindex(*p.shape[:2])):
            for after in range(p.shape[0]):
                under[i, after * p.shape[1] + policy[after]] = p[s, a, after]
        derivative = np.eye(size) - alpha * kd + alpha * float(mdp.gamma) * kd @ under
        largest = max(largest, np.abs(derivative).sum(axis=1).max())
    return largest


def optimal(mdp):
    """Q* as the best of all deterministic policies, each evaluated by a linear solve."""
    p, r = np.asarray(mdp.transition), np.asarray(tabular.expected_reward(mdp))
    states, actions = r.shape
    best = np.full((states, actions), -np.inf)
    for policy in itertools.product(range(actions), repeat=states):
        chosen = np.arange(states), np.array(policy)
        values = np.linalg.solve(np.eye(states) - float(mdp.gamma) * p[chosen], r[chosen])
        best = np.maximum(best, r + float(mdp.gamma) * p @ values)
    return best


def sup(x):
    return np.abs(x).max()
