"""Rounds, evaluation and checkpoints, on probes whose right values are known."""

import dataclasses
import shutil
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import agents, envs, networks
from preqn_jax.options import UserError
from preqn_jax.training import collect, loop
from preqn_jax.training.checkpoint import Checkpointer
from preqn_jax.training.config import RunConfig, validate_run
from preqn_jax.training.errors import Diverged
from preqn_jax.training.rollout import attained
from preqn_jax.types import Transition

LOOP = loop.LoopConfig(
    num_steps=600, start_steps=100, update_after=100, batch_size=32, replay_capacity=1000
)
NETS = {"hidden_sizes": (32, 32)}
EPISODES = 3  # of an evaluation


def setup(env_id="probe/observation", agent_fields=None, workers=0, **loop_fields):
    config = dataclasses.replace(LOOP, **loop_fields)
    make_agent = partial(agents.make, agents.AgentConfig(**{**NETS, **(agent_fields or {})}))
    agent, spec = make_agent(envs.spec(env_id)), envs.spec(env_id)
    collector = collect.Collector(collect.Recipe(make_agent, env_id, config, EPISODES), workers)
    return agent, collector, config, *loop.init(agent, spec, config)


def run(*args):
    """All rounds of a run; the learner of the last."""
    done = list(loop.rounds(*args))
    return done, done[-1].learner


def q_at(agent_fields, learner, obs, action):
    made = agents.resolve(agents.AgentConfig(**{**NETS, **agent_fields}))
    critic = networks.Critic(**made.critic)
    first = jax.tree.map(lambda leaf: leaf[0, 0], learner.agent.critic.params)
    return float(
        critic.apply(first, jnp.array([obs], jnp.float32), jnp.array([action], jnp.float32))
    )


def mu_at(agent, learner, obs):
    return float(
        agent.act(
            jax.tree.map(lambda leaf: leaf[0], agent.policy(learner.agent)),
            jnp.array([obs], jnp.float32),
        )[0]
    )


ALGORITHMS = {
    "preqn": {"algorithm": "preqn"},
    "ngql": {"algorithm": "ngql"},
    "ddpg": {"algorithm": "ddpg", "polyak": 0.9, "critic_learning_rate": 3e-3},
    "td3": {"algorithm": "td3", "polyak": 0.9, "critic_learning_rate": 3e-3},
    "sac": {"algorithm": "sac", "polyak": 0.9, "critic_learning_rate": 3e-3, "temperature": 1e-3},
    "layer-norm": {
        "algorithm": "ddpg",
        "critic_norm": "layer",
        "target_networks": False,
        "critic_learning_rate": 3e-3,
    },
    "crossq": {
        "algorithm": "crossq",
        "critic_hidden_sizes": (32, 32),
        "automatic_temperature": False,
        "temperature": 1e-3,
    },
}
HALF = {"discount": 0.5}
LONG = {"sac", "ngql", "ddpg", "td3", "crossq", "layer-norm"}  # of a kind with others
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in ALGORITHMS]


@pytest.mark.parametrize("name", EACH)
def test_every_algorithm_finds_the_right_values_of_the_probes(name):
    fields = {**ALGORITHMS[name], **HALF}
    # Q of CrossQ in evaluation mode wavers as its statistics do.
    steps, close = (5000, 0.1) if name == "crossq" else (1500, 0.05)
    for env_id, checks in (
        ("probe/observation", [(-1.0, -1.0), (1.0, 1.0)]),
        ("probe/delay", [(0.0, 0.5), (1.0, 1.0)]),
        (
            "probe/time-limit",
            [(0.0, 2.0)],
        ),  # taking the time limit for a terminal would give at most 1.94
    ):
        agent, collector, config, learner, counters = setup(env_id, fields, num_steps=steps)
        _, learner = run(agent, collector, config, learner, counters)
        for obs, value in checks:
            for action in (-0.5, 0.5):
                found = q_at(fields, learner, obs, action)
                assert abs(found - value) < close, (env_id, obs, action)


@pytest.mark.parametrize("name", EACH)
def test_every_algorithm_finds_the_best_action(name):
    steps = (
        5000 if name in ("sac", "crossq", "layer-norm") else 1500
    )  # the tanh of its mean is the best action once its spread is small
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


