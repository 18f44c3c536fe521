"""Observations in uint8, as images have, and critics written by users: an update, a training and a
diagnosis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
import preqn_jax
from preqn_jax import agents, diagnostics, networks, steps
from preqn_jax.batching import batched
from preqn_jax.envs.functional import FunctionalEnv, Outcome
from preqn_jax.types import Spec, Transition

OBS, ACT, BATCH = 6, 2, 16
SPEC = Spec(OBS, ACT, -np.ones(ACT), np.ones(ACT))


class Pixels(NamedTuple):
    """A critic of raw bytes: products with the input as it comes, without any library's layers."""

    def init(self, key, obs, action):
        keys = jax.random.split(key, 3)
        shapes = {"w": (*obs.shape, 16), "u": (*action.shape, 16), "v": (16,)}
        draws = zip(keys, shapes.items(), strict=True)
        return {name: 0.3 * jax.random.normal(k, shape) for k, (name, shape) in draws}

    def apply(self, params, obs, action):
        return jnp.sin(obs @ params["w"] / 100 + action @ params["u"]) @ params["v"]


STEPS = {
    "preqn": lambda q: steps.preconditioned(q, 0.1),
    "ngql": lambda q: steps.natural_gradient(q, 0.1),
    "adam": lambda q: steps.gradient(q, optax.adam(1e-2)),
}
CRITICS = {"own": Pixels(), "library": networks.Critic((16,))}


def agent_of(critic, step, spec=SPEC):
    net, mu = CRITICS[critic], networks.Actor(spec.action_size, (16,))
    return agents.actor_critic(
        spec,
        agents.deterministic(mu, optax.adam(1e-3)),
        agents.critic(net, STEPS[step](net.apply)),
        discount=0.5,
    )


def transitions(dtype):
    rng = np.random.default_rng(0)
    dtype = jnp.dtype(dtype)
    obs, next_obs = (rng.integers(0, 255, (BATCH, OBS)).astype(dtype) for _ in range(2))
    action, reward = rng.uniform(-1, 1, (BATCH, ACT)), rng.normal(size=BATCH)
    made = obs, np.float32(action), np.float32(reward), np.ones(BATCH, np.float32), next_obs
    return Transition(*map(jnp.asarray, made))


@pytest.mark.parametrize(
    "critic, step",
    [("own", "preqn"), ("own", "ngql"), ("own", "adam"), ("library", "preqn")],
)
@pytest.mark.slow
def test_an_update_on_uint8_is_the_one_on_the_same_numbers(critic, step):
    agent = agent_of(critic, step)
    state, key = jax.jit(agent.init)(jax.random.key(0)), jax.random.key(1)
    update = jax.jit(agent.update, compiler_options=oracles.QUICK)
    moved, metrics = update(state, transitions("uint8"), key, 0)
    expected, wanted = update(state, transitions("float32"), key, 0)
    for name in wanted:
        np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-2, err_msg=name)
    for got, new, old in zip(*(jax.tree.leaves(s) for s in (moved, expected, state)), strict=True):
        move = np.asarray(new, np.float64) - np.asarray(old, np.float64)
        assert np.linalg.norm(np.asarray(got) - np.asarray(new)) <= 2e-2 * np.linalg.norm(move)
    if step == "preqn":
        assert metrics["linesearch/accepted"] == 1


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.slow
def test_a_diagnosis_of_uint8_is_the_one_of_the_same_numbers(critic):
    """Also for other types of rewards and terminals."""
    agent = agent_of(critic, "adam")
    params = agent.critic(jax.jit(agent.init)(jax.random.key(0)))
    found = {}
    for dtype in ("uint8", "float32"):
        batch = transitions(dtype)
        reward, going_on = np.arange(BATCH) - 8, np.arange(BATCH) % 3 > 0
        if dtype == "uint8":
            batch = batch._replace(reward=jnp.asarray(reward, "int8"), discount=going_on)
        else:
            batch = batch._replace(reward=jnp.float32(reward), discount=jnp.float32(going_on))
        case = diagnostics.Case(params, batch, batch.action)
        found[dtype] = diagnostics.diagnose(agent.q, case)
    assert set(found["uint8"]) == set(found["float32"])
    for name, wanted in found["float32"].items():
        close = 0.1 if name == "condition" else 1e-3
        np.testing.assert_allclose(found["uint8"][name], wanted, close, 1e-3, err_msg=name)


