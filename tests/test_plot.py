"""Learning curves of any runs."""

import json

import numpy as np
import pytest
from commands import finished, start

from experiments import plot
from experiments.kit import curves


def fake_run(folder, algorithm, env="E-v1", seeds=(0, 1), **fields):
    folder.mkdir()
    config = {
        "algorithm": algorithm,
        "activation": "sin",
        "env": env,
        "seeds": list(seeds),
        **fields,
    }
    (folder / "config.json").write_text(json.dumps({"config": config}))
    lines = [
        {"step": s, "seed": k, "eval/return_mean": s * (k + 1.0), "critic/q_mean": 1.0}
        for s in (10, 20)
        for k in seeds
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "se'
    )
    return folder


def test_plot_draws_any_runs(tmp_path):
    runs = [
        fake_run(tmp_path / "a", "preqn"),
        fake_run(tmp_path / "b", "td3"),
        fake_run(tmp_path / "c", "td3", env="F-v1"),
    ]
    plot.draw(runs, tmp_path / "deep" / "curve.png")
    assert (tmp_path / "deep" / "curve.png").stat().st_size > 10_000


def test_plot_joins_seeds_of_one_configuration_and_tells_configurations_apart(tmp_path):
    runs = [
        curves.load(fake_run(tmp_path / "a", "preqn", seeds=(0,), eta=0.9)),
        curves.load(fake_run(tmp_path / "b", "preqn", seeds=(1,), eta=0.9)),
        curves.load(fake_run(tmp_path / "c", "preqn", eta=0.5)),
    ]
    groups = plot._group(runs)
    assert [len(curves) for _, curves in groups] == [2, 2]
    assert plot._labels([config for config, _ in groups]) == [
        "preqn-sin, eta=0.9",
        "preqn-sin, eta=0.5",
    ]
    steps, values = curves.matrix(groups[0][1], "eval/return_mean")
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_array_equal(values, [[10, 20], [20, 40]])


@pytest.mark.parametrize("args", [[], ["nowhere"], ["empty"]])
def test_plot_says_what_is_no_run(args, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = finished(start(*[str(tmp_path / a) for a in args], module="experiments.plot"))
    assert code == 1 and err.startswith("error: ") and "Traceback" not in err


def test_an_agent_of_own_parts_goes_by_its_name(tmp_path):
    """Its configuration has no activation."""
    config, _ = curves.load(fake_run(tmp_path / "a", "preqn"))
    del config["activation"]
    assert plot._labels([{**config, "algorithm": "own_agent"}]) == ["own_agent"]


def test_a_field_that_an_earlier_version_had_not_tells_no_runs_apart(tmp_path):
    now, before = (fake_run(tmp_path / n, "preqn", seeds=(i,)) for i, n in enumerate("ab"))
    config = json.loads((now / "config.json").read_text())
    config["config"]["eval_max_steps"] = 10_000
    (now / "config.json").write_text(json.dumps(config))
    ((_, joined),) = plot._group([curves.load(run) for run in (now, before)])
    assert len(joined) == 2
