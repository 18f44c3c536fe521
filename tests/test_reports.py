"""Reports on runs: statistics against the formulas, verdicts on fabricated records both ways,
files.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import (
    alignment,
    benchmark,
    curves,
    figures,
    growth,
    published,
    scores,
    style,
    verdicts,
)
from preqn_jax.options import UserError

ENVS = ("HalfCheetah-v5", "Swimmer-v5")
SIX = (*benchmark.KIND.variants, *benchmark.ALSO)


# --- fabricated runs ------------------------------------------------------------------------------


def write(
    env,
    variant,
    returns=lambda seed, t: 1000 * t + 10 * seed,
    align=0.99,
    q=5.0,
    worth=100.0,
    seeds=(0, 1, 2),
    end=20,
    num_steps=100_000,
    extra=(),
):
    """A run under `r`: evaluations at 5,000 to `end` times that, whose returns are `returns(seed,
    share of the run)`.
    """
    folder = Path("r") / env / variant
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"config": {"env": env, "seeds": list(seeds), "num_steps": num_steps}})
    )
    lines = []
    for i in range(1, end + 1):
        for seed in seeds:
            step = {"step": 5000 * i, "seed": seed}
            lines.append(
                {**step, "critic/alignment": align, "critic/q_mean": q, "critic/td_abs": 1.0}
            )
            evaluation = {"eval/return_mean": returns(seed, i / 20), "eval/return_std": 1.0}
            lines.append(
                {**step, **evaluation, **({} if worth is None else {"eval/discounted_max": worth})}
            )
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, *extra])
    )


def better(by, slope=1000):
    return lambda seed, t: slope * t + by + 10 * seed


def one(**fields):
    write("HalfCheetah-v5", "preqn-sin", **fields)
    (run,), notes = curves.gather(Path("r"), ["HalfCheetah-v5"], ["preqn-sin"])
    return run


# --- statistics -----------------------------------------------------------------------------------


def test_a_score_is_the_mean_of_the_last_ten_evaluations_up_to_a_step():
    steps, returns = np.arange(1, 31) * 5000, np.random.default_rng(0).normal(size=(3, 30))
    np.testing.assert_allclose(
        scores.last(steps, returns, 100_000), returns[:, 10:20].mean(axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(
        scores.last(steps, returns, 104_999), returns[:, 10:20].mean(axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(
        scores.last(steps, returns, 15_000), returns[:, :3].mean(axis=1), rtol=1e-12
    )
    with pytest.raises(ValueError, match="no evaluation up to step 4999"):
        scores.last(steps, returns, 4999)


@pytest.mark.parametrize("sizes", [(4, 4), (3, 3, 3), (7, 5, 2)])
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(sizes):
    rng = np.random.default_rng(1)
    tasks = [rng.normal(i, 1, size) for i, size in enumerate(sizes)]
    pooled = np.sort(np.concatenate(tasks))
    cut = len(pooled) // 4
    np.testing.assert_allclose(
        scores.interquartile_mean(tasks).value, pooled[cut : len(pooled) - cut].mean(), rtol=1e-12
    )


def test_the_bootstrap_of_several_tasks_resamples_within_each():
    apart = scores.interquartile_mean([np.full(3, 0.0), np.full(3, 1.0), np.full(3, 5.0)])
    np.testing.assert_allclose(np.array(apart.interval), [apart.value, apart.value])
    rng = np.random.default_rng(2)
    tasks = [rng.normal(10 * i, 1, 5) for i in range(3)]
    drawn = []
    for _ in range(4000):
        pooled = np.sort(np.concatenate([rng.choice(task, 5) for task in tasks]))
        drawn.append(pooled[3:12].mean())
    np.testing.assert_allclose(
        np.array(scores.interquartile_mean(tasks).interval),
        np.quantile(drawn, [0.025, 0.975]),
        atol=0.06,
    )


@pytest.mark.parametrize(("seeds", "stated"), [(3, 0.75), (7, 0.88)])
def test_intervals_hold_the_mean_as_often_as_is_said(monkeypatch, seeds, stated):
    monkeypatch.setattr(scores, "RESAMPLES", 400)
    rng = np.random.default_rng(3)
    intervals = np.array([scores.mean(rng.normal(7, 2, seeds)).interval for _ in range(600)])
    assert abs(((intervals[:, 0] <= 7) & (intervals[:, 1] >= 7)).mean() - stated) < 0.05
    assert f"{stated:.0%}".replace("%", " %") in scores.RULES


def test_the_interval_of_a_difference_is_welchs():
    a, b = np.array([3.0, 4.0, 8.0]), np.array([1.0, 0.0, 2.0, 2.5])
    variance = a.var(ddof=1) / 3, b.var(ddof=1) / 4
    freedom = sum(variance) ** 2 / (variance[0] ** 2 / 2 + variance[1] ** 2 / 3)
    draws = np.random.default_rng(4).standard_t(freedom, 2_000_000)
    half = np.quantile(np.abs(draws), 0.95) * np.sqrt(sum(variance))
    found = scores.difference(a, b)
    assert found.value == pytest.approx(a.mean() - b.mean())
    np.testing.assert_allclose(
        np.array(found.interval), [found.value - half, found.value + half], rtol=0.02
    )


def test_where_there_is_no_spread_there_is_no_interval_or_an_empty_one():
    assert scores.mean(np.array([3.0])) == scores.Estimate(3.0, None)
    assert scores.difference(np.array([3.0]), np.array([1.0, 2.0])).interval is None
    assert scores.difference(np.full(2, 3.0), np.full(3, 1.0)) == scores.Estimate(2.0, (2.0, 2.0))
    assert scores.mean(np.array([3.0, np.nan])).interval is None


@pytest.mark.parametrize(
    ("interval", "sign"), [((1.0, 2.0), 1), ((-2.0, -1.0), -1), ((-1.0, 2.0), 0), (None, 0)]
)
def test_clearly(interval, sign):
    assert scores.clearly(scores.Estimate(0.5, interval)) == sign


def test_every_environment_of_the_paper_has_a_scale_and_every_number_a_source():
    assert [
        published.scale(env)
        for env in ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5", "Ant-v5", "Swimmer-v5")
    ] == [
        9755,
        3998,
        2859,
        3808,
        78,
    ]
    assert published.scale("probe/delay") is None
    assert {row.source for row in published.RETURNS} == set(published.SOURCES)
    assert {row.step for row in published.of("Swimmer-v5", 100_000)} == {100_000} and len(
        published.of("Ant-v5", 1_000_000)
    ) == 9


# --- a seed's stability ---------------------------------------------------------------------------


def test_a_return_collapses_if_it_loses_half_of_what_it_gained():
    rise = np.linspace(0, 100, 20)
    assert not verdicts.collapsed(rise, spread=1.0)
    assert verdicts.collapsed(np.concatenate([rise, np.full(5, 40.0)]), spread=1.0)
    assert not verdicts.collapsed(np.concatenate([rise, np.full(5, 60.0)]), spread=1.0)
    assert not verdicts.collapsed(
        np.concatenate([rise, np.full(4, 40.0), [100.0]]), spread=1.0
    )  # no five in a row
    assert not verdicts.collapsed(
        np.concatenate([rise, np.full(5, 40.0)]), spread=200.0
    )  # it never learned
    assert not verdicts.collapsed(np.array([0.0, 100.0, 0.0]), spread=1.0)  # too few to tell


def test_a_run_without_faults_has_none():
    assert verdicts.faults(one()) == verdicts.Faults([], [], [])


def test_a_number_that_is_not_finite_is_a_fault_of_its_seed():
    assert verdicts.faults(one(extra=[{"step": 99_000, "seed": 1, "critic/q_mean": None}])).a == [1]


def test_a_divergence_is_a_fault_of_its_seed_alone():
    run = one(end=12, extra=[{"step": 61_050, "seed": 2, "run/diverged": 1.0}])
    assert (
        run.diverged == (61_050, 2)
        and verdicts.faults(run).a == [2]
        and run.reached == 60_000
        and not run.finished
    )


def test_a_run_has_reached_what_its_last_seed_has():
    run = one(extra=[{"step": 105_000, "seed": 1, "eval/return_mean": 1.0, "eval/return_std": 1.0}])
    assert run.reached == 100_000 and np.isnan(
        run.metric("eval/return_mean")[1][:, -1]
    ).tolist() == [True, False, True]


def test_a_metric_that_failed_to_be_measured_is_no_fault():
    assert verdicts.faults(one(extra=[{"step": 99_000, "seed": 1, "solve/residual": None}])).a == []


def test_a_collapse_is_a_fault_of_its_seed():
    assert verdicts.faults(
        one(returns=lambda seed, t: 100 * (t if seed != 1 or t < 0.6 else 0.0))
    ).b == [1]


def test_q_above_what_evaluations_attained_is_a_fault():
    high = [{"step": 99_000, "seed": 2, "critic/q_mean": 100.5}]
    assert verdicts.faults(one(extra=high)).c == [2]


def test_q_cannot_be_judged_on_records_without_attained_returns():
    assert verdicts.faults(one(worth=None)).c is None


# --- verdicts -------------------------------------------------------------------------------------


def find(words, envs=ENVS):
    runs, _ = curves.gather(Path("r"), envs, SIX)
    (verdict,) = [v for v in verdicts.judge(runs, envs) if words in v.statement]
    return verdict


STATEMENTS = {
    # words of the statement -> what makes it so, and what makes it not so: {variant: fields of
    # `write`}
    "is stable": ({}, {"preqn-sin": {"q": 200.0}}),
    "comparing favorably": (
        {"preqn-sin": {"returns": better(-5)}},
        {"preqn-sin": {"returns": better(-500)}},
    ),
    "regardless of architecture": ({}, {"preqn-relu": {"align": 0.9}}),
    "better-aligned": (
        {"td3-sin": {"align": 0.6}, "td3-relu": {"align": 0.4}},
        {"td3-sin": {"align": 0.3}},
    ),
    "TD3-sin was generally weaker": (
        {"td3-sin": {"returns": better(-500)}},
        {"td3-sin": {"returns": better(0)}},
    ),
    "PreQN-relu was generally weaker": (
        {"preqn-relu": {"returns": lambda seed, t: 1000 * (t if t < 0.6 else 0.0) + seed}},
        {"preqn-relu": {"returns": better(-500)}},  # weaker, but not because it is less stable
    ),
}


@pytest.mark.parametrize("so", [True, False])
@pytest.mark.parametrize("words", STATEMENTS)
def test_a_statement_is_borne_out_or_not(words, so):
    changes = STATEMENTS[words][0 if so else 1]
    for env in ENVS:
        for variant in SIX:
            write(env, variant, **changes.get(variant, {}))
    assert find(words).borne_out is so


@pytest.mark.parametrize(("by", "env", "words", "so"), [
    (500, "Swimmer-v5", "outperforms", True),
    (0, "Swimmer-v5", "outperforms", False),
    (-500, "Hopper-v5", "underperforms", True),
    (500, "Hopper-v5", "underperforms", False),
])  # fmt: skip
def test_statements_on_single_environments(by, env, words, so):
    for variant in SIX:
        write(env, variant, **({"returns": better(by)} if variant == "preqn-sin" else {}))
    half = find(f" {words}", [env]).halves[0]
    assert half.borne_out is so and "over ddpg-relu" in half.evidence
    assert find(" outperforms", [env]).halves[1] == verdicts.Half(
        "preqn-sin is clearly better than td3-relu and sac-relu on Ant", "needs runs on Ant", None
    )


def test_better_than_one_baseline_is_not_better_than_both():
    for variant in SIX:
        write(
            "Swimmer-v5",
            variant,
            returns=better({"preqn-sin": 500, "sac-relu": 500}.get(variant, 0)),
        )
    assert find(" outperforms", ["Swimmer-v5"]).halves[0].borne_out is False


def test_generally_needs_no_environment_to_say_the_opposite():
    for env, by in zip((*ENVS, "Ant-v5"), (-500, -500, 500), strict=True):
        write(env, "td3-relu")
        write(env, "td3-sin", returns=better(by))
    assert find("TD3-sin was", (*ENVS, "Ant-v5")).borne_out is False
    assert find("TD3-sin was", ENVS).borne_out is True


def test_what_diverged_is_the_weaker_whatever_it_returned():
    write("HalfCheetah-v5", "preqn-sin")
    write(
        "HalfCheetah-v5",
        "preqn-relu",
        returns=better(900),
        end=12,
        extra=[{"step": 61_050, "seed": 2, "run/diverged": 1.0}],
    )
    verdict = find("PreQN-relu was", ["HalfCheetah-v5"])
    assert verdict.borne_out is True and "preqn-relu diverged" in verdict.halves[0].evidence


def test_runs_are_compared_where_both_have_been():
    write("HalfCheetah-v5", "td3-relu", returns=lambda seed, t: 1000 * (t <= 0.6) + seed)
    write(
        "HalfCheetah-v5", "td3-sin", returns=lambda seed, t: 500.0 + seed, end=12, num_steps=60_000
    )
    assert find("TD3-sin was", ["HalfCheetah-v5"]).borne_out is True


@pytest.mark.parametrize("end", [None, 19])
def test_a_statement_cannot_be_judged_while_a_run_is_missing_or_unfinished(end):
    for variant in ("td3-sin", "td3-relu"):
        for env in ENVS:
            if (env, variant) != (ENVS[1], "td3-sin") or end:
                write(env, variant, end=end if (env, variant) == (ENVS[1], "td3-sin") else 20)
    verdict = find("better-aligned")
    assert verdict.borne_out is None and verdict.halves[0].evidence == "needs Swimmer-v5/td3-sin"


def test_one_half_that_fails_decides_even_where_another_cannot_be_judged():
    half = verdicts.Half("x", "y", None)
    assert verdicts.Verdict("s", [half, half._replace(borne_out=False)]).borne_out is False
    assert verdicts.Verdict("s", [half, half._replace(borne_out=True)]).borne_out is None
    assert verdicts.Verdict("s", [half._replace(borne_out=True)]).borne_out is True


# --- reading, tables, files -----------------------------------------------------------------------


def test_gathering_picks_seeds_and_says_what_is_not_whole():
    write("a", "preqn-sin")
    write("b", "preqn-sin", end=3, extra=[{"step": 17_000, "seed": 1, "run/diverged": 1.0}])
    write("c", "preqn-sin", end=2)
    write("d", "preqn-sin", end=0, extra=[{"step": 1000, "seed": 0, "train/return": 1.0}])
    with Path("r/a/preqn-sin/metrics.jsonl").open("a") as file:
        file.write('{"step": 1050')  # cut off by a kill
    found, notes = curves.gather(Path("r"), "abcde", ["preqn-sin"], seeds=[1, 2, 7])
    assert [run.env for run in found] == ["a", "b", "c"] and {run.seeds for run in found} == {
        (1, 2)
    }
    steps, values = found[0].metric("eval/return_mean")
    assert values.shape == (2, 20) and values[1, 0] == 1000 / 20 + 20 and steps[-1] == 100_000
    assert notes == [
        "b/preqn-sin diverged at step 17,000, seed 1, which ended all its seeds",
        "c/preqn-sin stands at step 10,000 of 100,000",
        "d/preqn-sin has no evaluation of these seeds yet",
        "e/preqn-sin is missing",
    ]


def test_a_run_with_a_damaged_config_is_a_sentence():
    write("a", "preqn-sin")
    Path("r/a/preqn-sin/config.json").write_text('{"config"')
    with pytest.raises(UserError, match="'r/a/preqn-sin' is not a run directory"):
        curves.gather(Path("r"), ["a"], ["preqn-sin"])


def test_a_table_has_the_customary_steps_that_were_reached():
    write("HalfCheetah-v5", "preqn-sin", end=80, num_steps=400_000)
    write("HalfCheetah-v5", "td3-relu", end=25, num_steps=400_000)
    write(
        "HalfCheetah-v5",
        "sac-relu",
        end=3,
        num_steps=400_000,
        extra=[{"step": 17_000, "seed": 1, "run/diverged": 1.0}],
    )
    runs, _ = curves.gather(Path("r"), ["HalfCheetah-v5"], benchmark.KIND.variants)
    at = benchmark.checkpoints(runs)
    assert at == [100_000, 125_000, 300_000, 400_000]
    rows = benchmark.table(runs, at)
    assert [(row["variant"], row["step"]) for row in rows] == [
        ("preqn-sin", step) for step in at
    ] + [
        ("td3-relu", 100_000),
        ("td3-relu", 125_000),
    ]
    expected = [1000 * np.mean(np.arange(11, 21) / 20) + 10 * seed for seed in (0, 1, 2)]
    np.testing.assert_allclose(rows[0]["scores"], expected)
    assert rows[0]["mean"] == pytest.approx(np.mean(expected))
    assert benchmark.together(runs, at) == []  # sac-relu has no score anywhere
    pooled = benchmark.together(runs[:2], [100_000, 300_000])
    assert [(row["variant"], row["step"]) for row in pooled] == [
        ("preqn-sin", 100_000),
        ("td3-relu", 100_000),
    ]
    assert pooled[0]["mean"] == pytest.approx(
        expected[1] / 9755
    )  # of three values a quarter is none: the mean


def test_tasks_that_not_all_have_reached_are_not_put_together():
    for variant in ("preqn-sin", "td3-relu"):
        write("HalfCheetah-v5", variant)
        write("probe/delay", variant)  # without a scale
    write("Swimmer-v5", "preqn-sin")
    runs, _ = curves.gather(Path("r"), [*ENVS, "probe/delay"], benchmark.KIND.variants)
    assert {tuple(row["envs"]) for row in benchmark.together(runs, [100_000])} == {
        ("HalfCheetah-v5",)
    }


def test_the_benchmarks_report_is_printed_written_and_drawn(capsys):
    for env in ENVS:
        for variant in benchmark.KIND.variants:
            write(env, variant)
    write(
        "HalfCheetah-v5", "td3-sin", end=3, extra=[{"step": 17_000, "seed": 1, "run/diverged": 1.0}]
    )
    benchmark.report(Path("r"), [*ENVS, "Ant-v5"], None, Path("out"))
    out, err = capsys.readouterr()
    assert (
        "td3, Spinning Up" in out
        and "5,242" in out
        and "openai/spinningup" in out
        and "Ant-v5/preqn-sin is missing" in err
    )
    assert (
        '"PreQN is stable, despite not using target networks": cannot be judged' in out
        and verdicts.RULES in out
    )
    written = json.loads(Path("out/report.json").read_text())
    assert (
        len(written["scores"]) == 8
        and len(written["verdicts"]) == 8
        and written["together"][0]["envs"] == list(ENVS)
    )
    assert {row["source"] for row in written["published"]} == {"Spinning Up"}
    assert Path("out/figure_2.png").stat().st_size > 20_000


def test_the_report_on_alignment_is_printed_written_and_drawn(capsys):
    for variant in alignment.KIND.variants:
        write("HalfCheetah-v5", variant, align=0.98)
    write("probe/delay", "td3-sin", end=3, extra=[{"step": 17_000, "seed": 1, "run/diverged": 1.0}])
    alignment.report(Path("r"), ["HalfCheetah-v5", "probe/delay"], [0, 1], Path("out"))
    assert "0.9800" in capsys.readouterr().out
    written = json.loads(Path("out/report.json").read_text())
    assert [row["seeds"] for row in written["alignment"]] == [[0, 1]] * 5 and len(
        written["verdicts"]
    ) == 4
    assert sorted(p.name for p in Path("out").glob("*.png")) == [
        "alignment_probe_delay.png",
        "figure_10.png",
        "figure_3.png",
    ]


@pytest.mark.parametrize("binary", [benchmark, alignment])
def test_nothing_to_report_is_a_sentence_that_names_the_command(binary):
    with pytest.raises(
        UserError,
        match=rf"nothing to report in 'r'; make runs with: python -m {binary.__name__} --root=r",
    ):
        binary.report(Path("r"), ENVS, None, Path("out"))
    assert not Path("out").exists()


def test_a_figure_draws_means_bands_and_where_a_run_diverged():
    import matplotlib.pyplot as plt

    write("a", "td3-sin", end=3, extra=[{"step": 17_000, "seed": 1, "run/diverged": 1.0}])
    write("a", "td3-relu")
    runs, _ = curves.gather(Path("r"), ["a"], ["td3-sin", "td3-relu"])
    figure, ax = plt.subplots()
    style.panel(ax, runs, "eval/return_mean")
    means, cross, other = ax.lines
    np.testing.assert_allclose(np.array(means.get_ydata()), [1000 * t / 20 + 10 for t in (1, 2, 3)])
    assert cross.get_marker() == "x" and np.ravel(cross.get_xydata()).tolist() == [15_000, 160]
    assert other.get_label() == "td3-relu" and len(other.get_xydata()) == 20
    top = np.array(ax.collections[0].get_paths()[0].vertices)[:, 1].max()
    assert top == pytest.approx(160 + np.std([0, 10, 20]))
    plt.close(figure)


# --- every figure ---------------------------------------------------------------------------------


RESULTS = Path(figures.__file__).parent / "results"


def test_figures_are_drawn_from_what_is_there_and_the_rest_is_named(capsys):
    for variant in SIX:
        write("HalfCheetah-v5", variant)
    Path("r").rename("paper")
    assert figures.draw(Path(), Path("out")) == 1
    out, err = capsys.readouterr()
    drawn = {"figure_2.png", "figure_3.png", "figure_10.png"}
    assert (
        {path.name for path in Path("out").iterdir()}
        == drawn
        == {Path(line).name for line in out.split()}
    )
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (
        len(lines) == 5
        and all("; made by: " in line for line in lines)
        and "python -m experiments.ntk_init" in lines[0]
    )
    assert "alignment: Swimmer-v5/td3-sin is missing" in err


def test_figures_of_the_failure_modes_and_of_growth_come_from_their_files(monkeypatch, capsys):
    kept = ("failure_modes/failure_modes.json", "diagnosis/ddpg", "growth.json", "halfcheetah")
    monkeypatch.setattr(
        figures, "MAKERS", [maker for maker in figures.MAKERS if maker.data in kept]
    )
    row = {"axis": "batch", "value": 64, "ms": 1.0, "min": 0.9, "max": 1.2, "bytes": 5e6}
    rows = [{**row, "method": method} for method in growth.METHODS] + [
        {"axis": "batch", "value": 9, "method": "jacobian", "needs": 1}
    ]
    shutil.copytree(
        RESULTS, "results", ignore=lambda folder, names: [n for n in names if n.endswith(".png")]
    )
    Path("results/growth.json").write_text(
        json.dumps({"config": dataclasses.asdict(growth.GrowthConfig()), "rows": rows})
    )
    assert figures.draw(Path("results"), Path("out")) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "diagnosis.png",
        "failure_modes.png",
        "growth.png",
        "halfcheetah.png",
    ]
    Path("results/growth.json").write_text("{}")
    Path("results/failure_modes/failure_modes.json").write_text('{"rows": []}')
    capsys.readouterr()
    assert figures.draw(Path("results"), Path("out")) == 1
    err = capsys.readouterr().err
    assert (
        "holds no rows of experiments.cost --grid" in err
        and "holds no curves of experiments.failure_modes" in err
    )
