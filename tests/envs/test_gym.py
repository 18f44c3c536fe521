"""Gymnasium environments that do what Gymnasium allows and few of them do."""

import random
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

from preqn_jax import envs, train
from preqn_jax.envs import EnvError, FunctionalEnv, Outcome
from preqn_jax.envs.gym import FlattenAction
from preqn_jax.options import UserError
from preqn_jax.types import Spec


class Plain(gymnasium.Env):
    """One observation, of which nothing depends on the action."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space: Any = gymnasium.spaces.Box(-1, 1, (2,))
    reward: Any = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return np.zeros(2, np.float32), self.reward, False, False, {}


def made(env: type[Plain], **attributes: Any) -> Any:
    """A vector of one environment of this class, with these attributes, reset."""
    vector = envs.make(type(env.__name__, (env,), attributes), 1)
    vector.reset([0])
    return vector


def test_an_environment_that_is_made_once_for_all_is_refused():
    """Evaluations would reset the one that training is in the middle of."""
    one = Plain()
    with pytest.raises(UserError, match="<lambda>' returned one that it had returned before, but"):
        next(train("ddpg", lambda: one, update_after=50, num_steps=50, start_steps=0))
    assert envs.make(Plain, 3).num_envs == 3


class Drawing(Plain):
    """Draws from a generator that no seed of `reset` sets, as it is reset or stepped."""

    at = ""

    def draw(self, at: str) -> float:
        if at != self.at.split()[-1]:
            return 0.0
        return random.random() if "python" in self.at else np.random.normal()  # noqa: NPY002

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.draw("reset")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.float32([self.draw("step"), 0]), 1.0, False, False, {}


@pytest.mark.parametrize("at", ["", "python reset", "python step", "numpy reset", "numpy step"])
def test_an_environment_that_draws_from_a_global_generator_is_told_of(at, caplog):
    envs.spec(type("Drawing", (Drawing,), {"at": at or "never"}), ask=lambda: None)
    assert ("does not follow its seed" in caplog.text) is bool(at)


def test_a_box_of_half_precision_takes_actions_of_its_own_type():
    space = gymnasium.spaces.Box(-1, np.float16(0.1), (2,), np.float16)
    made(Plain, action_space=space).step(np.ones((1, 2), np.float32))


def test_a_reward_may_be_a_flag_and_must_fit_a_float():
    assert made(Plain, reward=True).step(np.zeros((1, 2), np.float32)).reward == [1.0]
    assert made(Plain, reward=np.False_).step(np.zeros((1, 2), np.float32)).reward == [0.0]
    with pytest.raises(EnvError, match=r"the reward 1000\d+ \(int\), expected one that a float"):
        made(Plain, reward=10**400).step(np.zeros((1, 2), np.float32))


@pytest.mark.parametrize("part", [gymnasium.spaces.Discrete(3), gymnasium.spaces.MultiBinary(2)])
def test_choices_in_a_dict_of_actions_are_no_numbers(part):
    """Gymnasium reads a vector as the first option that is not 0, so none but one would be made."""
    space = gymnasium.spaces.Dict(kind=part, force=Plain.action_space)
    inner = type("Choosing", (Plain,), {"action_space": space})
    with pytest.raises(ValueError, match="has parts other than Boxes of floats"):
        FlattenAction(inner())
    wrapped = envs.GymSource(inner, {}, ("preqn_jax.envs.gym:FlattenAction",))
    with pytest.raises(UserError, match="FlattenAction' around environment 'Choosing' raised"):
        envs.make(wrapped, 1)
    nested = gymnasium.spaces.Tuple([gymnasium.spaces.Dict(a=Plain.action_space)])
    boxes = FlattenAction(type("Boxes", (Plain,), {"action_space": nested})())
    assert boxes.action_space.shape == (2,)


@pytest.mark.parametrize(
    "state, words",
    [
        ((), "in reset, returned a state without an array, expected at least one"),
        (jax.random.key(0), "has a random key in its state, .*: keep jax.random.key_data"),
    ],
    ids=["no array", "a random key"],
)
def test_a_state_that_could_not_be_kept_is_one_sentence(state, words):
    env = FunctionalEnv(
        Spec(1, 1, -np.ones(1), np.ones(1)),
        lambda key: state,
        lambda state, action, key: (state, Outcome(action[0], True)),
        lambda state: np.zeros(1, np.float32),
    )
    with pytest.raises(EnvError, match=words):
        envs.make(env, 1).reset([0])
