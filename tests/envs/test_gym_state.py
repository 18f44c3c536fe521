"""Which state of a Gymnasium environment is saved, and what a reset with a seed clears."""

import functools
import json
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

from preqn_jax import envs
from preqn_jax.options import UserError


def inside(vector: Any) -> Any:
    return vector._envs[0].unwrapped


def through_json(vector: Any) -> Any:
    return json.loads(json.dumps(vector.save()))


class Viewer(HopperEnv):
    """Its reward is computed from arrays of the simulation that it got once, when it was made."""

    def __init__(self):
        super().__init__()
        self.place, self.first = self.data.qpos, self.data.qpos[:2]

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float(self.place.sum() + self.first.sum()), *rest


def test_a_view_of_the_simulation_stays_one():
    env, other = envs.make(Viewer, 1), envs.make(Viewer, 1)
    env.reset([3]), other.reset([4])
    script = np.random.default_rng(0).uniform(-1, 1, (12, 1, 3)).astype(np.float32)
    for action in script[:6]:
        env.step(action)
    other.load(through_json(env))
    assert np.shares_memory(inside(other).place, inside(other).data.qpos)
    for action in script[6:]:
        one, two = env.step(action), other.step(action)
        np.testing.assert_array_equal(one.reward, two.reward)
        np.testing.assert_array_equal(one.obs, two.obs)


Screen = type("Surface", (), {"__module__": "pygame.surface"})


class Counter(gymnasium.Env):
    """Observes how many episodes and steps there were; one attribute is named like a renderer's."""

    observation_space = action_space = gymnasium.spaces.Box(-99, 99, (2,), np.float32)

    def __init__(self):
        self.clock, self.screen, self.episodes = 0, None, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        return np.float32([self.episodes, self.clock]), {}

    def step(self, action):
        self.clock, self.screen = self.clock + 1, Screen()
        return np.float32([self.episodes, self.clock]), 1.0, self.clock % 3 == 0, False, {}


STILL = np.zeros((1, 2), np.float32)


class Parts(gymnasium.Env):
    """The position, the speed and the observation are views of one array."""

    observation_space = action_space = gymnasium.spaces.Box(-99, 99, (2,), np.float32)

    def __init__(self):
        self.all = np.zeros(3)
        self.place, self.speed = self.all[:1], self.all[1:]
        self.log: list[float] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.all[:] = self.np_random.uniform(size=3)
        self.log.clear()
        self.seen = self.all[:2]  # a new view at each reset; there is none before
        self.resets = getattr(self, "resets", 0) + 1
        return np.float32(self.seen), {}

    def step(self, action):
        self.place += self.speed[0]
        self.log.append(self.place[0])
        return np.float32(self.seen), float(self.resets), False, False, {}


class Reader(gymnasium.Wrapper):
    """A wrapper whose reward depends on a list that the environment appends to."""

    def __init__(self, env: Any):
        super().__init__(env)
        self.log: list[float] = env.unwrapped.log

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, float(reward) + sum(self.log), *rest


def test_what_is_one_object_in_an_environment_stays_one():
    parts = Parts()
    bare, env, other = Reader(parts), *(envs.make(lambda: Reader(Parts()), 1) for _ in range(2))
    for seed in (3, 4):  # the second as new, and as the first
        np.testing.assert_array_equal(env.reset([seed])[0], bare.reset(seed=seed)[0])
        parts.resets = 1
        for _ in range(3):
            obs, reward, *_ = bare.step(STILL[0])
            out = env.step(STILL)
            np.testing.assert_array_equal(out.obs[0], obs)
            assert out.reward[0] == np.float32(reward)
    other.reset([5])
    other.load(through_json(env))
    for _ in range(3):
        one, two = env.step(STILL), other.step(STILL)
        np.testing.assert_array_equal(one.obs, two.obs)
        np.testing.assert_array_equal(one.reward, two.reward)


def test_a_counter_is_kept_whatever_it_is_called_and_a_screen_is_not():
    env, other = envs.make(Counter, 1), envs.make(Counter, 1)
    env.reset([0]), other.reset([0])
    seen = [env.step(STILL).obs[0].tolist() for _ in range(4)][-1]
    assert seen == [2, 4] and inside(env).screen is not None
    assert other.load(through_json(env))[0].tolist() == [[2, 4]] and inside(other).screen is None
    assert other.step(STILL).obs[0].tolist() == [2, 5]


def test_a_reset_with_seeds_is_a_new_beginning():
    """So that an evaluation depends on nothing before it."""
    env = envs.make(Counter, 1)
    for _ in range(3):
        assert env.reset([0])[0].tolist() == [1, 0]
        assert [env.step(STILL).obs[0].tolist() for _ in range(3)] == [[1, 1], [1, 2], [2, 3]]


