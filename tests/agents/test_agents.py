"""One law table for every agent, and the targets worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from preqn_jax import agents, networks, steps
from preqn_jax.options import UserError
from preqn_jax.types import Spec, Transition

SPEC = Spec(3, 2, -np.ones(2), np.ones(2))
SMALL = {"hidden_sizes": (16, 16)}
TABLE = {
    "preqn": {"algorithm": "preqn"},
    "preqn-relu-eigh": {"algorithm": "preqn", "activation": "relu", "solver": "eigh"},
    "preqn-lstsq": {"algorithm": "preqn", "solver": "lstsq"},
    "preqn-cg": {"algorithm": "preqn", "solver": "cg", "eta": 0.5},
    "preqn-jacobian": {"algorithm": "preqn", "kernel": "jacobian"},
    "preqn-target-networks": {"algorithm": "preqn", "target_networks": True},
    "preqn-two-critics-smoothed": {"algorithm": "preqn", "num_critics": 2, "target_noise": 0.2},
    "ngql": {"algorithm": "ngql"},
    "ddpg": {"algorithm": "ddpg"},
    "ddpg-no-targets": {"algorithm": "ddpg", "target_networks": False},
    "td3": {"algorithm": "td3"},
    "td3-preconditioned": {"algorithm": "td3", "critic_step": "preconditioned"},
    "td3-sin": {"algorithm": "td3", "activation": "sin"},
    "sac": {"algorithm": "sac"},
    "sac-automatic-temperature": {"algorithm": "sac", "automatic_temperature": True},
    "sac-preconditioned": {"algorithm": "sac", "critic_step": "preconditioned"},
}
# Every solver, option and mix keeps the laws; the fast tests hold one of each kind to them.
SLOW = {
    "preqn-relu-eigh",
    "td3-preconditioned",
    "sac",
    "preqn-jacobian",
    "preqn-target-networks",
    "preqn-lstsq",
    "preqn-cg",
    "preqn-two-critics-smoothed",
    "ddpg-no-targets",
    "td3-sin",
    "sac-preconditioned",
}
rows = [
    pytest.param(fields, id=name, marks=[pytest.mark.slow] * (name in SLOW))
    for name, fields in TABLE.items()
]
laws = pytest.mark.parametrize("fields", rows)


def make(fields):
    return agents.make(agents.AgentConfig(**{**SMALL, **fields}), SPEC)


_made = {}


def compiled(fields):
    """An agent with its functions compiled once for all laws."""
    key = str(fields)
    if key not in _made:
        agent = make(fields)
        _made[key] = agent._replace(init=jax.jit(agent.init), update=jax.jit(agent.update))
    return _made[key]


def transitions(seed=0, n=32):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=(n, *shape)), jnp.float32)
    return Transition(
        normal(3),
        jnp.tanh(normal(2)),
        normal(),
        jnp.asarray(rng.random(n) < 0.8, jnp.float32),
        normal(3),
    )


def learn(agent, state, updates=4, key=0):
    for i in range(updates):
        state, metrics = agent.update(
            state, transitions(i), jax.random.fold_in(jax.random.key(key), i), jnp.int32(i)
        )
    return state, metrics


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same(a, b):
    return all((x == y).all() for x, y in zip(leaves(a), leaves(b), strict=True))


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

    state = agent.init(jax.random.key(0))
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
        agent = make(fields)
        state = agent.init(jax.random.key(0))
        jax.jit(agent.update)(state, transitions(), jax.random.key(1), jnp.int32(0))
        agent.explore(agent.policy(state), jnp.zeros(3), jax.random.key(2))


@laws
def test_nothing_is_sent_to_the_host_in_the_second_update(fields):
    agent = compiled(fields)
    update, batch, key, count = agent.update, transitions(), jax.random.key(1), jnp.int32(1)
    state, _ = update(agent.init(jax.random.key(0)), batch, key, count)
    with jax.transfer_guard("disallow"):
        update(state, batch, key, count)


@laws
def test_a_vmap_over_seeds_is_a_loop(fields):
    agent = compiled(fields)
    keys = jax.random.split(jax.random.key(7), 3)
    states, batches = (
        jax.vmap(agent.init)(keys),
        jax.tree.map(lambda *x: jnp.stack(x), *[transitions(s) for s in range(3)]),
    )
    together, metrics = jax.jit(jax.vmap(agent.update, in_axes=(0, 0, 0, None)))(
        states, batches, keys, jnp.int32(1)
    )
    for s in range(3):
        state = jax.tree.map(lambda leaf, s=s: leaf[s], states)
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
    agent = make({**fields, "exploration_noise": 2.0})
    state = agent.init(jax.random.key(0))
    act = jax.vmap(lambda key: agent.explore(agent.policy(state), jnp.ones(3), key))(
        jax.random.split(jax.random.key(0), 200)
    )
    assert act.shape == (200, 2) and 0.9 < float(jnp.abs(act).max()) <= 1
    assert len(np.unique(np.asarray(act)[:, 0])) > 20
    assert (
        agent.act(agent.policy(state), jnp.ones(3)) == agent.act(agent.policy(state), jnp.ones(3))
    ).all()


@pytest.mark.parametrize(
    ("delay", "moves"), [(1, [1, 1, 1, 1]), (2, [0, 1, 0, 1]), (3, [0, 0, 1, 0])]
)
def test_the_policy_and_the_targets_wait_for_their_turn(delay, moves):
    agent = make({"algorithm": "td3", "policy_delay": delay})
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
    for slow, old, new in zip(
        *map(leaves, (end.critic.target, start.critic.target, end.critic.params)), strict=True
    ):
        assert np.abs(new - old).max() > 5e-4
        np.testing.assert_allclose(slow, 0.995 * old + 0.005 * new, rtol=3e-7, atol=1e-8)


class Affine:
    """Stands in for a network: Q = c * (sum obs + 10 * sum action), mu = clip(m * obs[:2]), for
    values worked by hand.
    """

    def __init__(self, value):
        self.value = value

    def init(self, key, *inputs):
        return {"w": jnp.float32(self.value)}


class HandCritic(Affine):
    def apply(self, params, obs, action):
        return params["w"] * (jnp.sum(obs) + 10 * jnp.sum(action))


class HandActor(Affine):
    def apply(self, params, obs):
        return jnp.clip(params["w"] * obs[:2], -1, 1)


def recording(seen):
    """A critic's step that notes its targets and leaves the parameters alone."""

    def update(params, state, inputs, targets):
        seen.append(targets)
        info = steps.StepInfo(targets * 0, targets, {"critic/alignment": jnp.float32(1)})
        return params, state, info

    return steps.ValueStep(lambda params: (), update)


