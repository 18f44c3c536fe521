"""Seeds and returns of the environments of one member, and what is a mean since the last line."""

import json

import gymnasium
import numpy as np

import preqn_jax
from preqn_jax.envs import derive_seed
from preqn_jax.training.config import TRAIN_ENV

SMALL = {"hidden_sizes": (8, 8), "start_steps": 50, "update_after": 50, "batch_size": 8}
given = []  # the seeds of resets


class Short(gymnasium.Env):
    """Episodes of 5 steps that pay 1 each."""

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


def test_every_environment_of_every_seed_has_its_own_and_returns_are_of_one_episode():
    given.clear()
    run = preqn_jax.train("td3", Short, seeds=(0, 4), num_envs=2, num_steps=100, **SMALL)
    episodes = [episode for progress in run for episode in progress.episodes]
    expected = {derive_seed(seed, TRAIN_ENV, e) for seed in (0, 4) for e in range(2)}
    assert len(expected) == 4 and expected <= set(given)
    assert sorted(episodes) == [(i, 5.0) for i in (0, 1) for _ in range(100 // 5)]


def test_a_line_of_records_holds_means_over_the_rounds_since_the_last_one(tmp_path):
    options = {**SMALL, "num_steps": 300, "log_every": 100, "eval_every": 1000, "eval_episodes": 1}
    run = preqn_jax.train("td3", "probe/delay", logdir=tmp_path / "run", **options)
    rounds = {progress.step: progress.metrics for progress in run}
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if "critic/q_mean" in line}
    assert sorted(logged) == [100, 200, 300]
    for step, line in logged.items():
        for name in ("critic/q_mean", "critic/td_abs"):
            mean = np.mean([rounds[s][name][0] for s in (step - 50, step)])
            np.testing.assert_allclose(line[name], mean, rtol=1e-6)
