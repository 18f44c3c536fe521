"""Kernels at initialisation (section 5.1): the numbers, the pairs they are computed on, and
resuming.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import call_other

import oracles
from experiments import ntk_init
from experiments.judge import section_5_1
from preqn_jax import networks
from preqn_jax.options import UserError

ROOT = Path(__file__).parent.parent
SMALL = ntk_init.NtkInitConfig(
    envs=("probe/observation",),
    activations=("tanh",),
    widths=(5, 8),
    depths=(),
    initializers=("glorot", "pytorch"),
    points=12,
    seeds=(3, 4),
    out="x",
)


def changed(**fields):
    return dataclasses.replace(SMALL, **fields)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The numbers of `SMALL`, as the text of their data.json."""
    out = tmp_path_factory.mktemp("small")
    ntk_init.run(changed(out=str(out)))
    return (out / "data.json").read_text()


@pytest.fixture
def folder(small):
    """The finished folder x, in the current folder."""
    Path("x").mkdir()
    Path("x/data.json").write_text(small)
    return Path("x/data.json")


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "hidden_sizes", "initializer"),
    [
        ("sin", (6, 6), "glorot"),
        pytest.param("relu", (5,), "pytorch", marks=pytest.mark.slow),
    ],
)
def test_a_cell_equals_the_formula_on_explicit_jacobians(
    activation, hidden_sizes, initializer, monkeypatch
):
    """Averages of Eq. 9 and R_i in float64; there are several blocks, the last of which is not
    full.
    """
    monkeypatch.setattr(ntk_init, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    obs, action = (
        rng.normal(size=(10, 3)).astype(np.float32),
        np.sign(rng.normal(size=(10, 2))).astype(np.float32),
    )
    keys = jax.random.split(jax.random.key(0), 2)
    ntk_init._statistics.cache_clear()
    got = ntk_init.measure(
        ntk_init.Pairs(obs, action, 1), hidden_sizes, activation, initializer, keys
    )
    ntk_init._statistics.cache_clear()
    for i in range(2):
        critic = networks.Critic(hidden_sizes, activation, initializer)
        params = jax.jit(critic.init)(keys[i], obs[0], action[0])
        _, phi = oracles.mlp(
            oracles.layers_of(params["params"]), activation, np.concatenate([obs, action], axis=1)
        )
        gram = oracles.kernel(phi)
        np.testing.assert_allclose(got[0][i], oracles.row_ratio(gram).mean(), rtol=2e-5)
        np.testing.assert_allclose(got[1][i], np.diagonal(gram).mean(), rtol=2e-5)
    assert got[0][0] != got[0][1]


def test_pairs_are_of_the_rails_random_policy_and_of_whole_steps():
    """Every action is a corner of the box, and every row has the state in which its action was
    taken, across episodes.
    """
    pairs = ntk_init.collect("Pendulum-v1", 203, seed=1)
    assert pairs.obs.shape == (203, 3) and pairs.action.shape == (203, 1) and pairs.episodes == 2
    assert set(np.unique(pairs.action)) == {-1.0, 1.0} and abs(pairs.action.mean()) < 0.3
    # Pendulum: th_dot' = th_dot + 0.05 (15 sin(th) + 3 u), u = 2 a, clipped at 8; the 201st row
    # starts an episode.
    rate = pairs.obs[:-1, 2] + 0.05 * (15 * pairs.obs[:-1, 1] + 6 * pairs.action[:-1, 0])
    off = np.abs(np.clip(rate, -8, 8) - pairs.obs[1:, 2]) > 1e-4
    assert list(np.flatnonzero(off)) == [199]
    again, other = (
        ntk_init.collect("Pendulum-v1", 203, seed=1),
        ntk_init.collect("Pendulum-v1", 203, seed=2),
    )
    assert (again.obs == pairs.obs).all() and (again.action == pairs.action).all()
    assert (other.obs != pairs.obs).any() and (other.action != pairs.action).any()


def test_both_rails_are_equally_likely_in_every_entry_of_an_action():
    """sgn(u), with u uniform over a box around 0: means are within four standard errors of 0."""
    action = ntk_init.collect("HalfCheetah-v5", 600, seed=0).action
    assert abs(action.mean()) < 4 / np.sqrt(action.size) and action.size == 3600
    assert np.all(np.abs(action.mean(axis=0)) < 4 / np.sqrt(600))
    pairwise = np.abs(action.T @ action / 600 - np.eye(6))
    assert pairwise.max() < 4 / np.sqrt(600)  # and independent of one another


def test_the_networks_are_the_papers():
    cells = ntk_init._cells(ntk_init.NtkInitConfig())
    sizes = {hidden for _, _, hidden, _ in cells}
    assert sizes == {
        (32, 32),
        (64, 64),
        (128, 128),
        (256, 256),
        (64,),
        (64, 64, 64),
        (64, 64, 64, 64),
    }
    assert len(cells) == len(set(cells)) == 7 * 3 * 3 * 3


def test_no_two_cells_share_their_draws():
    """Else environments of the same size would count the same critics twice."""
    keys = [jax.random.key_data(ntk_init._keys((0, 1), cell)) for cell in ("a/sin", "b/sin")]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 4


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(small):
    assert ntk_init.run(changed(out="again")) == json.loads(small)
    assert Path("again/data.json").read_text() == small


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_there_is_kept_and_only_the_rest_computed(folder, small):
    data = json.loads(small)
    gone = data["cells"].pop(2)
    data["cells"][0]["diagonal"][1] = 123.5
    folder.write_text(json.dumps(data))
    got = ntk_init.run(SMALL)
    assert (
        got["cells"][0]["diagonal"][1] == 123.5
        and got["cells"][-1] == gone
        and len(got["cells"]) == 4
    )
    assert json.loads(folder.read_text()) == got


@pytest.mark.slow
def test_a_finished_folder_is_left_alone(folder, small, monkeypatch):
    monkeypatch.setattr(ntk_init, "collect", None)
    before = folder.stat().st_mtime_ns
    assert ntk_init.run(SMALL) == json.loads(small)
    assert folder.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_that_is_stopped_keeps_the_finished_networks(monkeypatch, small):
    real, calls = ntk_init.measure, []

    def stopping(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(ntk_init, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        ntk_init.run(SMALL)
    assert len(section_5_1.load(Path("x/data.json"))["cells"]) == 2
    ntk_init.run(SMALL)
    assert len(calls) == 3 + 2 and Path("x/data.json").read_text() == small


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"points": 13}, "says points=12, but this command says 13"),
        ({"seeds": (3, 5)}, r"seeds=\[3, 4\]"),
        ({"activations": ("tanh", "sin")}, r"activations=\['tanh'\]"),
    ],
)
def test_numbers_of_another_configuration_are_refused(folder, small, fields, words):
    with pytest.raises(UserError, match=words):
        ntk_init.run(changed(**fields))
    assert folder.read_text() == small


