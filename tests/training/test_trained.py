"""What a run directory gives back in Python: policy, critic, configuration, records."""

import doctest
import json
import sys
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

import after_cases
import preqn_jax
from preqn_jax import actions, agents
from preqn_jax.options import UserError
from preqn_jax.training import trained
from preqn_jax.types import Spec

reacher = after_cases.reacher
# Bounds with another centre and width in each dimension.
SPEC = Spec(3, 2, np.array([0.0, -3.0]), np.array([4.0, -1.0]))


def fresh(algorithm, seeds=(4, 2)):
    """Trained agents, but without any learning."""
    agent = agents.make(agents.AgentConfig(algorithm=algorithm, hidden_sizes=(8, 8)), SPEC)
    states = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), len(seeds)))
    return trained.Trained(agent, states, SPEC, seeds, 0)


@pytest.mark.parametrize("algorithm", ["td3", pytest.param("sac", marks=pytest.mark.slow)])
def test_policy_and_critic_speak_the_environments_own_units(algorithm):
    """Against NumPy in float64, from the parameters."""
    run = fresh(algorithm)
    state, relu = run.state(2), lambda x: np.maximum(x, 0)
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(7, 3)), SPEC.action_low + rng.uniform(size=(7, 2)) * [4, 2]

    def mlp(params, x):
        layers = [params["params"]["mlp"][f"Dense_{i}"] for i in range(3)]
        for i, layer in enumerate(layers):
            x = x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])
            x = x if i == 2 else relu(x)
        return x

    acts = np.tanh(mlp(run.agent.policy(state), obs)[:, :2])  # SAC's mean comes first
    acts = [2, -2] + [2, 1] * acts
    np.testing.assert_allclose(run.policy(2)(obs), acts, atol=1e-5)
    np.testing.assert_allclose(run.policy(2)(obs[0]), acts[0], atol=1e-5)
    scaled = (action - [2, -2]) / [2, 1]
    values = mlp(run.agent.critic(state), np.concatenate([obs, scaled], 1))[:, 0]
    np.testing.assert_allclose(run.q(2)(obs, action), values, atol=1e-5)
    np.testing.assert_allclose(run.q(2)(obs[0], action[0]), values[0], atol=1e-5)
    assert not np.allclose(run.q(4)(obs, action), values)  # the other seed's
    np.testing.assert_array_equal(run.q()(obs, action), run.q(4)(obs, action))


@pytest.mark.slow
def test_of_finitely_many_actions_a_policy_says_integers_and_a_critic_takes_them():
    """Against NumPy in float64: the action with the largest output, counted from the environment's
    first integer.
    """
    spec = actions.spec(3, 4, first=-1)
    agent = agents.make(agents.AgentConfig(algorithm="dqn", hidden_sizes=(8, 8)), spec)
    states = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), 1))
    run = trained.Trained(agent, states, spec, (4,), 0)
    obs = np.random.default_rng(0).normal(size=(40, 3))
    layers = [run.agent.critic(run.state())["params"]["mlp"][f"Dense_{i}"] for i in range(3)]
    x = obs
    for i, layer in enumerate(layers):
        x = x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])
        x = x if i == 2 else np.maximum(x, 0)
    chosen, one = run.policy()(obs), run.policy()(obs[0])
    np.testing.assert_array_equal(chosen, x.argmax(axis=1) - 1)
    assert len(set(chosen.tolist())) > 1 and chosen.dtype == np.int32
    assert one == chosen[0] and gymnasium.spaces.Discrete(4, start=-1).contains(one)
    np.testing.assert_allclose(run.q()(obs, chosen), x.max(axis=1), atol=1e-5)
    for action in range(4):
        np.testing.assert_allclose(run.q()(obs[0], action - 1), x[0, action], atol=1e-5)
    with pytest.raises(ValueError, match=r"action has the shape \(4, 1\), .* with the B of obs"):
        run.q()(obs[:5], chosen[:4])


