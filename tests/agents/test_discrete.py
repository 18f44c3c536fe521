"""Agents for finitely many actions: targets, exploration and steps against NumPy, and the
counterexamples.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import preqn_jax
from agent_cases import jitted
from preqn_jax import actions, agents, networks, ntk, problems, steps, tabular
from preqn_jax.options import UserError
from preqn_jax.types import Spec, Transition

A, OBS, GAMMA = 3, 4, 0.9
SPEC = Spec(OBS, 1, np.zeros(1), np.full(1, A - 1.0), num_actions=A)


class Linear:
    """Q(s, .) = W s, a row of W for each action."""

    def init(self, key, obs, action):
        return jax.random.normal(key, (A, OBS))

    def apply(self, params, obs, action):
        return (params @ obs)[actions.index(action[0], A)]


class Normalized(networks.ActionValues):
    """With a training mode, as `agents.crossq_critic` wants it."""

    train: bool = False


def transitions(seed=0, n=16):
    rng = np.random.default_rng(seed)
    number = actions.number(rng.integers(0, A, (n, 1)), A)
    made = rng.normal(size=(n, OBS)), number, rng.normal(size=n), rng.random(n) < 0.7
    return Transition(*(jnp.asarray(x, jnp.float32) for x in (*made, rng.normal(size=(n, OBS)))))


def linear(members=1, target=None, step=None, **options):
    """An agent with `Linear` critics, whose target networks differ from them."""
    net = Linear()
    step = step or steps.gradient(net.apply, optax.sgd(0.1))
    critic = agents.critic(net, step, members=members, target=target)
    agent = jitted(agents.discrete(SPEC, critic, discount=GAMMA, **options))
    state = agent.init(jax.random.key(0))
    if target is not None:
        weights = jax.random.normal(jax.random.key(9), (members, A, OBS))
        state = state.replace(critic=state.critic.replace(target=weights))
    return agent, state


def values(weights, obs):
    """Q `[B, A]` in float64; the smallest of several critics."""
    each = np.einsum("mao,bo->mba", np.float64(weights), np.float64(obs))
    return each.min(axis=0)


def targets(agent, state, batch):
    return agent.inspect(state, batch, jax.random.key(0)).targets


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [1, 2])
def test_targets_take_the_largest_value_at_the_successor(members):
    """The values are those of the target networks, if any, and the smallest of several critics."""
    batch = transitions()
    r, d = np.float64(batch.reward), np.float64(batch.discount)
    for target in (None, 0.5):
        agent, state = linear(members, target)
        weights = state.critic.params if target is None else state.critic.target
        y = r + GAMMA * d * values(weights, batch.next_obs).max(axis=1)
        np.testing.assert_allclose(targets(agent, state, batch), y, rtol=1e-5, atol=1e-5)


def test_double_q_learning_chooses_by_the_critic_and_values_by_its_copy():
    batch, (agent, state) = transitions(), linear(1, 0.5, double=True)
    chosen = values(state.critic.params, batch.next_obs).argmax(axis=1)
    copy = values(state.critic.target, batch.next_obs)
    value = copy[np.arange(len(chosen)), chosen]
    assert (copy.argmax(axis=1) != chosen).any()
    y = np.float64(batch.reward) + GAMMA * np.float64(batch.discount) * value
    np.testing.assert_allclose(targets(agent, state, batch), y, rtol=1e-5, atol=1e-5)


def test_an_update_is_a_step_towards_the_targets_and_its_copy_follows():
    batch, (agent, state) = transitions(), linear(1, 0.75)
    after, metrics = agent.update(state, batch, jax.random.key(0), jnp.int32(0))
    weights, obs = np.float64(state.critic.params), np.float64(batch.obs)
    index = np.asarray(actions.index(np.asarray(batch.action)[:, 0], A))
    y = np.float64(targets(agent, state, batch))
    delta = y - values(weights, obs)[np.arange(len(obs)), index]
    (moved,) = np.array(weights)  # one member's
    np.add.at(moved, index, 0.1 * delta[:, None] * obs / len(obs))  # Eq. 5
    np.testing.assert_allclose(after.critic.params[0], moved, rtol=1e-5, atol=1e-5)
    target = 0.75 * np.float64(state.critic.target[0]) + 0.25 * moved
    np.testing.assert_allclose(after.critic.target[0], target, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["critic/td_abs"], np.abs(delta).mean(), rtol=1e-5)
    assert int(after.updates) == 1


def test_whole_copies_every_three_updates():
    """As in Mnih et al.: the target network becomes a copy of the online network."""
    agent, state = linear(1, 0.0, delay=3)
    copies, online = [], []
    for i in range(7):
        state, _ = agent.update(state, transitions(i), jax.random.key(i), jnp.int32(i))
        copies.append(np.asarray(state.critic.target))
        online.append(np.asarray(state.critic.params))
    for i, made in ((2, 2), (3, 2), (4, 2), (5, 5), (6, 5)):
        np.testing.assert_array_equal(copies[i], online[made])
    assert (copies[0] == copies[1]).all() and (copies[1] != copies[2]).any()


# --- acting ---------------------------------------------------------------------------------------


def test_epsilon_goes_down_in_a_line_and_stays():
    agent, state = linear(epsilon=agents.Epsilon(0.8, 0.2, decay=6))
    seen = []
    for i in range(9):
        seen.append(float(agent.policy(state).epsilon))
        state, _ = agent.update(state, transitions(i), jax.random.key(i), jnp.int32(i))
    np.testing.assert_allclose(seen, [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(agent.summary(state)["actor/epsilon"], 0.2, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_actions_are_greedy_but_for_a_share_that_is_uniform(epsilon):
    agent, state = linear(epsilon=agents.Epsilon(epsilon, epsilon, 1))
    params, obs, n = agent.policy(state), jnp.arange(4.0), 6000
    best = values(state.critic.params, obs[None])[0].argmax()
    assert actions.index(agent.act(params, obs), A) == best
    keys = jax.random.split(jax.random.key(1), n)
    seen = jax.vmap(agent.explore, in_axes=(None, None, 0))(params, obs, keys)
    assert seen.shape == (n, 1)
    shares = np.bincount(np.asarray(actions.index(seen[:, 0], A)), minlength=A) / n
    expected = np.full(A, epsilon / A) + (1 - epsilon) * (np.arange(A) == best)
    assert np.all(np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / n))


def test_numbers_and_indices_undo_each_other_at_every_size():
    for count in (1, 2, 3, 7, 18, 1000):
        index = np.arange(count)
        for kind in (np.float32, jnp.float32):
            numbers = actions.number(index, count).astype(kind)
            np.testing.assert_array_equal(actions.index(numbers, count), index)
    uniform = np.random.default_rng(0).uniform(-1, 1, 60_000).astype(np.float32)
    shares = np.bincount(actions.index(uniform, 6)) / len(uniform)
    np.testing.assert_allclose(shares, 1 / 6, atol=5 * np.sqrt(5 / 36 / len(uniform)))


# --- the kernel -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_the_kernel_over_pairs_is_taken_apart_without_a_warning(x64):
    net, rng = networks.ActionValues(A, (8, 8)), np.random.default_rng(0)
    obs = rng.normal(size=(10, OBS))
    action = np.asarray(actions.number(np.arange(10)[:, None] % A, A))
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64),
        jax.jit(net.init)(jax.random.key(0), obs[0], action[0]),
    )
    gradients = jax.jit(jax.vmap(jax.jacrev(net.apply), in_axes=(None, 0, 0)))
    leaves = jax.tree.leaves(gradients(params, obs, action))
    phi = np.concatenate([np.reshape(leaf, (10, -1)) for leaf in leaves], axis=1)
    gram = jax.jit(lambda params: ntk.linearize(net.apply, params, (obs, action)).gram)(params)
    np.testing.assert_allclose(gram, phi @ phi.T, rtol=1e-9, atol=1e-9)
    hidden = phi[0] @ phi[1]  # of two actions: what the last layer has of its own is not shared
    assert action[0] != action[1] and 0 < abs(hidden) < phi[0] @ phi[0]


# --- by name --------------------------------------------------------------------------------------


def test_running_statistics_are_no_weights_and_no_part_of_a_step():
    """As with `actor_critic`: batch normalization counts examples, and moves with every batch."""
    rng, n = np.random.default_rng(0), 64
    number = actions.number(rng.integers(0, A, (n, 1)), A)
    obs, ahead = 3 + rng.normal(size=(2, n, OBS))
    batch = Transition(
        *(jnp.asarray(x, jnp.float32) for x in (obs, number, rng.normal(size=n), np.ones(n), ahead))
    )
    net = Normalized(A, (8,), "relu", norm="batch")
    agent = jitted(agents.discrete(SPEC, agents.crossq_critic(net, optax.sgd(1e-3))))
    state = agent.init(jax.random.key(0))
    state, _ = agent.update(state, batch, jax.random.key(1), jnp.int32(0))
    weights = jax.tree.leaves(networks.weights(state.critic.params))
    size = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in weights))
    assert float(agent.summary(state)["critic/norm"]) == pytest.approx(size, rel=1e-5)
    look = agent.inspect(state, batch, jax.random.key(1))
    for name in look.params:
        same = [
            np.array_equal(*pair)
            for pair in zip(
                jax.tree.leaves(look.params[name]), jax.tree.leaves(look.moved[name]), strict=True
            )
        ]
        assert all(same) if name == "batch_stats" else not all(same)


def test_presets_are_rows_of_settings():
    preqn, dqn = (agents.resolve(agents.AgentConfig(name)) for name in agents.DISCRETE)
    assert (preqn.critic_step, preqn.target, preqn.huber) == ("preconditioned", None, None)
    assert (dqn.critic_step, dqn.target, dqn.huber) == ("gradient", 0.995, 1.0)
    assert (preqn.network["activation"], dqn.network["activation"]) == ("sin", "relu")
    for made in (preqn, dqn):
        assert made.policy == (agents.Epsilon(1.0, 0.05, 10_000), False)
    assert agents.resolve(agents.AgentConfig("dqn", huber=0.0)).huber is None
    assert agents.resolve(agents.AgentConfig("dqn", critic_step="preconditioned")).huber is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"algorithm": "preqn_discrete", "double_q": True}, "there is no target network"),
        ({"algorithm": "preqn_discrete", "huber": 2.0}, "bounds the TD errors of gradient steps"),
        ({"algorithm": "dqn", "temperature": 0.1}, "acts greedily in Q: leave it out"),
        ({"algorithm": "dqn", "target_noise": 0.1}, "acts greedily in Q: leave it out"),
        ({"algorithm": "dqn", "epsilon_end": 1.5}, "is a share and must be at most 1"),
        ({"algorithm": "td3", "epsilon_end": 0.1}, r"for discrete actions \(preqn_discrete"),
        ({"algorithm": "ddpg", "double_q": True}, "for discrete actions"),
    ],
)
def test_what_does_not_fit_is_one_sentence(fields, words):
    with pytest.raises(UserError, match=words) as caught:
        agents.resolve(agents.AgentConfig(**fields))
    assert "\n" not in str(caught.value)


def test_a_swept_member_reports_its_own_epsilon():
    one = {"epsilon_start": 0.3}
    agent = agents.swept(lambda s: agents.dqn(SPEC, hidden_sizes=(8,), **s), {"epsilon_start": 1.0})
    state = agent.init(jax.random.key(0), one)
    assert agent.summary(state)["actor/epsilon"] == 0.3


@pytest.mark.parametrize(
    ("algorithm", "spec", "words"),
    [
        ("preqn", SPEC, r"has 3 discrete actions; use `algorithm=preqn_discrete` \(or dqn\)"),
        ("sac", SPEC, "has 3 discrete actions"),
        (
            "dqn",
            Spec(3, 2, -np.ones(2), np.ones(2)),
            r"has continuous actions of size 2; use `algorithm=preqn` \(or td3\)",
        ),
    ],
)
def test_an_algorithm_for_other_actions_is_refused(algorithm, spec, words):
    with pytest.raises(UserError, match=words):
        agents.make(agents.AgentConfig(algorithm), spec)


def test_parts_that_make_no_agent_are_refused():
    net = Linear()
    critic = agents.critic(net, steps.gradient(net.apply, optax.sgd(0.1)))
    with pytest.raises(ValueError, match="spec.num_actions is None, expected the number"):
        agents.discrete(SPEC._replace(num_actions=None), critic)
    with pytest.raises(ValueError, match="delay must be at least 1, got 0"):
        agents.discrete(SPEC, critic, delay=0)


# --- the counterexamples --------------------------------------------------------------------------


def features(problem):
    """The problem's own features as a network: Q = theta . phi(s, a)."""

    class Features:
        def init(self, key, obs, action):
            return problem.theta

        def apply(self, params, obs, action):
            phi = problem.features[jnp.argmax(obs), actions.index(action[0], problem.rho.shape[1])]
            return jnp.dot(phi, params, precision="highest")

    return Features()


