"""Tables of runs."""

import csv
import io
from pathlib import Path

import fabricated
import numpy as np
import pytest
from commands import call_other

from experiments import table

RETURNS = {0: [1000.0, 3000.0, 2000.0, 2500.0], 1: [2000.0, 1000.0, 4000.0, 3500.0]}


def write_run(name, returns=RETURNS, **fields):
    config = {
        "algorithm": "preqn",
        "activation": "sin",
        "env": "E-v1",
        "seeds": list(returns),
        "update_after": 100,
        "num_steps": 500,
        **fields,
    }
    lines = [
        {"step": 100 * (i + 1), "seed": seed, "eval/return_mean": value}
        for seed, values in returns.items()
        for i, value in enumerate(values)
    ]
    # Before the first update nothing is measured that would count.
    for step, alignment in ((100, -1.0), (200, 0.5), (300, 1.0)):
        noted = {"critic/alignment": alignment, "linesearch/accepted": alignment / 2}
        lines.append({"step": step, "seed": next(iter(returns)), **noted})
    return fabricated.put(Path(name), config, lines)


def test_a_row_says_what_the_records_say():
    (row,) = table.rows([write_run("a")])
    assert row == {
        "run": "a",
        "environment": "E-v1",
        "algorithm": "preqn-sin",
        "settings": "",
        "seeds": 2,
        "diverged": 0,
        "steps": 400,
        "last return": (3000.0, pytest.approx(500 * 2**0.5)),
        "best return": (3500.0, pytest.approx(500 * 2**0.5)),
        "last three": (
            pytest.approx((2500 + 8500 / 3) / 2),
            pytest.approx((8500 / 3 - 2500) / 2**0.5),
        ),
        "alignment": 0.75,
        "accepted": 0.375,
    }


def test_settings_are_those_in_which_runs_of_one_algorithm_differ():
    runs = [
        write_run("a", eta=0.9),
        write_run("b", eta=0.5, hidden_sizes=[8], num_steps=7),
        write_run("c", algorithm="td3", eta=0.1),
        write_run("d", env="F-v1"),  # of a version without eta, which was the default
        write_run("e", algorithm="own", activation=None),
    ]
    settings = [row["settings"] for row in table.rows(runs)]
    default = "eta=0.97, hidden_sizes=[256, 256]"
    assert settings == [
        "eta=0.9, hidden_sizes=[256, 256]",
        "eta=0.5, hidden_sizes=[8]",
        "",
        default,
        "",
    ]


def test_what_was_not_recorded_or_not_finite_is_told_apart_from_a_number():
    runs = [
        write_run("none", {3: []}),
        write_run("null", {3: [1.0, None]}),
        write_run("one", {3: [0.123456]}),
    ]
    none, null, one = table.rows(runs)
    assert none["last return"] is None and none["best return"] is None
    assert np.isnan(null["last return"][0]) and null["best return"] == (1.0, None)
    assert one["last return"] == (0.123456, None)
    lines = table.as_md([none, null, one]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[8:10]] for line in lines[2:]]
    assert cells == [["", ""], ["nan", "1"], ["0.123", "0.123"]]


def test_csv_reads_back_as_it_was():
    runs = table.rows([write_run("a,b", eta=0.9), write_run("c", {3: []}, eta=0.8)])
    first, second = csv.DictReader(io.StringIO(table.as_csv(runs)))
    assert first["run"] == "a,b" and first["settings"] == "eta=0.9"
    numbers = [float(first[f"{name} {what}"]) for name in table.RETURNS for what in ("mean", "std")]
    expected = [number for name in table.RETURNS for number in runs[0][name]]
    assert numbers == expected and float(first["alignment"]) == 0.75
    assert second["last return mean"] == second["last return std"] == "" and second["seeds"] == "1"


def test_markdown_and_tex_hold_every_cell():
    runs = table.rows([write_run("a_b|c", {0: [-1500.0], 1: [-500.0]}), write_run("d%")])
    head, rule, first, second = table.as_md(runs).splitlines()
    assert len({len(head), len(rule), len(first), len(second)}) == 1  # aligned
    assert r"| a_b\|c | E-v1" in first and "| -1,000 ± 707 " in first and "| 3,000 ± 707 " in second
    lines = table.as_tex(runs).splitlines()
    assert lines[0] == r"\begin{tabular}{llllrrrrrrrr}" and lines[-1] == r"\end{tabular}"
    assert lines[4].startswith(r"a\_b|c & E-v1 & preqn-sin &  & 2 & 0 & 300 & $-1,000 \pm 707$ &")
    assert lines[5].startswith(r"d\% & ") and all(line.count("&") == 11 for line in lines[2:6:2])


def test_the_command_prints_or_writes(capsys):
    runs, out = [str(write_run(name)) for name in "ab"], Path("new/t.csv")
    assert call_other(table, table.TableConfig, *runs, "--format=csv", f"--out={out}") == 0
    assert capsys.readouterr().out == f"{out}\n"
    rows = table.rows([Path(run) for run in runs])
    assert out.read_text() == table.as_csv(rows)
    assert call_other(table, table.TableConfig, *runs) == 0
    assert capsys.readouterr().out == table.as_md(rows)


def test_folders_that_are_no_runs_are_left_out_where_several_are_given(capsys):
    """As of runs/*, where sweeps and plans lie beside the runs."""
    write_run("a"), write_run("sweep/member"), Path("figures").mkdir()
    assert call_other(table, table.TableConfig, "a", "figures", "sweep") == 0
    said = capsys.readouterr()
    assert said.out == table.as_md(table.rows([Path("a")]))
    assert said.err == "no run directories, and left out: figures, sweep\n"


def test_so_are_the_files_that_a_sweep_or_a_plan_writes_beside_its_runs(capsys):
    write_run("sw/member")
    for name in ("summary.json", "x.log"):
        Path("sw", name).touch()
    given = ["sw/member", "sw/summary.json", "sw/x.log"]
    assert call_other(table, table.TableConfig, *given) == 0
    said = capsys.readouterr()
    assert said.out == table.as_md(table.rows([Path("sw/member")]))
    assert said.err == "no run directories, and left out: sw/summary.json, sw/x.log\n"


def test_the_best_return_is_that_of_seeds_with_one():
    (row,) = table.rows([write_run("a", {1: [10.0, 20.0], 2: [None]})])
    assert row["best return"] == (20.0, None)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["figures", "sweep"], "'figures' is not a run directory: it has no config.json"),
        (["a", "nowhere"], "'nowhere' is not a run directory: it has no config.json"),
        ([], "no run given; name run directories, as in"),
        (["nowhere"], "'nowhere' is not a run directory: it has no config.json"),
        (["a", "--format=html"], "unknown format 'html'; choose one of csv, md, tex"),
        (["a", "--out=a"], "cannot write 'a': it is a folder; give another --out"),
        (["a", "--out=/dev/null/x"], "'/dev/null' is not a folder to write to; give another --out"),
    ],
)
def test_what_makes_no_table_is_one_sentence(args, words, capsys):
    write_run("a"), write_run("sweep/member"), Path("figures").mkdir()
    before = sorted(Path().rglob("*"))
    assert call_other(table, table.TableConfig, *args) == 1
    assert words in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before
