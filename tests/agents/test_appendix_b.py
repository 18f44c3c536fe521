"""Defaults are the rows of Appendix B, settings reach the parts, and an error names a wrong one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agent_cases import SPEC, transitions
from preqn_jax import agents, networks, solve, steps
from preqn_jax.agents import presets
from preqn_jax.options import UserError
from preqn_jax.training.config import LoopConfig

# The table, and the defaults that answer it for each of the paper's three.
APPENDIX_B = {
    "discount factor": ("discount", {"preqn": 0.99, "td3": 0.99, "sac": 0.99}),
    "batch size": ("batch_size", 256),
    "network size": ("hidden_sizes", dict.fromkeys(("preqn", "td3", "sac"), (256, 256))),
    "actor learning rate": ("actor_learning_rate", {"preqn": 1e-3, "td3": 1e-3, "sac": 1e-3}),
    "critic learning rate": ("critic_learning_rate", {"preqn": 0.1, "td3": 1e-3, "sac": 1e-3}),
    "update frequency": ("update_every", 50),
    "update after": ("update_after", 5000),
    "start steps": ("start_steps", 5000),
    "alignment threshold": ("eta", {"preqn": 0.97}),
    "action noise": ("exploration_noise", {"preqn": 0.1, "td3": 0.1}),
    "polyak averaging": ("polyak", {"td3": 0.995, "sac": 0.995}),
    "entropy regularization": ("temperature", {"preqn": None, "td3": None, "sac": 0.1}),
    # "taken from (Fujimoto et al., 2018b) without modification"
    "target policy smoothing": ("target_noise", {"preqn": 0, "td3": 0.2, "sac": 0}),
    "its bound": ("target_noise_clip", {"td3": 0.5}),
    "policy delay": ("policy_delay", {"preqn": 1, "td3": 2, "sac": 1}),
    # Not in the table: Algorithm 1, and Haarnoja et al. 2018b for SAC.
    "replay size": ("replay_capacity", 1_000_000),
    "target networks": ("target_networks", {"preqn": False, "td3": True, "sac": True}),
    "critics": ("num_critics", {"preqn": 1, "td3": 2, "sac": 2}),
    "activation": ("activation", {"preqn": "sin", "td3": "relu", "sac": "relu"}),
    "tuned temperature": ("automatic_temperature", {"sac": None}),
}


@pytest.mark.parametrize("row", APPENDIX_B)
def test_defaults_are_the_rows_of_appendix_b(row):
    name, expected = APPENDIX_B[row]
    if not isinstance(expected, dict):
        assert getattr(LoopConfig(), name) == expected
        return
    for algorithm, value in expected.items():
        config = agents.resolve(agents.AgentConfig(algorithm=algorithm)).config
        assert getattr(config, name) == value


def program(f, *args):
    """The jaxpr of a function as text, without memory addresses: what it does, step by step."""
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(f)(*args)))


NET = networks.Critic((8, 8), "sin")
PRECONDITIONED = {
    "critic_learning_rate": (0.2, steps.preconditioned(NET.apply, 0.2)),
    "eta": (0.9, steps.preconditioned(NET.apply, eta=0.9)),
    "solver": ("cg", steps.preconditioned(NET.apply, solve=solve.cg(damping=1e-3))),
    "kernel": ("jacobian", steps.preconditioned(NET.apply, method="jacobian")),
    "damping": (0.01, steps.preconditioned(NET.apply, solve=solve.cholesky(0.01))),
    "linesearch_decay": (0.7, steps.preconditioned(NET.apply, decay=0.7)),
    "linesearch_max_steps": (5, steps.preconditioned(NET.apply, max_steps=5)),
}
STEPS = {
    **{f"preqn {name}": ({name: value}, step) for name, (value, step) in PRECONDITIONED.items()},
    "rcond": (
        {"solver": "eigh", "rcond": 0.01},
        steps.preconditioned(NET.apply, solve=solve.eigh(0.01)),
    ),
    "rcond of lstsq": (
        {"solver": "lstsq", "rcond": 0.01},
        steps.preconditioned(NET.apply, solve=solve.lstsq(0.01)),
    ),
    "ngql": (
        {"algorithm": "ngql", "damping": 0.01, "critic_learning_rate": 0.2},
        steps.natural_gradient(NET.apply, 0.2, 0.01),
    ),
    "ddpg": ({"algorithm": "ddpg"}, steps.gradient(NET.apply, optax.adam(1e-3))),
    "td3's rate": (
        {"algorithm": "td3", "critic_learning_rate": 2e-3},
        steps.gradient(NET.apply, optax.adam(2e-3)),
    ),
}


def step_program(step):
    batch = transitions(n=4)
    params = jax.eval_shape(NET.init, jax.random.key(0), batch.obs[0], batch.action[0])
    inputs, state = (batch.obs, batch.action), jax.eval_shape(step.init, params)
    return program(step.update, params, state, inputs, batch.reward)


def preset_step(**fields):
    return presets.critic_step(agents.resolve(agents.AgentConfig(**fields)), NET.apply)


@functools.cache
def default_program(algorithm):
    return step_program(preset_step(algorithm=algorithm))


@pytest.mark.parametrize("case", STEPS)
def test_a_setting_reaches_the_critics_step(case):
    """The preset's step has the same jaxpr as the step written by hand, and not the default's."""
    fields, step = STEPS[case]
    assert step_program(preset_step(**fields)) == step_program(step)
    default = default_program("ngql" if fields.get("algorithm") == "ngql" else "preqn")
    assert step_program(step) != default


POLICIES = {
    "actor_learning_rate": (
        {"actor_learning_rate": 2e-3},
        lambda net: agents.deterministic(net, optax.adam(2e-3)),
    ),
    "exploration_noise": (
        {"exploration_noise": 0.3},
        lambda net: agents.deterministic(net, optax.adam(1e-3), noise=0.3),
    ),
    "target_noise": (
        {"target_noise": 0.3, "target_noise_clip": 0.4},
        lambda net: agents.deterministic(
            net, optax.adam(1e-3), smoothing=agents.Smoothing(0.3, 0.4)
        ),
    ),
    "polyak": (
        {"target_networks": True, "polyak": 0.9},
        lambda net: agents.deterministic(net, optax.adam(1e-3), target=0.9),
    ),
}


def policy_program(policy):
    """The jaxprs of all functions of a policy."""
    batch, key = transitions(n=4), jax.random.key(0)
    values = agents.Values(lambda obs, action: jnp.sum(action, axis=1), lambda obs, action: None)
    state = jax.eval_shape(policy.init, key, batch.obs[0])
    return [
        program(policy.explore, policy.params(state), batch.obs[0], key),
        program(policy.upcoming, state, batch.next_obs, key),
        program(lambda s, k: policy.improve(s, batch, values, k), state, key),
        program(policy.follow, state),
    ]


@pytest.mark.parametrize("case", POLICIES)
def test_a_setting_reaches_the_policy(case):
    fields, by_hand = POLICIES[case]
    make = lambda **fields: presets.make_policy(
        agents.resolve(agents.AgentConfig(hidden_sizes=(8, 8), **fields)), SPEC
    )
    expected = policy_program(by_hand(networks.Actor(2, (8, 8), "sin")))
    assert policy_program(make(**fields)) == expected
    assert policy_program(make()) != expected


@pytest.mark.parametrize(
    "fields", [{"discount": 0.5}, {"num_critics": 2}, {"policy_delay": 2}, {"activation": "tanh"}]
)
def test_a_setting_reaches_the_agent(fields):
    def update(**fields):
        agent = agents.make(agents.AgentConfig(hidden_sizes=(8, 8), **fields), SPEC)
        args = jax.eval_shape(agent.init, jax.random.key(0)), transitions(n=4), jax.random.key(1)
        return program(agent.update, *args, jnp.int32(0))

    assert update(**fields) != update()
    assert update() == update()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"algorithm": "prequel"}, "unknown algorithm 'prequel'.*did you mean 'preqn'"),
        ({"activation": "gelu"}, "unknown activation 'gelu'.*relu, sin, tanh"),
        ({"solver": "qr"}, "unknown solver 'qr'.*cholesky"),
        ({"kernel": "fast"}, "unknown kernel"),
        ({"initializer": "he"}, "unknown initializer"),
        ({"critic_step": "sgd"}, "unknown critic_step"),
        ({"eta": 1.0}, "eta is 1.0, but it must be above -1 and below 1"),
        ({"eta": -1.0}, "eta is -1.0"),
        ({"critic_learning_rate": 0.0}, "critic_learning_rate is 0.0, but it must be above 0"),
        ({"actor_learning_rate": -1.0}, "actor_learning_rate is -1.0"),
        ({"discount": 1.0}, "discount is 1.0"),
        ({"hidden_sizes": (256, 0)}, "hidden_sizes is 0"),
        ({"hidden_sizes": ()}, "hidden_sizes is empty"),
        (
            {"hidden_sizes": [64, 64]},
            r"hidden_sizes is \[64, 64\], but it must be a tuple of whole",
        ),
        ({"hidden_sizes": 64}, "hidden_sizes is 64, but it must be a tuple"),
        ({"eta": "0.9"}, "eta is '0.9', but it must be a number"),
        ({"num_critics": 2.0}, "num_critics is 2.0, but it must be a whole number"),
        ({"policy_delay": True}, "policy_delay is True, but it must be a whole number"),
        ({"target_networks": 1}, "target_networks is 1, but it must be True or False"),
        ({"solver": 3}, "solver is 3, but it must be a word, in quotes"),
        ({"discount": np.float32(1.5)}, "discount is 1.5"),
        ({"num_critics": np.int64(0)}, "num_critics is 0, but it must be at least 1"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"temperature": 0.0, "algorithm": "sac"}, "temperature is 0.0, but it must be above 0"),
        ({"algorithm": "sac", "target_noise": 0.2}, "target_noise is 0.2.*deterministic"),
        ({"automatic_temperature": True}, "policy of preqn is deterministic"),
        ({"algorithm": "sac", "target_entropy": -3.0}, "the temperature is not tuned"),
    ],
)
def test_a_wrong_setting_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        agents.make(agents.AgentConfig(**fields), SPEC)
