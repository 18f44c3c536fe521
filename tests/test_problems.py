"""The classic problems behave as the literature says, and run as environments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import diagnostics, envs, problems, tabular
from preqn_jax.envs import finite
from preqn_jax.options import UserError

x64 = pytest.mark.usefixtures("x64")


def errors(problem, operator, steps=2000, alpha=0.5):
    """max |Q_k - Q*| for k = 0 to `steps`."""
    step = lambda q: operator(problem.mdp, q, alpha, problem.rho, problem.kernel)
    path = tabular.iterate(step, problem.start, steps)
    return np.abs(np.asarray(path) - np.asarray(tabular.value_iteration(problem.mdp, 1e-9).q)).max(
        axis=(1, 2)
    )


@x64
@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_every_problem_is_sound_with_features_for_every_pair(name):
    problem = problems.PROBLEMS[name]()
    tabular.check(problem.mdp)
    tabular.check_update(problem.mdp, 0.1, problem.rho, problem.kernel)
    assert problem.features.shape[:2] == problem.rho.shape == problem.start.shape
    assert problem.theta.shape == problem.features.shape[2:]
    for s in np.flatnonzero(problem.terminal):
        assert np.all(problem.mdp.transition[s, :, s] == 1) and np.all(
            tabular.expected_reward(problem.mdp)[s] == 0
        )


@x64
def test_bairds_star_diverges_with_the_gradient_and_converges_preconditioned():
    star = problems.baird()
    assert np.linalg.matrix_rank(star.kernel) == 14
    np.testing.assert_allclose(
        np.einsum("sa,sat->t", star.rho, star.mdp.transition), 1 / 7, atol=1e-12
    )
    gradient, preqn = errors(star, tabular.u3), errors(star, tabular.preconditioned)
    assert gradient[-1] > 1e10 * gradient[0] and np.all(np.diff(gradient[100:]) > 0)
    assert preqn[-1] < 1e-3 * preqn[0] and np.all(np.diff(preqn) < 0)
    assert (
        diagnostics.generalization_slack(star.kernel, star.rho.reshape(-1), star.mdp.gamma).min()
        < 0
    )
    halved = errors(star, tabular.u3, 40_000, 0.0125)
    assert halved[-1] > 1e3 * halved[0]  # no step is small enough


@x64
def test_bairds_star_starts_where_the_literature_does():
    """w = (1, ..., 1, 10) and w_0 = 1: Q is 2 + 1 in the upper states, 10 + 2 in the seventh."""
    np.testing.assert_allclose(problems.baird().start, [[0, 3]] * 6 + [[0, 12]])


@x64
@pytest.mark.parametrize("gamma", [0.75, 0.8, 0.87, 0.99])
def test_w_to_2w_diverges_above_five_sixths_whatever_the_preconditioner(gamma):
    """w' = w + alpha (6 gamma - 5) w / 2 by the gradient, and w + alpha (6 gamma - 5) w / 5 by
    PreQN's step: the sign is the same.
    """
    problem = problems.w_to_2w(gamma)
    for operator, share in ((tabular.u3, 2), (tabular.preconditioned, 5)):
        got = errors(problem, operator, 50)
        np.testing.assert_allclose(
            got, 2 * (1 + 0.5 * (6 * gamma - 5) / share) ** np.arange(51), rtol=1e-9
        )


@x64
def test_garnets_have_their_branches_and_differ_by_seed():
    one, other = problems.garnet(20, 4, 3, seed=0), problems.garnet(20, 4, 3, seed=1)
    assert np.all((np.asarray(one.mdp.transition) > 0).sum(axis=2) == 3)
    assert np.any(one.mdp.transition != other.mdp.transition)
    large = problems.garnet(100, 4, features=1000)
    assert np.all(np.abs(np.diagonal(large.kernel) - 1) < 5 * np.sqrt(2 / 1000))
    # The squares of a uniform draw from all distributions on 400 pairs sum to 2 / 401.
    np.testing.assert_allclose(np.sum(large.rho**2), 2 / 401, rtol=0.25)
    with pytest.raises(ValueError, match="branching is 21, expected 1 to 20"):
        problems.garnet(20, branching=21)


@x64
def test_wider_features_of_the_chain_leave_equation_17():
    slack = lambda width: float(
        diagnostics.generalization_slack(
            (c := problems.chain(width=width)).kernel, c.rho.reshape(-1), c.mdp.gamma
        ).min()
    )
    slacks = [slack(width) for width in (0.1, 0.5, 1.0, 2.0)]
    assert slacks[0] > 0 > slacks[1] and slacks == sorted(slacks, reverse=True)
    chain = problems.chain()
    best = np.asarray(tabular.value_iteration(chain.mdp).q)
    assert np.all(best.argmax(axis=1) == 1) and np.all(
        np.diff(best[:, 1]) > 0
    )  # right, and the nearer the better


@x64
def test_the_chain_is_a_row_with_a_slip_and_overlapping_bells():
    chain = problems.chain(5, width=2.0, slip=0.2)
    for s, (left, right) in enumerate([(0, 1), (0, 2), (1, 3), (2, 4), (3, 4)]):
        row = np.zeros((2, 5))
        for a, after in enumerate((left, right)):
            row[a, after] += 0.8
            row[1 - a, after] += 0.2
        np.testing.assert_allclose(chain.mdp.transition[s], row)
    np.testing.assert_allclose(
        tabular.expected_reward(chain.mdp), np.asarray(chain.mdp.transition)[:, :, -1]
    )
    bell = np.exp(-((np.arange(5)[:, None] - np.arange(5)[None]) ** 2) / 8)
    bell /= np.sqrt((bell**2).sum(axis=1))[:, None]
    kernel = np.asarray(chain.kernel).reshape(5, 2, 5, 2)
    for a, b in np.ndindex(2, 2):
        np.testing.assert_allclose(kernel[:, a, :, b], (a == b) * bell @ bell.T, atol=1e-12)
    assert np.allclose(np.diagonal(chain.kernel), 1)


@x64
def test_a_move_of_the_gridworld_slips_in_a_random_direction():
    """In any of the four, including the intended one; at a wall the state stays."""
    grid = problems.gridworld(3, slip=0.2).mdp.transition
    middle = np.zeros(9)
    middle[[1, 5, 7, 3]] = [0.85, 0.05, 0.05, 0.05]
    np.testing.assert_allclose(grid[4, 0], middle, atol=1e-12)  # up from the middle
    corner = np.zeros(9)
    corner[[0, 1, 3]] = [0.85 + 0.05, 0.05, 0.05]
    np.testing.assert_allclose(grid[0, 3], corner, atol=1e-12)  # left, at the upper left


@x64
def test_the_gridworlds_values_fall_with_the_distance_to_the_goal():
    grid = problems.gridworld(4, gamma=0.9, slip=0.0)
    best = np.asarray(tabular.value_iteration(grid.mdp, 1e-9).q).max(axis=1).reshape(4, 4)
    distance = np.add.outer(np.arange(4), np.arange(4))
    expected = np.where(distance == 6, 0, 0.9 ** (5.0 - distance))
    np.testing.assert_allclose(best, expected, atol=1e-8)
    np.testing.assert_array_equal(grid.kernel, np.eye(64))


def rollout(env_id, steps, num_envs=200):
    env = envs.make(env_id, num_envs)
    obs, rng, out = env.reset(list(range(num_envs))), np.random.default_rng(0), []
    for _ in range(steps):
        actions = rng.uniform(-1, 1, (num_envs, 1)).astype(np.float32)
        step = env.step(actions)
        out.append((obs, actions, step))
        obs = step.obs
    return out


def test_an_environment_has_the_transitions_and_rewards_of_its_table():
    problem = problems.gridworld()
    states, actions = problem.rho.shape
    counts, ends = np.zeros((states, actions, states)), []
    for obs, action, step in rollout("tabular/gridworld", 60):
        assert np.all(obs.sum(axis=1) == 1) and obs.shape == (200, states)
        s, after = obs.argmax(axis=1), step.next_obs.argmax(axis=1)
        a = np.abs(action - (np.arange(actions) * 2 + 1 - actions) / actions).argmin(
            axis=1
        )  # the nearest centre
        np.add.at(counts, (s, a, after), 1)
        np.testing.assert_array_equal(
            step.reward, np.asarray(problem.mdp.reward)[s, a, after].astype(np.float32)
        )
        np.testing.assert_array_equal(step.terminated, np.asarray(problem.terminal)[after])
        ends.append(step.truncated.sum())
    assert not np.any(counts[np.asarray(problem.mdp.transition) == 0])
    seen = counts.sum(axis=2)
    rare = np.asarray(problem.terminal)
    assert seen[~rare].min() > 50 and seen[rare].sum() == 0
    frequency = counts[~rare] / seen[~rare][:, :, None]
    spread = np.sqrt(0.25 / seen[~rare])[:, :, None]
    assert np.all(np.abs(frequency - np.asarray(problem.mdp.transition)[~rare]) < 5 * spread)
    assert sum(ends[:49]) == 0 and ends[49] > 0  # cut off after 50 steps


def test_the_counterexamples_do_not_end():
    """The second state of w-to-2w stays, with reward 0; if it were terminal, no target would
    bootstrap there.
    """
    assert not problems.baird().terminal.any() and not problems.w_to_2w().terminal.any()


def test_episodes_start_where_the_data_are():
    skewed = problems.garnet()._replace(rho=jnp.zeros((10, 3)).at[4].set(1 / 6).at[7, 0].set(1 / 2))
    env = finite.functional(skewed)
    assert (
        jax.eval_shape(env.step, jnp.int32(0), jnp.zeros(1, int), jax.random.key(0))[1].reward.shape
        == ()
    )  # R(s, a) will do
    starts = np.asarray(jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 400)))
    assert set(starts) == {4, 7} and abs(np.mean(starts == 4) - 0.5) < 0.15


def test_a_mistyped_problem_is_said():
    with pytest.raises(UserError, match="did you mean 'tabular/baird'"):
        envs.make("tabular/bard", 1)