def hand_agent(seen, actor=None, slow=None, members=1, **policy):
    """An agent of hand-made parts; `slow` sets the weights of the critics' slow copies."""
    kind = agents.gaussian if isinstance(actor, HandGaussian) else agents.deterministic
    target = None if slow is None else 0.995
    if kind is agents.deterministic:
        policy["target"] = target
    agent = agents.actor_critic(
        SPEC,
        kind(actor or HandActor(0.5), optax.sgd(0.0), **policy),
        agents.critic(HandCritic(2.0), recording(seen), members=members, target=target),
        discount=0.5,
    )
    state = agent.init(jax.random.key(0))
    if slow is not None:
        weights = {"w": jnp.asarray(slow, jnp.float32)}
        state = state.replace(critic=state.critic.replace(target=weights))
    return agent, state


def targets_of(agent, state, seen):
    with jax.disable_jit():
        _, metrics = agent.update(state, HAND_BATCH, jax.random.key(1), jnp.int32(0))
    return np.ravel(seen[0])[:2], metrics


HAND_BATCH = Transition(
    obs=jnp.zeros((2, 3)),
    action=jnp.zeros((2, 2)),
    reward=jnp.array([1.0, 1.0]),
    discount=jnp.array([0.0, 1.0]),  # a terminal, and a time limit: the second bootstraps
    next_obs=jnp.array([[1.0, 0.0, 0.0], [1.0, 0.4, 2.0]]),
)


def test_targets_by_hand_at_a_terminal_and_at_a_time_limit():
    """As DDPG's, from slow copies."""
    agent, state = hand_agent(seen := [], slow=[3.0])
    # mu(s') = 0.5 * (1, 0.4) = (0.5, 0.2); the slow critic gives 3 * (3.4 + 10 * 0.7) = 31.2
    np.testing.assert_allclose(targets_of(agent, state, seen)[0], [1.0, 1 + 0.5 * 31.2], rtol=1e-6)


def test_without_slow_copies_the_online_networks_bootstrap():
    """As PreQN's."""
    agent, state = hand_agent(seen := [])
    assert state.critic.target is None and state.policy.target is None
    # the online critic gives 2 * (3.4 + 7) = 20.8
    np.testing.assert_allclose(targets_of(agent, state, seen)[0], [1.0, 11.4], rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["ddpg", "td3"])