@pytest.mark.parametrize("num_envs", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_start_steps_act_uniformly_and_then_the_policy_does(num_envs):
    """They count steps of all environments together, and may end within a round."""
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


def test_several_environments_feed_one_seed():
    agent, collector, config, learner, counters = setup("probe/delay", num_envs=5)
    done, learner = run(agent, collector, config, learner, counters)
    assert len(done) == 12 and int(learner.replay.size[0]) == 600
    assert (np.asarray(learner.replay.data.obs)[0, :15, 0] == [0] * 5 + [1] * 5 + [0] * 5).all()


def test_every_round_and_update_draws_anew():
    """Of an agent that learns nothing and notes what it was given: the minibatch, a draw from its
    key, and the count. The replay holds one round, so that equal keys would draw equal rows.
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
        learner, _ = learn(learner, transitions, np.zeros(2, bool), *at, 4)
    log = np.asarray(learner.agent)
    assert (log[..., -1] == np.arange(12)).all()
    assert len(np.unique(log[..., -2])) == 24  # of two seeds
    assert len(np.unique(log[..., :-2].reshape(24, -1), axis=0)) == 24


def test_the_update_compiles_once():
    agent, collector, config, learner, counters = setup()
    learn = loop.make_learn(agent, config)
    for i in range(5):
        transitions, *_ = collector.collect(agent.policy(learner.agent), i)
        at = np.zeros(1, bool), jnp.uint32(i), jnp.int32(50 * i)
        learner, _ = learn(learner, transitions, *at, 50)
    policy = collector._pool._rollouts[0]._acting  # pyright: ignore
    assert [made._cache_size() for made in (learn, policy.draw, policy.explore)] == [1, 1, 1]  # pyright: ignore


def test_the_same_seeds_repeat_and_each_seed_is_itself_in_any_company():
    together = run(*setup(seeds=(3, 5)))[1]
    again = run(*setup(seeds=(3, 5)))[1]
    alone = run(*setup(seeds=(5,)))[1]
    for a, b, c in zip(*map(jax.tree.leaves, (together, again, alone)), strict=True):
        np.testing.assert_array_equal(a, b)
        # batched products may sum in another order, and 500 updates amplify it
        np.testing.assert_allclose(np.asarray(a)[1], np.asarray(c)[0], rtol=0.1, atol=0.05)
    assert (
        np.asarray(together.replay.data.action)[0] != np.asarray(together.replay.data.action)[1]
    ).any()
    first = (
        np.asarray(together.replay.data.action)[1, :100],
        np.asarray(alone.replay.data.action)[0, :100],
    )
    np.testing.assert_array_equal(*first)


@pytest.mark.slow
def test_seeds_side_by_side_learn_what_they_learn_in_turn():
    agent, collector, config, learner, _ = setup(agent_fields=ALGORITHMS["td3"], seeds=(3, 5))
    transitions, *_ = collector.collect(agent.policy(learner.agent), 0)
    args = transitions, np.zeros(2, bool), jnp.uint32(0), jnp.int32(0), 5
    vmapped = loop.make_learn(agent, config, side_by_side=True)
    assert " cond[" in str(
        jax.make_jaxpr(vmapped, static_argnums=5)(learner, *args)
    )  # or the delayed step is computed, and thrown away
    states = [
        learn(jax.tree.map(jnp.copy, learner), *args)[0].agent
        for learn in (vmapped, loop.make_learn(agent, config))
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *states)


def test_a_nan_from_the_environment_stops_seeds_and_is_named():
    """All of them here, at the same step: the last round has no transitions and changes nothing."""
    rounds = loop.rounds(*setup("probe/nan", seeds=(4, 9)))
    with pytest.raises(Diverged, match=r"reward is not finite at step 131, seed 9"):
        for done in rounds:
            last = done
    assert [str(error) for _, error in last.diverged] == [
        f"the environment's reward is not finite at step 131, seed {seed}" for seed in (4, 9)
    ]
    assert last.counters.frozen == (0, 1) and last.step == 150 and not last.metrics


def test_a_seed_that_meets_a_nan_is_frozen_and_the_others_go_on_bit_for_bit():
    """A seed's second round ends in NaN: it keeps the agent of its first."""
    agent, *_ = setup()

    def update(state, batch, key, count):
        bad = state.fragile & (count >= 60)
        inner, metrics = agent.update(state.inner, batch, key, count)
        inner = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x).astype(x.dtype), inner)
        q_mean = jnp.where(bad, jnp.nan, metrics["critic/q_mean"])
        return state.replace(inner=inner), {**metrics, "critic/q_mean": q_mean}

    of = lambda f: lambda state, *args: f(state.inner, *args)
    made = agent._replace(update=update, policy=of(agent.policy), summary=of(agent.summary))

    def rounds(fragile):
        _, collector, config, learner, counters = setup(seeds=(4, 9, 5), num_steps=300)
        fragile = np.resize(
            fragile, len(learner.replay.added)
        )  # a fourth makes devices' shares equal
        learner = dataclasses.replace(learner, agent=Noted(learner.agent, jnp.asarray(fragile)))
        return [
            (done, jax.device_get(done.learner.agent.inner))
            for done in loop.rounds(made, collector, config, learner, counters)
        ]

    whole, broken = rounds([False] * 3), rounds([False, True, False])
    (((i, error),),) = [done.diverged for done, _ in broken if done.diverged]
    assert i == 1 and (error.quantity, error.seed, error.step) == ("critic/q_mean", 9, 150)
    assert [done.counters.frozen for done, _ in broken] == 2 * [()] + 4 * [(1,)]
    for (one, its_agent), (other, others_agent) in zip(whole, broken, strict=True):
        for i in (0, 2):
            pick = lambda tree, i=i: jax.tree.map(lambda leaf: np.asarray(leaf)[i], tree)
            jax.tree.map(np.testing.assert_array_equal, pick(its_agent), pick(others_agent))
            jax.tree.map(np.testing.assert_array_equal, pick(one.metrics), pick(other.metrics))
        assert [e for e in one.episodes if e[0] != 1] == [e for e in other.episodes if e[0] != 1]
    before, *after = [jax.tree.map(lambda leaf: leaf[1], state) for _, state in broken[1:]]
    for state in after:
        jax.tree.map(np.testing.assert_array_equal, state, before)
    assert all(done.episodes and 1 not in dict(done.episodes) for done, _ in broken[3:])


