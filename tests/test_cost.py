"""The benchmarks at tiny sizes: their tables, and their messages for mistakes, but no speeds."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cost, throughput
from experiments.bench import growth, parts, peers, timing
from experiments.kit import flags
from preqn_jax import agents, envs
from preqn_jax.options import UserError

ROOT = Path(__file__).parent.parent
SEVERAL = ("PreQN sin, 4 seeds", "TD3 relu, 4 seeds")
DIAGNOSES = (parts.LINEARIZATION, parts.DIAGNOSIS)
TINY = {"batch_size": 8, "hidden_sizes": (8, 8), "repeats": 2}
CHEAP = {"TD3 relu": {"algorithm": "ddpg"}}  # by the name of the row that all are divided by


def guarded(run, config):
    """Calls a command with errors handled as on the command line."""
    return flags.guard(lambda _: run(config), [])


def check_cost_table(out):
    table = json.loads(Path("cost.json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert {*cost.ROWS, *SEVERAL, parts.LINEARIZATION, parts.DIAGNOSIS, "solve", "actor"} <= set(
        rows
    ) and "peers" not in table
    for row in rows.values():
        assert 0 < row["min"] <= row["ms"] <= row["max"]
        assert row["ratios"]["TD3 relu"]["ratio"] == pytest.approx(
            row["ms"] / rows["TD3 relu"]["ms"]
        )
    assert (
        "diagnose / one linearization: " in out
        and "PreQN sin / TD3 relu" in out
        and jax.__version__ in out
    )


def test_the_cost_table_has_every_row_and_its_ratios(capsys, monkeypatch):
    monkeypatch.setattr(cost, "_agent_scan", lambda *_: lambda: jnp.zeros(3) + 1)
    solo = {"solve": lambda: jnp.zeros(2), "actor": lambda: jnp.zeros(4)}
    monkeypatch.setattr(parts, "scans", lambda *_: solo)
    monkeypatch.setattr(parts, "calls", lambda *_: dict.fromkeys(DIAGNOSES, lambda: jnp.zeros(2)))
    assert guarded(cost.run, cost.CostConfig(**TINY, updates=2, json="cost.json")) == 0
    check_cost_table(capsys.readouterr().out)


@pytest.mark.slow
def test_the_cost_of_every_algorithm_and_part_can_be_measured(capsys):
    assert guarded(cost.run, cost.CostConfig(**TINY, updates=2, json="cost.json")) == 0
    check_cost_table(capsys.readouterr().out)


def test_rows_of_a_peer_stand_in_the_same_table(capsys, monkeypatch):
    monkeypatch.setattr(cost, "_agent_scan", lambda *_: lambda: jnp.zeros(3))
    monkeypatch.setattr(parts, "scans", lambda *_: {})
    monkeypatch.setattr(parts, "calls", lambda *_: dict.fromkeys(DIAGNOSES, lambda: jnp.zeros(2)))
    monkeypatch.setattr(peers, "_sbx", lambda: None)
    monkeypatch.setattr(peers, "apart", lambda *args: lambda: None)
    monkeypatch.setattr(peers, "versions", lambda: "sbx-rl 0.0")
    assert guarded(cost.run, cost.CostConfig(**TINY, peers="sac,td3", json="cost.json")) == 0
    table = json.loads(Path("cost.json").read_text())
    assert [row["name"] for row in table["rows"]] == [
        *cost.ROWS,
        *SEVERAL,
        "SBX SAC",
        "SBX TD3",
        *DIAGNOSES,
    ]
    assert all(set(row["ratios"]) == {"TD3 relu", "SBX TD3"} for row in table["rows"])
    out = capsys.readouterr().out
    assert table["peers"] in out and "PreQN sin / SBX TD3: " in out.splitlines()[-1]


def test_ratios_are_of_medians_and_their_spread_is_over_rounds():
    row = cost._row("a", {"a": [0.1, 0.3, 0.2], "b": [0.1, 0.1, 0.4]}, ["b"], updates=10)
    assert (row["ms"], row["min"], row["max"]) == pytest.approx((20, 10, 30))
    assert row["ratios"]["b"] == pytest.approx({"ratio": 2, "min": 0.5, "max": 3})


@pytest.mark.parametrize(
    ("name", "width"), [("crossq", 2048), ("crossq-256", 256), ("preqn", 8), ("td3", 8)]
)
def test_a_critic_of_its_own_width_is_timed_with_it(monkeypatch, name, width):
    class Made(Exception):
        pass

    def make(config, spec):
        raise Made(agents.resolve(config).config.critic_hidden_sizes or config.hidden_sizes)

    monkeypatch.setattr(agents, "make", make)
    with pytest.raises(Made) as made:
        cost._agent_scan(cost.CostConfig(**TINY), cost._rivals()[name])
    assert made.value.args == ((width, width),)


def test_rows_are_timed_in_turn_after_a_first_call_that_is_not():
    calls = []
    times = timing.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == list("ab" * 4) and [len(t) for t in times.values()] == [3, 3]


def test_the_kept_grid_is_drawn_although_an_option_came_later(tmp_path):
    kept = Path(__file__).parent.parent / "experiments/results/growth.json"
    growth.redraw(kept, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_grid_has_time_and_memory_of_every_method_and_a_picture(capsys, monkeypatch):
    monkeypatch.setattr(growth, "SAMPLE", 1e-3)
    monkeypatch.setattr(growth, "BLOCKS", (10,))
    config = growth.GrowthConfig(**TINY, json="growth.json", figure="growth.png", jacobian_gib=1e-5)
    assert guarded(lambda c: growth.run(c, {"batch": (8, 64)}, points=20), config) == 0
    table = json.loads(Path("growth.json").read_text())
    rows = {(row["value"], row["method"]): row for row in table["rows"]}
    assert len(rows) == 2 * 3
    parameters = (17 + 6) * 8 + 8 + 8 * 8 + 8 + 8 + 1
    left_out = rows.pop((64, "jacobian"))  # the only one of more than 10 KiB
    assert left_out["needs"] == 4 * 64 * parameters and "ms" not in left_out
    assert all(0 < row["min"] <= row["ms"] <= row["max"] for row in rows.values())
    assert all(
        row["bytes"] >= 2 * 4 * parameters for row in rows.values()
    )  # theta is both an input and an output
    assert rows[8, "structured"]["bytes"] < rows[8, "jacobian"]["bytes"]
    assert rows[8, "structured"]["bytes"] < rows[64, "structured"]["bytes"]
    structured, jacobian = table["kernel"]
    assert structured["ms"] > 0 and jacobian["needs"] == 2 * 4 * 10 * parameters
    out = capsys.readouterr().out
    assert (
        "left out: batch 64, whose Jacobian has 6.5e-05 GiB" in out
        and "ntk.kernel of 20 inputs" in out
    )
    assert Path("growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_benchmark_step_moves_no_further_however_often_it_is_taken():
    go, _ = growth._step(growth.GrowthConfig(**TINY), growth.Point(8, 8, 2, 2), "structured")
    once, often = (jax.tree.leaves(go(n)[0]) for n in (1, 200))
    for a, b in zip(once, often, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-2)
    assert any((a != b).any() for a, b in zip(once, often, strict=True))


@pytest.mark.slow
def test_throughput_times_segments_of_a_run_that_goes_on(capsys, monkeypatch):
    env, stepped = envs.make("probe/delay", 1), []
    step = env.step
    monkeypatch.setattr(env, "step", lambda *args: stepped.append(None) or step(*args))
    monkeypatch.setattr(envs, "make", lambda *args: env)
    seconds = timing.seconds
    monkeypatch.setattr(
        timing, "seconds", lambda run: (seconds(run), len(stepped))[1]
    )  # stands for the clock: steps so far
    monkeypatch.setattr(throughput, "ROWS", CHEAP)
    config = throughput.ThroughputConfig(
        **TINY, update_every=5, update_after=10, segment=15, json="throughput.json"
    )
    assert guarded(throughput.run, config) == 0
    (row,) = json.loads(Path("throughput.json").read_text())["rows"]
    assert len(stepped) == 10 + 15 + 2 * 15  # before the first update, while compiling, and timed
    assert (row["max"], row["min"]) == pytest.approx((15 / 40, 15 / 55)) and row["ratios"] == {
        "TD3 relu": 1
    }
    assert "steps a second" in capsys.readouterr().out


@pytest.mark.slow
def test_throughput_on_the_device_counts_the_steps_of_all_members(capsys, monkeypatch):
    monkeypatch.setattr(timing, "seconds", lambda run: (run(), 2.0)[1])
    monkeypatch.setattr(throughput, "ROWS", CHEAP)
    sizes = {"update_every": 5, "update_after": 10, "segment": 15, "members": (3,)}
    config = throughput.ThroughputConfig(
        **TINY, **sizes, env="native/pendulum", on_device=True, json="t.json"
    )
    assert guarded(throughput.run, config) == 0
    rows = json.loads(Path("t.json").read_text())["rows"]
    assert [(row["name"], row["steps_per_s"]) for row in rows] == [("TD3 relu, 3 seeds", 45 / 2)]
    assert rows[0]["ratios"] == {"TD3 relu, 3 seeds": 1}
    wrong = dataclasses.replace(config, env="Pendulum-v1")
    assert guarded(throughput.run, wrong) == 1
    assert "cannot be stepped on the device: --on_device=True is for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "config", "words"),
    [
        (cost.run, cost.CostConfig(batch_size=0), "batch_size is 0, but it must be at least 1"),
        (
            cost.run,
            cost.CostConfig(peers="td3,ppo"),
            "unknown peer 'ppo'; choose one of crossq, ddpg, sac, td3",
        ),
        (cost.run, cost.CostConfig(peers="td3"), "--peers needs SBX"),
        (
            cost.run,
            cost.CostConfig(peers_settings="own"),
            "unknown peers_settings 'own'; choose one of default, ours",
        ),
        (
            cost.run,
            cost.CostConfig(grid=True, jacobian_gib=0),
            "jacobian_gib is 0, but it must be above 0",
        ),
        (
            cost.run,
            cost.CostConfig(grid=True, hidden_sizes=(8, 16)),
            "a grid needs layers of one width",
        ),
        (
            cost.run,
            cost.CostConfig(grid=True, figure="growth"),
            "cannot write 'growth': pictures end in ",
        ),
        (
            cost.run,
            cost.CostConfig(json="/dev/null/cost.json"),
            "cannot write '/dev/null/cost.json': '/dev/null' is not a folder",
        ),
        (
            cost.run,
            cost.CostConfig(figure="growth.png"),
            "figure is 'growth.png', but has no effect without --grid: add --grid, or leave",
        ),
        (cost.run, cost.CostConfig(members=(1,)), "members is (1,), but has no effect without"),
        (cost.run, cost.CostConfig(jacobian_gib=1.0), "jacobian_gib is 1.0, but has no effect"),
        *(
            (
                cost.run,
                cost.CostConfig(grid=True, **{name: value}),
                f"{name} is {value!r}, but has no",
            )
            for name, value in {
                "updates": 7,
                "many": (),
                "peers": "td3",
                "peers_settings": "ours",
                "rivals": True,
            }.items()
        ),
        (cost.run, cost.CostConfig(grid=True, hidden_sizes=()), "hidden_sizes are [], but a grid"),
        (
            throughput.run,
            throughput.ThroughputConfig(members=()),
            "members is empty; name a number",
        ),
        (
            throughput.run,
            throughput.ThroughputConfig(segment=70),
            "segment is 70, but it must be a multiple of update_every (50)",
        ),
        (
            throughput.run,
            throughput.ThroughputConfig(env="NoSuch-v0"),
            "cannot make environment 'NoSuch-v0'",
        ),
        (throughput.run, throughput.ThroughputConfig(peers="sac"), 'pip install -e ".[peers]"'),
        (
            throughput.run,
            throughput.ThroughputConfig(peers="td3", env="probe/delay"),
            "SBX does not know the environment",
        ),
    ],
)
def test_a_mistake_is_one_sentence(run, config, words, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sbx", None)  # as if it were not installed
    assert guarded(run, config) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and words in err and err.count("\n") == 1 and out == ""


def test_peers_are_named_once_each(monkeypatch):
    monkeypatch.setattr(peers, "_sbx", lambda: None)
    assert peers.parse("", "ours") == [] and peers.parse("td3, sac,td3", "default") == [
        "td3",
        "sac",
    ]


@pytest.mark.parametrize("settings", ["default", pytest.param("ours", marks=pytest.mark.slow)])
def test_a_peer_lives_apart_under_the_settings_asked_for_and_its_errors_are_told(settings):
    run = peers.apart(settings, partial, exec)  # a process that executes commands
    default = settings == "default"
    run(f"""
