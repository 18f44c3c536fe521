"""The page on what to do after training: its commands are commands, and its examples run."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT

import after_cases
from experiments import export
from experiments.kit import flags
from preqn_jax.training import run as training

reacher = after_cases.reacher
PAGE = (ROOT / "docs/after-training.md").read_text()
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("python -m ")]
CONFIGS = {
    "train": training.CONFIGS,
    "plot": ("PlotConfig",),
    "play": ("PlayConfig",),
    "export": ("ExportConfig",),
    "table": ("TableConfig",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    _, _, module, *words = shlex.split(command)
    module = importlib.import_module(module)
    configs = CONFIGS[module.__name__.split(".")[-1]]
    configs = [getattr(module, c) if isinstance(c, str) else c for c in configs]
    given = [word for word in words if word.startswith("--")]
    flags.read(given, *configs)  # raises for what is no flag
    runs = [word for word in words if not word.startswith("--")]
    assert bool(runs) == (configs != list(training.CONFIGS)) and all(r[:5] == "runs/" for r in runs)


def test_every_command_of_the_page_is_seen():
    assert len(COMMANDS) == PAGE.count("python -m ") >= 12


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
