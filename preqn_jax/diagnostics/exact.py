"""A critic on a finite problem, where nothing has to be estimated: how far Q is from Q*, and
whether its update is a contraction.
"""

import jax.numpy as jnp
import numpy as np

from preqn_jax import actions, ntk, tabular
from preqn_jax.batching import batched
from preqn_jax.options import require
from preqn_jax.problems import Problem
from preqn_jax.types import Array, Params, QFunction

_RCOND = 1e-6  # the default of `rcond`


def exact(
    q: QFunction,
    params: Params,
    problem: Problem,
    *,
    alpha: float,
    damping: float | None = None,
    rcond: float | None = None,
    gamma: float | None = None,
    rho: Array | np.ndarray | None = None,
) -> dict[str, float]:
    """The error of Q against Q*, and how far the update U with the kernel of `params` (Eq. 9) is
    from a contraction, over all state-action pairs of a problem.

    Args:
      q: `q(params, obs [S], action [1]) -> []`, of one-hot states and of actions as numbers
        (`preqn_jax.actions`), as the environments `tabular/...` have them.
      params: theta.
      problem: of `preqn_jax.problems`. Terminal states have the value 0 and are left out.
      alpha: the step size.
      damping: None for the plain step, U of Eq. 11. A number for PreQN's step (Eqs. 21-23), damped
        as by `solve.cholesky(damping)`, on a minibatch that holds every pair with rho > 0 once;
        with 0, K is pseudo-inverted.
      rcond: for PreQN's step, eigenvalues of K up to this share of the largest count as zero, as in
        `solve.eigh(rcond)`; 1e-6 if None.
      gamma: the discount of the targets; the problem's own if None.
      rho: `[S, A]`, the distribution of the data; the problem's own if None.

    Returns:
      "q_error": max |Q - Q*|.
      "modulus": of U in the sup norm, over all Q (`tabular.modulus`); below 1, U is a contraction.
      "radius": spectral radius of U's derivative at this Q, with Q's greedy policy held fixed;
        above 1, errors near this Q grow.

    Raises:
      ValueError: a rho that is no distribution on the pairs, a gamma outside of [0, 1), a negative
        damping, an rcond outside of [0, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from preqn_jax import diagnostics, networks, problems
      >>> chain, net = problems.chain(), networks.ActionValues(2, (16,))
      >>> theta = net.init(jax.random.key(0), jnp.zeros(8), jnp.zeros(1))
      >>> found = diagnostics.exact(net.apply, theta, chain, alpha=0.1, damping=0.0)
      >>> found["q_error"] > 1, round(found["modulus"], 2)  # 1 - alpha (1 - gamma): Lemma 1
      (True, 0.99)
    """
    tabular.check_update(problem.mdp, 1.0, rho)
    require(gamma, lambda x: 0 <= x < 1, "gamma must lie in [0, 1)")
    require(damping, lambda x: x >= 0, "damping must not be negative")
    require(rcond, lambda x: 0 <= x < 1, "rcond is a share of the largest eigenvalue, in [0, 1)")
    goes_on = np.asarray(~problem.terminal)
    mdp = problem.mdp if gamma is None else problem.mdp._replace(gamma=gamma)
    reward = tabular.expected_reward(mdp)[goes_on]
    mdp = tabular.MDP(mdp.transition[goes_on][:, :, goes_on], reward, mdp.gamma)
    data = np.asarray(problem.rho if rho is None else rho, np.float64)[goes_on]
    count = data.shape[1]
    state, action = (x.ravel() for x in np.indices(data.shape))
    obs = jnp.eye(len(goes_on))[np.flatnonzero(goes_on)[state]]
    inputs = obs, jnp.asarray(actions.number(action, count), obs.dtype)[:, None]
    table = batched(q)(params, inputs).reshape(data.shape)
    kernel = np.asarray(ntk.kernel(q, params, inputs), np.float64)
    step = alpha * kernel * data.ravel()
    if damping is not None:
        step = alpha * _preconditioned(kernel, data.ravel() > 0, damping, rcond)
    ahead = np.asarray(mdp.transition, np.float64).reshape(len(state), -1)
    policy = np.asarray(tabular.greedy(table), np.float64)
    follows = (ahead[:, :, None] * policy).reshape(len(state), -1)  # P_pi
    derivative = np.eye(len(state)) - step + float(mdp.gamma) * step @ follows
    everywhere = jnp.ones(data.shape, reward.dtype)
    return {
        "q_error": float(np.max(np.abs(np.asarray(table, np.float64) - _optimal(mdp)))),
        "modulus": float(tabular.modulus(mdp, 1.0, everywhere, jnp.asarray(step, reward.dtype))),
        "radius": float(np.abs(np.linalg.eigvals(derivative)).max()),
    }


def _optimal(mdp: tabular.MDP) -> np.ndarray:
    """Q* `[S, A]` by policy iteration (Howard 1960), which ends after finitely many iterations,
    however close to 1 gamma is.
    """
    transition, reward = (np.asarray(x, np.float64) for x in (mdp.transition, mdp.reward))
    gamma, states = float(mdp.gamma), np.arange(len(reward))
    policy = np.argmax(reward, axis=1)
    while True:
        left = np.eye(len(states)) - gamma * transition[states, policy]
        q = reward + gamma * transition @ np.linalg.solve(left, reward[states, policy])
        better = q.max(axis=1) - q[states, policy] > 1e-10 * np.abs(q).max()  # not by rounding
        if not better.any():
            return q
        policy = np.where(better, q.argmax(axis=1), policy)


def _preconditioned(
    kernel: np.ndarray, met: np.ndarray, damping: float, rcond: float | None
) -> np.ndarray:
    """K (K + c I)^-1 `[N, N]`, with the inverse over pairs in `met` and c = `damping` times the
    mean diagonal there; 0 in the columns of other pairs.
    """
    inner = kernel[np.ix_(met, met)]
    inner = inner + damping * np.mean(np.diagonal(inner)) * np.eye(len(inner))
    result = np.zeros_like(kernel)
    cut = _RCOND if rcond is None else rcond
    result[:, met] = kernel[:, met] @ np.linalg.pinv(inner, rcond=cut, hermitian=True)
    return result
