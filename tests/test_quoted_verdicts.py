"""Verdicts in documents are those of the kept reports, and these are what the records give."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from quoted import DOCS, RESULTS, benchmark_of, flat, kept, numbers, rows

from experiments import alignment, benchmark
from experiments.judge import scores, section_5_1, section_5_2


@pytest.mark.parametrize(
    ("root", "count", "plain"),
    [
        ("scale", 5, "at 115,000 steps they are {:.2f}, {:.2f} and {:.2f}."),
        ("scale_300k", 5, "over all five are {:.2f} (PreQN), {:.2f} (TD3) and {:.2f} (SAC)"),
    ],
)
def test_environments_together_are_those_of_the_report(root, count, plain):
    report = json.loads((RESULTS / root / "benchmark/report.json").read_text())
    found = [scores.Estimate(row["mean"], tuple(row["interval"])) for row in report["together"]]
    text = " ".join((DOCS / "benchmark.md").read_text().split())
    assert len(report["together"][0]["envs"]) == count
    assert "{:.2f} of PreQN, {:.2f} of TD3 and {:.2f} of SAC".format(*found) in text
    readme = " ".join((DOCS.parent.parent / "README.md").read_text().split())
    assert plain.format(*(one.value for one in found)) in readme


def test_verdicts_in_documents_are_those_of_the_kept_reports():
    said = {None: "open", True: "yes", False: "no"}
    report = lambda name: json.loads((RESULTS / f"paper/{name}/report.json").read_text())
    judged = [said[one["borne_out"]] for one in report("benchmark")["verdicts"]]
    assert [row["borne out"] for row in rows("benchmark.md", "statement", "borne out")] == [
        *judged,
        "",
    ]
    judged = [said[one["borne_out"]] for one in report("alignment")["verdicts"]]
    table = rows("alignment.md", "statement of section 5.2", "all three")
    assert [row["all three"] for row in table] == judged
    means = {(r["env"], r["variant"]): f"{r['mean']:.3f}" for r in report("alignment")["alignment"]}
    for row in rows("alignment.md", "environment", "PreQN-relu"):
        for name in ("PreQN-sin", "PreQN-relu", "TD3-sin", "TD3-relu"):
            assert row[name] == means.get((row["environment"], name.lower()), "not run")


def test_what_verdicts_are_worth_is_told_as_in_rules_and_reports():
    table = rows("benchmark.md", "a yes at 60 % of both rivals", "a no at 100 %")
    cells = [[f"0{cell}" for cell in list(row.values())[1:]] for row in table]
    rules = " ".join(section_5_2.RULES.split())
    assert len(cells) == 5
    for told in cells[:2]:
        assert ", ".join(told[:6]) in rules and f"{', '.join(told[6:])} with" in rules
    for told, root in zip(cells[2:], ("paper", "scale", "scale_300k"), strict=True):
        evidence = benchmark_of(root)[1]["parts"][0]["evidence"]
        assert f"probability {', '.join(told[:6])} at 60" in evidence
        assert f"and a no {', '.join(told[6:])} at 100, 110 %" in evidence
    text = " ".join((DOCS / "benchmark.md").read_text().split())
    assert (
        f"with probability {cells[4][6][1:]}, one at 110 % of both with {cells[4][7][1:]}" in text
    )
    assert f'gets a "no" with probability {cells[3][6][1:]}' in text


@pytest.mark.parametrize(("root", "page", "words"), [
    ("paper", "benchmark.md", "{1} of {2} of TD3 and SAC, p = {3})"),
    ("scale", "benchmark.md", "(none of the {2} of TD3 and SAC, p = {3})"),
    ("scale_300k", "benchmark.md", "which is {0}, where it is {1} of the {2} of TD3"),
    ("scale_300k", "../../README.md", "({0} seeds at 300,000; {1} of the {2} of TD3 and SAC, p ="),
])  # fmt: skip
def test_who_collapses_beside_preqn_is_told_as_in_reports(root, page, words):
    evidence = benchmark_of(root)[0]["parts"][1]["evidence"]
    kept_up, total = numbers(evidence.partition(" seeds")[0])
    beside = [tuple(map(int, x)) for x in re.findall(r"-relu (\d+) of (\d+)", evidence)]
    own, p_value = f"{total - kept_up:.0f} of {total:.0f}", evidence.rpartition("p = ")[2]
    assert words.format(own, *map(sum, zip(*beside, strict=True)), p_value) in flat(page)


def collapses(variants, folders, middle=np.mean):
    """How many seeds break rule (b), of how many, if `middle` sums up every five evaluations."""
    found = []
    for folder in (f"{folder}-v5/{variant}" for folder in folders for variant in variants):
        of = kept(folder, 300_000)
        for returns, spread in zip(of("eval/return_mean"), of("eval/return_std"), strict=True):
            returns = returns[np.isfinite(returns)]
            windows = middle(np.lib.stride_tricks.sliding_window_view(returns, 5), axis=1)
            gain = np.maximum.accumulate(windows) - returns[0]
            fallen = windows < returns[0] + gain / 2
            usual = np.cumsum(spread[np.isfinite(spread)]) / np.arange(
                1, np.isfinite(spread).sum() + 1
            )
            found.append(bool(np.any(fallen & (gain > usual[4:]))))
    return sum(found), len(found)


def test_who_collapses_by_medians_is_of_the_kept_records():
    preqn, others = ["preqn-sin"], ["td3-relu", "sac-relu"]
    envs = ("HalfCheetah", "Swimmer", "Hopper", "Walker2d", "Ant")
    five = [f"scale_300k/{env}" for env in envs]
    assert collapses(preqn, five, np.median) == (5, 15)
    assert collapses(others, five, np.median) == (4, 30)
    assert "by medians of five it is 5 of PreQN's 15 at 300,000" in flat("benchmark.md")
    assert "partly other ones, and 4 of the others' 30" in flat("benchmark.md")


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
                counts = [float(re.findall(r"in (\d+) of 21", h.evidence)[0]) for h in one.parts]
                assert numbers(row[column])[:2] == counts


@pytest.mark.parametrize("binary", [benchmark, alignment])
def test_kept_reports_say_what_the_kept_records_give(binary):
    kept_there = RESULTS / "paper" / binary.KIND.name
    envs = ["HalfCheetah-v5", "Walker2d-v5", "Swimmer-v5"]
    binary.report(RESULTS / "paper", envs, [0, 1, 2], Path("out"))
    new, old = (json.loads((x / "report.json").read_text()) for x in (Path("out"), kept_there))
    for part in ("rules", "notes", "step", "verdicts", *({"alignment"} & {*new})):
        assert new[part] == old[part]