def test_the_next_action_is_the_slow_policys(algorithm):
    """Moving the online policy alone leaves the targets as they are."""
    agent, batch = make({"algorithm": algorithm}), transitions()
    state, key = agent.init(jax.random.key(0)), jax.random.key(1)
    targets = lambda state: agent.inspect(state, batch, key).targets
    away = lambda params: jax.tree.map(lambda leaf: leaf + 0.3, params)
    policy = state.policy
    online = state.replace(policy=policy.replace(params=away(policy.params)))
    slow = state.replace(policy=policy.replace(target=away(policy.target)))
    np.testing.assert_array_equal(targets(online), targets(state))
    assert np.abs(targets(slow) - targets(state)).max() > 1e-3


def test_the_slow_copies_follow_what_the_update_made():
    """The policy steps first, its copy after."""
    agent = make({"algorithm": "ddpg"})
    start = agent.init(jax.random.key(0))
    end, _ = agent.update(start, transitions(), jax.random.key(1), jnp.int32(0))
    for part in ("policy", "critic"):
        before, after = getattr(start, part), getattr(end, part)
        for slow, old, new in zip(
            *map(leaves, (after.target, before.target, after.params)), strict=True
        ):
            assert np.abs(new - old).max() > 5e-4
            np.testing.assert_allclose(slow, 0.995 * old + 0.005 * new, rtol=3e-7, atol=1e-8)


def test_smoothed_targets_by_hand_take_the_least_critic_and_clipped_noise():
    """As TD3's."""
    smoothing = agents.Smoothing(noise=100.0, clip=0.25)
    agent, state = hand_agent(seen := [], slow=[3.0, 2.0], members=2, smoothing=smoothing)
    first, second = targets_of(agent, state, seen)[0]
    # noise of deviation 100 is clipped to +-0.25 in each of the two actions: (0.5 +- 0.25) + (0.2
    # +- 0.25) is 0.2, 0.7 or 1.2; the least of w = 3 and w = 2 is 2 times 3.4 + 10 * that
    assert first == 1
    assert min(abs(second - (1 + 0.5 * 2 * (3.4 + 10 * a))) for a in (0.2, 0.7, 1.2)) < 1e-3


def test_smoothed_actions_stay_in_the_box():
    agent, state = hand_agent(seen := [], smoothing=agents.Smoothing(noise=100.0, clip=50.0))
    second = targets_of(agent, state, seen)[0][1]
    total = (second - 1) / 0.5 / 2 - 3.4  # 10 * (a1 + a2), each a at an edge of the box
    assert min(abs(total - 10 * s) for s in (-2, 0, 2)) < 1e-3


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_exploration_noise_is_gaussian_of_its_size(noise):
    agent = agents.actor_critic(
        SPEC,
        agents.deterministic(HandActor(0.0), optax.sgd(0.0), noise=noise),
        agents.critic(HandCritic(2.0), recording([])),
    )
    keys = jax.random.split(jax.random.key(3), 20_000)
    drawn = jax.vmap(lambda key: agent.explore({"w": jnp.float32(0)}, jnp.ones(3), key))(keys)
    drawn = np.asarray(drawn)[:, 0] / noise
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, 1], atol=0.03)
    np.testing.assert_allclose(np.mean(np.abs(drawn) > 2), 0.0455, atol=0.006)  # 0 if uniform


