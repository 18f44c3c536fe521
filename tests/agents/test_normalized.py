"""Normalized observations: mean and deviation against float64, and an agent against the same agent
on observations that were normalized before.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import preqn_jax
from agent_cases import SPEC, compiled, leaves, make, same, transitions
from preqn_jax import agents, ntk
from preqn_jax.agents.normalized import empty, seen
from preqn_jax.training import run as training
from preqn_jax.training.config import LoopConfig, RunConfig

FIELDS = {"algorithm": "ddpg", "normalize_observations": True}
LEAST = 1e-8


def units(obs):
    """Mean and standard deviation, by the formula in float64."""
    obs = np.asarray(obs, np.float64)
    mean = sum(obs) / len(obs)
    return mean, np.sqrt(sum((obs - mean) ** 2) / len(obs) + LEAST)


def after(rounds):
    """The moments after rounds of observations `[T, n, obs]`, by a compiled function."""
    step = lambda moments, obs: (seen(moments, obs), None)
    return jax.jit(partial(jax.lax.scan, step))(empty(rounds.shape[-1]), rounds)[0]


def test_units_are_those_of_all_that_was_seen_to_many_digits():
    """Observations far from zero, tiny, huge, or drifting; and one that never changes."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4000, 50, 5))
    data[..., 0] += 1000
    data[..., 1] *= 1e-3
    data[..., 2] *= 1e4
    data[..., 3] += np.linspace(0, 30, 4000)[:, None]
    data[..., 4] = 0.7
    data = data.astype(np.float32)
    moments = after(jnp.asarray(data))
    mean, std = units(data.reshape(-1, 5))
    pair = np.asarray(moments.mean, np.float64).sum(0)
    assert (np.abs(pair - mean) < 1e-6 * std + 1e-9).all()
    np.testing.assert_allclose(moments.look()[1][:4], std[:4], rtol=1e-6)
    assert abs(moments.look()[1][4] - LEAST**0.5) < 1e-6 and moments.count == 200_000


def test_before_anything_was_seen_observations_are_as_they_are():
    mean, std = empty(3).look()
    assert (mean == 0).all() and (std == 1).all()


@pytest.fixture(scope="module")
def pair():
    """A normalizing agent and its state after two rounds, the agent without, and a function that
    normalizes.
    """
    agent, bare = compiled(FIELDS), compiled({"algorithm": "ddpg"})
    state = agent.init(jax.random.key(0))
    rounds = [3 + 2 * np.asarray(transitions(i).obs) for i in range(2)]
    for obs in rounds:
        state = agent.observe(state, obs)
    assert same(state.inner, bare.init(jax.random.key(0)))
    mean, std = (jnp.asarray(x, jnp.float32) for x in units(np.concatenate(rounds)))
    return agent, state, bare, lambda obs: jax.vmap(lambda one: (one - mean) / std)(obs)


