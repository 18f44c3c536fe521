"""The laws that every agent must obey, in one table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agent_cases import compiled, jitted, learn, leaves, make, same, transitions
from preqn_jax import agents

TABLE = {
    "preqn": {"algorithm": "preqn"},
    "preqn-relu-eigh": {"algorithm": "preqn", "activation": "relu", "solver": "eigh"},
    "preqn-lstsq": {"algorithm": "preqn", "solver": "lstsq"},
    "preqn-cg": {"algorithm": "preqn", "solver": "cg", "eta": 0.5},
    "preqn-jacobian": {"algorithm": "preqn", "kernel": "jacobian"},
    "preqn-target-networks": {"algorithm": "preqn", "target_networks": True},
    "preqn-two-critics-smoothed": {"algorithm": "preqn", "num_critics": 2, "target_noise": 0.2},
    "preqn-twin": {"algorithm": "preqn_twin", "pessimism": 0.5},
    "preqn-measured": {"algorithm": "preqn_measured"},
    "preqn-averaged": {"algorithm": "preqn_averaged"},
    "preqn-delayed": {"algorithm": "preqn_delayed"},
    "preqn-momentum": {"algorithm": "preqn_momentum"},
    "preqn-adaptive": {"algorithm": "preqn_adaptive", "solver": "cg"},
    "preqn-soft": {"algorithm": "preqn_soft"},
    "ngql": {"algorithm": "ngql"},
    "ddpg": {"algorithm": "ddpg"},
    "ddpg-no-targets": {"algorithm": "ddpg", "target_networks": False},
    "td3": {"algorithm": "td3"},
    "td3-preconditioned": {"algorithm": "td3", "critic_step": "preconditioned"},
    "td3-sin": {"algorithm": "td3", "activation": "sin"},
    "sac": {"algorithm": "sac"},
    "sac-automatic-temperature": {"algorithm": "sac", "automatic_temperature": True},
    "sac-preconditioned": {"algorithm": "sac", "critic_step": "preconditioned"},
    "preqn-normalized": {"algorithm": "preqn", "normalize_observations": True},
    "preqn-discrete": {"algorithm": "preqn_discrete"},
    "preqn-discrete-normalized": {"algorithm": "preqn_discrete", "normalize_observations": True},
    "dqn": {"algorithm": "dqn"},
    "dqn-double-two-critics": {"algorithm": "dqn", "double_q": True, "num_critics": 2},
    "dqn-whole-copies": {"algorithm": "dqn", "polyak": 0.0, "policy_delay": 2},
    "crossq": {"algorithm": "crossq", "policy_delay": 2},
    "crossq-normalized": {"algorithm": "crossq", "normalize_observations": True},
    "td3-layer-norm-no-targets": {
        "algorithm": "td3",
        "critic_norm": "layer",
        "target_networks": False,
    },
    "sac-layer-norm": {"algorithm": "sac", "critic_norm": "layer"},
    "ddpg-layer-norm": {"algorithm": "ddpg", "critic_norm": "layer"},
    "preqn-layer-norm": {"algorithm": "preqn", "critic_norm": "layer"},
    "ddpg-fourier-no-targets": {
        "algorithm": "ddpg",
        "critic_features": "fourier",
        "fourier_ratio": 4,
        "target_networks": False,
    },
}
# Every solver, option and mix obeys the laws; the fast tests check one of each kind.
FAST = ("preqn", "sac-automatic-temperature")
rows = [
    pytest.param(fields, id=name, marks=[pytest.mark.slow] * (name not in FAST))
    for name, fields in TABLE.items()
]
laws = pytest.mark.parametrize("fields", rows)


@laws
def test_learning_moves_actor_and_critic_and_stays_finite(fields):
    agent = compiled(fields)
    start = agent.init(jax.random.key(0))
    end, metrics = learn(agent, start)
    for part in (agent.policy, agent.critic):
        assert not same(part(start), part(end))
    assert all(np.isfinite(leaf).all() for leaf in leaves(end))
    assert {"critic/q_mean", "critic/td_abs", "critic/alignment"} <= set(metrics)
    assert all(m.shape == () for m in metrics.values())


@laws
def test_the_same_seed_repeats_and_different_seeds_differ(fields):
    agent = compiled(fields)
    run = lambda seed: learn(agent, agent.init(jax.random.key(seed)))[0]
    assert same(run(0), run(0))
    one, other = run(0), run(1)
    for part in (agent.policy, agent.critic):
        assert not same(part(one), part(other))


@laws
def test_types_and_shapes_are_kept(fields):
    agent = compiled(fields)
    start = agent.init(jax.random.key(0))
    end, _ = learn(agent, start, 1)
    assert jax.tree.structure(start) == jax.tree.structure(end)
    for a, b in zip(leaves(start), leaves(end), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.dtype in (np.float32, np.int32)


@laws
def test_two_calls_one_trace(fields):
    agent, traces = make(fields), []

    @jax.jit
    def update(*args):
        traces.append(1)
        return agent.update(*args)

    state = compiled(fields).init(jax.random.key(0))
    for i in range(3):
        state, _ = update(state, transitions(i), jax.random.key(i), jnp.int32(i))
    assert len(traces) == 1


@laws
def test_the_state_can_be_donated(fields):
    agent = compiled(fields)
    update = jax.jit(agent.update, donate_argnums=0)
    start = agent.init(jax.random.key(0))
    expected, _ = agent.update(start, transitions(), jax.random.key(1), jnp.int32(1))
    end, _ = update(start, transitions(), jax.random.key(1), jnp.int32(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    assert same(end, expected)


@laws
def test_no_key_is_used_twice(fields):
    with jax.debug_key_reuse(True):
        agent = jitted(make(fields))
        state = agent.init(jax.random.key(0))
        agent.update(state, transitions(), jax.random.key(1), jnp.int32(0))
        agent.explore(agent.policy(state), jnp.zeros(3), jax.random.key(2))


@laws
def test_a_vmap_over_seeds_is_a_loop(fields):
    agent = compiled(fields)
    keys = jax.random.split(jax.random.key(7), 3)
    states, batches = (
        jax.vmap(agent.init)(keys),
        jax.tree.map(lambda *x: np.stack(x), *[transitions(s) for s in range(3)]),
    )
    together, metrics = jax.jit(jax.vmap(agent.update, in_axes=(0, 0, 0, None)))(
        states, batches, keys, jnp.int32(1)
    )
    for s in range(3):
        state = jax.tree.map(lambda leaf, s=s: np.asarray(leaf)[s], states)
        alone, alone_metrics = agent.update(state, transitions(s), keys[s], jnp.int32(1))
        # one float32 step: batched products may sum in another order, which the solve amplifies by
        # K's condition
        for a, b in zip(leaves(alone), leaves(together), strict=True):
            np.testing.assert_allclose(a, b[s], rtol=2e-2, atol=2e-3)
        np.testing.assert_allclose(
            alone_metrics["critic/td_abs"], metrics["critic/td_abs"][s], rtol=1e-4
        )


@laws
def test_actions_stay_in_the_box(fields):
    agent = jitted(make({**fields, "exploration_noise": 2.0}))
    state = compiled(fields).init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), 200)
    explore = jax.vmap(agent.explore, in_axes=(None, None, 0))
    act = np.asarray(explore(agent.policy(state), jnp.ones(3), keys))
    if fields["algorithm"] in agents.DISCRETE:  # all random, at first
        assert act.shape == (200, 1) and np.unique(act).tolist() == [-0.75, -0.25, 0.25, 0.75]
        return
    assert act.shape == (200, 2) and 0.9 < np.abs(act).max() <= 1
    assert len(np.unique(act[:, 0])) > 20
    assert (
        agent.act(agent.policy(state), jnp.ones(3)) == agent.act(agent.policy(state), jnp.ones(3))
    ).all()


@pytest.mark.parametrize(
    ("delay", "moves"),
    [
        pytest.param(1, [1, 1, 1, 1], marks=pytest.mark.slow),
        (2, [0, 1, 0, 1]),
        pytest.param(3, [0, 0, 1, 0], marks=pytest.mark.slow),
    ],
)
def test_the_policy_and_the_targets_wait_for_their_turn(delay, moves):
    agent = compiled({"algorithm": "td3", "policy_delay": delay})
    state, moved = agent.init(jax.random.key(0)), []
    for i in range(4):
        after, _ = agent.update(state, transitions(i), jax.random.key(i), jnp.int32(i))
        policies, critics = (
            [part(x) for x in (state, after)] for part in (agent.policy, agent.critic)
        )
        assert not same(*critics)
        assert same(*policies) == same(state.critic.target, after.critic.target)
        moved.append(int(not same(*policies)))
        state = after
    assert moved == moves


@pytest.mark.parametrize("algorithm", ["ddpg", "sac"])
def test_target_networks_move_by_polyak_averaging(algorithm):
    agent = compiled({"algorithm": algorithm})
    start = agent.init(jax.random.key(0))
    end, _ = agent.update(start, transitions(), jax.random.key(1), jnp.int32(0))
    for target, old, new in zip(
        *map(leaves, (end.critic.target, start.critic.target, end.critic.params)), strict=True
    ):
        assert np.abs(new - old).max() > 5e-4
        np.testing.assert_allclose(target, 0.995 * old + 0.005 * new, rtol=3e-7, atol=1e-8)
