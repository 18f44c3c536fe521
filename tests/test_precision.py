"""The command that measures the precision of K on a device."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import precision
from experiments.kit import flags
from preqn_jax import linearize
from preqn_jax.options import UserError

SMALL = precision.PrecisionConfig(batch_size=16, hidden_sizes=(8, 8), obs_size=3, action_size=2)


@pytest.mark.slow
def test_errors_are_those_of_float32_where_products_have_no_less(capsys):
    config = precision.PrecisionConfig(**{**vars(SMALL), "json": "p.json"})
    assert precision.run(config) == 0
    rows = json.loads(Path("p.json").read_text())["rows"]
    assert [row["precision"] for row in rows] == list(precision.PRECISIONS)
    for row in rows:  # a CPU has one precision
        assert 0 < row["left_error"] < 1e-5 and 0 < row["q_error"] < 1e-5
        assert 0 < row["k_error"] < 1e-5
        assert row["alignment"] == pytest.approx(row["alignment_64"], abs=1e-5)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


def test_an_error_of_k_and_a_wrong_alignment_are_seen(monkeypatch):
    """A device is imitated whose layers keep eight bits, similar to TF32 and bfloat16."""

    def coarse(q, params, inputs):
        lin = linearize(q, params, inputs)
        if lin.gram.dtype == np.float64:
            return lin
        return lin._replace(gram=lin.gram.astype("bfloat16").astype("float32"))

    monkeypatch.setattr(precision, "linearize", coarse)
    monkeypatch.setattr(precision, "PRECISIONS", ("default",))
    rows = precision.measure(SMALL)
    assert len(rows) == 1 and all(
        1e-4 < row["k_error"] < 2**-8 and row["q_error"] < 1e-5 for row in rows
    )
    assert precision._cosine(np.array([1.0, 1]), np.array([1.0, 0])) == pytest.approx(2**-0.5)


def test_a_mistake_is_one_sentence():
    with pytest.raises(UserError, match="batch_size is 0, but it must be at least 1"):
        precision.run(flags.read(["--batch_size=0"], precision.PrecisionConfig)[0])
