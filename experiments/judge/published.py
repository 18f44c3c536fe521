"""Returns that others published for the same tasks, for comparison with ours.

Means and standard deviations over seeds; discount 0.99, one gradient step per environment step,
noiseless test episodes unless a source says otherwise. The tasks are older versions (v1 to v4):
Walker2d, Hopper and Ant of v5 pay differently. Two runs of the same algorithm, with ten seeds each,
differ by up to 17 to 19 % (Ant, Walker2d).
"""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Return(NamedTuple):
    """A published mean return, and its standard deviation over seeds where that is known."""

    source: str
    env: str  # without its version
    algorithm: str
    step: int
    mean: float
    deviation: float | None = None


SOURCES = {  # name -> repository and folder of the numbers, and how they were made
    "Spinning Up": "openai/spinningup, docs/images/plots: v3, batch 100, SAC with temperature 0.2; "
    "10 seeds",
    "tianshou": "thu-ml/tianshou, examples/mujoco: v3, batch 256, SAC with temperature 0.2; 10 "
    "seeds",
    "TD3 paper": "sfujim/TD3, learning_curves: v1, last 10 evaluations; 10 seeds",
    "SimbaV2": "SimbaV2, results/baseline/crossq.csv: v4, CrossQ, which has no target networks; at "
    "100,000 steps the mean of ten evaluations from 82,000 on; 10 seeds",
}

_MILLION = {  # (env, algorithm) -> source -> (mean, deviation) at 1,000,000 steps
    ("HalfCheetah", "ddpg"): {
        "Spinning Up": (10109, 979),
        "tianshou": (11653, 431),
        "TD3 paper": (8401, None),
    },
    ("HalfCheetah", "td3"): {
        "Spinning Up": (9755, 763),
        "tianshou": (10127, 692),
        "TD3 paper": (9533, 819),
    },
    ("HalfCheetah", "sac"): {"Spinning Up": (11496, 792), "tianshou": (12122, 1006)},
    ("Walker2d", "ddpg"): {
        "Spinning Up": (1921, 761),
        "tianshou": (916, 535),
        "TD3 paper": (2362, None),
    },
    ("Walker2d", "td3"): {
        "Spinning Up": (3998, 567),
        "tianshou": (3843, 543),
        "TD3 paper": (4565, 552),
    },
    ("Walker2d", "sac"): {"Spinning Up": (4111, 508), "tianshou": (4961, 327)},
    ("Hopper", "ddpg"): {
        "Spinning Up": (1736, 400),
        "tianshou": (1604, 936),
        "TD3 paper": (1062, None),
    },
    ("Hopper", "td3"): {
        "Spinning Up": (2859, 1033),
        "tianshou": (3133, 772),
        "TD3 paper": (3305, 220),
    },
    ("Hopper", "sac"): {"Spinning Up": (3535, 106), "tianshou": (3532, 43)},
    ("Ant", "ddpg"): {"Spinning Up": (700, 214), "tianshou": (385, 334), "TD3 paper": (564, None)},
    ("Ant", "td3"): {"Spinning Up": (3808, 945), "tianshou": (4911, 918), "TD3 paper": (4185, 933)},
    ("Ant", "sac"): {"Spinning Up": (3949, 1050), "tianshou": (5714, 369)},
    ("Swimmer", "ddpg"): {"Spinning Up": (136, 8), "tianshou": (142, 8)},
    ("Swimmer", "td3"): {"Spinning Up": (78, 36), "tianshou": (96, 34)},
    ("Swimmer", "sac"): {"Spinning Up": (42, 1), "tianshou": (44, 1)},
}
_EARLIER = {  # (env, algorithm) -> means at 100,000 and 300,000 steps, Spinning Up
    ("HalfCheetah", "td3"): (5242, 7625),
    ("HalfCheetah", "sac"): (6081, 9163),
    ("HalfCheetah", "ddpg"): (4339, 7757),
    ("Walker2d", "td3"): (434, 1557),
    ("Walker2d", "sac"): (771, 2958),
    ("Hopper", "td3"): (785, 2402),
    ("Hopper", "sac"): (1164, 2887),
    ("Ant", "td3"): (467, 1408),
    ("Ant", "sac"): (802, 1737),
    ("Swimmer", "ddpg"): (38, 73),
    ("Swimmer", "td3"): (41, 49),
    ("Swimmer", "sac"): (39, 41),
}
_CROSSQ = {  # env -> step -> mean, and deviation of ten seeds where it is known
    "HalfCheetah": {100_000: (7858, 905), 300_000: (10012,), 1_000_000: (12893,)},
    "Walker2d": {100_000: (2991, 950), 300_000: (5941,), 1_000_000: (6257,)},
    "Hopper": {100_000: (2791, 347), 300_000: (2644,), 1_000_000: (2467,)},
    "Ant": {300_000: (5712,), 1_000_000: (6980,)},
}

RETURNS = (
    [
        Return(source, env, algorithm, 1_000_000, *numbers)
        for (env, algorithm), by_source in _MILLION.items()
        for source, numbers in by_source.items()
    ]
    + [
        Return("Spinning Up", env, algorithm, step, mean)
        for (env, algorithm), means in _EARLIER.items()
        for step, mean in zip((100_000, 300_000), means, strict=True)
    ]
    + [
        Return("SimbaV2", env, "crossq", step, *numbers)
        for env, by_step in _CROSSQ.items()
        for step, numbers in by_step.items()
    ]
)


def of(env: str, step: int) -> list[Return]:
    """The returns published for an environment (with its version or without) at a step."""
    return [row for row in RETURNS if row.env == task(env) and row.step == step]


def task(env: str) -> str:
    """The task of an environment, in any version: "Hopper" for "Hopper-v5"."""
    return re.sub(r"-v\d+$", "", env)


def the_only(env: str, envs: Iterable[str]) -> str | None:
    """The task of an environment, if it is the only version of it among these."""
    versions = {other for other in envs if task(other) == task(env)}
    return task(env) if versions == {env} else None


SCALE_RULE = """\
Scores of several tasks are put on one scale: divided by Spinning Up's mean return of TD3 after
1,000,000 steps on that task."""


def scale(env: str) -> float | None:
    """The return that counts as 1 when tasks are combined; None for a task without published
    returns.
    """
    found = (
        row.mean
        for row in of(env, 1_000_000)
        if (row.source, row.algorithm) == ("Spinning Up", "td3")
    )
    return next(found, None)