@pytest.mark.slow
def test_rewards_of_the_least_int8_are_no_negative_bound():
    """|-128| is -128 in int8."""
    agent = agent_of("own", "adam")
    params = agent.critic(jax.jit(agent.init)(jax.random.key(0)))
    batch = transitions("uint8")._replace(reward=jnp.full(BATCH, -128, jnp.int8))
    assert (
        diagnostics.diagnose(agent.q, diagnostics.Case(params, batch, batch.action))[
            "soft_divergence"
        ]
        > 0
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.slow
def test_a_diagnosis_of_narrow_parameters_is_near_that_of_wide_ones(dtype):
    agent = agent_of("own", "adam")
    wide = agent.critic(jax.jit(agent.init)(jax.random.key(0)))
    narrow = jax.tree.map(lambda p: np.asarray(p).astype(jnp.dtype(dtype)), wide)
    wide, batch = jax.tree.map(np.float32, narrow), transitions("float32")
    found, expected = (
        diagnostics.diagnose(agent.q, diagnostics.Case(p, batch, batch.action.astype(dtype)))
        for p in (narrow, wide)
    )
    for name in ("q_mean", "td_error", "diagonal_mean", "row_ratio", "alpha", "feature_rank"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0.05, err_msg=name)


def left_or_right():
    """Episodes of one step; the reward is -1 if the image's left half is bright, and 1 if its right
    half is.
    """

    def observe(state):
        right = jnp.arange(OBS) >= OBS // 2
        return jnp.where(right == (state > 0), 200, 10).astype(jnp.uint8)

    def step(state, action, key):
        return state, Outcome(state, np.True_)

    spec = Spec(OBS, 1, -np.ones(1), np.ones(1))
    start = lambda key: jax.random.rademacher(key, (), jnp.float32)
    return FunctionalEnv(spec, start, step, observe)


@pytest.mark.slow
def test_preqn_with_a_critic_of_ones_own_learns_from_images():
    env = left_or_right()
    options = {"start_steps": 100, "update_after": 100, "batch_size": 32, "discount": 0.5}
    own = lambda spec: agent_of("own", "preqn", spec)
    _, first, last = preqn_jax.train(own, env, num_steps=150, **options)
    assert first.step == 100 and first.metrics["linesearch/accepted"] == 1
    agent, params = last.trained.agent, last.trained.agent.critic(last.trained.state())
    for side in (-1, 1):
        obs = env.observe(jnp.float32(side))
        for action in (-0.5, 0.5):
            assert abs(agent.q(params, obs, jnp.full(1, action)) - side) < 0.05


def test_what_a_narrow_critic_cannot_resolve_is_no_linearization_error():
    """For a linear Q, whose update is its linearization: the difference is the rounding of Q's own
    8 bits.
    """
    q = lambda params, obs, action: obs @ params["w"] + params["b"]
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=OBS), jnp.bfloat16), "b": jnp.bfloat16(3.0)}
    obs = jnp.asarray(rng.normal(size=(BATCH, OBS)), jnp.bfloat16)
    batch = transitions("bfloat16")._replace(obs=obs, next_obs=obs)
    moved = jax.tree.map(lambda p: p * jnp.bfloat16(1 + 2.0**-7), params)
    found = diagnostics.diagnose(q, diagnostics.Case(params, batch, batch.action, moved=moved))
    change = batched(q)(moved, (obs, batch.action)) - batched(q)(params, (obs, batch.action))
    slope = np.asarray(obs, float) @ np.asarray(moved["w"] - params["w"], float) + 2.0**-6
    assert np.linalg.norm(change - slope) > 0.1 * np.linalg.norm(slope)
    assert found["linearization_error"] == 0
