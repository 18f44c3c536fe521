import collections
import enum
import json
import logging
from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from preqn_jax import envs
from preqn_jax.actions import to_environment
from preqn_jax.envs import codec, gym
from preqn_jax.options import UserError
from preqn_jax.types import Spec

PAPER = ["HalfCheetah-v5", "Walker2d-v5", "Hopper-v5", "Ant-v5", "Swimmer-v5"]
OTHERS = [
    "InvertedDoublePendulum-v5",
    "Walker2d-v4",
    "Pendulum-v1",
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "probe/delay",
    "tabular/garnet",
    "probe/observation",
]


def actions(env, steps, seed=0):
    return (
        np.random.default_rng(seed)
        .uniform(-1, 1, (steps, env.num_envs, env.spec.action_size))
        .astype(np.float32)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("env_id", PAPER + OTHERS)
def test_a_saved_state_goes_on_bit_for_bit(env_id):
    env = envs.make(env_id, 2)
    env.reset([3, 4])
    script = actions(env, 260)
    for action in script[:87]:
        obs = env.step(action).obs
    text = json.dumps(env.save())  # through real JSON
    other = envs.make(env_id, 2)
    other.reset([8, 9])
    loaded, anew = other.load(json.loads(text))
    assert (loaded == obs).all() and not anew.any()
    for action in script[87:]:
        for mine, theirs in zip(env.step(action), other.step(action), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "probe/observation"])
def test_seeds_decide_the_episode(env_id):
    env = envs.make(env_id, 12)
    first = env.reset(list(range(12)))
    assert (env.reset(list(range(12))) == first).all()
    assert len(np.unique(first[:, 0])) > 1


def test_the_successor_is_the_true_one_where_an_episode_ends():
    env, alone = envs.make("Hopper-v5", 1), gymnasium.make("Hopper-v5")
    obs = env.reset([5])
    np.testing.assert_array_equal(obs[0], alone.reset(seed=5)[0].astype(np.float32))
    for action in actions(env, 200):
        out = env.step(action)
        next_obs, reward, terminated, truncated, _ = alone.step(action[0])
        np.testing.assert_array_equal(out.next_obs[0], next_obs.astype(np.float32))
        assert (
            out.reward[0] == np.float32(reward)
            and out.terminated[0] == terminated
            and out.truncated[0] == truncated
        )
        if terminated:
            break
    assert terminated
    np.testing.assert_array_equal(out.obs[0], alone.reset()[0].astype(np.float32))
    assert (out.obs != out.next_obs).any()


def test_a_time_limit_truncates_and_does_not_terminate():
    env = envs.make("Pendulum-v1", 1)
    env.reset([0])
    ends = [env.step(action) for action in actions(env, 200)]
    assert [out.truncated[0] for out in ends] == [False] * 199 + [True]
    assert not any(out.terminated[0] for out in ends)


def test_actions_are_scaled_to_the_bounds():
    env, alone = envs.make("Pendulum-v1", 1), gymnasium.make("Pendulum-v1")  # torque in [-2, 2]
    env.reset([1]), alone.reset(seed=1)
    out = env.step(np.array([[0.5]], np.float32))
    np.testing.assert_array_equal(out.next_obs[0], alone.step(np.array([1.0], np.float32))[0])


def test_a_box_that_is_not_about_zero_is_scaled_to_its_own_ends():
    spec = Spec(1, 2, np.array([0.0, -1.0]), np.array([4.0, 3.0]))
    got = to_environment(spec, np.array([[-1.0, -1.0], [0.0, 0.5], [1.0, 2.0]]))
    np.testing.assert_allclose(got, [[0, -1], [2, 2], [4, 3]])


def test_inactive_environments_stand_still():
    env, alone = envs.make("HalfCheetah-v5", 2), envs.make("HalfCheetah-v5", 2)
    env.reset([0, 1]), alone.reset([0, 1])
    script = actions(env, 6)
    for action in script[:3]:
        out = env.step(action, np.array([True, False]))
        assert out.reward[1] == 0 and (out.next_obs[1] == 0).all()
    for action, same in zip(script[3:], script[:3], strict=True):
        second = env.step(np.stack([action[0], same[1]])).next_obs[1]
    for action in script[:3]:
        expected = alone.step(action).next_obs[1]
    np.testing.assert_array_equal(second, expected)