@flax.struct.dataclass
class Noted:
    """An agent's state, and whether it will break."""

    inner: Any
    fragile: Any


def test_a_failed_solve_is_counted_and_does_not_stop_the_run():
    done, _ = run(
        *setup(agent_fields={"damping": 0.0}, num_steps=300)
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
    np.testing.assert_allclose(attained(rewards, 0.9), max(to_go), rtol=1e-12)


def save_and_load(tmp_path, stop_at, **kwargs):
    """A run that is saved after a round and goes on from disk, and the same run straight
    through.
    """
    agent, collector, config, learner, counters = setup(**kwargs)
    checkpoints = Checkpointer(tmp_path / "checkpoints")
    for done in loop.rounds(agent, collector, config, learner, counters):
        if done.step == stop_at:
            checkpoints.save(
                stop_at, done.learner, done.counters, collector.save(), {"note": [1, "x"]}
            )
            break
    agent, collector, config, learner, counters = setup(**kwargs)
    restored = Checkpointer(tmp_path / "checkpoints").restore(learner)
    assert restored is not None
    step, learner, counters, state, extra = restored
    assert step == stop_at and extra == {"note": [1, "x"]}
    collector.load(state)
    resumed, last = run(agent, collector, config, learner, counters)
    return resumed, last, *run(*setup(**kwargs))


@pytest.mark.parametrize(
    "name",
    ["preqn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("td3", "sac", "crossq"))],
)
def test_save_and_resume_is_straight_through(tmp_path, name):
    fields = {
        "algorithm": name,
        "automatic_temperature": True if name == "sac" else None,
        "critic_hidden_sizes": (16, 16) if name == "crossq" else None,
    }
    kwargs = {
        "env_id": "probe/time-limit",
        "agent_fields": fields,
        "seeds": (0, 1),
        "replay_capacity": 450,
    }
    resumed, last, straight, expected = save_and_load(tmp_path, 250, **kwargs)
    for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(resumed, straight[5:], strict=True):
        assert a.step == b.step and a.episodes == b.episodes
        assert all((a.metrics[k] == b.metrics[k]).all() for k in b.metrics)


def checkpointed(tmp_path):
    agent, collector, config, learner, counters = setup(num_steps=150)
    checkpoints = Checkpointer(tmp_path / "c")
    for done in loop.rounds(agent, collector, config, learner, counters):
        checkpoints.save(done.step, done.learner, done.counters, collector.save(), {})
    return setup(num_steps=150)[3], done.learner


def damage(folder, how):
    """Spoil the biggest data file of a checkpoint."""
    path = max(
        (p for p in folder.rglob("*") if p.is_file() and "agent" in p.parts),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    like, _ = checkpointed(tmp_path)
    assert Checkpointer(tmp_path / "c").steps() == [100, 150]
    assert Checkpointer(tmp_path / "c").restore(like)[0] == 150


@pytest.mark.parametrize(
    "how",
    ["truncated", *(pytest.param(how, marks=pytest.mark.slow) for how in ("corrupted", "emptied"))],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_and_says_so(tmp_path, caplog, how):
    like, _ = checkpointed(tmp_path)
    folder = tmp_path / "c" / "150"
    if how == "emptied":
        shutil.rmtree(folder / "replay")
    else:
        damage(folder, how)
    restored = Checkpointer(tmp_path / "c").restore(like)
    assert restored is not None
    assert restored[0] == 100
    assert "the checkpoint of step 150 cannot be read" in caplog.text


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_not(tmp_path):
    like, _ = checkpointed(tmp_path)
    assert Checkpointer(tmp_path / "empty").restore(like) is None
    for step in (100, 150):
        damage(tmp_path / "c" / str(step), "truncated")
    with pytest.raises(
        UserError,
        match=r"none of the checkpoints in .* can be read \(steps \[100, 150\]; the files in agent",
    ):
        Checkpointer(tmp_path / "c").restore(like)


def test_a_checkpoint_of_another_network_is_not_restored_without_a_word(tmp_path):
    checkpointed(tmp_path)
    other = setup(num_steps=150, agent_fields={"hidden_sizes": (16, 16)})[3]
    with pytest.raises(UserError, match="none of the checkpoints"):
        Checkpointer(tmp_path / "c").restore(other)


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
