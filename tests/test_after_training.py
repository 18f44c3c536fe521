"""The examples on the page about what to do after training run."""

import re
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT

import after_cases
from experiments import export

reacher = after_cases.reacher
PAGE = (ROOT / "docs/after-training.md").read_text()


@pytest.mark.slow
def test_the_examples_run_where_there_is_a_run(reacher, capsys):
    load, frame, run, _ = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    Path("runs").mkdir()
    Path("runs/x").symlink_to(reacher[0])
    exec(load, {})
    assert "preqn (0, 1) 100" in capsys.readouterr().out
    pytest.importorskip("flatbuffers")
    export.export(Path("runs/x"), export.ExportConfig(out="policy.stablehlo"))
    exec(run, names := {})
    expected = reacher[1].policy()(names["obs"])
    np.testing.assert_allclose(names["policy"].call(names["obs"]), expected, atol=1e-6)
    pytest.importorskip("pandas", reason="the extra `analysis` is not installed")
    exec(frame, {})
    assert "100   105.0  7.07" in capsys.readouterr().out
