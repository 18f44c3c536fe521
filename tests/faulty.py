"""Environments with one fault each, as users might write them: `tests.faulty:<Fault>-v0`.

They work for AT - 1 steps, unless the fault is in making or resetting the environment.
"""

import ctypes
import itertools
import os
import sys
import threading
import time
from pathlib import Path

import gymnasium
import jax.numpy as jnp
import numpy as np

from preqn_jax.envs import derive_seed
from preqn_jax.training.config import EVAL_ENV, TRAIN_ENV

AT = 260  # the step that goes wrong
RELEASED = threading.Event()  # when set, `Wait` ends
OBS = np.zeros(3, np.float32)
BOX = gymnasium.spaces.Box(-1, 1, (2,), np.float32)


def throw(error):
    raise error


def wait():
    RELEASED.wait(120)  # a test that does not end it fails
    return OBS, 0.0, False, False, {}


def mark():
    """Tells another process, by a file, that the hang has begun."""
    if "FAULTY_MARK" in os.environ:
        Path(os.environ["FAULTY_MARK"]).touch()


def hang():
    mark()
    while True:  # PyDLL holds the GIL: no other thread runs
        ctypes.PyDLL(None).sleep(3600)


def spin():
    mark()
    while True:
        time.sleep(0)


STEPS = {
    "Raise": lambda: throw(ValueError("no such joint\nas the second line says")),
    "Broken": lambda: throw(OSError("the simulator is gone")),
    "Ended": lambda: throw(EOFError()),
    "Exit": lambda: sys.exit(0),
    "Four": lambda: (OBS, 0.0, False, {}),
    "None": lambda: None,
    "Text": lambda: "done",
    "ObsNone": lambda: (None, 0.0, False, False, {}),
    "ObsList": lambda: ([0.0, 0.0, 0.0], 0.0, False, False, {}),
    "ObsScalar": lambda: (np.float32(1), 0.0, False, False, {}),
    "ObsShape": lambda: (np.zeros(4, np.float32), 0.0, False, False, {}),
    "ObsObjects": lambda: (np.array([None] * 3), 0.0, False, False, {}),
    "RewardArray": lambda: (OBS, np.zeros(1), False, False, {}),
    "RewardNone": lambda: (OBS, None, False, False, {}),
    "RewardText": lambda: (OBS, "1", False, False, {}),
    "EndNone": lambda: (OBS, 0.0, None, False, {}),
    "CutArray": lambda: (OBS, 0.0, False, np.zeros(2, bool), {}),
    "Nan": lambda: (OBS, np.nan, False, False, {}),
    "NanObs": lambda: (np.full(3, np.nan), 0.0, False, False, {}),
    "Wait": wait,
    "Hang": hang,
    "Spin": spin,
}
RESETS = {
    "ResetRaise": lambda: throw(KeyError("joint")),
    "ResetNone": lambda: None,
    "ResetNoInfo": lambda: OBS,
    "ResetScalar": lambda: (0.0, {}),
    "ResetShape": lambda: (np.zeros((1, 3)), {}),
}
# Valid but unusual results of a step.
ODD = {
    "Integers": lambda: (np.zeros(3, int), 1, 0, np.False_, {}),
    "Jax": lambda: (jnp.zeros(3), jnp.ones(()), np.array(False), jnp.array(False), {}),
    "NoDimensions": lambda: [np.zeros(3), np.array(1.0), False, False, {}],
}


class Faulty(gymnasium.Env):
    """An environment whose episodes never end, with a reward of 1 a step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = BOX

    def __init__(self, fault=""):
        self.fault, self.steps = fault, 0
        if fault == "Construct":
            throw(RuntimeError("no licence"))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return RESETS[self.fault]() if self.fault in RESETS else (OBS, {})

    def step(self, action):
        self.steps += 1
        if self.fault in ODD:
            return ODD[self.fault]()
        if self.steps == AT and self.fault in STEPS:
            return STEPS[self.fault]()
        return OBS, 1.0, False, False, {}

    def close(self):
        if self.fault == "Close":
            throw(RuntimeError("closed twice"))


class EvalNan(Faulty):
    """An environment with a NaN in the evaluations at steps 200 and 600; episodes have 5 steps."""

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        if seed is not None:
            later = itertools.product(range(3), (EVAL_ENV,), (200, 600), range(3))
            self.later = seed in itertools.starmap(derive_seed, later)
        return super().reset(seed=seed)

    def step(self, action):
        self.steps += 1
        bad = np.nan if self.later and self.steps == 3 else 1.0
        obs, reward = (OBS * bad, 1.0) if self.fault == "EvalNanObs" else (OBS, bad)
        return obs, reward, False, self.steps == 5, {}


class Unlucky(Faulty):
    """An environment with a NaN for seed 1 of a run alone."""

    def reset(self, *, seed=None, options=None):
        if seed == derive_seed(1, TRAIN_ENV, 0):
            self.fault = "Nan"
        return super().reset(seed=seed)


def sentence(caught):
    """The message of a caught error, which must be a single line."""
    assert "\n" not in str(caught.value)
    return str(caught.value)


def spaces(**changed):
    def make():
        env = Faulty()
        for name, space in changed.items():
            setattr(env, name, space)
        return env

    return make


for fault in ("Endless", "Construct", "Close", *STEPS, *RESETS, *ODD):
    gymnasium.register(f"{fault}-v0", Faulty, kwargs={"fault": fault}, order_enforce=False)
gymnasium.register("Unlucky-v0", Unlucky)
for limit, name in ((0, "NoSteps"), (-1, "LessThanNone")):
    gymnasium.register(f"{name}-v0", Faulty, max_episode_steps=limit)
for fault in ("EvalNan", "EvalNanObs"):
    gymnasium.register(f"{fault}-v0", EvalNan, kwargs={"fault": fault})
gymnasium.register("Argument-v0", Faulty, kwargs={"gravity": 9.8})
