"""The exact measurements of a critic on a finite problem, against NumPy with every policy."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import preqn_jax
from preqn_jax import actions, agents, diagnostics, envs, problems, tabular
from preqn_jax.replay import Replay
from preqn_jax.training import monitor
from preqn_jax.training.loop import Learner
from preqn_jax.types import Transition

STATES, ACTIONS = 4, 2
GARNET = problems.garnet(STATES, ACTIONS, features=6, gamma=0.9, seed=3)
THETA = jax.random.normal(jax.random.key(0), (6,))
ALPHA, SMALL = 0.7, {"hidden_sizes": (16,), "start_steps": 100, "update_after": 100}


def linear(problem):
    """A critic Q = theta . phi(s, a), as a function of one-hot s and a number a."""

    def q(params, obs, action):
        index = actions.index(action[0], problem.rho.shape[1])
        return jnp.dot(problem.features[jnp.argmax(obs), index], params, precision="highest")

    return q


Q = linear(GARNET)  # compiled once


def step_of(phi, rho, damping):
    """The matrix from TD errors to changes of Q: alpha K D_rho, or alpha K (K + c I)^-1 of the
    pairs with data.
    """
    kernel = phi @ phi.T
    if damping is None:
        return ALPHA * kernel * rho[None, :]
    met = np.flatnonzero(rho > 0)
    inner = kernel[np.ix_(met, met)]
    inner = inner + damping * np.trace(inner) / len(met) * np.eye(len(met))
    step = np.zeros_like(kernel)
    step[:, met] = ALPHA * kernel[:, met] @ np.linalg.inv(inner)
    return step


def oracle(problem, theta, rho, gamma, damping):
    """The exact measurements, by value iteration, and from U's matrix under every policy."""
    states, count = np.shape(problem.rho)
    phi = np.float64(problem.features).reshape(states * count, -1)
    P = np.float64(problem.mdp.transition).reshape(states * count, states)
    r, q = np.float64(problem.mdp.reward).ravel(), phi @ np.float64(theta)
    star = np.zeros(states * count)
    for _ in range(2000):
        star = r + gamma * P @ star.reshape(states, count).max(axis=1)
    step = step_of(phi, np.float64(rho).ravel(), damping)

    def derivative(policy):
        ahead = np.zeros((states * count, states * count))
        ahead[:, np.arange(states) * count + np.asarray(policy)] = P
        return np.eye(states * count) - step + gamma * step @ ahead

    norms = [
        np.abs(derivative(policy)).sum(axis=1).max()
        for policy in itertools.product(range(count), repeat=states)
    ]
    here = derivative(q.reshape(states, count).argmax(axis=1))
    return {
        "q_error": np.abs(q - star).max(),
        "modulus": max(norms),
        "radius": np.abs(np.linalg.eigvals(here)).max(),
    }