def learned(problem, step_of, updates, size=64):
    """max |Q| before each of so many updates, on transitions drawn from the problem's rho."""
    net, (states, count) = features(problem), problem.rho.shape
    spec = Spec(states, 1, np.zeros(1), np.full(1, count - 1.0), num_actions=count)
    critic = agents.critic(net, step_of(net.apply))
    agent = agents.discrete(spec, critic, discount=float(problem.mdp.gamma))

    def update(state, i):
        key = jax.random.fold_in(jax.random.key(0), i)
        s, a, after = tabular.transitions(problem.mdp, problem.rho, key, size)
        obs, number = jnp.eye(states)[s], actions.number(a[:, None], count)
        batch = Transition(obs, number, jnp.zeros(size), jnp.ones(size), jnp.eye(states)[after])
        moved, _ = agent.update(state, batch, key, i)
        theta = agent.critic(state)
        return moved, jnp.max(jnp.abs(problem.features @ theta))

    @jax.jit
    def run():
        start = agent.init(jax.random.key(0))
        return jax.lax.scan(update, start, jnp.arange(updates))[1]

    return np.asarray(run())


def dqn_without_copy(q):
    return steps.gradient(q, optax.sgd(0.1))


@pytest.mark.slow
def test_preqn_solves_bairds_star_where_dqn_without_a_copy_diverges():
    """Q* = 0. K has full rank there, so that PreQN's step is that of U1."""
    star = problems.baird()
    q = learned(star, dqn_without_copy, 4000)
    assert q[-1] > 100 * q[0] or not np.isfinite(q[-1])
    q = learned(star, lambda q: steps.preconditioned(q, 0.5), 2000)
    assert q[-1] < 1e-2 * q[0] and q.max() < 1.5 * q[0]