def test_probes_do_what_their_table_says():
    def rollout(name, steps, action=0.0):
        env = envs.make(f"probe/{name}", 1)
        env.reset([0])
        outs = [env.step(np.full((1, 1), action, np.float32)) for _ in range(steps)]
        return [(float(o.reward[0]), bool(o.terminated[0]), bool(o.truncated[0])) for o in outs]

    assert rollout("constant", 3) == [(1, True, False)] * 3
    assert rollout("delay", 4) == [(0, False, False), (1, True, False)] * 2
    assert rollout("time-limit", 10) == ([(1, False, False)] * 4 + [(1, False, True)]) * 2
    assert rollout("action", 1, 0.5) == [(1, True, False)]
    assert rollout("action", 1, 0.0) == [(0.75, True, False)]
    assert np.isnan(rollout("nan", 140)[-1][0])
    env = envs.make("probe/observation", 64)
    obs = env.reset(list(range(64)))
    assert (env.step(np.zeros((64, 1), np.float32)).reward == obs[:, 0]).all() and set(
        obs[:, 0]
    ) == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("NoSuchEnv-v5", "NoSuchEnv"),
        ("HalfCheetah-v77", "HalfCheetah-v77"),
        ("FrozenLake-v1", "observation space Discrete"),
        ("probe/dely", "did you mean 'probe/delay'"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(env_id, words):
    with pytest.raises(UserError, match=words) as caught:
        envs.make(env_id, 1)
    assert "\n" not in str(caught.value)


def test_an_environment_with_hidden_state_says_so_and_starts_a_new_episode(caplog):
    class Secret:
        pass

    env = envs.make("Pendulum-v1", 1)
    env.reset([0])
    env._envs[0].unwrapped.secret = Secret()  # pyright: ignore
    out = env.step(np.zeros((1, 1), np.float32))
    with caplog.at_level(logging.WARNING):
        state = env.save()
    assert "attribute secret" in caplog.text and state["envs"] == [None]
    obs, anew = env.load(state)
    assert obs.shape == out.obs.shape and (obs != out.obs).any() and anew.tolist() == [True]
    assert (env.load(state)[0] == obs).all()


def test_mujoco_is_quiet_and_leaves_no_file(tmp_path, capfd):
    gym.GymVector("HalfCheetah-v5", 1).close()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2**120,
        -1.5,
        float("inf"),
        "x",
        [1, [2.5]],
        (1, ("a", None)),
        {"a": (1, 2), "b": {}},
        {1: "a", "1": "b", (0, "x"): {None: 2.5}},
    ],
)
def test_json_round_trips_exactly(value):
    back = codec.decode(json.loads(json.dumps(codec.encode(value))))
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32", "uint8", "bool"])
def test_json_round_trips_arrays_exactly(dtype):
    value = np.random.default_rng(0).normal(size=(3, 4)).astype(dtype)
    back = codec.decode(json.loads(json.dumps(codec.encode({"x": value, "nan": float("nan")}))))
    assert back["x"].dtype == value.dtype and (back["x"] == value).all() and np.isnan(back["nan"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4"])
def test_json_round_trips_the_small_numbers_of_accelerators(dtype):
    value = jnp.asarray([-1, 0, 3], dtype)
    back = codec.decode(json.loads(json.dumps(codec.encode([np.asarray(value)]))))[0]
    assert back.dtype == value.dtype and (back == np.asarray(value)).all()


def test_json_holds_what_is_one_in_two_places():
    memory, rng, row = np.arange(12.0).reshape(3, 4), np.random.default_rng(0), [1, 2]
    tree = {
        "views": [memory[1, ::-2], memory.T, memory[:0]],
        "memory": memory,
        "twice": (row, {"x": row}),
        "rngs": [rng, rng],
        "other": memory.copy(),
    }
    back = codec.decode(json.loads(json.dumps(codec.encode(tree))))
    for one, other in zip(back["views"], tree["views"], strict=True):
        np.testing.assert_array_equal(one, other)
    back["memory"][1] = -1
    assert back["views"][0].tolist() == [-1, -1] and (back["views"][1][:, 1] == -1).all()
    assert (back["other"] == tree["other"]).all()
    back["twice"][0].append(3)
    assert back["twice"][1]["x"] == [1, 2, 3] and row == [1, 2]
    assert back["rngs"][0] is back["rngs"][1]


def test_json_keeps_the_order_of_memory_and_arrays_without_dimensions():
    memory, number = np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.zeros(())
    tree = {"row": memory[0], "memory": memory, "number": [number, number[...]], "one": number[()]}
    back = codec.decode(json.loads(json.dumps(codec.encode(tree))))
    np.testing.assert_array_equal(back["memory"], memory)
    assert back["memory"].flags.f_contiguous and type(back["one"]) is np.float64
    back["memory"][0, 1], back["number"][1][...] = -1, 3
    assert back["row"][1] == -1 and back["number"][0] == 3 and back["number"][0].shape == ()
    alone = codec.decode(codec.encode(memory[:, :3]))
    np.testing.assert_array_equal(alone, memory[:, :3])
    assert alone.flags.f_contiguous and codec.decode(codec.encode(memory.T)).flags.c_contiguous


@pytest.mark.parametrize("value", [[1.5, 2], [[True]], 0.5, 3])
def test_json_holds_the_arrays_of_jax(value):
    for array in (jnp.array(value), jnp.asarray(np.asarray(value))):
        back = codec.decode(json.loads(json.dumps(codec.encode([array]))))[0]
        assert isinstance(back, jax.Array) and (back == array).all()
        assert (back.dtype, back.weak_type) == (array.dtype, array.weak_type)


def test_json_holds_nothing_beyond_a_memory():
    words = {"__view__": "<f8", "shape": [9], "strides": [8], "place": 0}
    for changed in ({}, {"place": -8, "shape": [1]}, {"__view__": "O", "shape": [1]}):
        with pytest.raises((ValueError, TypeError)):
            codec.decode({**words, **changed, "of": codec.encode(np.zeros(4))})
    with pytest.raises(KeyError):
        codec.decode({"__again__": 7})


Pair = collections.namedtuple("Pair", "a b")
Mode = enum.IntEnum("Mode", "IDLE")
RECORDS = np.zeros(2, [("a", "f4")])
ITSELF: list = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {object(): 2},
        np.array([object()]),
        Pair(1, 2),
        Mode.IDLE,
        collections.defaultdict(list),
        collections.OrderedDict(),
        RECORDS,
        RECORDS[0],
        np.ma.masked_array([1.0], [True]),
        np.random.RandomState(0),
        ITSELF,
        jax.device_put(1.0, jax.devices()[0]),
        jax.random.key(0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_json_refuses_what_it_cannot_hold(value):
    """Also values that would come back as another type, or incomplete."""
    with pytest.raises(TypeError):
        codec.encode([value])


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937])
def test_json_holds_random_generators(bits):
    rng = np.random.Generator(bits(3))
    rng.normal(size=5)
    back = codec.decode(json.loads(json.dumps(codec.encode({"rng": rng}))))["rng"]
    assert (rng.normal(size=9) == back.normal(size=9)).all()
    text = json.dumps(codec.encode(rng))
    for other in ("seed", "BitGenerator", "nothing"):
        with pytest.raises((ValueError, NotImplementedError)):
            codec.decode(json.loads(text.replace(bits.__name__, other)))


# --- what environments hold -----------------------------------------------------------------------


class Walk(gymnasium.Env):
    """Moves by random numbers of its own; `more` are further things that it holds."""

    observation_space = action_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)

    def __init__(self, **more):
        vars(self).update(more)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.place = 0.0
        return np.float32([0]), {}

    def step(self, action):
        self.place += self.rng.normal()
        return np.float32([self.place]), 1.0, False, False, {}


