"""Reports on runs: reading, comparing, printing, writing and drawing."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fabricated import SIX, frozen, text, write

from experiments import alignment, benchmark, figures, rivals
from experiments.bench import growth
from experiments.judge import section_5_2, standing
from experiments.kit import curves, flags, launch, output, plan, style
from preqn_jax.options import UserError

ENVS = ("HalfCheetah-v5", "Swimmer-v5")
RESULTS = Path(figures.__file__).parent / "results"


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
    lacks = [f"{env}/preqn-sin lacks seed 7" for env in "abcd"]
    assert [note for note in notes if "lacks" in note] == lacks
    assert [note for note in notes if note not in lacks] == [
        "b/preqn-sin diverged at step 17,000, seed 1, which ended all its seeds",
        "c/preqn-sin stands at step 10,000 of 100,000",
        "d/preqn-sin has no evaluation of these seeds yet",
        "e/preqn-sin is missing",
    ]


def test_a_seed_that_is_frozen_ends_no_other_and_counts_where_it_is_asked_for():
    write("a", "preqn-sin", end=3, extra=[frozen(16_000, 1)])
    (run,), notes = curves.gather(Path("r"), "a", ["preqn-sin"])
    assert run.diverged == {1: 16_000} and not run.ended and "; its others went on" in notes[0]
    assert notes[1] == "a/preqn-sin stands at step 15,000 of 100,000"
    (run,), notes = curves.gather(Path("r"), "a", ["preqn-sin"], seeds=[0, 2])
    assert not run.diverged and len(notes) == 1
    (run,), notes = curves.gather(Path("r"), "a", ["preqn-sin"], seeds=[1])
    assert run.ended and "; its others went on" in notes[0]


def test_of_seeds_that_freeze_one_by_one_the_last_ends_the_run():
    write("a", "preqn-sin", extra=[frozen(16_000, 1), frozen(17_000, 0), frozen(18_000, 2)])
    _, notes = curves.gather(Path("r"), "a", ["preqn-sin"])
    ends = [note.partition(", seed ")[2][1:] for note in notes]
    assert ends == 2 * ["; its others went on"] + [", which ended all its seeds"]


def test_runs_that_are_evaluated_at_other_steps_are_told_of():
    write("a", "preqn-sin")
    write("a", "td3-relu", end=10)
    path = Path("r/a/td3-relu/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    doubled = [{**line, "step": 2 * line["step"]} for line in lines]
    path.write_bytes(text(doubled))
    write("b", "td3-relu", end=10)
    write("b", "preqn-sin", end=10, returns=lambda seed, t: None if t == 0.25 else t)
    _, notes = curves.gather(Path("r"), "ab", ["preqn-sin", "td3-relu"])
    (note,) = [note for note in notes if "unequal" in note]
    assert note.startswith("a has unequal numbers of evaluations up to step 100,000 (preqn-sin 20,")
    assert "td3-relu 10): a mean of so many is of a longer stretch" in note


def test_a_table_in_text_is_as_wide_as_what_is_in_it():
    lines = [["", "runs", "mean", "least"], ["an environment", "a", "12.5", ""]]
    assert output.aligned(lines, "lr").splitlines() == [
        "                runs  mean  least",
        "an environment     a  12.5",
    ]
    assert output.aligned(lines, "rlr").splitlines()[1] == "an environment  a     12.5"
    assert output.aligned([], "l") == ""


def test_a_run_with_a_damaged_config_is_a_sentence():
    write("a", "preqn-sin")
    Path("r/a/preqn-sin/config.json").write_text('{"config"')
    with pytest.raises(UserError, match="r/a/preqn-sin/config.json is not a run's config.json"):
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
    at = standing.checkpoints(runs)
    assert at == [100_000, 125_000, 300_000, 400_000]
    rows = standing.table(runs, at)
    assert [(row["variant"], row["step"]) for row in rows] == [
        ("preqn-sin", step) for step in at
    ] + [
        ("td3-relu", 100_000),
        ("td3-relu", 125_000),
    ]
    expected = [1000 * np.mean(np.arange(11, 21) / 20) + 10 * seed for seed in (0, 1, 2)]
    np.testing.assert_allclose(rows[0]["scores"], expected)
    assert rows[0]["estimate"].value == pytest.approx(np.mean(expected))
    assert curves.common_step(runs) == 125_000  # sac-relu ended before, and counts as it ended
    pooled = standing.together([run.cut(100_000) for run in runs])
    assert [row["variant"] for row in pooled] == ["preqn-sin", "td3-relu", "sac-relu"]
    # Of three values a quarter is none: the mean.
    assert pooled[0]["estimate"].value == pytest.approx(expected[1] / 9755)
    assert np.isnan(pooled[2]["estimate"].value)  # a seed diverged


def test_tasks_that_not_all_have_runs_on_are_not_put_together():
    for variant in ("preqn-sin", "td3-relu"):
        write("HalfCheetah-v5", variant)
        write("probe/delay", variant)  # without a scale
    write("Swimmer-v5", "preqn-sin")
    runs, _ = curves.gather(Path("r"), [*ENVS, "probe/delay"], benchmark.KIND.variants)
    assert {tuple(row["envs"]) for row in standing.together(runs)} == {("HalfCheetah-v5",)}
    assert standing.together([run for run in runs if run.env == "probe/delay"]) == []


def test_the_benchmarks_report_is_printed_written_and_drawn(capsys):
    for env in ENVS:
        for variant in benchmark.KIND.variants:
            write(env, variant)
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
        and section_5_2.RULES in out
    )
    written = json.loads(Path("out/report.json").read_text())
    assert (
        len(written["scores"]) == 8
        and len(written["verdicts"]) == 4
        and written["step"] == 100_000
        and "all at step 100,000" in out
        and written["together"][0]["envs"] == list(ENVS)
    )
    assert {row["source"] for row in written["published"]} == {"Spinning Up", "SimbaV2"}
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


def test_the_papers_number_is_that_of_the_only_version():
    for env in ("HalfCheetah-v4", "HalfCheetah-v5", "Hopper-v4", "Hopper-long-v5"):
        write(env, "preqn-sin")
    envs = ["HalfCheetah-v4", "HalfCheetah-v5", "Hopper-v4", "Hopper-long-v5"]
    runs, _ = curves.gather(Path("r"), envs, SIX)
    assert [path.stem for path in alignment.draw(runs, envs, Path("out"))] == [
        "figure_3",
        "alignment_HalfCheetah-v4",
        "alignment_HalfCheetah-v5",
        "figure_11",
        "alignment_Hopper-long-v5",
    ]


def test_a_run_without_updates_yet_has_no_alignment(capsys):
    write("a", "td3-sin", align=None)
    alignment.report(Path("r"), ["a"], None, Path("out"))
    assert "not finite" in capsys.readouterr().out
    (row,) = json.loads(Path("out/report.json").read_text())["alignment"]
    assert row["alignments"] == [None] * 3 and row["mean"] is None and row["least"] is None


@pytest.mark.parametrize("binary", [benchmark, alignment])
def test_nothing_to_report_is_a_sentence_that_names_the_command(binary):
    with pytest.raises(
        UserError,
        match=rf"no runs to report on in 'r'; .* with: python -m {binary.__name__} --root=r",
    ):
        binary.report(Path("r"), ENVS, None, Path("out"))
    assert not Path("out").exists()


def _with_a_frozen_seed():
    """A run with a frozen seed, whose last means are of a step that no other seed has."""
    end = {**frozen(22_350, 1), "critic/alignment": 0.1}
    write("b", "td3-relu", extra=[end])
    (run,), _ = curves.gather(Path("r"), ["b"], ["td3-relu"])
    lines = [x for x in run.lines[1] if x["step"] <= 22_350]
    return run._replace(lines=[run.lines[0], lines, run.lines[2]])


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
    style.panel(ax, [_with_a_frozen_seed()], "critic/alignment")
    assert ax.lines[3].get_ydata() == pytest.approx([0.99] * 20)  # no tooth of 0.1 at 22,350
    top = np.array(ax.collections[0].get_paths()[0].vertices)[:, 1].max()
    assert top == pytest.approx(160 + 10)  # the deviation of 150, 160 and 170
    plt.close(figure)


# --- every figure ---------------------------------------------------------------------------------


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
        len(lines) == 8
        and all("; made by: " in line for line in lines)
        and "python -m experiments.ntk_init" in lines[0]
    )
    assert "alignment: Swimmer-v5/td3-sin is missing" in err


@pytest.mark.slow
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


@pytest.mark.parametrize("word", ["--seeds=3:0", "--envs="])
def test_a_report_on_none_is_a_sentence(word):
    read = flags.read(["--report", word], plan.PlanConfig, launch.LaunchConfig)
    with pytest.raises(UserError, match=f"{word[2:].split('=')[0]} is empty, but a plan needs"):
        plan.main(benchmark.KIND, (read[0], read[1]), [], lambda *_: None)


def test_a_place_for_reports_that_is_none_is_refused_before_any_run():
    Path("file").touch()
    read = flags.read(["--root=new", "--out=file"], plan.PlanConfig, launch.LaunchConfig)
    with pytest.raises(UserError, match="cannot write 'file/report.json'"):
        plan.main(benchmark.KIND, (read[0], read[1]), [], lambda *_: None)
    assert not Path("new").exists()


def test_the_help_of_seeds_says_what_a_new_plan_has():
    words = {field.name: field.metadata["help"] for field in dataclasses.fields(plan.PlanConfig)}
    assert "0:7 for benchmark, 0:3 for alignment and rivals" in words["seeds"]
    found = [kind.KIND.default_seeds for kind in (benchmark, alignment, rivals)]
    assert found == [tuple(range(7)), tuple(range(3)), tuple(range(3))]
