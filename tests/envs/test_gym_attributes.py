"""Which attributes of a Gymnasium environment are saved, and which keep it from being saved."""

import functools
import itertools
import json
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

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


def goes_on(make, steps=3) -> bool:
    """Whether an environment that is loaded is one that goes on. Raises unless it was saved."""
    env, other, fresh = (envs.make(make, 1) for _ in range(3))
    env.reset([3]), other.reset([4]), fresh.reset([3])
    for _ in range(steps):
        env.step(STILL)
    saved = json.loads(json.dumps(env.save()))
    assert saved["envs"] != [None]
    codec.check_form(fresh.save(), saved)
    other.load(saved)
    seen = [[one.step(STILL).obs.tolist() for _ in range(5)] for one in (env, other)]
    return seen[0] == seen[1]


class Bag(Plain):
    """Draws from its generator by several names."""

    def begin(self):
        self.own = np.random.default_rng(7)
        self.bag = {"rng": self.np_random, "more": [self.own]}
        self.draw, self.space = self.own.normal, gymnasium.spaces.Box(-1, 1, (1,))
        self.space._np_random = self.np_random

    def number(self):
        first = self.np_random.normal() + 10 * self.bag["rng"].normal() + self.space.sample()[0]
        return first + 100 * self.own.normal() + self.bag["more"][0].normal() + self.draw()


def test_a_generator_that_is_held_in_several_places_stays_one():
    assert goes_on(Bag)


def test_a_generator_that_is_replaced_is_one_of_its_own():
    class Parted(Plain):
        def begin(self):
            self.rng = self.np_random

        def number(self):
            if self.t == 2:
                self.rng = np.random.default_rng(5)
            return self.rng.normal() + 10 * self.np_random.normal()

    assert goes_on(Parted)


def test_a_generator_that_copies_share_is_shared_by_loaded_ones():
    class Sharing(Plain):
        def __init__(self, rng):
            self.rng = rng

        def number(self):
            return self.rng.normal() if self.t else 0.0

    both = [functools.partial(Sharing, np.random.default_rng(0)) for _ in range(2)]
    env, other = (envs.make(make, 2) for make in both)
    env.reset([3, 4]), other.reset([5, 6])
    script = np.zeros((5, 2, 2), np.float32)
    env.step(script[0])
    other.load(json.loads(json.dumps(env.save())))
    for action in script:
        np.testing.assert_array_equal(env.step(action).obs, other.step(action).obs)


def test_an_attribute_that_is_deleted_stays_so_and_one_that_is_not_saved_does_not():
    class Once(Plain):
        def begin(self):
            self.first, self.double = True, None

        def number(self):
            if self.double is None:
                self.double = lambda x: 2 * x
            if self.t and hasattr(self, "first"):
                del self.first
                self.t += 100
            return self.double(self.t)

    assert goes_on(Once)


def test_wrappers_that_note_their_arguments_are_saved():
    double, box = (lambda x: 2 * x), gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    wrappers = gymnasium.wrappers
    assert goes_on(lambda: wrappers.TransformReward(Plain(), double))
    assert goes_on(lambda: wrappers.TransformObservation(Plain(), double, box))
    assert goes_on(lambda: wrappers.DtypeObservation(Plain(), np.float32))


def test_keys_of_any_kind_arrays_of_jax_and_those_without_dimensions_are_saved():
    class Odd(Plain):
        def begin(self):
            self.count, self.jax = {0: 0}, jax.numpy.zeros(2)
            self.zero, self.fortran = np.zeros(()), np.zeros((2, 3), order="F")
            self.row = self.fortran[0]

        def number(self):
            self.count[0] += 1
            self.jax += 0.5
            self.zero[...] += 1
            self.fortran[0, 1] += 0.25
            return self.count[0] + float(self.jax[0]) + self.zero + self.row[1]

    assert goes_on(Odd)


# --- what functions hold --------------------------------------------------------------------------


class Drift:
    """Noise that accumulates, as an object that is called like a function."""

    def __init__(self):
        self.x = 0.0

    def __call__(self, change=1.0):
        self.x += change
        return self.x


def drawing(call):
    return lambda: call()


class Noisy(Plain):
    """Its observation has what a function returns."""

    def __init__(self, make):
        self.noise = make()

    def number(self):
        return self.noise()


