"""Initial weights of several critics: each critic has its own, drawn by the rule that is set."""

import jax
import numpy as np
import optax
import pytest

from agent_cases import compiled, same
from preqn_jax import agents, networks, steps
from preqn_jax.batching import batched


@pytest.fixture(scope="module")
def three():
    """A critic with three members, and a state of it."""
    network = networks.Critic((8,), "relu")
    critic = agents.critic(network, steps.gradient(network.apply, optax.sgd(0.1)), members=3)
    return network, critic, jax.jit(critic.init)(jax.random.key(0), np.zeros(3), np.zeros(2))


def test_members_start_apart(three):
    _, _, state = three
    weights = [leaf for leaf in jax.tree.leaves(state.params) if leaf.ndim == 3]
    assert weights
    for leaf in np.asarray(weights[0]), np.asarray(weights[-1]):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert not np.allclose(leaf[i], leaf[j])


def test_the_first_member_is_the_one_that_the_policy_climbs_and_the_minimum_is_over_all(three):
    network, critic, state = three
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(16, 3)).astype(np.float32)
    action = rng.uniform(-1, 1, size=(16, 2)).astype(np.float32)
    member = lambda i: jax.tree.map(lambda leaf: np.asarray(leaf)[i], state.params)
    apply = jax.jit(batched(network.apply))
    each = np.stack([apply(member(i), (obs, action)) for i in range(3)])
    assert len(set(each.argmin(axis=0))) > 1  # so that the smallest is not always the same member's
    values = critic.values(state)
    np.testing.assert_allclose(values.first(obs, action), each[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values.minimum(obs, action), each.min(axis=0), rtol=1e-5, atol=1e-6)
    for mine, expected in zip(
        jax.tree.leaves(critic.first(state)), jax.tree.leaves(member(0)), strict=True
    ):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize(
    "initializer",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "pytorch"))
        for name in sorted(set(networks.INITIALIZERS) - {"glorot"})
    ],
)
def test_the_initializer_that_is_asked_for_reaches_policy_and_critic(initializer):
    one, other = (compiled({"initializer": name}) for name in ("glorot", initializer))
    for part in ("policy", "critic"):
        starts = [getattr(a, part)(a.init(jax.random.key(0))) for a in (one, other)]
        assert not same(*starts)
