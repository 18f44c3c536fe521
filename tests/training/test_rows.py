"""Cutting rows of members from arrays that devices share, and putting them in."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.training import rows
from preqn_jax.types import Transition

ROOT = Path(__file__).parents[2]


def rings(members, capacity):
    def ring(*shape):
        size = (members, capacity, *shape)
        return jnp.arange(np.prod(size), dtype=jnp.float32).reshape(size)

    return Transition(ring(3), ring(2), ring(), ring(), ring(3))


def test_what_is_cut_is_no_view():
    leaf = jnp.arange(6.0).reshape(3, 2)
    where = leaf.unsafe_buffer_pointer()
    whole = rows.cut(leaf, range(3))
    after = jax.jit(lambda x: x + 1, donate_argnums=0)(leaf)
    assert after.unsafe_buffer_pointer() == where
    np.testing.assert_array_equal(whole, np.arange(6.0).reshape(3, 2))


def test_one_program_cuts_any_count_from_anywhere():
    """Else each count would need its own program, compiled at a checkpoint and kept in memory."""
    ring = jnp.arange(3.0 * 11 * 2).reshape(3, 11, 2)
    before = rows._slice._cache_size()  # pyright: ignore
    for start, count in ((0, 5), (5, 5), (10, 1), (4, 3), (6, 5)):
        found = rows.cut_ring(ring, range(1, 3), start, count, most=5)
        np.testing.assert_array_equal(found, ring[1:3, start : start + count])
    assert rows._slice._cache_size() == before + 1  # pyright: ignore
    found = rows.cut_ring(ring, range(1), 2, 9, most=50)  # of more than there are
    np.testing.assert_array_equal(found, ring[:1, 2:])


def test_rings_are_filled_member_by_member_and_what_was_not_put_is_zero():
    like, whole = rings(3, 5), jax.device_get(rings(3, 5))
    made = rows.Rings(like)
    assert not like.reward.is_deleted()
    for members in (range(1), range(1, 3)):
        for start, count in ((0, 2), (2, 1)):
            piece = [one[members.start : members.stop, start : start + count] for one in whole]
            made.put(members, start, Transition(*piece))
    assert like.reward.is_deleted()  # else memory would hold both
    for found, one in zip(made.taken(), whole, strict=True):
        np.testing.assert_array_equal(found[:, :3], one[:, :3])
        assert not found[:, 3:].any()


def test_rings_that_were_cleared_hold_nothing_of_before():
    made = rows.Rings(rings(2, 4))
    made.put(range(2), 0, jax.device_get(rings(2, 4)))
    made.clear()
    assert not any(ring.any() for ring in made.taken())


FOUR = """
import jax, numpy as np
from preqn_jax.training import loop, rows
from preqn_jax.training.checkpoint import Checkpointer, join_learners
from preqn_jax.training.loop import Counters
from preqn_jax import agents
from preqn_jax.types import Spec
assert jax.local_device_count() == 4
spec = Spec(3, 1, -np.ones(1), np.ones(1))
agent = agents.make(agents.AgentConfig(algorithm="preqn", hidden_sizes=(4,)), spec)
def fresh(seeds):
    return loop.init(agent, spec, loop.LoopConfig(seeds=tuple(range(seeds)), num_steps=5000))[0]
def filled(learner):  # with numbers of their own
    def one(leaf):
        count = np.arange(leaf.size).reshape(leaf.shape)
        if leaf is learner.replay.added:
            count = 6 + count % 3
        return jax.device_put(np.asarray(count % 4000, leaf.dtype), leaf.sharding)
    return jax.tree.map(one, learner)
there = filled(fresh(7))
assert there.replay.added.shape == (8,) and len(there.replay.added.sharding.device_set) == 4
cut, seen = rows._slice, []
def once(share, *given):
    seen.append(len(share.sharding.device_set))
    return cut(share, *given)
rows._slice = once
expected, parts = jax.device_get(there), [range(0, 1), range(1, 6), range(6, 7)]
for i, members in enumerate(parts):
    Checkpointer(f"c/{i}").save(50, there, Counters(1, 50, ()), [], {}, members)
assert set(seen) == {1}, seen
like = fresh(7)
rings = rows.Rings(like.replay.data)
read = [Checkpointer(f"c/{i}").read(50, like, rings, members=m)[0] for i, m in enumerate(parts)]
found = join_learners(like, read, rings)
assert found.replay.data.obs.sharding == like.replay.data.obs.sharding
rows_there = int(expected.replay.added[:7].min())
def same(a, b, name):
    np.testing.assert_array_equal(np.asarray(a)[:7], b[:7], name)
jax.tree.map(lambda a, b: same(a, b, "agent"), found.agent, expected.agent)
jax.tree.map(
    lambda a, b: same(a[:, :rows_there], b[:, :rows_there], "replay"),
    found.replay.data, expected.replay.data,
)
assert not np.asarray(found.replay.data.obs)[7].any()
three = Checkpointer("c/1").restore(fresh(5), members=range(5))  # alone
np.testing.assert_array_equal(three[1].replay.added[:5], expected.replay.added[1:6])
"""


@pytest.mark.slow
def test_members_are_saved_and_read_in_any_parts_without_a_copy_of_all_on_each_device(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    given = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    made = subprocess.run(
        [sys.executable, "-c", FOUR],
        env=given,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