def test_the_policy_climbs_the_first_critic():
    agent = make({"algorithm": "td3", "policy_delay": 1, "actor_learning_rate": 1e-3})
    start = agent.init(jax.random.key(0))
    batch = transitions()
    end, _ = agent.update(start, batch, jax.random.key(1), jnp.int32(0))
    critic = networks.Critic((16, 16), "relu")
    first = agent.critic(end)

    def objective(phi):
        action = jax.vmap(agent.act, in_axes=(None, 0))(phi, batch.obs)
        return jnp.mean(jax.vmap(critic.apply, in_axes=(None, 0, 0))(first, batch.obs, action))

    before, after = agent.policy(start), agent.policy(end)
    assert objective(after) > objective(before)
    grads = jax.grad(lambda phi: -objective(phi))(before)
    updates, _ = optax.adam(1e-3).update(grads, optax.adam(1e-3).init(before))
    for a, b in zip(leaves(optax.apply_updates(before, updates)), leaves(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mean", [0.0, -0.7, 10.0, -40.0])
@pytest.mark.parametrize("log_std", [-5.0, 0.0, 2.0])
def test_log_probability_of_a_squashed_gaussian(mean, log_std):
    """Also where tanh(u) rounds to 1: no infinity, and a finite gradient."""
    mean, log_std, noise = (
        jnp.array([mean, 0.1]),
        jnp.array([log_std, -1.0]),
        jnp.array([0.3, -1.2]),
    )
    action, log_prob = agents.tanh_gaussian(mean, log_std, noise)
    np.testing.assert_allclose(
        action, np.tanh(np.asarray(mean + jnp.exp(log_std) * noise, np.float64)), atol=1e-6
    )
    np.testing.assert_allclose(
        log_prob, oracles.tanh_gaussian_log_prob(mean, log_std, noise), rtol=1e-5, atol=1e-5
    )
    gradients = jax.grad(lambda m, s: agents.tanh_gaussian(m, s, noise)[1], argnums=(0, 1))(
        mean, log_std
    )
    assert all(np.isfinite(g).all() for g in gradients)


def test_the_squashed_density_integrates_to_one(x64):
    """Over a in (-1, 1), for one action: pi(a|s) = exp(log pi) on a grid of u, with da = (1 - a^2)
    du.
    """
    noise = jnp.linspace(-9, 9, 20_001)
    action, log_prob = jax.vmap(
        lambda n: agents.tanh_gaussian(jnp.array([0.4]), jnp.array([-0.3]), n[None])
    )(noise)
    np.testing.assert_allclose(np.trapezoid(np.exp(log_prob), action[:, 0]), 1, atol=1e-6)


class HandGaussian(Affine):
    """Mean w * obs[:2], standard deviation all but zero: the action is tanh of the mean, up to
    1e-6.
    """

    def apply(self, params, obs):
        return params["w"] * obs[:2], jnp.full(2, -14.0)


def test_gaussian_targets_by_hand_take_the_least_slow_critic_and_the_entropy():
    """As SAC's."""
    actor = HandGaussian(0.5)
    agent, state = hand_agent(seen := [], actor, slow=[3.0, 2.0], members=2, temperature=0.1)
    (first, second), metrics = targets_of(agent, state, seen)
    # mu(s') = tanh(0.5, 0.2); the least critic gives 2 * (3.4 + 10 * sum mu); log pi without the
    # drawn noise's share, which is -noise^2 / 2 in each action, is oracles.tanh_gaussian_log_prob
    # at noise 0
    mean = np.array([0.5, 0.2])
    value = 2 * (3.4 + 10 * np.tanh(mean).sum())
    log_prob = oracles.tanh_gaussian_log_prob(mean, np.full(2, -14.0), np.zeros(2))
    share = (second - (1 + 0.5 * (value - 0.1 * log_prob))) / (0.5 * 0.1)  # sum of noise^2 / 2
    assert first == 1 and 0 < share < 15
    assert float(metrics["actor/temperature"]) == np.float32(0.1)
    np.testing.assert_allclose(-metrics["actor/entropy"], log_prob - share, atol=8)  # of two states


def test_a_gaussian_policy_draws_anew_for_targets_and_for_its_own_step():
    """Equal observations and an equal key would draw equal actions: the keys must differ."""
    seen = []
    policy = agents.gaussian(HandGaussian(0.5), optax.sgd(0.0))

    def upcoming(state, obs, key):
        seen.append(key)
        return policy.upcoming(state, obs, key)

    def improve(state, batch, values, key):
        seen.append(key)
        return policy.improve(state, batch, values, key)

    spying = policy._replace(upcoming=upcoming, improve=improve)
    agent = agents.actor_critic(SPEC, spying, agents.critic(HandCritic(2.0), recording([])))
    agent.update(agent.init(jax.random.key(0)), HAND_BATCH, jax.random.key(1), jnp.int32(0))
    one, other = (jax.random.key_data(key).tolist() for key in seen)
    assert one != other and jax.random.key_data(jax.random.key(1)).tolist() not in (one, other)


def test_sac_policy_climbs_what_its_loss_says():
    """The agent's own step, on average over draws of the noise, raises E[min Q - alpha log pi]."""
    agent = make({"algorithm": "sac", "actor_learning_rate": 1e-3})
    start, batch = agent.init(jax.random.key(0)), transitions()
    end, _ = jax.jit(agent.update)(start, batch, jax.random.key(1), jnp.int32(0))
    critic, actor = networks.Critic((16, 16), "relu"), networks.GaussianActor(2, (16, 16), "relu")
    noise = jax.random.normal(jax.random.key(5), (64, 32, 2))

    def objective(phi):
        def one(obs, noise):
            mean, log_std = actor.apply(phi, obs)  # pyright: ignore
            action, log_prob = agents.tanh_gaussian(mean, log_std, noise)
            return (
                jnp.min(
                    jax.vmap(critic.apply, in_axes=(0, None, None))(end.critic.params, obs, action)
                )
                - 0.1 * log_prob
            )

        return jnp.mean(jax.vmap(jax.vmap(one), in_axes=(None, 0))(batch.obs, noise))

    assert objective(agent.policy(end)) > objective(agent.policy(start))


@pytest.mark.parametrize(("target", "direction"), [(100.0, 1), (-100.0, -1)])
def test_the_temperature_moves_towards_the_target_entropy(target, direction):
    """An entropy too low raises the temperature, one too high lowers it."""
    agent = make(
        {
            "algorithm": "sac",
            "automatic_temperature": True,
            "target_entropy": target,
            "temperature": 0.2,
        }
    )
    start = agent.init(jax.random.key(0))
    end, metrics = learn(agent._replace(update=jax.jit(agent.update)), start)
    np.testing.assert_allclose(np.exp(start.policy.log_temperature), 0.2, rtol=1e-6)
    assert direction * float(end.policy.log_temperature - start.policy.log_temperature) > 0
    # the metric is the temperature that the last update's targets used: one of its steps behind
    assert (
        direction
        * (float(end.policy.log_temperature) - np.log(float(metrics["actor/temperature"])))
        > 0
    )


def test_sac_explores_by_sampling_and_acts_by_the_mean():
    agent = make({"algorithm": "sac"})
    phi = agent.policy(agent.init(jax.random.key(0)))
    actor = networks.GaussianActor(2, (16, 16), "relu")
    mean, log_std = actor.apply(phi, jnp.ones(3))  # pyright: ignore
    np.testing.assert_allclose(agent.act(phi, jnp.ones(3)), jnp.tanh(mean), rtol=1e-6)
    drawn = jax.vmap(lambda key: agent.explore(phi, jnp.ones(3), key))(
        jax.random.split(jax.random.key(0), 4000)
    )
    before = np.arctanh(np.asarray(drawn, np.float64))
    np.testing.assert_allclose(before.mean(axis=0), mean, atol=0.1)
    np.testing.assert_allclose(before.std(axis=0), jnp.exp(jnp.asarray(log_std)), rtol=0.1)


def test_sac_defaults():
    """Appendix B: temperature 0.1, polyak 0.995; two critics and no delay from Haarnoja et al.
    2018b.
    """
    sac = agents.resolve(agents.AgentConfig(algorithm="sac")).config
    assert (sac.temperature, sac.polyak, sac.num_critics, sac.policy_delay) == (0.1, 0.995, 2, 1)
    assert (sac.activation, sac.target_networks, sac.automatic_temperature) == ("relu", True, None)


def test_defaults_are_the_rows_of_appendix_b():
    preqn, td3 = (agents.resolve(agents.AgentConfig(algorithm=a)).config for a in ("preqn", "td3"))
    assert (
        preqn.discount,
        preqn.hidden_sizes,
        preqn.actor_learning_rate,
        preqn.exploration_noise,
    ) == (
        0.99,
        (256, 256),
        1e-3,
        0.1,
    )
    assert (preqn.critic_learning_rate, td3.critic_learning_rate, preqn.eta, td3.polyak) == (
        0.1,
        1e-3,
        0.97,
        0.995,
    )
    assert (preqn.activation, preqn.num_critics, preqn.target_networks, preqn.critic_step) == (
        "sin",
        1,
        False,
        "preconditioned",
    )
    # "target policy smoothing and policy delay were taken from (Fujimoto et al., 2018b) without
    # modification"
    assert (td3.num_critics, td3.target_noise, td3.target_noise_clip, td3.policy_delay) == (
        2,
        0.2,
        0.5,
        2,
    )


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
        ({"damping": float("nan")}, "damping is nan"),
        ({"temperature": 0.0, "algorithm": "sac"}, "temperature is 0.0, but it must be above 0"),
        ({"algorithm": "sac", "target_noise": 0.2}, "target_noise is 0.2.*deterministic"),
        ({"automatic_temperature": True}, "policy of preqn is deterministic"),
        ({"algorithm": "sac", "target_entropy": -3.0}, "nothing tunes the temperature"),
    ],
)
def test_a_wrong_setting_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        agents.make(agents.AgentConfig(**fields), SPEC)
