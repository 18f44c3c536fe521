"""The four failure modes fail, their remedies work, and the command writes its table and figure."""

import json

import numpy as np
import pytest
from absl import flags as absl_flags

from experiments import failure_modes as binary
from experiments.judge import section_3_2
from experiments.kit import flags


@pytest.mark.slow
def test_every_mode_crosses_its_line_and_every_remedy_works(tmp_path, capsys):
    flags.define(binary.FailureModesConfig)
    out, table = tmp_path / "new" / "modes.png", tmp_path / "modes.json"
    absl_flags.FLAGS(["x", "--updates=400", f"--out={out}", f"--json={table}"])
    assert binary.main(["x"]) == 0
    assert out.stat().st_size > 10_000 and "overflow" in capsys.readouterr().out
    rows = json.loads(table.read_text())["rows"]
    assert [sum(row["mode"].startswith(str(k)) for row in rows) for k in (1, 2, 3, 4)] == [
        4,
        3,
        2,
        4,
    ]
    # At first the left side of Eq. 16 is proportional to alpha; later K has grown.
    seen = {float(row["run"].split()[-1]): row["eq_16"] for row in rows if "eq_16" in row}
    np.testing.assert_allclose([one["first"] / a for a, one in seen.items()], 1.1, rtol=0.02)
    assert list(seen) == [0.3, 1.0, 0.003]
    assert all(one["largest"] > 1 and one["updates_above_1"] > 200 for one in seen.values())
    binary.redraw(table, tmp_path / "again.png")
    assert abs((tmp_path / "again.png").stat().st_size / out.stat().st_size - 1) < 0.1
    for row in rows:
        assert row["quantity"] > 1
        end = np.inf if row["last"] is None else row["last"]
        if row["remedy"]:
            assert end < 0.6 * row["first"]
        elif row["run"] == "gradient, alpha = 0.3":
            assert 0.6 * row["first"] < end < row["first"]  # stalls
        elif "c = 0.5" in row["run"]:
            assert end == pytest.approx(10, rel=1e-4)
        else:
            assert end > 1e3 * row["first"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "maker", [section_3_2.overshooting, section_3_2.generalization, section_3_2.extrapolation]
)
def test_the_quantity_is_below_its_line_on_the_safe_side(maker):
    mode = maker(1)
    assert mode.ys.min() < 1 < np.interp(mode.bad, mode.xs, mode.ys)


def test_without_data_less_generalization_keeps_q_bounded_and_wrong():
    """The error of the first value moves both, times 1 and 2c: from (1, 2) along (1, 1), to where
    .9 Q_2 = Q_1, which is (9, 10). Q* is 0.
    """
    runs = {run.name: run for run in section_3_2.extrapolation(300).runs}
    (bounded,) = [run for name, run in runs.items() if "bounded, wrong" in name]
    assert not bounded.remedy and bounded.error[0] == 2
    assert bounded.error.max() <= 10 and bounded.error[-1] == pytest.approx(10, rel=1e-4)
    assert runs["U3, no data there"].error[-1] > 1000  # with c = 0.6
    assert runs["U3, half of the data there"].error[-1] < 0.01
