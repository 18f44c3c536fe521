"""Reports on runs: what is read, compared, printed, written and drawn."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fabricated import SIX, frozen, write

from experiments import alignment, benchmark, figures
from experiments.bench import growth
from experiments.judge import scores, section_5_1, section_5_2
from experiments.kit import curves, style
from preqn_jax.options import UserError

ENVS = ("HalfCheetah-v5", "Swimmer-v5")


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


def test_a_seed_that_is_frozen_ends_no_other_and_counts_where_it_is_asked_for():
    write("a", "preqn-sin", end=3, extra=[frozen(16_000, 1)])
    (run,), notes = curves.gather(Path("r"), "a", ["preqn-sin"])
    assert run.diverged == {1: 16_000} and not run.ended and "; its others went on" in notes[0]
    assert notes[1] == "a/preqn-sin stands at step 15,000 of 100,000"
    (run,), notes = curves.gather(Path("r"), "a", ["preqn-sin"], seeds=[0, 2])
    assert not run.diverged and len(notes) == 1
    (run,), notes = curves.gather(Path("r"), "a", ["preqn-sin"], seeds=[1])
    assert run.ended and "which ended all its seeds" in notes[0]


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
    assert rows[0]["estimate"].value == pytest.approx(np.mean(expected))
    assert curves.common_step(runs) == 125_000  # sac-relu ended before, and stands as it ended
    pooled = benchmark.together([run.cut(100_000) for run in runs])
    assert [row["variant"] for row in pooled] == ["preqn-sin", "td3-relu", "sac-relu"]
    # Of three values a quarter is none: the mean.
    assert pooled[0]["estimate"].value == pytest.approx(expected[1] / 9755)
    assert pooled[2]["estimate"].value == pytest.approx((1000 * 2 / 20 + 10) / 9755)


def test_tasks_that_not_all_have_runs_on_are_not_put_together():
    for variant in ("preqn-sin", "td3-relu"):
        write("HalfCheetah-v5", variant)
        write("probe/delay", variant)  # without a scale
    write("Swimmer-v5", "preqn-sin")
    runs, _ = curves.gather(Path("r"), [*ENVS, "probe/delay"], benchmark.KIND.variants)
    assert {tuple(row["envs"]) for row in benchmark.together(runs)} == {("HalfCheetah-v5",)}
    assert benchmark.together([run for run in runs if run.env == "probe/delay"]) == []


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


# --- what documents quote -------------------------------------------------------------------------


RESULTS = Path(figures.__file__).parent / "results"
DOCS = RESULTS.parent.parent / "docs" / "results"


def rows(page, *columns):
    """The table of a page whose header has these columns, a dictionary a row."""
    tables = (DOCS / page).read_text().split("\n\n")
    (table,) = [one for one in tables if all(f"| {column} |" in one for column in columns)]
    lines = [line for line in table.split("\n") if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(head, line, strict=True)) for line in body]


def numbers(text):
    found = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", text)
    return [float(number.replace(",", "")) for number in found]


def kept(folder, end=100_000, updates=False):
    """name -> values `[S, T]` of the records of a run up to a step, of its `updates` without the
    line of the first.
    """
    config, lines = curves.load(RESULTS / folder)
    first = config["update_after"] if updates else 0
    lines = [line for line in lines if first < line["step"] <= end]
    by_seed = [[x for x in lines if x["seed"] == s] for s in config["seeds"]]
    return lambda name: curves.matrix(by_seed, name)[1]


def last_three(of):
    return [round(x) for x in of("eval/return_mean")[:, -3:].mean(axis=1)]


def test_the_benchmarks_table_is_of_the_kept_records():
    env, found = "", rows("benchmark.md", "run", "accepted")
    assert len(found) == 11
    for row in found:
        env = row["environment"] or env
        of = kept(f"paper/{env}/{row['run']}", numbers(row["steps"])[0])
        assert last_three(of) == numbers(row["last three evaluations, by seed"])
        mean = scores.mean(scores.last(of("eval/return_mean")))
        quoted = numbers(row["last ten"])
        assert [round(x) for x in (mean.value, *(mean.interval or ()))][: len(quoted)] == quoted
        of = kept(f"paper/{env}/{row['run']}", numbers(row["steps"])[0], updates=True)
        assert round(of("critic/alignment").mean(), 3) == float(row["alignment"])
        if row["run"].startswith("preqn"):
            told = row["accepted"].replace("every update", "1.00000")
            assert f"{of('linesearch/accepted').mean():.{len(told) - 2}f}" == told


def test_the_pooled_returns_are_of_all_runs_none_picked():
    pooled, named = {"PreQN-sin": [], "TD3-relu": []}, set()
    for row in rows("benchmark.md", "runs", "where", "seed by seed"):
        values = numbers(row["seed by seed"])
        if row["where"] != "records not kept":
            folder = row["where"].strip("`")
            named.add(folder)
            assert last_three(kept(folder, 100_000)) == values
        pooled[row["runs"].split(",")[0]] += values
    there = {f"halfcheetah/{path.name}" for path in (RESULTS / "halfcheetah").iterdir()}
    roots = [root.parent.name for root in RESULTS.glob("*/HalfCheetah-v5")]
    assert {"paper", "scale"} <= set(roots)
    for root in roots:
        at = RESULTS / root / "HalfCheetah-v5"
        there |= {
            f"{root}/HalfCheetah-v5/{name}"
            for name in map(str.lower, pooled)
            if (at / name / "metrics.jsonl").exists()
        }
    assert named == there
    for row in rows("benchmark.md", "pooled", "number of runs"):
        values = pooled.pop(row["pooled"])
        expected = [round(np.mean(values)), round(np.std(values, ddof=1)), len(values)]
        words = row["mean, standard deviation over runs"]
        assert numbers(f"{words} {row['number of runs']}")[:3] == expected
    assert not pooled


def test_the_table_of_longer_runs_is_of_the_kept_records():
    env, run, folder, quoted = "", "", "", set()
    for row in rows("benchmark.md", "seeds", "at the last step", "attained"):
        env, run = row["environment"] or env, row["run"] or run
        folder = f"scale/{env}/{run}"
        step, *last = numbers(row["at the last step"].replace("-v5", ""))
        for at, told in ((100_000, numbers(row["at 100,000"])), (step, last)):
            of = kept(folder, at)
            returns = of("eval/return_mean")
            mean = scores.mean(scores.last(returns))
            values = [round(x) for x in (mean.value, *mean.interval)]
            assert values == told or not told
            quoted.add(tuple(values))
        of = kept(folder, step)
        if row["seeds"]:
            assert len(returns) == int(row["seeds"])
        if row["mean Q"]:
            q, attained = of("critic/q_mean")[:, -1], of("eval/discounted_max").max(axis=1)
            assert [round(x.mean()) for x in (q, attained)] == [
                int(row["mean Q"]),
                int(row["attained"]),
            ]
    readme = (DOCS.parent.parent / "README.md").read_text()
    for told in re.findall(r"[\d,]+ \[[\d, ]+\]", readme):
        assert tuple(numbers(told)) in quoted


def test_verdicts_in_documents_are_those_of_the_kept_reports():
    said = {None: "open", True: "yes", False: "no"}
    report = lambda name: json.loads((RESULTS / f"paper/{name}/report.json").read_text())
    judged = [said[one["borne_out"]] for one in report("benchmark")["verdicts"]]
    assert [row["borne out"] for row in rows("benchmark.md", "statement", "borne out")] == [
        *judged,
        "",
    ]
    known = section_5_2.RULES + report("benchmark")["verdicts"][1]["halves"][0]["evidence"]
    for row in rows("benchmark.md", "60 % of both rivals", "110 %"):  # power
        assert ", ".join(f"0{cell}" for cell in list(row.values())[1:]) in " ".join(known.split())
    judged = [said[one["borne_out"]] for one in report("alignment")["verdicts"]]
    table = rows("alignment.md", "statement of section 5.2", "all three")
    assert [row["all three"] for row in table] == judged
    means = {(r["env"], r["variant"]): f"{r['mean']:.3f}" for r in report("alignment")["alignment"]}
    for row in rows("alignment.md", "environment", "PreQN-relu"):
        for name in ("PreQN-sin", "PreQN-relu", "TD3-sin", "TD3-relu"):
            assert row[name] == means.get((row["environment"], name.lower()), "not run")


def test_verdicts_on_kernels_are_those_of_the_kept_numbers():
    data = section_5_1.load(RESULTS / "ntk_init/data.json")
    found = section_5_1.findings(data)
    written = json.loads((RESULTS / "ntk_init/findings.json").read_text())
    assert written == {"rules": section_5_1.RULES, "findings": section_5_1.as_json(found)}
    columns = {"glorot": "Glorot", "lecun": "LeCun", "pytorch": "PyTorch"}
    for i, row in enumerate(rows("kernels.md", "finding", *columns.values())):
        for initializer, column in columns.items():
            one = found[initializer][i]
            assert row[column].startswith({True: "yes", False: "no"}[bool(one.borne_out)])
            if i > 1:  # of 21 pairs
                counts = [float(re.findall(r"in (\d+) of 21", h.evidence)[0]) for h in one.halves]
                assert numbers(row[column])[:2] == counts


@pytest.mark.parametrize("binary", [benchmark, alignment])
def test_kept_reports_say_what_the_kept_records_give(binary):
    kept_there = RESULTS / "paper" / binary.KIND.name
    envs = ["HalfCheetah-v5", "Walker2d-v5", "Swimmer-v5"]
    binary.report(RESULTS / "paper", envs, [0, 1, 2], Path("out"))
    new, old = (json.loads((x / "report.json").read_text()) for x in (Path("out"), kept_there))
    for part in ("rules", "notes", "step", "verdicts", *({"alignment"} & {*new})):
        assert new[part] == old[part]


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
        len(lines) == 6
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