WITH_STATE = {
    "Drift": Drift,
    "method": lambda: Drift().__call__,
    "builtin": lambda: np.random.default_rng(5).normal,
    "global": lambda: np.random.normal,
    "partial": lambda: functools.partial(Drift.__call__, Drift()),
    "default": lambda: lambda drift=Drift(): drift(),  # noqa: B008
    "closure": lambda: drawing(Drift()),
    "deep": lambda: drawing(functools.partial(drawing(Drift().__call__))),
    "iterator": lambda: itertools.count().__next__,
    "sampled": lambda: functools.partial(gymnasium.spaces.Discrete(9, seed=0).sample),
}


@pytest.mark.parametrize("name", WITH_STATE)
def test_a_callable_with_state_cannot_be_saved(name, caplog):
    env = envs.make(lambda: Noisy(WITH_STATE[name]), 1)
    env.reset([0])
    env.step(STILL)
    assert env.save()["envs"] == [None]
    assert "cannot be saved (its attribute noise: " in caplog.text


def test_functions_without_state_are_no_hindrance(caplog):
    held = np.sin, len, float, lambda x: x, functools.partial(max, 0), [].append, jax.jit(abs)
    for noise in (*held, jax.nn.relu, drawing(np.random), drawing(envs.make)):
        env = envs.make(functools.partial(Noisy, lambda noise=noise: noise), 1)
        env._envs[0].unwrapped.number = lambda: 0.0  # pyright: ignore
        env.reset([0])
        assert env.save()["envs"] != [None] and not caplog.text
        env.load(json.loads(json.dumps(env.save())))


def test_a_function_with_an_empty_cell_does_no_harm():
    class Late(Plain):
        def begin(self):
            self.count = lambda: later
            if self.t:
                later = 1

    assert goes_on(Late)


def test_methods_of_the_environment_and_of_what_is_saved_are_no_hindrance():
    class Inner(Plain):
        def begin(self):
            self.rng = np.random.default_rng(5)
            self.draw, self.both = self.rng.normal, lambda: self.draw() + self.np_random.normal()

        def number(self):
            return self.both()

    class Outer(gymnasium.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.env.unwrapped.extra = self.look  # pyright: ignore
            self.looks = 0

        def look(self):
            self.looks += 1
            return self.looks

        def step(self, action):
            obs, *rest = self.env.step(action)
            return obs + np.float32(self.env.unwrapped.extra()), *rest  # pyright: ignore

    assert goes_on(lambda: Outer(Inner()))


# --- what cannot be saved -------------------------------------------------------------------------


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


class Opened(Plain):
    """Opens a simulator in its first reset, noted by a flag or by a list, `how` it is kept. It
    observes the number of episodes.
    """

    def __init__(self, how, opened):
        self.how, self.connected, self.sim, self.sims = how, False, None, []
        self.count: Any = lambda: opened.append(how)
        self.episodes = 0

    def number(self):
        return self.episodes

    def begin(self):
        self.episodes += 1
        if self.connected or self.sims:
            return
        self.count()
        if self.how == "list":
            self.sims.append(object())
        else:
            self.connected = True
            self.sim = object() if self.how == "object" else Drift().__call__


@pytest.mark.parametrize("how", ["object", "list", "method"])
def test_a_simulator_that_the_first_reset_opens_is_opened_once(how):
    opened = []
    env: Any = envs.make(lambda: Opened(how, opened), 1)
    for _ in range(3):
        env.reset([0])
    assert opened == [how] and env.save()["envs"] == [None]
    assert env.follows_its_seed(lambda: None)


def test_a_clock_of_the_simulation_itself_is_no_picture(caplog):
    class Clocked(Plain):
        def begin(self):
            self.clock = Drift()

    env = envs.make(Clocked, 1)
    env.reset([0])
    assert env.save()["envs"] == [None] and "(its attribute clock: Drift" in caplog.text


def test_attributes_in_slots_are_told_of(caplog):
    class Slots(Plain):
        __slots__ = ("place",)

        def begin(self):
            self.place = 0

    env = envs.make(Slots, 1)
    env.reset([0])
    assert env.save()["envs"] == [None] and "(it has attributes in __slots__)" in caplog.text
