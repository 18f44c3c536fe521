"""The study of PreQN's variants and rivals: its plan, and its report on made-up records."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from fabricated import better, write
from scipy import stats

from experiments import cost, rivals
from experiments.judge import scores
from experiments.kit import curves, flags, plan
from preqn_jax import agents
from preqn_jax.options import UserError
from preqn_jax.training import directory
from preqn_jax.training import run as training

ENVS = ("HalfCheetah-v5", "Hopper-v5")


def diagnoses(seeds=(0, 1, 2), **values):
    """Diagnoses at every evaluation of a run with 20: each value is a function of (seed,
    evaluation).
    """
    return [
        {
            "step": 5000 * i,
            "seed": seed,
            **{f"diagnose/{name}": value(seed, i) for name, value in values.items()},
        }
        for i in range(1, 21)
        for seed in seeds
    ]


# --- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rivals.VARIANTS)
def test_a_variant_is_a_command_of_train(name):
    """Its flags exist, they make an agent, and every evaluation comes with a diagnosis."""
    run, agent, loop = flags.read(rivals.KIND.variants[name], *training.CONFIGS)
    assert run.diagnose_every == plan.EVERY
    made = agents.resolve(agent)
    assert made.config.algorithm.split("_")[0] == name.split("-")[0]
    assert made.target is None or name in ("td3", "sac")


def test_no_two_variants_are_one():
    described = [
        directory.describe(agents.resolve(flags.read(words, agents.AgentConfig)[0]).config)
        for words in rivals.VARIANTS.values()
    ]
    for one, other in itertools.combinations(described, 2):
        assert one != other


def test_the_plan_has_every_variant_with_its_flags(tmp_path):
    config = plan.PlanConfig(root=str(tmp_path), envs=("probe/delay",), num_steps=10_000)
    runs = {run.name: run for run in plan.settle(rivals.KIND, config, ())}
    assert set(runs) == {f"probe/delay/{name}" for name in rivals.VARIANTS}
    assert "--notarget_networks" in runs["probe/delay/ddpg-bare"].flags


@pytest.mark.parametrize("word", ["--target_networks", "--algorithm=td3", "--diagnose_every=10000"])
def test_what_makes_a_variant_cannot_be_set_for_all(tmp_path, word):
    config = plan.PlanConfig(root=str(tmp_path), envs=("probe/delay",), num_steps=10_000)
    with pytest.raises(UserError, match="which the plan sets for each run"):
        plan.settle(rivals.KIND, config, [word])
    assert not list(tmp_path.iterdir())


# --- numbers --------------------------------------------------------------------------------------


def test_improvement_is_mann_and_whitneys_u_over_the_pairs():
    rng = np.random.default_rng(0)
    own = [rng.integers(0, 6, size).astype(float) for size in (4, 7)]
    other = [rng.integers(0, 6, size).astype(float) for size in (5, 3)]
    expected = np.mean(
        [
            stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
            for a, b in zip(own, other, strict=True)
        ]
    )
    found = scores.improvement(own, other)
    assert found.value == pytest.approx(expected)
    assert found.interval is not None and found.interval[0] <= expected <= found.interval[1]
    certain = scores.improvement([np.array([5.0, 6.0])], [np.array([1.0, 2.0])])
    assert certain == scores.Estimate(1.0, None)  # all resamples agree, which says nothing
    assert scores.improvement([np.array([5.0])], [np.array([1.0])]).interval is None


def test_a_seed_that_diverged_is_below_all_others():
    lost, whole = np.array([5.0, np.nan]), np.array([1.0, 2.0])
    assert scores.improvement([lost], [whole]).value == 0.5
    assert scores.improvement([whole], [lost]).value == 0.5
    assert scores.improvement([lost], [lost]).value == 0.5


def test_the_mean_on_the_way_is_that_of_all_evaluations():
    write("Hopper-v5", "preqn")
    runs, _ = curves.gather(Path("r"), ENVS, rivals.VARIANTS)
    (row,) = rivals.on_the_way(runs, [50_000])
    # returns are 1000 t + 10 seed at t = 1/20 ... 10/20
    assert row["estimate"].value == pytest.approx(1000 * np.mean(np.arange(1, 11)) / 20 + 10)


def test_returns_that_were_not_finite_leave_no_mean_on_the_way():
    lost = [{"step": 50_000, "seed": 1, "eval/return_mean": None, "eval/return_std": 0.0}]
    write("HalfCheetah-v5", "preqn-sin", extra=lost)
    (run,), _ = curves.gather(Path("r"), ["HalfCheetah-v5"], ["preqn-sin"])
    before, after = rivals.on_the_way([run], [25_000, 75_000])
    assert np.isfinite(before["estimate"].value) and np.isnan(after["estimate"].value)


def test_improvements_are_over_the_tasks_in_common():
    write("HalfCheetah-v5", "preqn")
    write("HalfCheetah-v5", "sac", better(1000))
    write("Hopper-v5", "preqn")
    write("Hopper-v5", "td3", better(-1000))
    write("Hopper-v5", "sac", better(-1000))
    write("Ant-v5", "td3", better(5000))
    runs, _ = curves.gather(Path("r"), (*ENVS, "Ant-v5"), rivals.VARIANTS)
    rows = {row["variant"]: row for row in rivals.improvements(runs)}
    assert set(rows) == {"sac", "td3"}
    assert rows["sac"]["envs"] == list(ENVS) and rows["sac"]["estimate"].value == 0.5
    assert rows["td3"]["envs"] == ["Hopper-v5"] and rows["td3"]["estimate"].value == 0


def test_measurements_are_the_last_at_each_share_of_a_run():
    write("Hopper-v5", "preqn", extra=diagnoses(row_ratio=lambda seed, i: 100 * seed + i))
    runs, _ = curves.gather(Path("r"), ENVS, rivals.VARIANTS)
    rows = rivals.measurements(runs)
    assert [(r["seed"], r["share"], r["row_ratio"]) for r in rows if r["seed"] == 2] == [
        (2, 0.25, 205),
        (2, 0.5, 210),
        (2, 1.0, 220),
    ]
    assert all("soft_divergence" not in row for row in rows)


def test_a_measurement_that_orders_the_scores_has_rank_correlation_one():
    """Within each task; between tasks the order is reversed, which must not matter."""
    for env, level, sign in (("HalfCheetah-v5", 5000, -10), ("Hopper-v5", 0, 10)):
        for k, variant in enumerate(("preqn", "td3")):
            values = diagnoses(
                alignment=lambda seed, i, k=k, sign=sign: 10 * k + seed + sign,
                soft_divergence=lambda seed, i, k=k: -10 * k - seed,
                row_ratio=lambda seed, i: 1.0,
            )
            write(env, variant, better(level + 1000 * k), extra=values)
    runs, _ = curves.gather(Path("r"), ENVS, rivals.VARIANTS)
    found = {
        (row["measured"], row["share"]): row for row in rivals.relations(rivals.measurements(runs))
    }
    for share in rivals.SHARES:
        row = found["alignment", share]
        assert row["seeds"] == 12 and row["rank_correlation"] == pytest.approx(1)
        assert found["soft_divergence", share]["rank_correlation"] == pytest.approx(-1)
        assert found["row_ratio", share]["rank_correlation"] is None
        assert found["feature_rank", share]["seeds"] == 0


# --- the report -----------------------------------------------------------------------------------


def test_the_report_is_printed_written_and_drawn(capsys):
    for env, variant in itertools.product(ENVS, ("preqn", "preqn-twin", "td3")):
        write(env, variant, extra=diagnoses(alignment=lambda seed, i: 0.9 + 0.01 * seed))
    times = {"preqn": 2.0, "preqn-twin": 3.0}
    rivals.report(Path("r"), ENVS, None, Path("out"), times)
    out, err = capsys.readouterr()
    assert "P(better than preqn) at step 100,000" in out and "1.50 times preqn's" in out
    assert "is missing" not in err
    written = json.loads(Path("out/report.json").read_text())
    assert written["step"] == 100_000 and written["cost"] == times
    assert {row["variant"] for row in written["better"]} == {"preqn-twin", "td3"}
    assert len(written["measurements"]) == 6 * 3 * 3
    for name in ("rivals.png", "measurements.png"):
        assert (Path("out") / name).stat().st_size > 10_000


def test_nothing_to_report_is_a_sentence():
    with pytest.raises(UserError, match="there are no runs to report on in 'r'"):
        rivals.report(Path("r"), ENVS, None, Path("out"))


def test_costs_are_those_of_variants(tmp_path):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps({"rows": [{"name": "preqn", "ms": 2}, {"name": "x", "ms": 1}]}))
    assert rivals._costs(str(path)) == {"preqn": 2.0}
    for text in ("{}", "no json", json.dumps({"rows": [{"name": "x", "ms": 1}]})):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a file of `experiments.cost --rivals"):
            rivals._costs(str(path))


def test_the_rows_of_cost_set_what_the_variants_set():
    rows = cost._rivals()
    assert set(rows) == set(rivals.VARIANTS)
    assert rows["ddpg-bare"] == {"algorithm": "ddpg", "target_networks": False}
