"""What random kills, damaged checkpoints, a full disk and lost readers cost a run.

    PYTHONPATH=. python tests/soak.py --trials=20

Each trial starts a run that meets a fault, and continues it by the same command until it is whole.
It counts tracebacks, hangs, and the numbers in its records that differ from those of an undisturbed
run. All of these should be zero. This is not a test of the suite, as a trial takes half a minute.
"""

import dataclasses
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from commands import ROOT, SMALL, finished, records, start

from experiments.kit import flags
from preqn_jax.options import UserError, check, option

ENVS = ("HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Pusher-v5", "InvertedDoublePendulum-v5")
KINDS = [f"--algorithm={name}" for name in ("preqn", "td3", "sac")]


@dataclasses.dataclass(frozen=True)
class SoakConfig:
    """The trials."""

    trials: int = option(20, "trials of each fault", at_least=1)
    seed: int = option(0, "random seed of the runs and their faults", at_least=0)
    only: tuple[str, ...] | None = option(None, "faults to try: kill, damage, disk, reader (all)")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run that meets a fault."""

    args: list[str]
    logdir: Path
    seconds: float  # that an undisturbed run takes


class Count:
    """The counts of all trials of one fault."""

    def __init__(self) -> None:
        self.patience = 300.0  # seconds for a command; at least ten times those of a whole run
        self.trials = self.faults = self.numbers = self.differ = self.tracebacks = self.hangs = 0

    def look(self, process: subprocess.Popen) -> int | None:
        """The exit status of a process; None for one that hangs."""
        self.faults += 1
        try:
            code, _, err = finished(process, self.patience)
        except subprocess.TimeoutExpired:
            self.hangs += 1
            print(f"hangs: {shlex.join(map(str, process.args))}", file=sys.stderr)  # pyright: ignore
            process.kill()
            return None
        self.tracebacks += "Traceback" in err
        return code

    def compare(self, logdir: Path, whole: list[dict]) -> None:
        now = records(logdir)
        self.trials += 1
        self.numbers += sum(len(line) for line in whole)
        self.differ += abs(len(now) - len(whole)) + sum(
            one.get(name) != other.get(name)
            for one, other in zip(now, whole, strict=False)
            for name in one | other
        )


def arguments(rng: random.Random) -> list[str]:
    """The arguments of a random run of 600 steps."""
    words = [f"--env={rng.choice(ENVS)}", rng.choice(KINDS), "--seeds=0,1"]
    return [*words, *SMALL[:-1], f"--workers={rng.choice((0, 2))}"]


def whole(
    args: list[str], folder: Path, made: dict[tuple, tuple[list[dict], float]]
) -> tuple[list[dict], float]:
    """The records of an undisturbed run, with any number of workers, and the seconds it takes."""
    key = tuple(args[:-1])
    if key not in made:
        logdir, began = folder / f"whole-{len(made)}", time.monotonic()
        code, _, err = finished(start(*args, f"--logdir={logdir}"), timeout=3600)
        if code:
            raise UserError(f"an undisturbed run ended with status {code}: {err}")
        made[key] = records(logdir), time.monotonic() - began
    return made[key]


def to_the_end(args: list[str], logdir: Path, count: Count) -> None:
    """Repeats the same command until the run is whole."""
    for _ in range(5):
        if count.look(start(*args, f"--logdir={logdir}")) in (0, None):
            return


def kill(trial: Trial, rng: random.Random, count: Count) -> None:
    """Kills the run three times, at any time from before the first import to the end."""
    for _ in range(3):
        process = start(*trial.args, f"--logdir={trial.logdir}")
        time.sleep(rng.uniform(0, trial.seconds))
        process.send_signal(rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
        count.look(process)


def damage(trial: Trial, rng: random.Random, count: Count) -> None:
    """Changes some bytes of a file of the newest checkpoint, or removes its second half."""
    logdir = trial.logdir
    count.look(start(*trial.args, f"--logdir={logdir}"))
    (logdir / "DONE").unlink()
    newest = max((logdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    file = rng.choice([path for path in newest.rglob("*") if path.is_file()])
    content = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] ^= rng.randint(1, 255)
    file.write_bytes(content if rng.random() < 0.7 else content[: len(content) // 2])


def disk(trial: Trial, rng: random.Random, count: Count) -> None:
    """Gives the run a disk with room for a part of it, and then for all of it."""
    folder = trial.logdir.parent
    folder.mkdir()
    size = f"size={rng.randint(50, 900)}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    count.look(start(*trial.args, f"--logdir={trial.logdir}"))
    subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)


def reader(trial: Trial, rng: random.Random, count: Count) -> None:
    """Gives the run standard streams that are closed, or whose reader has gone."""
    ends = rng.choice((">&- 2>&-", "2>&1 | true", "2>&1 >/dev/full | head -c 10"))
    command = [sys.executable, "-m", "experiments.train", *trial.args, f"--logdir={trial.logdir}"]
    shell = ["bash", "-c", f"{shlex.join(command)} {ends}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    count.look(subprocess.Popen(shell, env=env, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))


FAULTS: dict[str, Callable[..., None]] = {f.__name__: f for f in (kill, damage, disk, reader)}


def main(argv: list[str]) -> int:
    config = flags.parse(SoakConfig)
    check(config)
    made, counts = {}, {}
    print(
        f"{'fault':<8}{'trials':>8}{'commands':>10}{'numbers':>9}{'differ':>8}{'tracebacks':>12}"
        f"{'hangs':>7}"
    )
    for name in config.only or FAULTS:
        count = counts[name] = Count()
        for i in range(config.trials):
            rng = random.Random(f"{config.seed} {name} {i}")
            with tempfile.TemporaryDirectory() as folder:
                args = arguments(rng)
                expected, seconds = whole(args, Path(folder), made)
                count.patience = max(300, 10 * seconds)
                trial = Trial(args, Path(folder) / "there/run", seconds)
                try:
                    FAULTS[name](trial, rng, count)
                    to_the_end(args, trial.logdir, count)
                    count.compare(trial.logdir, expected)
                finally:
                    if os.path.ismount(trial.logdir.parent):
                        subprocess.run(["umount", "--lazy", trial.logdir.parent], check=True)
        print(
            f"{name:<8}{count.trials:>8}{count.faults:>10}{count.numbers:>9}{count.differ:>8}"
            f"{count.tracebacks:>12}{count.hangs:>7}",
            flush=True,
        )
    return int(any(c.differ or c.tracebacks or c.hangs for c in counts.values()))


if __name__ == "__main__":
    flags.define(SoakConfig)
    flags.run(main)
