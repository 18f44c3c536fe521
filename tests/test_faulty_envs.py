"""An environment that breaks its contract is named in an error, and a healthy one is accepted."""

import re

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import envs
from preqn_jax.envs import EnvError, FunctionalEnv, Outcome
from preqn_jax.options import UserError
from preqn_jax.types import Spec
from tests import faulty
from tests.faulty import sentence

STEP = "(observation, reward, terminated, truncated, info)"
OBS = "numbers of the shape (3,), as its observation space says"
STEPS = {
    "Raise": "raised ValueError: no such joint",
    "Broken": "raised OSError: the simulator is gone",
    "Ended": "raised EOFError",
    "Exit": "raised SystemExit: 0",
    "Four": f"returned a tuple of 4, expected {STEP}",
    "None": f"returned None, expected {STEP}",
    "Text": f"returned 'done' (str), expected {STEP}",
    "ObsNone": f"returned the observation None, expected {OBS}",
    "ObsList": f"returned the observation a list of 3, expected {OBS}",
    "ObsScalar": f"returned the observation an array of float32 and the shape (), expected {OBS}",
    "ObsShape": f"returned the observation an array of float32 and the shape (4,), expected {OBS}",
    "ObsObjects": f"returned the observation an array of object and the shape (3,), expected {OBS}",
    "RewardArray": "returned the reward an array of float64 and the shape (1,), expected a number",
    "RewardNone": "returned the reward None, expected a number",
    "RewardText": "returned the reward '1' (str), expected a number",
    "EndNone": "returned terminated as None, expected True or False",
    "CutArray": "returned truncated as an array of bool and the shape (2,), expected True or False",
}
RESETS = {
    "ResetRaise": "raised KeyError: 'joint'",
    "ResetNone": "returned None, expected (observation, info)",
    "ResetNoInfo": "returned an array of float32 and the shape (3,), expected (observation, info)",
    "ResetScalar": f"returned the observation 0.0 (float), expected {OBS}",
    "ResetShape": "returned the observation an array of float64 and the shape (1, 3), expected "
    f"{OBS}",
}


@pytest.mark.parametrize("fault", STEPS)
def test_a_step_that_goes_wrong_is_named(fault):
    env = envs.make(f"tests.faulty:{fault}-v0", 1)
    env.reset([0])
    for _ in range(faulty.AT - 1):
        env.step(np.zeros((1, 2), np.float32))
    with pytest.raises(EnvError) as caught:
        env.step(np.zeros((1, 2), np.float32))
    words = f"environment 'tests.faulty:{fault}-v0', in step, {STEPS[fault]}"
    assert sentence(caught) == words
    assert (caught.value.__cause__ is not None) == ("raised" in words)


@pytest.mark.parametrize("fault", RESETS)
def test_a_reset_that_goes_wrong_is_named(fault):
    with pytest.raises(EnvError) as caught:
        envs.make(f"tests.faulty:{fault}-v0", 2).reset([0, 1])
    assert sentence(caught) == f"environment 'tests.faulty:{fault}-v0', in reset, {RESETS[fault]}"


def test_a_reset_after_an_episode_is_checked_as_well():
    class Once(faulty.Faulty):
        def step(self, action):
            self.fault = "ResetNone"
            return faulty.OBS, 0.0, True, False, {}

    env = envs.make(Once, 1)
    env.reset([0])
    with pytest.raises(EnvError, match=r"Once', in reset, returned None, expected \(observation"):
        env.step(np.zeros((1, 2), np.float32))


@pytest.mark.parametrize("fault", faulty.ODD)
def test_what_is_unusual_but_fits_is_taken(fault):
    env = envs.make(f"tests.faulty:{fault}-v0", 1)
    env.reset([0])
    out = env.step(np.zeros((1, 2), np.float32))
    assert (out.reward == 1).all() and not out.terminated.any() and not out.truncated.any()
    assert out.next_obs.dtype == np.float32 and (out.next_obs == np.zeros((1, 3))).all()


def box(low, high, dtype=np.float32):
    return gymnasium.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