import os, jax
assert ("--xla_cpu_prefer_vector_width=256" in os.environ["XLA_FLAGS"]) == {default}
assert (os.environ["XLA_FLAGS"] == {os.environ["XLA_FLAGS"]!r}) != {default}
assert jax.config.values["jax_cpu_enable_async_dispatch"] == {default}
assert jax.local_device_count() == {1 if default else jax.local_device_count()}
""")
    with pytest.raises(
        UserError, match=r"an agent of SBX cannot be timed: ZeroDivisionError: division by zero"
    ):
        run("1 / 0")
    with pytest.raises(UserError, match=r"its process died"):
        run("import os; os._exit(1)")


@pytest.mark.parametrize("module", ["cost", "throughput"])
@pytest.mark.slow
def test_the_command_itself_fails_without_a_traceback(module):
    command = [sys.executable, "-m", f"experiments.{module}", "--peers=ppo"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: unknown peer 'ppo'")
        and "Traceback" not in done.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", peers.AGENTS)
def test_every_peer_learns_from_what_is_stored_and_from_an_environment(name):
    pytest.importorskip("sbx", reason="the extra `peers` is not installed")
    sizes = timing.SizesConfig(obs_size=3, action_size=1)
    spec, stored = sizes.spec, timing.transitions(sizes, 64)
    settings = {"batch_size": 8, "hidden_sizes": (8, 8)}
    with jax.numpy_rank_promotion("raise"):
        update = peers.updates(name, spec, stored, count=4, **settings)
        train = peers.training(
            name, "Pendulum-v1", every=4, capacity=100, learning_starts=8, **settings
        )
        runs = ((update, update), (lambda: train(8), lambda: train(16)))
        for first, second in runs:
            before, after = (
                jax.tree.leaves(jax.tree.map(np.array, run())) for run in (first, second)
            )
            assert any((a != b).any() for a, b in zip(before, after, strict=True))
            assert any(leaf.shape == (8, 8) or leaf.shape == (2, 8, 8) for leaf in after)
