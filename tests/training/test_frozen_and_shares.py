"""Who is frozen, who has which members, and how long the rest takes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import processes, running
from preqn_jax.training import loop


@pytest.mark.parametrize("side_by_side", [False, True])
def test_who_is_frozen_observes_nothing(side_by_side):
    agent = SimpleNamespace(observe=lambda state, obs: state + obs.sum())
    collected = SimpleNamespace(obs=jnp.asarray([[[jnp.nan], [1.0]], [[2.0], [3.0]]]))
    config = loop.LoopConfig(seeds=(0, 1))
    states = loop.observe(
        agent, jnp.ones(2), collected, jnp.asarray([True, False]), config, side_by_side
    )
    np.testing.assert_array_equal(states, [1, 6])


def test_a_run_that_goes_on_says_how_long_the_rest_of_it_will_take():
    clock = running.Clock(100_000)
    rounds = [(90_050, True, 0), (90_100, True, 9), (90_350, True, 14)]
    assert [clock.first_words(*one) for one in rounds][-1] == (
        "50 steps a second: about 3 minutes to go"
    )


@pytest.mark.parametrize(("members", "count"), [(7, 3), (2, 3), (6, 2), (1, 1)])
def test_every_member_is_one_processs_and_no_share_is_two_more_than_another(
    members, count, monkeypatch
):
    monkeypatch.setattr(jax, "process_count", lambda: count)
    found = []
    for index in range(count):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        found.append(list(range(members))[processes.share(members)])
    assert [i for share in found for i in share] == list(range(members))
    assert max(map(len, found)) - min(map(len, found)) <= 1
