"""Seeds and returns of environments, and which values the numbers in a record are means of."""

import itertools
import json
from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import preqn_jax
from preqn_jax import agents
from preqn_jax.envs import derive_seed
from preqn_jax.training import loop, session
from preqn_jax.training.config import TRAIN_ENV
from preqn_jax.training.rollout import Evaluation
from preqn_jax.types import Spec

SMALL = {"hidden_sizes": (8, 8), "start_steps": 50, "update_after": 50, "batch_size": 8}
given = []  # the seeds of resets


class Short(gymnasium.Env):
    """An environment with episodes of 5 steps, and a reward of 1 for each."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        given.append(seed)
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(3, np.float32), 1.0, self.steps == 5, False, {}


@pytest.mark.slow
def test_every_environment_of_every_seed_has_its_own_and_returns_are_of_one_episode():
    given.clear()
    run = preqn_jax.train("ddpg", Short, seeds=(0, 4), num_envs=2, num_steps=100, **SMALL)
    episodes = [episode for progress in run for episode in progress.episodes]
    expected = {derive_seed(seed, TRAIN_ENV, e) for seed in (0, 4) for e in range(2)}
    assert len(expected) == 4 and expected <= set(given)
    assert sorted(episodes) == [(i, 5.0) for i in (0, 1) for _ in range(100 // 5)]


@pytest.mark.slow
def test_a_line_of_records_holds_means_over_the_rounds_since_the_last_one(tmp_path):
    options = {**SMALL, "num_steps": 300, "log_every": 100, "eval_every": 1000, "eval_episodes": 1}
    run = preqn_jax.train("ddpg", "probe/delay", logdir=tmp_path / "run", **options)
    rounds = {progress.step: progress.metrics for progress in run}
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if "critic/q_mean" in line}
    assert sorted(logged) == [100, 200, 300]
    for step, line in logged.items():
        for name in ("critic/q_mean", "critic/td_abs"):
            mean = np.mean([rounds[s][name][0] for s in (step - 50, step)])
            np.testing.assert_allclose(line[name], mean, rtol=1e-6)


@pytest.mark.parametrize(("eval_every", "seconds"), [(1000, [1, 3, 5]), (100, [1, 10, 22])])
def test_a_rate_is_that_of_the_steps_since_the_last_line(
    eval_every, seconds, tmp_path, monkeypatch
):
    """The clock shows 0, 1, 4, 9, ..., and is read once a line, and twice for an evaluation, whose
    time is left out: for the second line 16 - 1 - (9 - 4).
    """
    squares = (n**2 for n in itertools.count())
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: next(squares)))
    options = {**SMALL, "num_steps": 300, "log_every": 100, "eval_episodes": 1}
    options |= {"eval_every": eval_every, "logdir": tmp_path / "run"}
    for _ in preqn_jax.train("ddpg", "probe/delay", **options):
        pass
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rates = [line["time/steps_per_s"] for line in lines if "time/steps_per_s" in line]
    np.testing.assert_allclose(rates, [100 / s for s in seconds])


@pytest.mark.slow
def test_of_failed_solves_the_numbers_are_left_out_of_a_rounds_means():
    """Any other NaN makes the mean NaN."""
    spec = Spec(3, 2, -np.ones(2), np.ones(2))
    made = agents.make(agents.AgentConfig(algorithm="ddpg", hidden_sizes=(4,)), spec)

    def update(state, batch, key, count):
        odd = jnp.where(count % 2 == 1, count.astype(jnp.float32), jnp.nan)
        return state, {"solve/residual": odd, "linesearch/scale": odd, "critic/td_abs": 1.0 * count}

    starts = {name: size for name, size in SMALL.items() if name != "hidden_sizes"}
    config = loop.LoopConfig(seeds=(0,), num_steps=100, **starts)
    learner, _ = loop.init(made, spec, config)
    new = jax.tree.map(lambda ring: np.ones((1, 50, *ring.shape[2:])), learner.replay.data)
    learn = loop.make_learn(made._replace(update=update), config)
    at = (np.zeros(1, bool), jnp.uint32(0), jnp.int32(0))
    means = learn(learner, config.seeds, new, *at, 50)[1]
    np.testing.assert_allclose(means["solve/residual"], np.mean(range(1, 50, 2)))
    np.testing.assert_allclose(means["critic/td_abs"], np.mean(range(50)))
    assert np.isnan(means["linesearch/scale"]).all()


def test_returns_are_summed_in_float64():
    rewards = np.full((10_000, 1), 0.1, np.float32)
    seen = np.zeros((10_000, 1, 1), np.float32)
    one = Evaluation(rewards, seen, seen, np.array([10_000]), np.array([True]))
    assert abs(one.returns[0] - 1000) < 1e-4