def test_a_critic_says_what_it_does_not_take():
    q = fresh("ddpg").q()
    with pytest.raises(ValueError, match=r"obs has the shape \(2,\), expected \(3,\) or \(B, 3\)$"):
        q(np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"action has the shape \(3,\), expected \(2,\)"):
        q(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"action has the shape \(4, 2\), .* with the B of obs"):
        q(np.zeros((5, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"obs has the shape \(1, 1, 3\)"):
        q(np.zeros((1, 1, 3)), np.zeros((1, 1, 2)))


def test_a_run_directory_gives_back_its_critic_and_its_configuration(reacher):
    path, last = reacher
    run = preqn_jax.load(path)
    obs, action = np.random.default_rng(0).normal(size=(2, 4, 10)), np.full((4, 2), 0.3)
    np.testing.assert_array_equal(run.q(1)(obs[0], action), last.q(1)(obs[0], action))
    assert run.config == json.loads((path / "config.json").read_text())["config"]
    with pytest.raises(UserError, match="there is no seed 4; this run has 0, 1"):
        run.q(4)


def test_the_examples_run_as_they_say(reacher):
    """In a folder in which "runs/x" is a run."""
    pytest.importorskip("pandas", reason="the extra `analysis` is not installed")
    Path("runs").mkdir()
    Path("runs/x").symlink_to(reacher[0])
    found = doctest.DocTestFinder(exclude_empty=True).find(
        trained, extraglobs={"np": np, "preqn_jax": preqn_jax}
    )
    runner = doctest.DocTestRunner()
    ran = [test.name.split(".", 3)[3] for test in found if runner.run(test).attempted]
    assert sorted(ran) == ["Trained.policy", "Trained.q", "load", "records"]
    assert runner.failures == 0


def test_records_are_a_row_for_each_seed_and_step():
    pytest.importorskip("pandas", reason="the extra `analysis` is not installed")
    folder = Path("x")
    folder.mkdir()
    config = {"config": {"env": "E-v1", "seeds": [2, 1], "algorithm": "preqn", "num_steps": 100}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": 50, "seed": 2, "critic/q_mean": 1, "time/steps_per_s": 9.0},
        {"step": 50, "seed": 1, "critic/q_mean": None, "time/steps_per_s": 8.0},
        {"step": 50, "seed": 2, "eval/return_mean": -3.0},
        {"step": 100, "seed": 1, "run/diverged": 1.0},
    ]
    written = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(written + '{"step": 100, "se')
    frame = preqn_jax.records("x")
    names = ["critic/q_mean", "time/steps_per_s", "eval/return_mean", "run/diverged"]
    assert list(frame.columns) == ["seed", "step", *names]
    nan = np.nan
    expected = [
        [1, 50, nan, 8, nan, nan],
        [1, 100, nan, nan, nan, 1],
        [2, 50, 1, 9, -3, nan],
    ]
    np.testing.assert_array_equal(frame.to_numpy(float), expected)
    assert [kind.kind for kind in frame.dtypes] == list("iiffff")


def test_records_that_are_not_there_are_said_in_a_sentence(monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pandas", None)
        with pytest.raises(UserError, match=r"pip install -e '\.\[analysis\]'"):
            preqn_jax.records("x")
    monkeypatch.setitem(sys.modules, "pandas", sys)  # any value: it is not used
    with pytest.raises(UserError, match="'x' is not a run directory: it has no config.json"):
        preqn_jax.records("x")
    Path("x").mkdir()
    config = {"config": {"env": "E-v1", "seeds": [0], "algorithm": "preqn", "num_steps": 100}}
    Path("x/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'x' has no records yet"):
        preqn_jax.records("x")


# --- agents of your own parts ---------------------------------------------------------------------


def own(spec):
    return agents.td3(spec, hidden_sizes=(8,))


SMALL = {"num_steps": 150, "start_steps": 50, "update_after": 50, "batch_size": 8}


def test_an_agent_is_a_function_that_makes_one():
    for wrong, words in (
        (own(SPEC), "agent is of the type Agent, expected a function"),
        (3, "agent is of the type int, expected a function"),
        (lambda spec: None, "returned NoneType, expected an Agent"),
    ):
        with pytest.raises(UserError, match=words):
            next(preqn_jax.train(wrong, "probe/delay", **SMALL))


def test_what_is_gone_with_the_next_round_says_so(tmp_path):
    kept = [
        (done.trained, done.trained.policy())
        for done in preqn_jax.train(own, "probe/delay", logdir=tmp_path / "run", **SMALL)
    ]
    obs = np.zeros(kept[0][0].spec.obs_size)
    with pytest.raises(UserError, match="these states, of step 50, are gone: the next round"):
        kept[0][0].policy()
    last = preqn_jax.load(tmp_path / "run", agent=own)
    for policy in (kept[-1][1], kept[-1][0].policy()):
        np.testing.assert_array_equal(policy(obs), last.policy()(obs))
    assert kept[0][1](obs).shape == (1,)  # taken in its round, it stays as it is
    with pytest.raises(UserError, match="agent is 'td3', expected a function"):
        preqn_jax.load(tmp_path / "run", agent="td3")
    with pytest.raises(UserError, match=r"than expected\); give the `agent` that `train` was"):
        preqn_jax.load(tmp_path / "run", agent=lambda spec: agents.td3(spec, hidden_sizes=(16,)))


@pytest.mark.parametrize("kind", [list, jax.numpy.asarray])
def test_bounds_of_actions_may_be_lists_or_jaxs(kind):
    spec = SPEC._replace(action_low=kind([0.0, -3.0]), action_high=kind([4.0, -1.0]))
    action = np.asarray([0.5, -1.0], np.float32)
    assert hash(spec) == hash(SPEC) and spec == SPEC
    there = jax.jit(lambda action: actions.to_environment(spec, action))(action)
    np.testing.assert_array_equal(there, actions.to_environment(SPEC, action))
    np.testing.assert_allclose(actions.from_environment(spec, there), action)
