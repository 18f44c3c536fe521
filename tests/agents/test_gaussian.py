"""Stochastic policies: gradients of policy and temperature against float64 oracles, and where
training of both leads.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import oracles
from preqn_jax import agents, networks, steps
from preqn_jax.types import Spec, Transition

OBS, ACT, BATCH = 3, 2, 16
SPEC = Spec(OBS, ACT, -np.ones(ACT), np.ones(ACT))


def small(**fields):
    config = agents.AgentConfig(algorithm="sac", activation="sin", hidden_sizes=(5,), **fields)
    return agents.make(config, SPEC)


def transitions(dtype=np.float32):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=(BATCH, *shape)).astype(dtype)
    return Transition(
        normal(OBS), np.tanh(normal(ACT)), normal(), np.ones(BATCH, dtype), normal(OBS)
    )


def test_gradients_of_policy_and_temperature_by_finite_differences(x64):
    alpha, step, batch = 0.3, 1e-5, transitions(np.float64)
    keys = jax.random.split(jax.random.key(0), 3)
    net, q = networks.GaussianActor(ACT, (5,), "sin"), networks.Critic((5,), "sin")
    tuning = agents.Tuning(optax.adam(3e-4), -ACT)
    policy = agents.gaussian(net, optax.adam(1e-3), temperature=alpha, tuning=tuning)
    critic = agents.critic(q, steps.gradient(q.apply, optax.adam(1e-3)), members=2)
    start = jax.jit(policy.init)(keys[0], batch.obs[0])
    thetas = jax.jit(critic.init)(keys[1], batch.obs[0], batch.action[0])
    end = jax.jit(lambda state: policy.improve(state, batch, critic.values(thetas), keys[2]))(start)
    noise = np.asarray(jax.random.normal(keys[2], (BATCH, ACT)))
    critics = [
        oracles.layers_of(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], thetas.params))
        for i in range(2)
    ]
    phi, unravel = ravel_pytree(policy.params(start))
    phi, unravel = np.asarray(phi), jax.jit(unravel)

    def terms(phi):
        """log pi(a|s), and Q `[2, B]` of both critics, at the policy's actions."""
        (w, b), (v, c) = oracles.layers_of(unravel(phi))
        mean, log_std = np.split(np.sin(np.asarray(batch.obs) @ w + b) @ v + c, 2, axis=1)
        inputs = np.concatenate([batch.obs, np.tanh(mean + np.exp(log_std) * noise)], axis=1)
        return oracles.tanh_gaussian_log_prob(mean, log_std, noise), np.stack(
            [oracles.mlp(layers, "sin", inputs)[0] for layers in critics]
        )

    def loss(phi):
        log_prob, values = terms(phi)
        return np.mean(alpha * log_prob - values.min(axis=0))

    log_prob, values = terms(phi)
    assert 0 < np.sum(values[0] < values[1]) < BATCH  # each critic is the smaller one somewhere
    expected = [
        (loss(phi + step * e) - loss(phi - step * e)) / (2 * step) for e in np.eye(phi.size)
    ]
    got = ravel_pytree(end.optimizer[0].mu)[0] / 0.1  # Adam's first mean is a tenth of the gradient
    assert oracles.relative_error(got, expected) < 1e-7
    np.testing.assert_allclose(end.tuner[0].mu / 0.1, -alpha * (log_prob.mean() - ACT), rtol=1e-10)


@pytest.mark.slow
def test_a_tuned_temperature_brings_the_entropy_to_its_target():
    """The critics stay fixed; the entropy starts above the target, and falls below it before alpha
    has grown.
    """
    target = -1.5
    rates = {
        "temperature_learning_rate": 0.01,
        "actor_learning_rate": 0.01,
        "critic_learning_rate": 1e-9,
    }
    agent = small(automatic_temperature=True, temperature=0.01, target_entropy=target, **rates)
    batch = transitions()
    batch = batch._replace(
        next_obs=batch.obs
    )  # the reported entropy is of the policy at s', the tuned one at s

    @jax.jit
    def run(state):
        def body(state, i):
            state, metrics = agent.update(state, batch, jax.random.fold_in(jax.random.key(1), i), i)
            return state, (metrics["actor/entropy"], metrics["actor/temperature"])

        return jax.lax.scan(body, state, jnp.arange(2000))[1]

    entropy, alpha = map(np.asarray, run(jax.jit(agent.init)(jax.random.key(0))))
    assert entropy[:5].min() > target + 1
    np.testing.assert_allclose(
        np.log(alpha[:5]), np.log(0.01) - 0.01 * np.arange(5), rtol=1e-4
    )  # Adam's first steps
    lowest = entropy.argmin()
    assert entropy[lowest] < target - 1 and alpha[lowest + 100] > 1.5 * alpha[lowest]
    assert abs(entropy[-1000:].mean() - target) < 0.1


@jax.jit
def squashed(mean, log_std, noise):
    """An action, its log probability, and the gradients of that."""
    log_prob = lambda m, s: agents.tanh_gaussian(m, s, noise)[1]
    gradients = jax.grad(log_prob, argnums=(0, 1))(mean, log_std)
    return *agents.tanh_gaussian(mean, log_std, noise), gradients


@pytest.mark.parametrize("mean", [0.0, -0.7, 10.0, -40.0])
@pytest.mark.parametrize("log_std", [-5.0, 0.0, 2.0])
def test_log_probability_of_a_squashed_gaussian(mean, log_std):
    """Also where tanh(u) rounds to 1: no infinity, and a finite gradient."""
    mean, log_std, noise = (
        np.float32([mean, 0.1]),
        np.float32([log_std, -1.0]),
        np.float32([0.3, -1.2]),
    )
    action, log_prob, gradients = squashed(mean, log_std, noise)
    np.testing.assert_allclose(
        action, np.tanh(np.asarray(mean + np.exp(log_std) * noise, np.float64)), atol=1e-6
    )
    np.testing.assert_allclose(
        log_prob, oracles.tanh_gaussian_log_prob(mean, log_std, noise), rtol=1e-5, atol=1e-5
    )
    assert all(np.isfinite(g).all() for g in gradients)


def test_the_squashed_density_integrates_to_one(x64):
    """Over a in (-1, 1), for one action: pi(a|s) = exp(log pi) on a grid of u, with da = (1 - a^2)
    du.
    """
    one = lambda n: agents.tanh_gaussian(np.array([0.4]), np.array([-0.3]), n[None])
    action, log_prob = map(np.asarray, jax.jit(jax.vmap(one))(np.linspace(-9, 9, 20_001)))
    np.testing.assert_allclose(np.trapezoid(np.exp(log_prob), action[:, 0]), 1, atol=1e-6)
