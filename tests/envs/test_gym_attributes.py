"""Which attributes of a Gymnasium environment are saved, and which keep it from being saved."""

import json
from typing import Any

import gymnasium
import numpy as np

from preqn_jax import envs
from preqn_jax.envs import codec

STILL = np.zeros((1, 2), np.float32)


class Plain(gymnasium.Env):
    """Observes its step and a number; tests give it further attributes, and steps of their own."""

    observation_space = action_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.begin()
        return self.look(), {}

    def begin(self) -> None: ...

    def number(self) -> Any:
        return 0.0

    def look(self):
        return np.float32([self.t, self.number()])

    def step(self, action):
        self.t += 1
        return self.look(), 0.0, False, False, {}


class Pending(Plain):
    """Cannot be saved as an episode begins, but later."""

    def begin(self):
        self.pending: Any = object()

    def step(self, action):
        self.pending = None
        return super().step(action)


def test_what_cannot_be_saved_as_it_begins_begins_anew(caplog):
    env, other = envs.make(Pending, 1), envs.make(Pending, 1)
    env.reset([3]), other.reset([3])
    fresh = other.save()
    env.step(STILL)
    saved = json.loads(json.dumps(env.save()))
    assert fresh["envs"] == [None] and saved["envs"] != [None]
    codec.check_form(fresh, saved)
    obs, anew = other.load(saved)
    assert obs.tolist() == [[0, 0]] and anew.tolist() == [True]
    assert "a resumed run will start a new episode" in caplog.text
