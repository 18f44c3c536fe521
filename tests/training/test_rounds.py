"""Rounds, replay buffer and evaluation, on probe environments whose true values are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import agents, envs, networks
from preqn_jax.options import UserError
from preqn_jax.training import loop
from preqn_jax.training.config import RunConfig, validate_run
from preqn_jax.training.rollout import Evaluation, discounted_max
from preqn_jax.types import Transition
from round_cases import ALGORITHMS, EPISODES, LOOP, NETS, run, setup

HALF = {"discount": 0.5}


def q_at(agent_fields):
    """`(learner, obs [N], action [N]) -> Q [N]`, for the first seed and its first critic."""
    made = agents.resolve(agents.AgentConfig(**{**NETS, **agent_fields}))
    many = jax.jit(jax.vmap(networks.Critic(**made.critic).apply, in_axes=(None, 0, 0)))

    def at(learner, obs, action):
        first = jax.tree.map(lambda leaf: np.asarray(leaf)[0, 0], learner.agent.critic.params)
        return many(first, *(np.asarray(x, np.float32)[:, None] for x in (obs, action)))

    return at


def mu_at(agent, learner, obs):
    return float(
        agent.act(
            jax.tree.map(lambda leaf: leaf[0], agent.policy(learner.agent)),
            jnp.array([obs], jnp.float32),
        )[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_finds_the_right_values_of_the_probes(name):
    fields = {**ALGORITHMS[name], **HALF}
    # Q of CrossQ in evaluation mode wavers with its statistics: a median over rounds is taken.
    steps, close = {"crossq": (5000, 0.1), "preqn": (800, 0.05)}.get(name, (1500, 0.05))
    q = q_at(fields)
    for env_id, checks in (
        ("probe/observation", [(-1.0, -1.0), (1.0, 1.0)]),
        ("probe/delay", [(0.0, 0.5), (1.0, 1.0)]),
        (
            "probe/time-limit",
            [(0.0, 2.0)],
        ),  # with the time limit as a terminal it would be at most 1.94
    ):
        agent, collector, config, learner, counters = setup(env_id, fields, num_steps=steps)
        obs, values = np.repeat(np.array(checks), 2, axis=0).T
        actions = np.tile([-0.5, 0.5], len(checks))
        found = [
            q(done.learner, obs, actions)
            for done in loop.rounds(agent, collector, config, learner, counters)
            if done.step > 0.8 * steps
        ]
        off = np.median(found, axis=0) - values
        assert (np.abs(off) < close).all(), (env_id, off)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_finds_the_best_action(name):
    # The tanh of the mean is the best action once the spread is small.
    steps = 5000 if name in ("sac", "crossq", "layer-norm") else 800 if name == "preqn" else 1500
    agent, collector, config, learner, counters = setup(
        "probe/action", {**ALGORITHMS[name], **HALF}, num_steps=steps
    )
    _, learner = run(agent, collector, config, learner, counters)
    assert abs(mu_at(agent, learner, 0.0) - 0.5) < 0.1
    (evaluation,) = collector.evaluate(agent.policy(learner.agent), 0)
    assert evaluation is not None
    rewards = evaluation.rewards
    assert rewards.shape == (1, EPISODES) and (rewards > 0.98).all()


def test_a_round_collects_and_updates_one_for_one_after_update_after():
    agent, collector, config, learner, counters = setup(update_after=200)
    done, learner = run(agent, collector, config, learner, counters)
    assert [d.step for d in done] == list(range(50, 650, 50))
    assert [bool(d.metrics) for d in done] == [False] * 3 + [True] * 9
    assert done[-1].counters.updates == 450
    assert int(learner.replay.size[0]) == 600
    assert sum(len(d.episodes) for d in done) == 600  # one-step episodes


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 5])
def test_start_steps_act_uniformly_and_then_the_policy_does(num_envs):
    """Steps of all environments count together, and start_steps may end within a round."""
    agent, collector, config, learner, counters = setup(
        agent_fields={"exploration_noise": 0.0},
        num_steps=400,
        start_steps=75,
        update_after=400,
        num_envs=num_envs,
    )
    _, learner = run(agent, collector, config, learner, counters)
    obs, action = (
        np.asarray(x)[0, :400, 0] for x in (learner.replay.data.obs, learner.replay.data.action)
    )
    assert action[:75].std() == pytest.approx(1 / np.sqrt(3), rel=0.2)
    assert len(np.unique(action[:75])) == 75
    for side in (-1, 1):
        assert len(np.unique(action[75:][obs[75:] == side])) == 1


def test_the_replay_holds_what_happened():
    agent, collector, config, learner, counters = setup("probe/time-limit", num_steps=100)
    _, learner = run(agent, collector, config, learner, counters)
    data = jax.tree.map(lambda leaf: np.asarray(leaf)[0, :100], learner.replay.data)
    assert (data.discount == 1).all() and (data.reward == 1).all()
    agent, collector, config, learner, counters = setup("probe/delay", num_steps=100)
    _, learner = run(agent, collector, config, learner, counters)
    data = jax.tree.map(lambda leaf: np.asarray(leaf)[0, :100], learner.replay.data)
    assert (data.obs[:, 0] == np.tile([0, 1], 50)).all() and (
        data.next_obs[:, 0] == np.tile([1, 2], 50)
    ).all()
    assert (data.discount == np.tile([1, 0], 50)).all()


@pytest.mark.slow
def test_several_environments_feed_one_seed():
    agent, collector, config, learner, counters = setup("probe/delay", num_envs=5)
    done, learner = run(agent, collector, config, learner, counters)
    assert len(done) == 12 and int(learner.replay.size[0]) == 600
    assert (np.asarray(learner.replay.data.obs)[0, :15, 0] == [0] * 5 + [1] * 5 + [0] * 5).all()


def test_every_round_and_update_draws_anew():
    """For an agent that learns nothing and records what it gets: the minibatch, a draw from its
    key, and the count. The replay buffer holds one round, so that equal keys would draw equal rows.
    """
    config = dataclasses.replace(
        LOOP, num_steps=12, update_every=4, update_after=4, replay_capacity=4, seeds=(0, 1)
    )

    def update(log, batch, key, count):
        row = jnp.concatenate([batch.reward, jax.random.normal(key, (1,)), jnp.ones(1) * count])
        return log.at[count].set(row), {}

    nothing = lambda *_: None
    agent = agents.Agent(
        lambda key: jnp.zeros((12, config.batch_size + 2)),
        *(nothing, nothing, nothing),
        update,
        lambda state: {},
        *(nothing, nothing, nothing),
    )
    learner, _ = loop.init(agent, envs.spec("probe/delay"), config)
    learn = loop.make_learn(agent, config)
    blank, row = np.zeros((2, 4, 1), np.float32), np.tile(np.arange(4.0), (2, 1))
    for round_ in range(3):
        transitions = Transition(blank, blank, row, np.ones((2, 4)), blank)
        at = jnp.uint32(round_), jnp.int32(4 * round_)
        learner, _ = learn(learner, config.seeds, transitions, np.zeros(2, bool), *at, 4)
    log = np.asarray(learner.agent)
    assert (log[..., -1] == np.arange(12)).all()
    assert len(np.unique(log[..., -2])) == 24  # for two seeds
    assert len(np.unique(log[..., :-2].reshape(24, -1), axis=0)) == 24


def test_rounds_compile_nothing_after_those_that_are_the_first_of_their_kind(compiled):
    """Kinds are: random actions, actions of the policy, and updates, from step 150."""
    rounds = loop.rounds(*setup())
    assert [done.step for _, done in zip(range(4), rounds, strict=False)][-1] == 200
    assert compiled
    compiled.clear()
    assert [done.step for done in rounds][-1] == 600 and not compiled


@pytest.mark.slow
def test_a_failed_solve_is_counted_and_does_not_stop_the_run():
    done, _ = run(
        *setup(agent_fields={"algorithm": "preqn", "damping": 0.0}, num_steps=300)
    )  # K of one-state probes is singular
    last = done[-1].metrics
    assert last["solve/finite"][0] < 1 and last["linesearch/accepted"][0] < 1
    assert np.isfinite(last["critic/q_mean"]).all()


def test_evaluation_depends_on_its_seeds_alone_and_is_noiseless():
    agent, collector, config, learner, counters = setup(
        "Pendulum-v1", {"exploration_noise": 1.0}, seeds=(1, 2)
    )
    params = agent.policy(learner.agent)
    found = [collector.evaluate(params, step) for step in (0, 50, 0)]
    first, other, again = (np.stack([one.rewards for one in each]) for each in found)
    assert first.shape == (2, 200, EPISODES) and (first == again).all() and (first != other).any()
    act = jax.vmap(jax.vmap(agent.act, in_axes=(None, 0)), in_axes=(None, 0))
    for i, one in enumerate(found[0]):
        expected = act(jax.tree.map(lambda leaf, i=i: leaf[i], params), one.obs)
        np.testing.assert_allclose(one.action, expected, atol=1e-5)


def test_the_largest_discounted_return_is_that_of_the_best_state_on_the_way():
    rewards = np.random.default_rng(0).normal(size=(12, 3))
    to_go = [
        sum(0.9**k * rewards[t + k, e] for k in range(12 - t)) for t in range(12) for e in range(3)
    ]
    found = Evaluation(rewards, rewards, rewards, np.full(3, 12), np.zeros(3, bool))
    np.testing.assert_allclose(discounted_max(found, 0.9), max(to_go), rtol=1e-12)


@pytest.mark.parametrize(
    ("length", "ended", "first"), [(1000, False, 299), (200, False, 200), (200, True, 1)]
)
def test_a_task_that_costs_alone_attains_no_0_at_its_time_limit(length, ended, first):
    """While 0.99^left is above 5 % the rest of a return is unknown, unless the episode ended."""
    costs = -np.ones((length, 1))
    found = Evaluation(costs, costs, costs, np.array([length]), np.array([ended]))
    worth = -(1 - 0.99**first) / (1 - 0.99)
    np.testing.assert_allclose(discounted_max(found, 0.99), worth, rtol=1e-12)


def test_after_its_end_an_episode_went_through_no_state():
    rewards, lengths = np.array([[-1.0, -2.0], [-1.0, 0.0]]), np.array([2, 1])
    found = Evaluation(rewards, rewards, rewards, lengths, np.ones(2, bool))
    assert discounted_max(found, 0.5) == -1.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_steps": 50}, r"num_steps is 50, below update_after \(100\)"),
        ({"batch_size": 0}, "batch_size is 0, but it must be at least 1"),
        ({"batch_size": -3}, "batch_size is -3"),
        ({"num_steps": 610}, r"num_steps is 610, but it must be a multiple of update_every \(50\)"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (1, 1)}, r"seeds are \[1, 1\], but each seed trains once"),
        ({"seeds": (-1,)}, "seeds is -1"),
        ({"num_envs": 3}, "multiple of num_envs"),
        ({"replay_capacity": 10}, "replay_capacity is 10"),
    ],
)
def test_a_wrong_number_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        validate_run(RunConfig(), dataclasses.replace(LOOP, **fields))
