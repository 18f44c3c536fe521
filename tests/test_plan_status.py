"""What the exit status of a plan's command says."""

from pathlib import Path

import pytest
from fabricated import begin, frozen, text

from experiments.kit import flags, launch, plan
from experiments.kit import runs as kit
from experiments.kit.signals import STOPPED

KIND = plan.Kind("benchmark", plan.by_activation("preqn-sin", "td3-relu"), (0, 1))


def command(monkeypatch, *states, lines=()):
    """The exit status of a plan whose runs end so, and how often it reports; the first run has
    these records.
    """
    reports = []

    def execute(runs, *_):
        begin(runs[0])
        (runs[0].folder / "metrics.jsonl").write_bytes(text(lines))
        return [kit.Outcome(run, state, "") for run, state in zip(runs, states, strict=True)]

    monkeypatch.setattr(plan, "execute", execute)
    given = flags.read(["--root=r", "--envs=probe/delay"], plan.PlanConfig)[0]
    configs = given, launch.LaunchConfig()
    return plan.main(KIND, configs, [], lambda *given: reports.append(given)), len(reports)


@pytest.mark.parametrize(
    ("state", "status", "reports"),
    [("done", 0, 1), ("failed", 1, 1), ("stopped", STOPPED, 0), ("elsewhere", STOPPED, 0)],
)
def test_a_plan_with_work_left_to_do_says_so_and_reports_nothing(
    state, status, reports, monkeypatch, capsys
):
    assert command(monkeypatch, "done", state) == (status, reports)
    told = {"stopped": "the same command goes on from there", "elsewhere": "another process trains"}
    assert told.get(state, "done") in capsys.readouterr().out


@pytest.mark.parametrize("state", ["done", "diverged"])
def test_a_plan_in_which_a_seed_diverged_ends_as_its_run_would(state, monkeypatch):
    """Also where the run's other seeds went on to the end."""
    assert command(monkeypatch, state, "done", lines=[frozen(100, 1)]) == (1, 1)
    assert Path("r/benchmark.json").exists()
