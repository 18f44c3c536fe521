"""Measures memory, open files and threads of a long run, once a second.

    PYTHONPATH=. python tests/endurance.py --figure=docs/results/endurance.png

The run is a cheap one that logs, evaluates, diagnoses and writes checkpoints all the time. None of
these numbers should grow: the last two thirds of the run, in which the replay buffer is full, are
compared with each other. This is not a test of the suite, as it takes some minutes. It needs Linux
(/proc).
"""

import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path

from commands import finished, start

from experiments.kit import flags, style
from preqn_jax.options import UserError, check, option

RUN = [
    "--algorithm=td3",
    "--env=Pendulum-v1",
    "--hidden_sizes=32,32",
    "--start_steps=1000",
    "--update_after=1000",
    "--batch_size=32",
    "--replay_capacity=5000",  # full after a twelfth of the run
    "--eval_every=1000",
    "--eval_episodes=1",
    "--log_every=500",
    "--checkpoint_every=1000",
    "--diagnose_every=1000",
    "--workers=0",
]
NAMES = ("memory (MB)", "open files", "threads")


@dataclasses.dataclass(frozen=True)
class EnduranceConfig:
    """How long to run."""

    steps: int = option(60_000, "environment steps", at_least=1000)
    figure: str | None = option(None, "where to draw the numbers over time")


def look(process: int) -> tuple[float, int, int]:
    """Memory in MB, open files and threads of a process. Raises OSError where it is gone."""
    folder = Path("/proc") / str(process)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    memory = int(status["VmRSS"].split()[0]) / 1e3
    return memory, len(os.listdir(folder / "fd")), int(status["Threads"])


def reached(logdir: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    return max((int(p.name) for p in logdir.glob("checkpoints/*") if p.name.isdecimal()), default=0)


def sampled(steps: int) -> list[tuple[float, ...]]:
    """(step, *look) from the first checkpoint to the last. Raises UserError if the run fails."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        logdir = Path(folder) / "run"
        process = start(*RUN, f"--num_steps={steps}", f"--logdir={logdir}")
        while process.poll() is None:
            with contextlib.suppress(KeyError, OSError):  # it has just ended
                samples.append((reached(logdir), *look(process.pid)))
            time.sleep(1)
        code, _, err = finished(process)
    if code:
        raise UserError(f"the run ended with {code}: {err}")
    return [sample for sample in samples if 0 < sample[0] < steps]


def draw(samples: list[tuple[float, ...]], path: str) -> None:
    """Draws a panel for each number."""
    from matplotlib import pyplot as plt

    step, *numbers = zip(*samples, strict=True)
    figure, panels = plt.subplots(3, sharex=True, figsize=(7, 6), layout="constrained")
    for panel, name, values in zip(panels, NAMES, numbers, strict=True):
        panel.plot(step, values, ".", ms=3)
        panel.set(ylabel=name, ylim=(0, 1.1 * max(values)))
        style.tidy(panel)
    style.thousands(panels[-1])
    figure.savefig(path, dpi=120)


def main(argv: list[str]) -> None:
    config = flags.parse(EnduranceConfig)
    check(config)
    samples = sampled(config.steps)
    third = config.steps / 3
    early = [sample for sample in samples if third <= sample[0] < 2 * third]
    late = [sample for sample in samples if sample[0] >= 2 * third]
    print(f"{'median (largest)':<18}{'second third':>16}{'last third':>16}")
    for i, name in enumerate(NAMES, 1):
        cells = [[sample[i] for sample in part] for part in (early, late)]
        words = [f"{statistics.median(cell):.0f} ({max(cell):.0f})" for cell in cells]
        print(f"{name:<18}{words[0]:>16}{words[1]:>16}")
    if config.figure:
        draw(samples, config.figure)


if __name__ == "__main__":
    flags.define(EnduranceConfig)
    flags.run(main)
