"""A plan can grow: more environments, more steps, more seeds."""

import json
from pathlib import Path

import pytest
from commands import SMALL, finished, records, start
from fabricated import begin

from experiments import benchmark
from experiments.kit import flags, plan
from experiments.kit import runs as kit
from preqn_jax.options import UserError

SETTINGS = [a for a in SMALL if "workers" not in a and "num_steps" not in a]


def settle(*args):
    (config,) = flags.read(["--root=r", "--envs=probe/delay", *args], plan.PlanConfig)
    return plan.settle(benchmark.KIND, config, [])


def make(run, step, finished=True):
    """What a run leaves at a step, but for its arrays."""
    begin(run)
    (run.folder / "checkpoints").mkdir()
    (run.folder / "metrics.jsonl").write_text(json.dumps({"step": step, "seed": 0}) + "\n")
    if finished:
        (run.folder / "DONE").touch()


def test_a_finished_plan_can_be_made_longer_and_not_shorter():
    before, *_ = settle("--seeds=0,1", "--num_steps=100000")
    make(before, 100_000)
    longer, *_ = settle("--num_steps=200000")
    assert kit.state(before) == "done" and kit.state(longer) == "begun"
    assert json.loads(Path("r/benchmark.json").read_text())["num_steps"] == 200_000
    words = "says num_steps=200000, but this command says 100000; .* use `until=100000`"
    with pytest.raises(UserError, match=words):
        settle("--num_steps=100000")
    assert kit.state(settle("--until=100000")[0]) == "done"


def test_a_finished_plan_gets_seeds_and_an_unfinished_run_does_not():
    before, other, *_ = settle("--seeds=0,1", "--num_steps=100000")
    make(before, 100_000)
    more, *_ = settle("--seeds=0,1,2")
    assert more.seeds == (0, 1, 2) and "--seeds=0,1,2" in more.flags
    assert kit.state(before) == "done" and kit.state(more) == "begun"
    assert kit.progress(more) == 200_000  # of 300,000
    (more.folder / "added").mkdir()
    (more.folder / "added/metrics.jsonl").write_text('{"step": 30000, "seed": 2}\n')
    assert kit.progress(more) == 230_000
    make(other, 50_000, finished=False)
    written = Path("r/benchmark.json").read_bytes()
    with pytest.raises(UserError, match="unfinished run of seeds 0, 1, but .* `seeds=\\(0, 1\\)`"):
        settle("--seeds=0,1,2")
    with pytest.raises(UserError, match=r"says seeds=\[0, 1, 2\], but this command says \[0, 1\]"):
        settle("--seeds=0,1")
    assert Path("r/benchmark.json").read_bytes() == written


def test_records_without_checkpoints_get_no_seeds():
    """They are reported on, and cannot go on."""
    before, *_ = settle("--seeds=0,1", "--num_steps=100000")
    make(before, 100_000)
    (before.folder / "checkpoints").rmdir()
    (before.folder / "DONE").unlink()
    assert kit.state(before) == "done"
    assert kit.state(settle("--seeds=0,1,2")[0]) == "copied"


@pytest.mark.slow
def test_a_plan_that_grew_has_the_numbers_of_one_made_at_once(tmp_path):
    args = ["--envs=probe/delay", "--only=*/preqn-sin"]
    once = [f"--root={tmp_path / 'once'}", "--seeds=0,1", "--num_steps=600", *args, "--", *SETTINGS]
    assert finished(start(*once, module="experiments.benchmark"))[0] == 0
    grown = f"--root={tmp_path / 'grown'}"
    for more in (["--seeds=0", "--num_steps=300"], ["--seeds=0,1"], ["--num_steps=600"]):
        command = [grown, *more, *args, "--", *SETTINGS]
        code, out, err = finished(start(*command, module="experiments.benchmark"))
        assert code == 0 and "1 runs: 1 done" in out, err
    there = [records(tmp_path / name / "probe/delay/preqn-sin") for name in ("once", "grown")]
    assert there[0] == there[1]
