"""Hands the records of a run to a tracker as they come: the program of `trackers.Tracker`.

    python tracker_process.py wandb RUN

It reads metrics.jsonl until its standard input is closed, which the end of the run does, whatever
ends it. Each seed is a run of its own in the tracker, and metrics are named as in
metrics.jsonl. tracker.json keeps the ids of these runs and what was sent to them, for when the run
is resumed. An error ends this process only, and not the run; it imports nothing but the tracker.
"""

import contextlib
import fcntl
import json
import os
import select
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVERY = 1.0  # seconds between looks at the file
PROJECT = "preqn_jax"  # wandb's project and mlflow's experiment, where their variables name none


def _title(folder: Path, config: dict[str, Any]) -> str:
    """A run's name: that of its folder, after the environment's where it is in a folder of that
    name. Seeds that are to join a run (in its folder `added`) have the name of that run; members of
    a sweep that differ only in their seed have one name, after that of the sweep.
    """
    if (folder.parent / "sweep.json").exists():
        setting = folder.name.rpartition("seed=")[0].rstrip(",")
        return "/".join(filter(None, (folder.parent.name, setting)))
    apart = folder.name == "added" and (folder.parent / "config.json").exists()
    run = folder.parent if apart else folder
    of_env = run.parent.name == str(config["env"]).split("/")[-1]
    return f"{run.parent.name}/{run.name}" if of_env else run.name


class Wandb:
    """Weights & Biases; it follows `WANDB_MODE`, `WANDB_PROJECT` and its other variables."""

    def __init__(self, folder: Path, config: dict[str, Any], seed: int, id_: str | None):
        import wandb  # pyright: ignore[reportMissingImports]

        self.id = id_ or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            id=self.id,
            name=f"{_title(folder, config)}/seed_{seed}",
            group=_title(folder, config),
            config={**config, "seed": seed},
            resume="allow",
            reinit="create_new",
            settings={"console": "off"},
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Within this context, other processes of the same folder wait to enter it, if MLflow's store
    is a file: each client of a new one makes the tables, and two at once leave it broken for ever.
    """
    with contextlib.ExitStack() as held:
        if os.environ.get("MLFLOW_TRACKING_URI", "sqlite:").startswith("sqlite:"):
            with contextlib.suppress(OSError):  # some network file systems have no locks
                file = held.enter_context(open("mlflow.lock", "ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Mlflow:
    """MLflow, in the store that `MLFLOW_TRACKING_URI` names; the experiment is
    `MLFLOW_EXPERIMENT_NAME`.
    """

    def __init__(self, folder: Path, config: dict[str, Any], seed: int, id_: str | None):
        from mlflow import MlflowClient, entities  # pyright: ignore[reportMissingImports]

        with _one_at_a_time():
            self._client, self._metric = MlflowClient(), entities.Metric
        if id_ is not None:
            self.id = id_
            self._client.update_run(self.id, status="RUNNING")
            return
        name = f"{_title(folder, config)}/seed_{seed}"
        self.id = self._client.create_run(self._experiment(), run_name=name).info.run_id
        told = {**config, "seed": seed}.items()
        params = [entities.Param(key, str(value)) for key, value in told]
        self._client.log_batch(self.id, params=params)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        there = self._client.get_experiment_by_name(name)
        if there is None:
            with contextlib.suppress(Exception):  # a run beside this one made it just now
                return self._client.create_experiment(name)
            there = self._client.get_experiment_by_name(name)
        return there.experiment_id

    def log(self, step: int, numbers: dict[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(key, value, now, step) for key, value in numbers.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, whole: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if whole else "KILLED")


TRACKERS = {"wandb": Wandb, "mlflow": Mlflow}


class Sender:
    """The tracker's runs of one run directory, by seed."""

    def __init__(self, name: str, folder: Path):
        self._config = json.loads((folder / "config.json").read_text())["config"]
        self._name, self._folder = name, folder
        self._path = folder / "tracker.json"
        self._runs: dict[str, Any] = {}
        self._read: Counter[tuple[str, int]] = Counter()  # (seed, step) -> its records so far
        # name -> seed -> {"id", "sent"}: the tracker's run, and {step: number of its records sent}.
        # An earlier version kept "step" and "records" for "sent": all up to these was sent.
        self._kept: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self._kept = json.loads(self._path.read_text())

    def send(self, line: dict[str, Any]) -> None:
        """Sends one record. Those that are in tracker.json are skipped: the run that this one goes
        on from has sent the same. It may have got further, and with other steps between.
        """
        step, seed = line.pop("step"), str(line.pop("seed"))
        self._read[seed, step] += 1
        records = self._read[seed, step]
        mine = self._kept.setdefault(self._name, {}).setdefault(seed, {})
        sent, before = mine.setdefault("sent", {}), (mine.get("step", 0), mine.get("records", 0))
        if records <= sent.get(str(step), 0) or (step, records) <= before:
            return
        if seed not in self._runs:
            run = TRACKERS[self._name](self._folder, self._config, int(seed), mine.get("id"))
            self._runs[seed] = run
            mine["id"] = run.id
        self._runs[seed].log(step, {k: v for k, v in line.items() if v is not None})
        sent[str(step)] = records

    def keep(self) -> None:
        """Writes tracker.json: how far each of the tracker's runs has come."""
        # By a name of its own: the process of a killed run may still write, while the run goes on.
        written = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with written.open("x") as file:
                file.write(json.dumps(self._kept))
            os.replace(written, self._path)
        finally:
            written.unlink(missing_ok=True)

    def close(self) -> None:
        for run in self._runs.values():
            run.close((self._folder / "DONE").exists())


def follow(path: Path, sender: Sender) -> None:
    """Sends records as they are written, until standard input is closed, and then to the file's
    end. What was sent is noted now and then: this process may be ended before all is.
    """
    rest, over, kept = b"", False, time.monotonic()
    with path.open("rb") as file:
        while not over:
            over = bool(select.select([sys.stdin], [], [], EVERY)[0])
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                sender.send(json.loads(line))
                if time.monotonic() - kept > EVERY:
                    sender.keep()
                    kept = time.monotonic()
            if lines:
                sender.keep()


def main(name: str, folder: str) -> None:
    os.nice(10)  # training comes first
    sender = Sender(name, Path(folder).absolute())
    follow(Path(folder) / "metrics.jsonl", sender)
    sender.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
