"""Memory, open files and threads of a long run, once a second.

    PYTHONPATH=. python tests/endurance.py --figure=docs/results/endurance.png

The run is a cheap one that logs, evaluates, diagnoses and writes checkpoints all the time. Nothing
of it should grow once it has updated for a while: the last half is held against the fifth before.
It is no test of the suite: it takes some minutes. Linux alone tells these numbers (/proc).
"""

import dataclasses
import os
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


def sampled(steps: int) -> list[tuple[float, float, int, int]]:
    """(seconds, *look) of the whole run. Raises UserError where it fails."""
    samples, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        process = start(*RUN, f"--num_steps={steps}", f"--logdir={folder}/run")
        while process.poll() is None:
            try:
                samples.append((time.monotonic() - began, *look(process.pid)))
            except (KeyError, OSError):  # it has just ended
                break
            time.sleep(1)
        code, _, err = finished(process)
    if code:
        raise UserError(f"the run ended with {code}: {err}")
    return samples


def draw(samples: list[tuple[float, float, int, int]], path: str) -> None:
    """One panel a number."""
    from matplotlib import pyplot as plt

    minutes, *numbers = zip(*samples, strict=True)
    figure, panels = plt.subplots(3, sharex=True, figsize=(7, 6), layout="constrained")
    for panel, name, values in zip(panels, NAMES, numbers, strict=True):
        panel.plot([t / 60 for t in minutes], values)
        panel.set(ylabel=name, ylim=(0, None))
        style.tidy(panel)
    panels[-1].set(xlabel="minutes since the start")
    figure.savefig(path, dpi=120)


def main(argv: list[str]) -> None:
    config = flags.parse(EnduranceConfig)
    check(config)
    samples = sampled(config.steps)
    n = len(samples)
    early, late = samples[3 * n // 10 : n // 2], samples[n // 2 :]
    print(f"{'':<14}{'before half':>12}{'after it':>10}{'change':>9}  (largest seen)")
    for i, name in enumerate(NAMES, 1):
        a, b = (max(sample[i] for sample in part) for part in (early, late))
        print(f"{name:<14}{a:>12.0f}{b:>10.0f}{b / a - 1:>9.1%}")
    if config.figure:
        draw(samples, config.figure)


if __name__ == "__main__":
    flags.define(EnduranceConfig)
    flags.run(main)