def test_numbers_of_other_pairs_are_refused(folder, small):
    data = json.loads(small)
    data["cells"].pop()
    data["data"]["probe/observation"]["sha256"] = "0"
    folder.write_text(json.dumps(data))
    with pytest.raises(UserError, match="kernels of other pairs of probe/observation"):
        ntk_init.run(SMALL)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"envs": ("probe/observatin",)},
            "unknown environment 'probe/observatin'.*did you mean 'probe/observation'",
        ),
        ({"envs": ("Walker2d-v55",)}, "cannot make environment 'Walker2d-v55'"),
        ({"activations": ("tahn",)}, "unknown activation 'tahn'.*did you mean 'tanh'"),
        ({"initializers": ("glorott",)}, "unknown initializer 'glorott'.*glorot"),
        ({"widths": (0,)}, "widths is 0, but it must be at least 1"),
        ({"widths": (), "depths": ()}, "widths and depths are both empty"),
        ({"envs": ()}, "envs is empty"),
        ({"seeds": (1,)}, "needs at least two"),
        ({"seeds": (1, 1)}, "seeds is '1,1', but each entry may appear only once"),
        ({"points": 1}, "points is 1, but it must be at least 2"),
    ],
)
def test_mistakes_are_said_in_one_sentence(fields, words):
    with pytest.raises(UserError, match=words):
        ntk_init.run(changed(**fields))
    assert not Path("x").exists()


def test_nothing_of_others_is_overwritten():
    Path("x").mkdir()
    Path("x/figure_1.png").write_text("mine")
    with pytest.raises(UserError, match="holds other files and no data.json"):
        ntk_init.run(SMALL)
    cell = {"env": "E", "initializer": "glorot", "activation": "sin", "hidden_sizes": [3]}
    for damaged in ({"mine": 1}, {"config": {}, "data": {}, "cells": [{**cell, "diagonal": None}]}):
        Path("x/data.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="does not hold numbers of experiments.ntk_init"):
            ntk_init.run(SMALL)
        assert json.loads(Path("x/data.json").read_text()) == damaged
    with pytest.raises(UserError, match="cannot write .x/data.json/deeper"):
        ntk_init.run(changed(out="x/data.json/deeper"))


def test_a_kernel_that_is_not_finite_is_said(monkeypatch):
    bad = ntk_init.Pairs(np.full((12, 1), np.nan, np.float32), np.ones((12, 1), np.float32), 1)
    monkeypatch.setattr(ntk_init, "collect", lambda *args: bad)
    with pytest.raises(UserError, match="is not finite"):
        ntk_init.run(SMALL)


def test_the_command(folder, capsys):
    """All that a user sees: table, figures, and the table as JSON."""
    fields = {f.name: getattr(SMALL, f.name) for f in dataclasses.fields(SMALL)} | {
        "json": "table.json"
    }
    args = [
        f"--{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in fields.items()
    ]
    assert call_other(ntk_init, ntk_init.NtkInitConfig, *args) == 0
    out = capsys.readouterr().out
    assert "initialisation: pytorch" in out and "average diagonal rises with width" in out
    assert Path("x/width_probe_observation.png").stat().st_size > 5000
    table = json.loads(Path("table.json").read_text())["findings"]
    assert table == section_5_1.as_json(section_5_1.findings(section_5_1.load(folder)))