DICT = gymnasium.spaces.Dict({"joints": faulty.BOX})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("tests.faulty:Construct-v0", "in its construction, raised RuntimeError: no licence"),
        ("tests.faulty:Argument-v0", "unexpected keyword argument 'gravity'"),
        ("tests.faulty:NoSteps-v0", "Expect the 'max_episode_steps' to be positive, actually: 0"),
        ("tests.faulty:LessThanNone-v0", "'max_episode_steps' to be positive, actually: -1"),
        (lambda: None, "returned NoneType, expected a gymnasium.Env"),
        (lambda x: x, "in its construction, raised TypeError: "),
        (faulty.spaces(action_space=box([-1, 0], [1, 0])), "entry 1 goes from 0 to 0"),
        (faulty.spaces(action_space=box([0, -np.inf], [1, 1])), "unbounded actions, from -inf to"),
        (faulty.spaces(action_space=box([-3.4e38], [3.4e38])), "unbounded actions"),
        (gymnasium.make("Pendulum-v1"), "give its id, or a function that makes one"),
        (faulty.spaces(action_space=box([], [])), "actions of size 0"),
        (faulty.spaces(observation_space=box([], [])), "observations of size 0"),
        (faulty.spaces(action_space=box([0], [3], np.int32)), "Box of floats"),
        (faulty.spaces(observation_space=DICT), "FlattenObservation"),
        (faulty.spaces(observation_space=None), "has the observation space None"),
    ],
)
def test_what_cannot_be_trained_on_is_said_as_it_is_made(source, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        envs.make(source, 1)
    assert "environment" in sentence(caught)


def test_bounds_that_are_swapped_are_said_with_both():
    swapped = box([-1, -1], [1, 1])
    swapped.low[1], swapped.high[1] = 2, -2
    with pytest.raises(UserError, match="entry 1 goes from 2 to -2, but the lower bound must be"):
        envs.make(faulty.spaces(action_space=swapped), 1)


def test_one_that_raises_as_it_is_closed_has_its_neighbours_closed(caplog):
    env = envs.make("tests.faulty:Close-v0", 3)
    closed = []
    env._envs[2].unwrapped.close = lambda: closed.append(2)  # pyright: ignore
    with pytest.raises(EnvError, match="in close, raised RuntimeError: closed twice"):
        env.close()
    assert closed == [2]
    assert envs.spec("tests.faulty:Close-v0").obs_size == 3
    assert "in close, raised RuntimeError: closed twice" in caplog.text


SPEC = Spec(2, 1, np.full(1, -1.0), np.full(1, 1.0))
GOOD = {
    "reset": lambda key: jnp.zeros(2),
    "step": lambda state, action, key: (state, Outcome(jnp.float32(1), np.False_)),
    "observe": lambda state: state,
}


@pytest.mark.parametrize(
    ("part", "function", "words"),
    [
        ("reset", lambda key: 1 / 0, "in reset, raised ZeroDivisionError: division by zero"),
        ("observe", lambda state: state[0], "in observe, returned the observation of the shape ()"),
        ("step", lambda *x: GOOD["step"](*x)[0], "in step, raised "),
        (
            "step",
            lambda state, *x: (state, Outcome(state, np.False_)),
            "in step, returned the reward of the shape (2,), expected ()",
        ),
        (
            "step",
            lambda state, *x: (state, Outcome(jnp.float32(0), state > 0)),
            "in step, returned terminated of the shape (2,)",
        ),
        (
            "step",
            lambda state, *x: (jnp.zeros(3), GOOD["step"](state, *x)[1]),
            "in step, returned a state with an array of the shape (3,), expected (2,)",
        ),
    ],
)
def test_a_functional_one_is_checked_likewise(part, function, words):
    env = envs.make(FunctionalEnv(SPEC, **{**GOOD, part: function}), 3)
    with pytest.raises(EnvError, match=re.escape(words)) as caught:
        env.reset([0, 1, 2])
        env.step(np.zeros((3, 1), np.float32))
    sentence(caught)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"spec": SPEC._replace(obs_size=0)}, "observations of size 0"),
        ({"spec": SPEC._replace(obs_size=(2,))}, "observations of size (2,), expected an integer"),
        ({"spec": SPEC._replace(action_low=np.full(2, -1.0))}, "of the shapes (2,) and (1,)"),
        ({"spec": SPEC._replace(action_high=np.full(1, np.inf))}, "unbounded actions"),
        *(
            (
                {"time_limit": limit},
                f"time_limit={limit}, but it must be a whole number of at least 0",
            )
            for limit in (-1, None, 1.5)
        ),
    ],
)
def test_a_functional_one_that_makes_no_sense_is_refused(changed, words):
    good = FunctionalEnv(SPEC, **GOOD)
    with pytest.raises(UserError, match=re.escape(words)):
        envs.make(good._replace(**changed), 1)
    env = envs.make(good, 1)
    assert env.reset([0]).shape == (1, 2)


def test_a_state_whose_fractions_would_be_cut_off_is_named():
    """The state begins as an integer, and all results of `step` would be rounded to integers."""
    counts = {
        "reset": lambda key: jnp.int32(0),
        "step": lambda state, *x: (state + 0.6, Outcome(jnp.float32(1), np.False_)),
        "observe": lambda state: jnp.full(2, state, jnp.float32),
    }
    env = envs.make(FunctionalEnv(SPEC, **counts), 3)
    env.reset([0, 1, 2])
    words = "in step, returned a state with an array of float32, expected int32 as from its reset"
    with pytest.raises(EnvError, match=words):
        env.step(np.zeros((3, 1), np.float32))
    counts |= {"step": lambda state, *x: (state + 1, Outcome(jnp.float32(1), np.False_))}
    env = envs.make(FunctionalEnv(SPEC, **counts), 1)
    env.reset([0])
    assert env.step(np.zeros((1, 1), np.float32)).obs[0, 0] == 1


def test_a_row_that_takes_no_part_is_zero_whatever_its_state_holds():
    """An episode that is over may go on to states that have no numbers."""

    def step(state, action, key):
        lost = jnp.where(action[0] > 0, jnp.nan, 0)
        return state + lost, Outcome(lost, np.False_)

    start = lambda key: jnp.zeros(())
    spec = Spec(1, 1, -np.ones(1), np.ones(1))
    env = envs.make(FunctionalEnv(spec, start, step, lambda state: state[None]), 2)
    env.reset([0, 1])
    found = env.step(np.array([[0.0], [1.0]], np.float32), np.array([True, False]))
    assert found.reward.tolist() == [0, 0] and found.next_obs.tolist() == [[0], [0]]
