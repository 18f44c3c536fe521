"""Finite problems with linear features: the counterexamples of the deadly triad, and some
well-behaved ones.

| name | what it is for |
|---|---|
| baird | off-policy updates diverge though the features could represent every table (Baird 1995) |
| w-to-2w | one weight, two states: even the best fit of every backup diverges (Tsitsiklis 1996) |
| garnet | a random process with random features (Archibald et al. 1995, Bhatnagar et al. 2009) |
| chain | features that overlap as far as one likes: the off-diagonals of K |
| gridworld | a table, K = I |

>>> from preqn_jax import problems
>>> star = problems.baird()
>>> star.features.shape, star.kernel.shape, float(star.rho.sum().round(5))
((7, 2, 15), (14, 14), 1.0)
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from preqn_jax import tabular
from preqn_jax.options import require
from preqn_jax.tabular import MDP
from preqn_jax.types import Array, dot


class Problem(NamedTuple):
    """A finite MDP, features for a linear Q(s, a) = theta^T phi(s, a), and the distribution of data
    to learn it from.
    """

    mdp: MDP
    features: Array  # `[S, A, d]`, phi(s, a)
    rho: Array  # `[S, A]`, the distribution of the data
    theta: Array  # `[d]`, the initial weights of the literature, or zeros
    # The states in which an episode ends. Only absorbing states with reward 0 can be terminal; in
    # the counterexamples even these are not.
    terminal: Array  # `[S]` bool

    @property
    def kernel(self) -> Array:
        """K(s, a, s', a') = phi(s, a) . phi(s', a'), `[N, N]` in the order of `tabular` (Lemma
        3).
        """
        phi = self.features.reshape(-1, self.features.shape[-1])
        return dot(phi, phi.T)

    @property
    def start(self) -> Array:
        """Q at `theta`, `[S, A]`."""
        return dot(self.features, self.theta)


def baird(gamma: float = 0.99) -> Problem:
    """Baird's star with seven states, as a problem for Q-learning: action 0 goes to one of the six
    upper states, action 1 to the seventh.

    Action 1 has the values of Baird's approximator, 2 w_s + w_0 in the upper states and w_7 + 2 w_0
    in the seventh; action 0 has a weight for each state. Rewards are 0, so Q* = 0. The data choose
    action 1 in one of seven steps, which makes every state equally likely. Its 14 pairs have 15
    weights and independent features: K is of full rank, so PreQN's step is U1's, whereas
    semi-gradient Q-learning diverges at every small learning rate.

    Baird 1995, Residual algorithms; in this form Sutton and Barto 2018, section 11.2, with action 0
    given a table.
    """
    transition = np.zeros((7, 2, 7))
    transition[:, 0, :6], transition[:, 1, 6] = 1 / 6, 1
    features = np.zeros((7, 2, 15))  # weights 0-6: action 0; 7-13: w_1 to w_7; 14: w_0
    for s in range(7):
        features[s, 0, s] = 1
        features[s, 1, 7 + s], features[s, 1, 14] = (2, 1) if s < 6 else (1, 2)
    rho = np.broadcast_to(np.array([6 / 7, 1 / 7]) / 7, (7, 2))
    theta = np.concatenate([np.zeros(7), np.ones(6), [10, 1]])
    return _problem(transition, np.zeros((7, 2)), gamma, features, rho, theta)


def w_to_2w(gamma: float = 0.99) -> Problem:
    """Two states with the values w and 2w; both go to the second, with reward 0. One action.

    The best fit of a backup is w' = (6 gamma / 5) w, so for gamma above 5/6 even the best fit of
    every backup that the features allow diverges, and so does PreQN's step: K has rank 1 of 2, and
    no preconditioner mends features that cannot represent the backup.

    Tsitsiklis and Van Roy 1996, Feature-based methods; 1997, An analysis of temporal-difference
    learning.
    """
    transition = np.zeros((2, 1, 2))
    transition[:, :, 1] = 1
    return _problem(
        transition,
        np.zeros((2, 1)),
        gamma,
        np.array([[[1.0]], [[2.0]]]),
        np.full((2, 1), 0.5),
        np.ones(1),
    )


def garnet(
    states: int = 10,
    actions: int = 3,
    branching: int = 2,
    features: int = 12,
    gamma: float = 0.95,
    seed: int = 0,
) -> Problem:
    """A Garnet: every pair goes to `branching` random states with random probabilities; rewards are
    standard normal.

    Features are standard normal too, scaled to K_ii near 1; rho is drawn uniformly from all
    distributions. Raises ValueError if there are fewer states than branches.

    Archibald, McKinnon and Thomas 1995; Bhatnagar, Sutton, Ghavamzadeh and Lee 2009.
    """
    if not 1 <= branching <= states:
        raise ValueError(f"branching is {branching}, expected 1 to {states}, the number of states")
    rng = np.random.default_rng(seed)
    transition = np.zeros((states, actions, states))
    for s, a in np.ndindex(states, actions):
        cuts = np.sort(rng.uniform(size=branching - 1))
        transition[s, a, rng.choice(states, branching, replace=False)] = np.diff(
            cuts, prepend=0, append=1
        )
    return _problem(
        transition,
        rng.normal(size=(states, actions)),
        gamma,
        rng.normal(size=(states, actions, features)) / np.sqrt(features),
        rng.dirichlet(np.ones(states * actions)).reshape(states, actions),
        np.zeros(features),
    )


def chain(states: int = 8, width: float = 1.0, gamma: float = 0.9, slip: float = 0.1) -> Problem:
    """States in a row, actions left and right, reward 1 for each step that ends in the last state;
    a wall at either end.

    With probability `slip` a step goes the other way. phi(s, a) is a Gaussian bell of `width`
    states around s, of unit length; both actions have the same bells, on weights of their own. K_ij
    falls with the distance between states, and the wider the bell, the more Eq. 17 is violated.
    """
    require(width, lambda x: x > 0, "width must be positive")
    transition, reward = np.zeros((states, 2, states)), np.zeros((states, 2, states))
    reward[:, :, -1] = 1
    for s in range(states):
        left, right = max(s - 1, 0), min(s + 1, states - 1)
        for a, (towards, away) in enumerate(((left, right), (right, left))):
            transition[s, a, towards] += 1 - slip
            transition[s, a, away] += slip
    place = np.arange(states)
    bell = np.exp(-((place[:, None] - place[None, :]) ** 2) / (2 * width**2))
    bell /= np.linalg.norm(bell, axis=1, keepdims=True)
    features = np.zeros((states, 2, 2 * states))
    features[:, 0, :states], features[:, 1, states:] = bell, bell
    rho = np.full((states, 2), 1 / (2 * states))
    return _problem(transition, reward, gamma, features, rho, np.zeros(2 * states))


def gridworld(size: int = 4, gamma: float = 0.95, slip: float = 0.1) -> Problem:
    """`size` by `size` cells, moves up, right, down and left, reward 1 on reaching the last cell,
    where the episode ends.

    With probability `slip` a move goes in a random direction; a move into the wall stays. Features
    are a table: K = I, and U3 is U2.
    """
    cells, goal = size * size, size * size - 1
    moves = ((-1, 0), (0, 1), (1, 0), (0, -1))
    transition, reward = np.zeros((cells, 4, cells)), np.zeros((cells, 4, cells))
    for cell, a in np.ndindex(cells, 4):
        if cell == goal:
            transition[cell, a, goal] = 1
            continue
        for b, (down, across) in enumerate(moves):
            row, column = cell // size + down, cell % size + across
            after = row * size + column if 0 <= row < size and 0 <= column < size else cell
            transition[cell, a, after] += slip / 4 + (1 - slip) * (a == b)
    reward[:goal, :, goal] = 1
    features = np.eye(4 * cells).reshape(cells, 4, 4 * cells)
    rho = np.full((cells, 4), 1 / (4 * cells))
    return _problem(transition, reward, gamma, features, rho, np.zeros(4 * cells), goal)


PROBLEMS = {
    "baird": baird,
    "w-to-2w": w_to_2w,
    "garnet": garnet,
    "chain": chain,
    "gridworld": gridworld,
}


def _problem(
    transition: np.ndarray,
    reward: np.ndarray,
    gamma: float,
    features: np.ndarray,
    rho: np.ndarray,
    theta: np.ndarray,
    terminal: int | None = None,
) -> Problem:
    mdp = tabular.check(MDP(transition, reward, gamma))
    ends = jnp.arange(len(rho)) == (-1 if terminal is None else terminal)
    phi, data, weights = (
        jnp.asarray(values, mdp.reward.dtype) for values in (features, rho, theta)
    )
    return Problem(mdp, phi, data, weights, ends)
