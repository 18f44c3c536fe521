"""PreQN's variants: how targets combine several critics, and the settings that choose it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agent_cases import CHOICES, SPEC, compiled, make, recording, transitions
from preqn_jax import agents, networks, ntk, solve, steps
from preqn_jax.agents import presets
from preqn_jax.options import UserError
from preqn_jax.training import run as training
from preqn_jax.training.config import LoopConfig, RunConfig


def in_numpy(ahead, here):
    """The formula of `exploitation`, in float64."""
    ahead, here = np.asarray(ahead, np.float64), np.asarray(here, np.float64)
    above = lambda values: values[0] - values[1:].mean(0)
    gap = above(ahead) - above(here).mean()
    return np.clip(gap.mean() / np.abs(gap).mean(), 0, 1)


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("shift", [0.0, 0.3, 3.0, -1.0])
def test_exploitation_is_its_formula(members, shift):
    rng = np.random.default_rng(members)
    ahead, here = rng.normal(size=(2, members, 64)) + 100
    ahead[0] += shift
    got = jax.jit(agents.exploitation)(np.float32(ahead), np.float32(here))
    np.testing.assert_allclose(got, in_numpy(ahead, here), atol=1e-4)


def test_exploitation_is_of_the_difference_alone():
    """A constant difference between the critics is not due to the choice of actions, and has no
    effect; nor has a scale.
    """
    rng = np.random.default_rng(0)
    ahead, here = rng.normal(size=(2, 2, 64)).astype(np.float32)
    first, exploitation = np.float32([[1], [0]]), jax.jit(agents.exploitation)
    ahead = ahead + np.float32(0.5) * first
    base = exploitation(ahead, here)
    assert 0 < base < 1
    np.testing.assert_allclose(exploitation(ahead + 7 * first, here + 7 * first), base, atol=1e-5)
    np.testing.assert_allclose(exploitation(3 * ahead, 3 * here), base, rtol=1e-5)
    assert exploitation(here, here) == pytest.approx(in_numpy(here, here), abs=1e-6)
    assert exploitation(np.ones((2, 64), np.float32), np.ones((2, 64), np.float32)) == 0


@pytest.mark.parametrize("pessimism", [None, 0.0, 0.5, 1.0])
def test_targets_lie_between_the_mean_and_the_minimum(pessimism):
    """Computed from the critics' own values; a pessimism that is measured is that of NumPy's
    formula.
    """
    net, batch = networks.Critic((8,)), transitions()
    critic = agents.critic(net, recording([]), members=3, pessimism=pessimism)
    first = np.asarray(batch.obs)[0], np.asarray(batch.action)[0]
    state = jax.jit(critic.init)(jax.random.key(0), *first)
    upcoming = agents.Upcoming(batch.action, None, {})
    did = jax.jit(lambda state: critic.update(state, batch, upcoming, 0.9)[1])(state)
    of_one = lambda params, obs: ntk.linearize(net.apply, params, (obs, batch.action)).values
    of_each = jax.jit(jax.vmap(of_one, in_axes=(0, None)))
    values = lambda obs: np.asarray(of_each(state.params, obs))
    ahead, here = values(batch.next_obs), values(batch.obs)
    beta = in_numpy(ahead, here) if pessimism is None else pessimism
    value = ahead.mean(0) + beta * (ahead.min(0) - ahead.mean(0))
    np.testing.assert_allclose(
        did.targets,
        np.asarray(batch.reward) + 0.9 * np.asarray(batch.discount) * value,
        rtol=2e-5,
        atol=2e-6,
    )
    measured = did.metrics.get("critic/pessimism")
    assert (measured is None) == (pessimism is not None)
    if measured is not None:
        np.testing.assert_allclose(measured, beta, atol=1e-5)


def test_a_traced_pessimism_of_one_is_the_minimum_to_the_bit():
    net, batch = networks.Critic((8,)), transitions(n=256)
    upcoming = agents.Upcoming(batch.action, None, {})

    def targets(pessimism):
        critic = agents.critic(net, recording([]), members=3, pessimism=pessimism)
        state = critic.init(jax.random.key(0), batch.obs[0], batch.action[0])
        ahead = critic.values(state).minimum(batch.next_obs, batch.action)
        zero = batch._replace(reward=jnp.zeros(256), discount=jnp.ones(256))
        return critic.update(state, zero, upcoming, 1.0)[1].targets, ahead

    for found, minimum in (jax.jit(targets)(1.0), jax.jit(lambda: targets(1.0))()):
        assert np.array_equal(found, minimum)


def test_a_measured_pessimism_needs_two_critics():
    net = networks.Critic((8,))
    with pytest.raises(ValueError, match="expected members of at least 2"):
        agents.critic(net, recording([]), pessimism=None)


NET = networks.Critic((8, 8), "sin")
STEPS = {
    "momentum": ({"momentum": 0.5}, lambda: steps.preconditioned(NET.apply, momentum=0.5)),
    "preqn_momentum": (
        {"algorithm": "preqn_momentum"},
        lambda: steps.preconditioned(NET.apply, momentum=0.9),
    ),
    "adaptive": (
        {"adaptive_damping": True, "damping": 0.01},
        lambda: steps.preconditioned(NET.apply, solve=steps.Adaptive(solve.cholesky, 0.01)),
    ),
    "adaptive cg": (
        {"algorithm": "preqn_adaptive", "solver": "cg"},
        lambda: steps.preconditioned(
            NET.apply, solve=steps.Adaptive(lambda damping: solve.cg(damping=damping), 1e-3)
        ),
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_setting_reaches_the_step(case):
    fields, by_hand = STEPS[case]
    batch = transitions(n=4)
    params = jax.eval_shape(NET.init, jax.random.key(0), batch.obs[0], batch.action[0])

    def program(step):
        state = jax.eval_shape(step.init, params)
        args = (params, state, (batch.obs, batch.action), batch.reward)
        return str(jax.make_jaxpr(step.update)(*args))

    made = presets.critic_step(agents.resolve(agents.AgentConfig(**fields)), NET.apply)
    assert program(made) == program(by_hand())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"algorithm": "td3", "momentum": 0.5}, "momentum is 0.5, but .* critic_step is gradient"),
        ({"algorithm": "ngql", "adaptive_damping": True}, "critic_step is natural_gradient"),
        ({"adaptive_damping": True, "solver": "eigh"}, "the solver eigh has no damping"),
        ({"measured_pessimism": True}, "num_critics is 1"),
        ({"algorithm": "sac", "measured_pessimism": True}, "policy of sac maximizes the minimum"),
        (
            {"algorithm": "dqn", "num_critics": 2, "measured_pessimism": True},
            "policy of dqn maximizes the minimum",
        ),
        ({"algorithm": "crossq", "pessimism": 0.5}, "pessimism is 0.5, but crossq's is 1"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"pessimism": -0.5}, "pessimism is -0.5"),
        ({"pessimism": 0.3}, "pessimism is 0.3, but there is only one critic"),
        ({"algorithm": "preqn_measured", "pessimism": 0.3}, "but measured_pessimism sets it"),
        ({"rcond": 1e-4}, "rcond is 0.0001, but the solver cholesky cuts no eigenvalues off"),
        ({"algorithm": "preqn_adaptive", "damping": 1e-5}, "keeps it between 0.0001 and 1.0"),
        ({"solver": solve.eigh()}, "solver is <function .*, but it must be a word, in quotes"),
        ({"solver": "eigh", "rcond": 1.0}, "rcond is 1.0, but it must be at least 0 and below 1"),
        ({"solver": None}, "solver is None, but it must be a word"),
        ({"eta": None}, "eta is None, but it must be a number"),
        ({"hidden_sizes": 64.5}, "hidden_sizes is 64.5, but it must be a tuple of whole numbers"),
    ],
)
def test_what_has_nothing_to_work_on_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        agents.resolve(agents.AgentConfig(**fields))


@pytest.mark.parametrize("algorithm", agents.ALGORITHMS)
def test_what_was_made_can_be_made_again(algorithm):
    """From the config in a run directory."""
    made = agents.resolve(agents.AgentConfig(algorithm))
    assert agents.resolve(made.config) == made


def test_a_function_is_no_name_and_a_schedule_is_a_rate():
    with pytest.raises(UserError, match="unknown activation <.*>; choose one of"):
        wrong: Any = jnp.sin
        networks.Critic(activation=wrong).init(jax.random.key(0), jnp.zeros(3), jnp.zeros(1))
    agents.resolve(agents.AgentConfig(critic_learning_rate=optax.constant_schedule(0.1)))  # pyright: ignore


def test_a_variant_is_a_composition():
    """The preset is PreQN with the options in its name."""
    twin = agents.resolve(agents.AgentConfig(algorithm="preqn_twin"))
    options = {"num_critics": 2, "target_noise": 0.2}
    same = agents.resolve(agents.AgentConfig(algorithm="preqn", **options))
    assert twin.policy == same.policy and twin.members == same.members == 2
    assert agents.preqn_twin(SPEC) is agents.make(twin, SPEC)
    averaged = agents.resolve(agents.AgentConfig(algorithm="preqn_averaged"))
    assert (averaged.members, averaged.config.pessimism) == (2, 0) and twin.config.pessimism == 1
    assert averaged.policy == agents.resolve(agents.AgentConfig()).policy
    for name in ("measured", "averaged", "delayed", "momentum", "adaptive", "soft"):
        made = getattr(agents, f"preqn_{name}")(SPEC)
        assert made is agents.make(agents.AgentConfig(algorithm=f"preqn_{name}"), SPEC)


@pytest.mark.slow
def test_two_updates_that_differ_in_pessimism_alone_differ():
    """Those of the twin variant: without smoothing all else is the same."""
    batch, key = transitions(), jax.random.key(1)
    targets = {}
    for beta in (0.0, 1.0):
        agent = make({"algorithm": "preqn_averaged", "pessimism": beta})
        start = jax.jit(agent.init)(jax.random.key(0))
        inspected = jax.jit(lambda state, agent=agent: agent.inspect(state, batch, key).targets)
        targets[beta] = np.asarray(inspected(start))
    alive = np.asarray(batch.discount) > 0
    assert (targets[0.0] >= targets[1.0])[alive].all() and (targets[0.0] > targets[1.0]).any()


@pytest.mark.slow
def test_the_measured_pessimism_is_recorded():
    agent = compiled({"algorithm": "preqn_measured"})
    state = agent.init(jax.random.key(0))
    _, metrics = agent.update(state, transitions(), jax.random.key(1), jnp.int32(0))
    assert 0 <= metrics["critic/pessimism"] <= 1


@pytest.mark.parametrize(
    "name", ["preqn", "ngql", "ddpg", "td3", "sac", "crossq", *agents.DISCRETE]
)
def test_a_preset_is_the_algorithm_of_its_name(name):
    spec = CHOICES if name in agents.DISCRETE else SPEC
    assert getattr(agents, name)(spec) is agents.make(agents.AgentConfig(name), spec)


@pytest.mark.parametrize("algorithm", sorted(agents.ALGORITHMS))
def test_a_setting_that_nothing_reads_is_warned_of_and_no_default_is(algorithm, caplog):
    config = agents.AgentConfig(algorithm)
    training.plan(RunConfig(), config, LoopConfig())
    assert not caplog.text
    training.plan(RunConfig(), dataclasses.replace(config, fourier_ratio=7), LoopConfig())
    assert "`fourier_ratio=7` has no effect" in caplog.text and algorithm in caplog.text
