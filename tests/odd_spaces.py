"""Environments with spaces that need a wrapper, `odd_spaces:<Name>-v0`, and wrappers to be named in
--wrappers.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

FLOATS = spaces.Box(-1, 1, (2,), np.float32)
OBSERVATIONS = {
    "Dict": spaces.Dict({"joints": FLOATS, "goal": spaces.Box(-1, 1, (3,), np.float64)}),
    "Tuple": spaces.Tuple([FLOATS, spaces.Discrete(3)]),
    "Discrete": spaces.Discrete(5),
    "MultiBinary": spaces.MultiBinary(4),
    "Image": spaces.Box(0, 255, (8, 6, 3), np.uint8),
    "Grey": spaces.Box(0, 255, (8, 6), np.uint8),
}
ACTIONS = {
    "Unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "HalfBounded": spaces.Box(np.float32([0, -np.inf]), np.float32([np.inf, 3]), dtype=np.float32),
    "DictAction": spaces.Dict({"arm": FLOATS, "leg": spaces.Box(0, 2, (1,), np.float32)}),
    "TupleAction": spaces.Tuple([FLOATS, FLOATS]),
}
INTEGERS = spaces.Box(-100, 100, (3,), np.int64)


class Odd(gymnasium.Env):
    """An environment with any spaces; pays `pay` a step, and refuses whatever is not an action."""

    def __init__(self, observations=FLOATS, actions=FLOATS, pay=1.0, limit=10):
        self.observation_space, self.action_space = observations, actions
        self.pay, self.limit = pay, limit

    def _look(self):
        space = self.observation_space
        space.seed(int(self.np_random.integers(2**31)))
        return space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        return self._look(), self.pay, False, self.steps >= self.limit, {}


class Add(gymnasium.RewardWrapper):
    def __init__(self, env, what=1.0):
        super().__init__(env)
        self.what = what

    def reward(self, reward):
        return float(reward) + self.what


class Double(gymnasium.RewardWrapper):
    def reward(self, reward):
        return 2 * float(reward)


def Nothing(env):
    return None


def make(**changed):
    return lambda **kwargs: Odd(**changed, **kwargs)


for _name, _space in OBSERVATIONS.items():
    gymnasium.register(f"{_name}-v0", Odd, kwargs={"observations": _space})
for _name, _space in ACTIONS.items():
    gymnasium.register(f"{_name}-v0", Odd, kwargs={"actions": _space})
gymnasium.register("Counts-v0", Odd, kwargs={"observations": INTEGERS})
gymnasium.register("Odd-v0", Odd)