@pytest.mark.parametrize("damping", [None, 0.1])
@pytest.mark.parametrize("gamma", [None, 0.5])
@pytest.mark.parametrize("lacking", [False, True])
def test_the_numbers_are_those_of_every_policy(damping, gamma, lacking):
    rho = np.array(GARNET.rho, np.float64)
    if lacking:  # two pairs without data
        rho[0, 1] = rho[2, 0] = 0
        rho /= rho.sum()
    found = diagnostics.exact(Q, THETA, GARNET, alpha=ALPHA, damping=damping, gamma=gamma, rho=rho)
    expected = oracle(GARNET, THETA, rho, gamma or 0.9, damping)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rho": np.ones((STATES, ACTIONS))}, "rho sums to 8, expected 1"),
        ({"rho": np.ones(STATES)}, "rho has the shape"),
        ({"gamma": 1.0}, r"gamma must lie in \[0, 1\), got 1.0"),
        ({"damping": -1.0}, "damping must not be negative"),
        ({"rcond": 1.0}, r"rcond is a share of the largest eigenvalue, in \[0, 1\)"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        diagnostics.exact(Q, THETA, GARNET, alpha=ALPHA, **wrong)


def test_preqns_modulus_is_lemma_1s_where_k_has_full_rank():
    star = problems.baird()
    found = diagnostics.exact(linear(star), star.theta, star, alpha=0.5, damping=0.0)
    np.testing.assert_allclose(found["modulus"], 1 - 0.5 * (1 - 0.99), rtol=1e-3)
    plain = diagnostics.exact(linear(star), star.theta, star, alpha=0.5)
    assert plain["radius"] > 1 and plain["modulus"] > 1  # it diverges


@pytest.mark.parametrize("rcond", [pytest.param(None, marks=pytest.mark.slow), 0.1])
def test_the_operator_cuts_off_what_the_solver_of_a_run_does(rcond):
    """If too much of K is cut off, the operator expands."""
    chain, (states, count) = problems.chain(), (8, 2)
    agent = agents.make(
        agents.AgentConfig("preqn_discrete", None, (16,), (16,)), envs.spec("tabular/chain")
    )
    state, (s, a) = agent.init(jax.random.key(0)), np.indices((states, count)).reshape(2, -1)
    none = jnp.zeros((1, len(s)))
    pairs = jnp.eye(states)[s][None], jnp.asarray(actions.number(a, count))[None, :, None]
    data = Transition(*pairs, none, none, pairs[0])  # every pair once
    learner = Learner(
        jax.tree.map(lambda leaf: leaf[None], state), Replay(data, jnp.asarray([len(s)]))
    )
    described = {"critic_step": "preconditioned", "critic_learning_rate": 0.1, "damping": 1e-3}
    described |= {"solver": "eigh", "rcond": None}
    swept = {} if rcond is None else {"rcond": np.array([rcond])}  # a member's own
    described["batch_size"] = 8
    look = monitor.make_exact(agent, chain, [chain.mdp.gamma], described, swept)
    found = look(learner, 0, 0.1, None)["exact/modulus"]
    expected = diagnostics.exact(
        agent.q, agent.critic(state), chain, alpha=0.1, damping=0.0, rcond=rcond
    )["modulus"]
    assert found == pytest.approx(expected, rel=1e-5) and (found > 1.1) == (rcond is not None)


def test_a_terminal_state_has_the_value_0_and_is_left_out():
    world = problems.gridworld()
    theta = tabular.value_iteration(world.mdp).q.ravel()
    ends = np.flatnonzero(np.asarray(world.terminal))[0]
    wild = theta.reshape(world.rho.shape).at[ends].set(100.0).ravel()
    found = diagnostics.exact(linear(world), wild, world, alpha=0.1, damping=0.0)
    assert found["q_error"] < 1e-4 and found["modulus"] < 1


@pytest.mark.slow
def test_a_damping_that_adapts_is_the_one_there_is():
    options = {**SMALL, "batch_size": 16, "num_steps": 200, "discount": 0.8, "logdir": "x"}
    adapting = {"adaptive_damping": True, "damping": 1.0, "diagnose_every": 200}
    for _ in preqn_jax.train("preqn_discrete", "tabular/chain", **adapting, **options):
        pass
    lines = [json.loads(line) for line in Path("x/metrics.jsonl").read_text().splitlines()]
    (look,) = [line for line in lines if "exact/modulus" in line]
    (damping,) = [
        line["solve/damping"]
        for line in lines
        if line.get("step") == 200 and "solve/damping" in line
    ]
    assert damping < 0.5 and look["exact/modulus"] < 0.983  # 1.09 with a damping of 1


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["preqn_discrete", "dqn"])
def test_a_run_on_a_finite_problem_records_them(algorithm):
    """With the pairs in the replay buffer, the run's gamma, and its own step."""
    options = {**SMALL, "batch_size": 16, "num_steps": 200, "eval_every": 200, "discount": 0.8}
    training = preqn_jax.train(
        algorithm, "tabular/chain", diagnose_every=100, logdir="x", seeds=(0, 3), **options
    )
    *_, last = training
    lines = [json.loads(line) for line in Path("x/metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "exact/q_error" in line]
    places = [(line["step"], line["seed"]) for line in looks]
    assert places == [(100, 0), (100, 3), (200, 0), (200, 3)]
    problem, trained = problems.chain(), last.trained
    star = np.asarray(tabular.value_iteration(problem.mdp._replace(gamma=0.8)).q)
    s, a = (x.ravel() for x in np.indices(problem.rho.shape))
    for line in looks[2:]:
        table = np.asarray(trained.q(line["seed"])(np.eye(8)[s], a)).reshape(8, 2)
        np.testing.assert_allclose(line["exact/q_error"], np.abs(table - star).max(), rtol=1e-4)
        # preconditioned, a short step contracts: 1 - alpha (1 - gamma) but for the damping
        if algorithm == "preqn_discrete":
            assert 0.98 <= line["exact/modulus"] < 1
        assert line["exact/radius"] <= line["exact/modulus"] + 1e-5


def test_the_error_of_q_is_exact_however_close_to_1_gamma_is():
    """Against the best of all policies, each by a linear solve; backups would take a million."""
    gamma, states = 0.99999, np.arange(STATES)
    P, r = (np.asarray(x, np.float64) for x in (GARNET.mdp.transition, GARNET.mdp.reward))
    values = [
        np.linalg.solve(np.eye(STATES) - gamma * P[states, list(policy)], r[states, list(policy)])
        for policy in itertools.product(range(ACTIONS), repeat=STATES)
    ]
    star = r + gamma * P @ np.max(values, axis=0)
    table = np.asarray(GARNET.features, np.float64) @ np.asarray(THETA, np.float64)
    found = diagnostics.exact(Q, THETA, GARNET, alpha=ALPHA, gamma=gamma)
    np.testing.assert_allclose(found["q_error"], np.abs(table - star).max(), rtol=1e-4)
