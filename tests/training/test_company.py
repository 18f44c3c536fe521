"""Seeds side by side: each learns the same in any company, is frozen where it diverges, and
continues from a checkpoint as if it had never stopped.
"""

import dataclasses
import shutil
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.options import UserError
from preqn_jax.training import loop
from preqn_jax.training.checkpoint import Checkpointer
from preqn_jax.training.errors import Diverged
from round_cases import ALGORITHMS, run, setup


@pytest.mark.slow
def test_the_same_seeds_repeat_and_each_seed_is_itself_in_any_company():
    together = run(*setup(seeds=(3, 5), num_steps=300))[1]
    again = run(*setup(seeds=(3, 5), num_steps=300))[1]
    alone = run(*setup(seeds=(5,), num_steps=300))[1]
    for a, b, c in zip(*map(jax.tree.leaves, (together, again, alone)), strict=True):
        np.testing.assert_array_equal(a, b)
        # batched products may sum in another order, and 200 updates amplify it
        np.testing.assert_allclose(np.asarray(a)[1], np.asarray(c)[0], rtol=0.1, atol=0.05)
    assert (
        np.asarray(together.replay.data.action)[0] != np.asarray(together.replay.data.action)[1]
    ).any()
    first = (
        np.asarray(together.replay.data.action)[1, :100],
        np.asarray(alone.replay.data.action)[0, :100],
    )
    np.testing.assert_array_equal(*first)


def side_by_side():
    """TD3 with two seeds, and the arguments of a round's updates."""
    agent, collector, config, learner, _ = setup(agent_fields=ALGORITHMS["td3"], seeds=(3, 5))
    transitions, *_ = collector.collect(agent.policy(learner.agent), 0)
    args = config.seeds, transitions, np.zeros(2, bool), jnp.uint32(0), jnp.int32(0), 5
    return agent, config, learner, args


def test_side_by_side_a_delayed_step_is_skipped_and_not_thrown_away():
    agent, config, learner, args = side_by_side()
    learn = loop.make_learn(agent, config, turns=False)
    assert " cond[" in str(jax.make_jaxpr(learn, static_argnums=6)(learner, *args))


@pytest.mark.slow
def test_seeds_side_by_side_learn_what_they_learn_in_turn():
    agent, config, learner, args = side_by_side()
    states = [
        loop.make_learn(agent, config, turns)(jax.tree.map(jnp.copy, learner), *args)[0].agent
        for turns in (False, True)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *states)


@pytest.mark.slow
def test_a_nan_from_the_environment_stops_seeds_and_is_named():
    """All seeds, at the same step: the last round has no transitions and changes nothing."""
    rounds = loop.rounds(*setup("probe/nan", seeds=(3, 5), num_steps=300))
    with pytest.raises(Diverged, match=r"reward is not finite at step 131, seed 5"):
        for done in rounds:
            last = done
    assert [str(error) for _, error in last.diverged] == [
        f"the environment's reward is not finite at step 131, seed {seed}" for seed in (3, 5)
    ]
    assert last.counters.frozen == (0, 1) and last.step == 150 and not last.metrics


def test_a_seed_that_meets_a_nan_is_frozen_and_the_others_go_on_bit_for_bit():
    """Its second round ends in NaN, so that it keeps the agent of its first."""
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
        )  # a fourth makes the devices' shares equal
        noted = Noted(learner.agent, jax.device_put(fragile, loop.members_sharding(config)))
        learner = dataclasses.replace(learner, agent=noted)
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
    """An agent's state, and whether it is the one that will break."""

    inner: Any
    fragile: Any


def save_and_load(tmp_path, stop_at, **kwargs):
    """A run that is saved after a round and continued from disk, and the same run without this."""
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
    """Changes the largest data file of a checkpoint."""
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


@pytest.mark.slow
def test_only_the_newest_checkpoints_are_kept(tmp_path):
    like, _ = checkpointed(tmp_path)
    assert Checkpointer(tmp_path / "c").steps() == [100, 150]
    assert Checkpointer(tmp_path / "c").restore(like)[0] == 150


@pytest.mark.parametrize(
    "how",
    ["truncated", "corrupted", "emptied"],
)
@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_not_restored_without_a_word(tmp_path):
    checkpointed(tmp_path)
    other = setup(num_steps=150, agent_fields={"hidden_sizes": (16, 16)})[3]
    with pytest.raises(UserError, match="none of the checkpoints"):
        Checkpointer(tmp_path / "c").restore(other)