def close(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_agent_sees_and_learns_in_units(pair):
    agent, state, bare, normal = pair
    batch = transitions(7)
    plain = batch._replace(obs=normal(batch.obs), next_obs=normal(batch.next_obs))
    key, zero = jax.random.key(1), jnp.int32(0)
    moved, metrics = agent.update(state, batch, key, zero)
    expected, theirs = bare.update(state.inner, plain, key, zero)
    close(moved.inner, expected)
    close(metrics, theirs)
    assert same(moved.moments, state.moments)  # updates do not change it
    assert not np.allclose(
        leaves(bare.update(state.inner, batch, key, zero)[1])[0], leaves(metrics)[0]
    )
    params, inner = agent.policy(state), bare.policy(state.inner)
    for i in range(3):
        close(agent.act(params, batch.obs[i]), bare.act(inner, plain.obs[i]))
        close(agent.explore(params, batch.obs[i], key), bare.explore(inner, plain.obs[i], key))
    looked, expected = agent.inspect(state, batch, key), bare.inspect(state.inner, plain, key)
    close(looked.targets, expected.targets)
    close(looked.next_action, expected.next_action)
    close(
        jax.vmap(agent.q, in_axes=(None, 0, 0))(looked.moved, batch.obs, batch.action),
        jax.vmap(bare.q, in_axes=(None, 0, 0))(expected.moved, plain.obs, plain.action),
    )


@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_the_kernel_is_that_of_the_network_of_normalized_observations(pair, method):
    agent, state, bare, normal = pair
    batch = transitions(7)
    kernel = jax.jit(partial(ntk.kernel, method=method), static_argnums=0)
    k = kernel(agent.q, agent.critic(state), (batch.obs, batch.action))
    inputs = normal(batch.obs), batch.action
    close(k, kernel(bare.q, bare.critic(state.inner), inputs))


def test_a_swept_agent_observes_as_well():
    config = agents.AgentConfig(**FIELDS, hidden_sizes=(16, 16))
    made = lambda settings: agents.make(dataclasses.replace(config, **settings), SPEC)
    swept = agents.swept(made, {"discount": 0.9})
    state = jax.jit(swept.init)(jax.random.key(0), {"discount": jnp.float32(0.5)})
    obs = transitions(0).obs
    assert swept.observe is not None
    state = swept.observe(state, obs)
    close(state.inner.moments, seen(empty(3), obs))
    assert state.settings["discount"] == 0.5
    assert agents.swept(lambda s: make({"algorithm": "ddpg", **s}), {"eta": 0.9}).observe is None


# --- in a run -------------------------------------------------------------------------------------

SMALL = {
    "hidden_sizes": (8, 8),
    "start_steps": 50,
    "update_after": 100,
    "batch_size": 8,
    "eval_every": 150,
    "eval_episodes": 1,
    "checkpoint_every": 50,
    "eval_max_steps": 5,
}
STEPS = 150


def plan(logdir, env, seeds=(0, 1), **more):
    def made(kind, **given):
        names = {field.name for field in dataclasses.fields(kind)}
        return kind(**{k: v for k, v in {**SMALL, **given}.items() if k in names})

    run = made(RunConfig, env=env, logdir=str(logdir), workers=0, **more)
    loop = made(LoopConfig, seeds=seeds, num_steps=STEPS)
    return training.plan(run, made(agents.AgentConfig, **FIELDS), loop)


def trained(logdir, env, seeds=(0, 1)):
    """Trains to the end. Returns the agents' states, and the transitions in the replay buffer."""
    with training.Session(plan(logdir, env, seeds)) as session:
        *_, last = session.rounds()
        assert last.step == STEPS
        return jax.device_get((session.learner.agent, session.learner.replay.data))


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Pendulum-v1", "native/pendulum"])
def test_units_of_a_run_are_those_of_its_replay_and_go_on_bit_for_bit(env):
    """On the host, and on the device."""
    states, data = trained("whole", env)
    for i in range(2):
        mean, std = units(data.obs[i])
        moments = jax.tree.map(lambda leaf, i=i: leaf[i], states.moments)
        assert moments.count == STEPS
        np.testing.assert_allclose(moments.look(), (mean, std), rtol=1e-5, atol=1e-6)
    assert not same(data.obs[0], data.obs[1])
    with training.Session(plan("stopped", env)) as session:
        session.stopping = True
        next(iter(session.rounds()))
        assert session.kept and session.kept[-1] < STEPS
    trained("stopped", env)
    whole, resumed = preqn_jax.load("whole"), preqn_jax.load("stopped")
    assert same(whole.states, resumed.states)
    trained("alone", env, seeds=(1,))
    close(preqn_jax.load("alone").state(1), whole.state(1))  # whatever its company
    obs = data.obs[1][:4]
    bare = whole.agent.policy(whole.state(1))
    mean, std = units(data.obs[1])
    plain = make_bare(whole.spec)
    expected = jax.vmap(plain.act, in_axes=(None, 0))(
        bare.params, jnp.asarray((obs - mean) / std, jnp.float32)
    )
    np.testing.assert_allclose(whole.policy(1)(obs), 2 * expected, atol=1e-4)  # torque in [-2, 2]


def make_bare(spec):
    return agents.make(agents.AgentConfig(algorithm="ddpg", hidden_sizes=(8, 8)), spec)