def test_a_generator_of_an_older_kind_cannot_be_saved_and_says_so(caplog):
    class Old(Counter):
        def reset(self, *, seed=None, options=None):
            out = super().reset(seed=seed)
            self._np_random: Any = np.random.RandomState(seed)
            return out

    env = envs.make(Old, 1)
    env.reset([0])
    assert env.save()["envs"] == [None]
    assert "cannot be saved (its np_random is no numpy.random.Generator)" in caplog.text


class Sampled(Counter):
    """Draws from its own spaces, of which one lies within another."""

    def __init__(self):
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
        box = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.noise = gymnasium.spaces.Dict({"a": gymnasium.spaces.Tuple([box])})

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed), self.noise.seed(seed)
        return super().reset(seed=seed)

    def step(self, action):
        _, *rest = super().step(action)
        return self.observation_space.sample() + self.noise.sample()["a"][0], *rest


class Own(gymnasium.Wrapper):
    """A wrapper that has a space of its own, and draws from it."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-99, 99, (2,), np.float32, seed=0)

    def step(self, action):
        obs, *rest = super().step(action)
        return obs + self.observation_space.sample(), *rest


@pytest.mark.parametrize("make", [Sampled, lambda: Own(Sampled())])
def test_what_spaces_sample_goes_on_too(make):
    env, other = envs.make(make, 1), envs.make(make, 1)
    env.reset([3]), other.reset([4])
    env.step(STILL), other.step(STILL), other.step(STILL)
    other.load(through_json(env))
    seen = [[one.step(STILL).obs.tolist() for _ in range(5)] for one in (env, other)]
    assert seen[0] == seen[1] and len({str(obs) for obs in seen[0]}) == 5
    old = through_json(env)  # saved by a version that kept none of them
    for layer in old["envs"][0]["layers"]:
        for name in ("observation_space", "_observation_space", "noise"):
            layer.pop(name, None)
    other.load(old)
    odd = through_json(env)  # saved for an environment with other spaces
    for layer in odd["envs"][0]["layers"]:
        layer["observation_space"] = layer["noise"] = ["none", None, None, None]
    other.load(odd)
    assert np.isfinite(other.step(STILL).obs).all()


@pytest.mark.parametrize(
    ("wrapper", "instead"),
    [
        ("NormalizeObservation", ", and use `normalize_observations=True`"),
        ("NormalizeReward", ""),
    ],
)
def test_statistics_that_every_copy_gathers_for_itself_are_refused(wrapper, instead):
    source = envs.described("Pendulum-v1", None, [f"gymnasium.wrappers:{wrapper}"])
    with pytest.raises(UserError, match=f"has the wrapper {wrapper}, whose running") as caught:
        envs.make(source, 1)
    assert str(caught.value).endswith(f"different units: leave it out{instead}")


class Masses(HopperEnv):
    """Draws masses and friction for each episode; masses by an array that it got at the start."""

    def __init__(self, drift: bool = False):
        super().__init__()
        self.mass, self.drift = self.model.body_mass, drift

    def reset_model(self):
        change = self.np_random.uniform(0.5, 2.0)
        self.mass[1:] = self.mass[1:] * change if self.drift else change
        self.model.geom_friction[:, 0] = change
        self.model.opt.gravity[2] = -9.81 * change
        return super().reset_model()


PUSH = np.full((1, 3), 0.3, np.float32)


def test_what_an_episode_draws_for_its_model_is_kept_and_what_it_shares_is_shared():
    bare, env, other = Masses(), envs.make(Masses, 1), envs.make(Masses, 1)
    bare.reset(seed=3), env.reset([3]), other.reset([4])
    inner = inside(env)
    assert np.shares_memory(inner.mass, inner.model.body_mass)
    np.testing.assert_array_equal(inner.model.body_mass, bare.model.body_mass)
    for _ in range(5):
        env.step(PUSH)
    other.load(through_json(env))
    np.testing.assert_array_equal(inside(other).model.opt.gravity, inner.model.opt.gravity)
    for _ in range(5):
        np.testing.assert_array_equal(env.step(PUSH).obs, other.step(PUSH).obs)


def test_an_episode_begins_with_the_model_as_it_was_made():
    """Even where each episode changes the masses that the last one left."""
    env = envs.make(lambda: Masses(drift=True), 1)
    seen = []
    for _ in range(3):
        env.reset([7])
        seen.append([env.step(PUSH).obs.tolist() for _ in range(5)])
    assert seen[0] == seen[1] == seen[2]


TABLE = np.arange(6.0).reshape(3, 2)


class Shared(gymnasium.Env):
    """Reads a table that all copies share, and counts in a buffer that a partial function holds."""

    observation_space = action_space = gymnasium.spaces.Box(-99, 99, (2,), np.float32)

    def __init__(self):
        self.table, self.x = TABLE, np.zeros(2)
        self.count = functools.partial(np.add, self.x, out=self.x)
        self.seen = {"last": [self.x]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.float32(self.x), {}

    def step(self, action):
        self.count(1.0)
        assert self.seen["last"][0] is self.x
        self.seen["more"] = [1]
        return np.float32(self.x), float(self.table.sum()), False, False, {}


def test_a_new_beginning_is_in_place_and_copies_no_table():
    env: Any = envs.make(Shared, 3)
    for _ in range(2):
        assert env.reset([0, 1, 2]).tolist() == [[0, 0]] * 3
        assert env.step(np.zeros((3, 2), np.float32)).obs.tolist() == [[1, 1]] * 3
        assert all(one.unwrapped.table is TABLE for one in env._envs)
        assert all("more" in one.unwrapped.seen for one in env._envs)
    other: Any = envs.make(Shared, 3)
    other.reset([3, 4, 5])
    other.load(through_json(env))  # where the function holds what is loaded
    for one in (env, other):
        assert one.step(np.zeros((3, 2), np.float32)).obs.tolist() == [[2, 2]] * 3
    env.reset([0, 1, 2])
    assert not any("more" in one.unwrapped.seen for one in env._envs)


LEVEL, NOISE = [0], np.random.default_rng(0)


class Curriculum(gymnasium.Env):
    """All copies share a level that rises, and a random generator."""

    observation_space = action_space = gymnasium.spaces.Box(-99, 99, (2,), np.float32)

    def __init__(self):
        self.level, self.noise = LEVEL, NOISE

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.float32([self.level[0], 0]), {}

    def step(self, action):
        self.level[0] += 1
        return np.float32([self.level[0], self.noise.normal()]), 1.0, False, False, {}


def test_what_copies_share_and_change_is_no_business_of_an_evaluation():
    train, evaluation = envs.make(Curriculum, 1), envs.make(Curriculum, 2)
    train.reset([0])
    seen = [train.step(STILL).obs[0].tolist() for _ in range(3)]
    for _ in range(2):
        assert evaluation.reset([5, 6]).tolist() == [[0, 0]] * 2
        two = evaluation.step(np.zeros((2, 2), np.float32)).obs
        assert two[:, 0].tolist() == [1, 1] and two[0, 1] == two[1, 1] == np.float32(seen[0][1])
    seen.append(train.step(STILL).obs[0].tolist())
    assert [level for level, _ in seen] == [1, 2, 3, 4]
    assert len({noise for _, noise in seen}) == 4


class Rebuilt(HopperEnv):
    """Makes its simulation anew at every reset."""

    def reset(self, **kwargs):
        self.model, self.data = self._initialize_simulation()
        return super().reset(**kwargs)


def test_a_simulation_that_was_made_anew_stays_whole():
    env = envs.make(Rebuilt, 1)
    for _ in range(3):
        env.reset([3])
        assert inside(env).data.model.nq == inside(env).model.nq
        before = inside(env).model
        inside(env).model.body_mass[1] = 9.0
        env._initial[0].restore(env._envs[0])  # pyright: ignore
        assert inside(env).model is before and before.body_mass[1] == 9.0


class Seeded(Counter):
    """Follows its seed, forgets to, or draws from NumPy's global generator."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed if self.how == "follows" else None)
        own = self.how != "global"
        noise = self.np_random.normal() if own else np.random.normal()  # noqa: NPY002
        return np.float32([noise, 0]), {}


@pytest.mark.parametrize("how", ["follows", "deaf", "global"])
def test_an_environment_that_does_not_follow_its_seed_is_told_of(how, caplog):
    asked = []
    envs.spec(lambda: Seeded(how), ask=lambda: asked.append(how))
    assert asked == [how, how]
    assert ("does not follow its seed" in caplog.text) is (how != "follows")


def test_no_episode_begins_that_an_evaluation_does_not_need():
    env: Any = envs.make(Counter, 2)
    env.reset([0, 1])
    running = np.ones(2, bool)
    while running.any():
        out = env.step(np.zeros((2, 2), np.float32), running)
        running &= ~out.terminated
    assert [one.unwrapped.episodes for one in env._envs] == [1, 1]
