"""The option `relative`: Eq. 24 with a threshold relative to the solve's own alignment."""

import jax
import numpy as np
import pytest

import oracles
import preqn_jax
from preqn_jax import agents, networks, steps
from preqn_jax.agents import presets
from preqn_jax.options import UserError
from step_cases import case, critic, duplicated, flat, move_error, oracle, take, unchanged, unflat

ETA, DAMPING, ALPHA = 0.97, 1e-3, 0.5


def searched(params, x, targets, relative):
    """(theta' - theta, cos(K Z, Delta)) by Algorithm 1, lines 10 to 13, in float64."""
    theta, phi, delta = oracle(params, x, targets)
    gram = phi.T @ phi
    z = np.linalg.solve(gram + DAMPING * np.mean(np.diag(gram)) * np.eye(len(gram)), delta)
    reach = oracles.cosine(gram @ z, delta)
    threshold = ETA * reach if relative else ETA
    for k in range(12):
        move = ALPHA * 0.5**k * phi @ z
        layers = oracles.layers_of(unflat(theta + move, params))
        change = oracles.mlp(layers, "sin", x)[0] - (np.asarray(targets) - delta)
        if oracles.cosine(change, delta) >= threshold:
            return move, reach
    return 0 * theta, reach


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_a_step_is_held_against_what_its_solve_reaches(seed, x64):
    """Equal pairs with different targets: no change of Q is well aligned with Delta."""
    params, inputs, targets, x = case(seed)
    inputs, x = duplicated(inputs, x)
    targets = targets + 3 * np.repeat([1.0, -1.0], len(targets) // 2)
    for relative in (False, True):
        step = steps.preconditioned(critic(), ALPHA, ETA, relative=relative)
        new, _, info = take(step, params, inputs, targets)
        move, reach = searched(params, x, targets, relative)
        assert reach < 0.9 * ETA
        np.testing.assert_allclose(info.metrics["solve/alignment"], reach, rtol=1e-9)
        assert info.metrics["linesearch/accepted"] == relative
        if relative:
            assert move_error(new, params, flat(params) + move) < 1e-8
        else:
            assert unchanged(new, params)


def test_where_the_solve_reaches_delta_it_is_equation_24(x64):
    params, inputs, targets, _ = case()
    one, other = (
        take(steps.preconditioned(critic(), relative=relative), params, inputs, targets)
        for relative in (False, True)
    )
    assert one[2].metrics["solve/alignment"] > 0.9999
    assert oracles.relative_error(flat(one[0]), flat(other[0])) < 1e-12


def test_a_solve_that_failed_moves_nothing():
    params, inputs, targets, _ = case(dtype="float32")
    failed = lambda gram, delta: (np.nan * delta, preqn_jax.solve.cholesky()(gram, delta)[1])
    step = steps.preconditioned(critic(), solve=failed, relative=True)
    new, _, info = take(step, params, inputs, targets)
    assert unchanged(new, params) and info.metrics["linesearch/accepted"] == 0


@pytest.mark.slow
def test_the_setting_reaches_the_step():
    net = networks.Critic((8,), "sin")
    params, inputs, targets, _ = case(dtype="float32")
    params = net.init(jax.random.key(0), inputs[0][0], inputs[1][0])

    def program(step):
        args = (params, step.init(params), inputs, targets)
        return str(jax.make_jaxpr(step.update)(*args))

    by_hand = program(steps.preconditioned(net.apply, relative=True))
    for fields in ({"algorithm": "preqn_relative"}, {"relative_eta": True}):
        made = agents.resolve(agents.AgentConfig(**fields))
        assert program(presets.critic_step(made, net.apply)) == by_hand
    with pytest.raises(UserError, match="relative_eta is True, but .* critic_step is gradient"):
        agents.resolve(agents.AgentConfig(algorithm="td3", relative_eta=True))


@pytest.mark.slow
def test_where_pairs_cannot_be_told_apart_few_steps_pass_equation_24_and_all_pass_this():
    options = {"hidden_sizes": (32, 32), "batch_size": 64, "start_steps": 200, "update_after": 200}
    accepted = {}
    for algorithm in ("preqn", "preqn_relative"):
        share = []
        for progress in preqn_jax.train(algorithm, "probe/context", num_steps=500, **options):
            share.extend(progress.metrics.get("linesearch/accepted", []))
        accepted[algorithm] = np.mean(share)
    assert accepted["preqn"] < 0.5 and accepted["preqn_relative"] > 0.95, accepted


@pytest.mark.slow
def test_at_the_papers_sizes_it_learns_where_equation_24_stands_still():
    options = {"start_steps": 1000, "update_after": 1000, "num_steps": 2000, "eval_every": 2000}
    returns = {}
    for algorithm in ("preqn", "preqn_relative"):
        for progress in preqn_jax.train(algorithm, "probe/context", **options, eval_episodes=50):
            if progress.evaluations:
                returns[algorithm] = progress.evaluations[0].rewards[0].mean()
    assert returns["preqn"] < 0.5 < 0.99 < returns["preqn_relative"], returns