def test_a_generator_of_its_own_goes_on_bit_for_bit_and_stays_shared():
    class Shared(Walk):
        def reset(self, *, seed=None, options=None):
            out = super().reset(seed=seed)
            self.other = [self.rng, self.rng][0]
            return out

        def step(self, action):
            self.place += self.other.normal()
            return super().step(action)

    env, other = envs.make(Shared, 1), envs.make(Shared, 1)
    env.reset([3]), other.reset([4])
    script = actions(env, 20)
    for action in script:
        obs = env.step(action).obs
    assert (other.load(json.loads(json.dumps(env.save())))[0] == obs).all()
    for action in script:
        np.testing.assert_array_equal(env.step(action).obs, other.step(action).obs)


def model():
    return mujoco.MjModel.from_xml_string("<mujoco/>")  # pyright: ignore


def loop_of_itself():
    mine = []
    mine.append(mine)
    return {"mine": mine}


@pytest.mark.parametrize(
    "more",
    [
        lambda: {"env": gymnasium.make("Pendulum-v1")},
        lambda: {"mj_data": mujoco.MjData(model())},  # pyright: ignore
        lambda: {"mj_model": model()},
        lambda: {"pair": Pair(1, 2)},
        loop_of_itself,
    ],
)
def test_what_is_no_plain_state_is_named_once_whatever_it_is_called(more, caplog):
    held = more()
    env = envs.make(lambda: Walk(**held), 2)
    env.reset([0, 1])
    assert env.save()["envs"] == env.save()["envs"] == [None, None]
    assert len(caplog.records) == 1 and f"its attribute {next(iter(held))}: " in caplog.text


def test_actions_end_within_their_bounds_whatever_computes_them():
    """In rounded numbers, centre plus half the width exceeds the bound."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        low = rng.uniform(-3, 3, 200).astype(dtype)
        high = low + rng.uniform(0.1, 3, 200).astype(dtype)
        spec = Spec(1, 200, np.float64(low), np.float64(high))
        ours = partial(to_environment, spec)
        for compute in (ours, jax.jit(ours)):
            for end, bound in ((-1.0, low), (1.0, high)):
                found = np.asarray(compute(np.full(200, end, np.float32)))
                assert (low <= found).all() and (found <= high).all()
                np.testing.assert_allclose(found, bound, atol=1e-6)
