import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import replay
from preqn_jax.types import Spec, Transition

SPEC = Spec(3, 2, -np.ones(2), np.ones(2))
add = jax.jit(replay.add)
sample = jax.jit(replay.sample, static_argnums=2)


@functools.partial(jax.jit, static_argnums=0)
def empty(capacity):
    return replay.init(SPEC, capacity)


def numbered(start, n):
    """Transitions that have their number in every entry."""
    ids = np.arange(start, start + n, dtype=np.float32)
    return Transition(
        np.tile(ids[:, None], 3), np.tile(ids[:, None], 2), ids, ids, np.tile(ids[:, None], 3)
    )


@pytest.mark.parametrize("sizes", [(4, 4), (7, 7, 7), (3, 5, 2, 6, 10)])
def test_holds_the_newest_and_overwrites_the_oldest(sizes):
    capacity, buffer, start = 10, empty(10), 0
    for n in sizes:
        buffer = add(buffer, numbered(start, n))
        start += n
    kept = set(range(max(0, start - capacity), start))
    assert int(buffer.size) == len(kept)
    assert set(np.asarray(buffer.data.reward)[: len(kept)].tolist()) == kept
    assert int(buffer.added) == start


@pytest.mark.parametrize("larger", [10, 16])
def test_what_is_drawn_does_not_depend_on_rows_that_were_never_filled(larger):
    small, large = empty(8), empty(larger)
    small, large = (add(buffer, numbered(0, 8)) for buffer in (small, large))
    draws = [sample(buffer, jax.random.key(3), (50,)).reward for buffer in (small, large)]
    np.testing.assert_array_equal(*draws)


def test_rows_stay_together():
    buffer = add(empty(16), numbered(5, 11))
    rows = sample(buffer, jax.random.key(0), (64,))
    for leaf in rows:
        assert (np.asarray(leaf).reshape(64, -1) == np.asarray(rows.reward)[:, None]).all()


def test_samples_uniformly_from_the_filled_part_only():
    buffer = add(empty(1000), numbered(1, 20))
    rows = np.asarray(sample(buffer, jax.random.key(1), (200, 100)).reward)
    counts = np.bincount(rows.astype(int).ravel(), minlength=21)
    assert counts[0] == 0 and len(counts) == 21
    # 20,000 draws over 20 rows: 1,000 each, standard deviation 31
    assert np.abs(counts[1:] - 1000).max() < 5 * 31


def test_keys_decide_the_sample():
    buffer = add(empty(50), numbered(0, 50))
    draw = lambda seed: np.asarray(sample(buffer, jax.random.key(seed), (8, 4)).reward)
    assert (draw(0) == draw(0)).all() and (draw(0) != draw(1)).any()
    assert draw(0).shape == (8, 4)


def test_more_than_the_capacity_is_refused():
    with pytest.raises(ValueError, match="11 transitions .* capacity 10"):
        replay.add(empty(10), numbered(0, 11))


def test_stores_float32():
    buffer = replay.add(empty(8), jax.tree.map(lambda x: x.astype(np.float64), numbered(0, 4)))
    assert all(leaf.dtype == jnp.float32 for leaf in buffer.data)


@pytest.mark.parametrize("skip", [True, jnp.bool_(True)])
def test_what_is_skipped_leaves_the_buffer_as_it_is(skip):
    before = add(empty(10), numbered(0, 7))
    after = add(before, numbered(7, 5), skip)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert int(add(before, numbered(7, 5), False).added) == 12


@pytest.mark.parametrize("field", ["obs", "action", "discount", "next_obs"])
def test_transitions_of_another_shape_are_refused(field):
    """Else one number would be broadcast to a whole row, or to all rows."""
    rows = numbered(0, 2)
    wrong = rows._replace(**{field: jnp.asarray(getattr(rows, field))[:1]})
    with pytest.raises(ValueError, match="an array of the shape .*, expected"):
        replay.add(empty(5), wrong)
    wide = rows._replace(obs=jnp.asarray(rows.obs)[:, :1])
    with pytest.raises(ValueError, match=r"of the shape \(2, 1\), expected \(2, "):
        replay.add(empty(5), wide)


@pytest.mark.parametrize("reward", [1.0, np.float32(1), [[1.0]]])
def test_one_transition_wants_an_axis_before_it(reward):
    one = Transition(np.zeros(3), np.zeros(2), reward, 1.0, np.zeros(3))
    with pytest.raises(ValueError, match=r"rewards of the shape .*, expected \[n\]; .*obs\[N"):
        replay.add(empty(10), one)
    several = Transition([[1.0] * 3], [[1.0] * 2], [1.0], [1.0], [[1.0] * 3])
    assert int(replay.add(empty(10), several).data.reward[0]) == 1


def test_a_capacity_is_a_whole_number():
    with pytest.raises(ValueError, match="capacity is 1000000.0, expected a whole number"):
        replay.init(SPEC, 1e6)
