"""The study of the verdict: how a run ended, what is counted, and the table in the document."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import verdicts
from preqn_jax import diagnostics
from preqn_jax.diagnostics import failures
from preqn_jax.options import UserError
from preqn_jax.training.errors import Diverged

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "experiments/results/verdicts/runs.jsonl"


def look(beyond, **numbers):
    """A diagnosis with |Q| at so many times the sum of discounted rewards of 1, for gamma .98."""
    return {
        "q_largest": 50.0 * beyond,
        "soft_divergence": beyond,
        "seen": 1.0,
        "td_error": 10.0,
        "linearization_error": 0.0,
        "gain": 0.0,
        "extrapolation": 0.0,
        "row_ratio": 0.0,
        **numbers,
    }


def run(*beyond, setting="ddpg-hopper", seed=0, nan=None, bias=None):
    return verdicts.Trial(setting, seed, nan, bias, [look(x) for x in beyond])


LOW = [0.5] * 6
ENDS = {
    "sound": [
        run(*LOW, 0.5, 0.5, 0.5),
        run(*LOW[:5], 1.9, 1.09, 0.5, 0.5),
        run(*LOW, 0.5, 0.5, 0.5, bias=-2.9),
        run(*LOW, 1.15, 1.15, 1.15, setting="sac-hopper"),  # entropy counts too
    ],
    "fell back": [run(*LOW[:5], 2.1, 0.5, 0.5, 0.5), run(90.0, *LOW, 0.5, 0.5)],
    "unclear": [
        run(*LOW, 9.0, 9.0, 1.9),
        run(*LOW, 1.9, 9.0, 9.0),
        run(*LOW, 1.12, 0.5, 0.5),
        run(*LOW, 0.5, 0.5, 0.5, bias=3.1),
        run(*LOW, 0.5, 0.5, 0.5, bias=-3.1),
    ],
    "diverged": [
        run(*LOW, 2.1, 2.1, 2.1),
        run(*LOW, 0.5, 0.5, 0.5, nan=1000),
        run(nan=550),
        run(*LOW[:5], 9.0, 9.0, 9.0),
    ],
}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_ends_as_the_last_third_of_its_looks_says(end):
    assert end in verdicts.ENDS
    assert [one.end for one in ENDS[end]] == [end] * len(ENDS[end])


def test_seeds_are_divided_by_parity():
    assert [run(seed=seed).held_out for seed in range(4)] == [False, True, False, True]


def test_a_separation_is_the_share_of_pairs_in_order():
    """Pairs of a diagnosis beyond the bound in a diverged run, and any diagnosis of a sound run; an
    overflow is left out.
    """
    diverged, sound = run(*LOW, 3.0, 3.0, 3.0, 3.0), run(*LOW, 0.5, 0.5, 0.5)
    for one, gain in zip(diverged.looks, [9.0] * 6 + [0.1, 0.3, 0.3, math.inf], strict=True):
        one["gain"] = gain
    for i, one in enumerate(sound.looks):
        one["gain"] = 0.05 * i
    pairs = list(itertools.product([0.1, 0.3, 0.3], [0.05 * i for i in range(9)]))
    share = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    everything = [diverged, sound, *ENDS["unclear"], *ENDS["fell back"]]
    assert verdicts.separation(everything, "gain") == pytest.approx(share)
    assert math.isnan(verdicts.separation([sound], "gain"))


def test_runs_and_looks_are_counted_by_algorithm_half_and_end():
    runs = [
        run(*LOW, 3.0, 3.0, 3.0),
        run(*LOW, 4.0, 3.0, 3.0, seed=2),
        run(*LOW, 3.0, 3.0, 3.0, seed=1),
        run(3.0, *LOW, 0.5, 0.5),
        run(*LOW, 3.0, 3.0, 3.0, setting="td3-hopper"),
        run(*LOW, nan=650),
    ]
    rows = {(row["algorithm"], row["half"], row["end"]): row for row in verdicts.score(runs)}
    assert len(rows) == 2 * len(verdicts.ALGORITHMS) * len(verdicts.ENDS)
    row = rows["ddpg", "choosing", "diverged"]
    assert (row["runs"], row["flagged"], row["looks"], row["flagged_looks"]) == (3, 2, 24, 6)
    assert row["modes"] == {"an unnamed cause": 6}
    assert rows["ddpg", "held out", "diverged"]["runs"] == 1
    row = rows["ddpg", "choosing", "fell back"]
    assert (row["runs"], row["flagged"], row["looks"], row["flagged_looks"]) == (1, 1, 9, 1)
    assert rows["td3", "choosing", "diverged"]["flagged_looks"] == 3
    assert rows["sac", "choosing", "diverged"]["runs"] == 0


def test_signs_are_counted_where_they_are_beyond_their_lines():
    sound, diverged = run(*LOW, 0.5, 0.5, 0.5), run(*LOW, 3.0, 3.0, 3.0)
    sound.looks[0]["gain"], sound.looks[1]["gain"] = 1.0, 1.1
    diverged.looks[0]["gain"], diverged.looks[-1]["gain"] = 5.0, 5.0  # the first has no finding
    diverged.looks[-2]["gain"] = math.inf  # an overflow
    found = verdicts.crossings([sound, diverged, run(3.0, *LOW, 0.5, 0.5)], held_out=False)
    assert found["gain"] == {"sound": "1 of 9", "diverged": "1 of 3"}
    assert found["row_ratio"] == {"sound": "0 of 9", "diverged": "0 of 3"}
    nothing = verdicts.crossings([sound, diverged], held_out=True)
    assert nothing["gain"] == {"sound": "0 of 0", "diverged": "0 of 0"}


class Learning:
    """A session with rounds of 50 steps, in which seeds are frozen; raises `Diverged` when none is
    left.
    """

    def __init__(self, frozen, steps=300):
        self.agent, self.learner, self._frozen, self._steps = None, None, frozen, steps
        self.counters = SimpleNamespace(frozen=(), updates=1, round=0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def rounds(self):
        for step in range(50, self._steps + 1, 50):
            gone = tuple(i for i, at in self._frozen.items() if at <= step)
            self.counters = SimpleNamespace(frozen=gone, updates=step, round=step // 50)
            if len(gone) == 3:
                raise Diverged("critic/q_mean", 3, step)
            yield SimpleNamespace(step=step, evaluations=[])


@pytest.mark.parametrize(
    ("frozen", "overflow", "expected"),
    [
        ({1: 150, 2: 200}, {}, [(None, [100, 200, 300]), (150, [100]), (200, [100])]),
        ({0: 50, 1: 250, 2: 300}, {}, [(50, []), (250, [100, 200]), (300, [100, 200])]),
        ({2: 150}, {0: 200}, [(200, [100]), (None, [100, 200, 300]), (150, [100])]),
    ],
)
def test_a_nan_ends_its_own_seed_and_no_other(monkeypatch, frozen, overflow, expected):
    session = Learning(frozen)

    def looks(learner, round_):
        return [SimpleNamespace(i=i, step=50 * round_, reward_bound=1.0) for i in range(3)]

    def measure(agent, look, discount):
        return {} if overflow.get(look.i, 999) <= look.step else {"gain": look.i + 1.123456}

    monkeypatch.setattr(verdicts.training, "Session", lambda plan: session)
    monkeypatch.setattr(verdicts.monitor, "make_looks", lambda *_: looks)
    monkeypatch.setattr(verdicts.monitor, "measure", measure)
    records = verdicts.recorded("td3-fast", (0, 1, 3))
    assert [(one["seed"], one["setting"]) for one in records] == [
        (seed, "td3-fast") for seed in (0, 1, 3)
    ]
    for i, (one, (nan, steps)) in enumerate(zip(records, expected, strict=True)):
        assert (one["nan"], one["measured"].get("step", [])) == (nan, steps)
        assert one["measured"].get("gain", []) == pytest.approx([i + 1.123] * len(steps))
        assert one["bias_relative"] is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"make": True, "only": ("nonsense",)}, "unknown setting 'nonsense'; choose one of"),
        ({"make": True, "data": "/dev/null/runs.jsonl"}, "is not a folder to write to"),
        ({"data": "empty.jsonl"}, "holds no runs of experiments.verdicts; add --make"),
    ],
)
def test_a_mistake_is_a_sentence(monkeypatch, given, words):
    Path("empty.jsonl").touch()
    monkeypatch.setattr(verdicts.flags, "parse", lambda kind: kind(**given))
    with pytest.raises(UserError, match=words):
        verdicts.main(["verdicts"])


def test_records_are_read_as_they_were_written(tmp_path):
    kept = tmp_path / "runs.jsonl"
    looks = [look(3.0, step=100.0), look(math.inf, step=200.0, bias_relative=2.5)]
    kept.write_text(json.dumps(verdicts._record("td3-fast", 1, 250, looks)) + "\n")
    (one,) = verdicts.load(kept)
    assert (one.setting, one.seed, one.nan, one.bias_relative) == ("td3-fast", 1, 250, 2.5)
    assert one.looks[0]["td_share"] == pytest.approx(10 / 50)
    assert one.looks[1]["soft_divergence"] == math.inf
    assert one.algorithm == "td3" and one.end == "diverged"
    kept.write_text(kept.read_text().replace('"q_largest": [150.0', '"q_largest": [0.0'))
    for damaged in (kept, tmp_path / "nothing.jsonl"):
        with pytest.raises(UserError, match="holds no runs of experiments.verdicts; add --make"):
            verdicts.load(damaged)


@pytest.mark.slow
def test_a_setting_makes_runs_that_can_be_scored(tmp_path):
    small = {"num_steps": 200, "start_steps": 50, "update_after": 100, "hidden_sizes": (8, 8)}
    records = verdicts.recorded("sac-at-the-bound", (0, 1), **small)
    kept = tmp_path / "runs.jsonl"
    kept.write_text("".join(json.dumps(one) + "\n" for one in records))
    runs = verdicts.load(kept)
    assert [one.end for one in runs] == ["sound", "sound"]
    assert [one["step"] for one in runs[0].looks] == [100, 200]
    assert {"td_share", "alignment", "row_ratio"} <= set(runs[0].looks[0])
    assert runs[0].looks[0]["seen"] == 1 and runs[0].looks != runs[1].looks


# --- what is kept, and what the document says of it ----------------------------------------------


@pytest.fixture(scope="module")
def rows():
    return verdicts.score(verdicts.load(KEPT))


def test_there_are_ten_runs_of_every_algorithm_that_end_well_and_ten_that_do_not(rows):
    for algorithm in verdicts.ALGORITHMS:
        for end in (verdicts.SOUND, verdicts.DIVERGED):
            mine = [row for row in rows if (row["algorithm"], row["end"]) == (algorithm, end)]
            assert sum(row["runs"] for row in mine) >= 10
            assert all(row["runs"] >= 4 for row in mine)


def test_the_table_of_the_document_is_that_of_the_records(rows):
    text = (ROOT / "docs/results/diagnoses.md").read_text()
    for algorithm in verdicts.ALGORITHMS:
        for half in ("choosing", "held out"):
            mine = [row for row in rows if (row["algorithm"], row["half"]) == (algorithm, half)]
            cells = " | ".join(verdicts.cell(row) for row in mine)
            assert f"| {algorithm} | {half} | {cells} |" in text


def test_the_lines_of_the_document_are_those_of_the_verdict():
    text = (ROOT / "docs/results/diagnoses.md").read_text()
    assert f"{failures.MARGIN:g} times" in text and f"{100 * failures.NEGLIGIBLE:g} %" in text
    assert all(mode in text for mode in diagnostics.FAILURES)
