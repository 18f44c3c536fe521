"""Environments of Brax and MuJoCo Playground, where these are installed."""

import importlib.util
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import envs
from preqn_jax.envs import playground
from preqn_jax.envs.functional import of_states
from preqn_jax.options import UserError

EXTRAS = {"brax": ("brax", "brax/reacher"), "mujoco_playground": ("playground", "playground/X")}


@pytest.mark.parametrize("package", EXTRAS)
def test_without_its_package_the_extra_is_named(package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    extra, env_id = EXTRAS[package]
    with pytest.raises(UserError, match=f"pip install -e '\\.\\[{extra}\\]'"):
        envs.make(env_id, 1)


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        (
            "brax/halfchetah",
            "unknown environment of Brax 'halfchetah' .*did you mean 'halfcheetah'",
        ),
        ("brax/bullet/halfcheetah", "unknown physics of Brax 'bullet'"),
        ("brax/spring/swimmer", "in its construction, raised ValueError: Unsupported backend"),
        ("playground/CheetahRum", "unknown environment of MuJoCo Playground 'CheetahRum'"),
    ],
)
def test_a_name_that_is_none_is_one_sentence(env_id, words):
    pytest.importorskip("brax" if env_id.startswith("brax") else "mujoco_playground")
    with pytest.raises(UserError, match=words):
        envs.make(env_id, 1)


class State(NamedTuple):
    """A state like those of these libraries."""

    count: Any
    obs: Any
    reward: Any
    done: Any
    key: Any

    def replace(self, **fields):
        return self._replace(**fields)


def counting():
    """An environment that counts its steps, and is done after seven."""

    def reset(key):
        assert key.dtype == jnp.uint32  # as `jax.random.PRNGKey` makes them
        zero = jnp.float32(0)
        return State(zero, {"state": jnp.zeros(2), "rest": jnp.ones(5)}, zero, zero, key)

    def step(state, action):
        count = state.count + 1
        obs = {"state": jnp.full(2, count), "rest": state.obs["rest"]}
        return State(count, obs, count * action[0], jnp.float32(count == 7), state.key)

    return reset, step


def test_only_reset_and_step_are_theirs():
    """The step that ends an episode has the true successor, and is terminal unless the time limit
    ended it.
    """
    reset, step = counting()
    ends = []
    for limit in (5, 1000):
        env = envs.make(of_states(reset, step, 1, limit), 2)
        assert env.spec.obs_size == 2
        env.reset([0, 1])
        for t in range(1, 8):
            out = env.step(np.full((2, 1), 0.5))
            if out.terminated.any() or out.truncated.any():
                ends.append((t, bool(out.terminated[0]), bool(out.truncated[0])))
                assert (out.next_obs == t).all() and (out.obs == 0).all()
                assert (out.reward == 0.5 * t).all()
                break
    assert ends == [(5, False, True), (7, True, False)]


def test_repeated_actions_add_up():
    reset, step = counting()
    state = playground.repeated(step, 3)(reset(jnp.zeros(2, jnp.uint32)), jnp.full(1, 2.0))
    assert (state.count, state.reward, state.obs["state"][0]) == (3, 2 * (1 + 2 + 3), 3)


SLOW = [  # each compiles for a minute, and more
    pytest.param("brax/spring/halfcheetah", 17, 6, id="spring"),
    pytest.param("brax/halfcheetah", 17, 6, id="mjx"),
    pytest.param("playground/CheetahRun", 17, 6, id="playground"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "obs_size", "action_size"), SLOW)
def test_a_cheetah_runs_on_and_is_saved_bit_for_bit(env_id, obs_size, action_size):
    package = "brax" if env_id.startswith("brax") else "mujoco_playground"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    env, other = envs.make(env_id, 2), envs.make(env_id, 2)
    assert (env.spec.obs_size, env.spec.action_size) == (obs_size, action_size)
    assert envs.pure(env_id).time_limit == 1000
    script = np.random.default_rng(0).uniform(-1, 1, (12, 2, action_size)).astype(np.float32)
    first = env.reset([3, 4])
    assert (first[0] != first[1]).any() and np.isfinite(first).all()
    for action in script[:5]:
        obs = env.step(action).obs
    assert (other.load(json.loads(json.dumps(env.save())))[0] == obs).all()
    for action in script[5:]:
        outs = env.step(action), other.step(action)
        jax.tree.map(np.testing.assert_array_equal, *map(tuple, outs))
        assert np.isfinite(outs[0].next_obs).all() and not outs[0].terminated.any()
