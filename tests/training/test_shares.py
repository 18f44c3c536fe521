"""Members divided among devices: any number of members, on any number of devices, with the same
results.
"""

import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import processes, running
from preqn_jax.training import loop

ROOT = Path(__file__).parents[2]
EIGHT = """
import jax, numpy as np
from preqn_jax.training import loop
from round_cases import run, setup
devices = jax.local_devices()
assert len(devices) == 8
small = {"num_steps": 100, "batch_size": 8, "update_after": 50}
agent = {"algorithm": "ddpg", "hidden_sizes": (8, 8)}
def learned(seeds, count):
    jax.local_devices = lambda *_, **__: devices[:count]
    done, learner = run(*setup("probe/delay", agent, seeds=tuple(range(seeds)), **small))
    used = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(learner)}
    of_members = jax.tree.map(lambda leaf: np.asarray(leaf)[:seeds], learner)
    return used, (of_members, done[-1].metrics)
one, alone = learned(7, 1)
def text(*setting):
    agent, _, config, learner, _ = setting
    rows = jax.tree.map(lambda leaf: leaf[:7, :50], learner.replay.data)
    given = learner, np.arange(7), rows, np.zeros(7, bool), np.uint32(1), np.int32(0), 50
    return loop.make_learn(agent, config).lower(*given).compile().as_text()
jax.local_devices = lambda *_, **__: devices[:4]
preqn = {**agent, "algorithm": "preqn"}
said = text(*setup("probe/delay", preqn, seeds=tuple(range(7)), **small))
assert "num_partitions=4" in said, said[:200]
for exchange in ("all-reduce", "all-gather", "all-to-all", "collective", "reduce-scatter"):
    assert exchange not in said, exchange
for seeds, count in ((7, 4), (5, 8), (3, 2)):
    used, numbers = learned(seeds, count)
    print(seeds, count, *used)
    expected = jax.tree.map(lambda leaf: leaf[:seeds], alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-5), numbers, expected)
    if seeds == 7:
        shared = numbers
    expected = jax.tree.map(lambda leaf: leaf[:seeds], shared)
    jax.tree.map(np.testing.assert_array_equal, numbers, expected)
jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:1], b), alone, learned(1, 1)[1])
"""


@pytest.mark.parametrize(
    ("members", "devices", "used", "rows"),
    [
        *((7, 8, 7, 7), (7, 4, 4, 8), (5, 4, 3, 6), (5, 2, 2, 6), (3, 2, 2, 4), (10, 4, 4, 12)),
        *((1, 8, 1, 1), (8, 8, 8, 8), (9, 8, 5, 10), (42, 1, 1, 42)),
    ],
)
def test_as_many_devices_as_make_the_largest_share_smallest(
    monkeypatch, members, devices, used, rows
):
    fake = types.SimpleNamespace(platform="gpu", device_kind="H100")
    monkeypatch.setattr(jax, "local_devices", lambda: [fake] * devices)
    config = dataclasses.replace(loop.LoopConfig(), seeds=tuple(range(members)))
    assert len(loop.devices_for(members)) == used and not loop.devices_for(0)
    some = f"{used} of " * (used < devices)
    assert running.devices(members) == f"{some}{devices} gpu device{'s' * (devices > 1)} (H100)"
    assert loop._rows(config) == rows  # pyright: ignore


@pytest.mark.slow
def test_uneven_shares_of_eight_devices_learn_what_one_device_does():
    """Devices exchange nothing. Results are equal up to rounding, as XLA compiles differently for
    several devices; with several devices they are bit for bit the same in any company.
    """
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    path = f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/training'}"
    given = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path}
    made = subprocess.run(
        [sys.executable, "-c", EIGHT], env=given, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.split("\n") == ["7 4 4", "5 8 5", "3 2 2", ""]


@pytest.mark.parametrize("turns", [False, True])
def test_who_is_frozen_observes_nothing(turns):
    agent = types.SimpleNamespace(observe=lambda state, obs: state + obs.sum())
    collected = types.SimpleNamespace(obs=jnp.asarray([[[jnp.nan], [1.0]], [[2.0], [3.0]]]))
    states = loop.observe(agent, jnp.ones(2), collected, jnp.asarray([True, False]), turns)
    np.testing.assert_array_equal(states, [1, 6])


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