def test_preqn_stands_still_on_w_to_2w_where_dqn_without_a_copy_diverges():
    """The single weight can follow no backup: no step has an alignment of eta, so none is taken."""
    problem = problems.w_to_2w()
    q = learned(problem, dqn_without_copy, 1000)
    assert q[-1] > 100 * q[0] or not np.isfinite(q[-1])
    q = learned(problem, lambda q: steps.preconditioned(q, 0.5), 200)
    np.testing.assert_array_equal(q, q[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain", "gridworld"])
def test_preqn_finds_q_star_of_a_finite_problem(name):
    """With a network, on the transitions that its own policy meets."""
    problem = getattr(problems, name)()
    gamma = float(problem.mdp.gamma)
    options = {"hidden_sizes": (32, 32), "batch_size": 64, "start_steps": 1000, "discount": gamma}
    training = preqn_jax.train(
        "preqn_discrete", f"tabular/{name}", num_steps=6000, update_after=1000, eval_every=6000,
        eta=0.8, epsilon_end=0.5, **options,
    )  # fmt: skip
    *_, last = training
    q = last.trained.q()
    states, count = problem.rho.shape
    s, a = (x.ravel() for x in np.indices((states, count)))
    table = np.asarray(q(np.eye(states)[s], a)).reshape(states, count)
    star = np.asarray(tabular.value_iteration(problem.mdp).q)
    goes_on = ~np.asarray(problem.terminal)
    assert np.abs(table - star)[goes_on].max() < 0.1 * star.max()
    best = star[np.arange(states), table.argmax(axis=1)]
    np.testing.assert_allclose(best[goes_on], star.max(axis=1)[goes_on], atol=0.02 * star.max())


@pytest.mark.parametrize("name", ["dqn", "preqn_discrete"])
def test_an_agent_that_is_first_made_while_jax_traces_serves_after_it(name):
    """As when only shapes of its state are wanted: agents are cached, and no tracer may stay in
    one.
    """
    make = lambda: agents.make(agents.AgentConfig(algorithm=name, hidden_sizes=(7, 5)), SPEC)
    key = jax.random.key(0)
    jax.eval_shape(lambda key: make().init(key), key)
    agent = make()
    state = agent.init(key)
    assert agent.act(agent.policy(state), jnp.ones(SPEC.obs_size)).shape == (1,)
