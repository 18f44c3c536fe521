"""Train one algorithm on one environment, with any number of seeds side by side.

    python -m experiments.train --algorithm=preqn --env=HalfCheetah-v5 --seeds=0 --num_steps=1000000
    --logdir=runs/x

The run directory holds config.json, metrics.jsonl, tensorboard/, checkpoints/, and at the end
curve.png and DONE. The same command on a directory that holds a checkpoint goes on from there, and
ends as if it had never been stopped. With a larger --num_steps it goes on to there, finished or
not, and ends as if it had been given that number at the start.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from tqdm import tqdm

from experiments import plot
from experiments.kit import flags
from preqn_jax import agents, diagnostics, envs
from preqn_jax.options import UserError, check, option
from preqn_jax.training import collect, loop
from preqn_jax.training.checkpoint import Checkpointer
from preqn_jax.training.config import Diverged, Diverging, Stopped
from preqn_jax.training.monitor import bias, make_monitor
from preqn_jax.training.record import Recorder, read
from preqn_jax.training.rollout import attained
from preqn_jax.types import Spec


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What to run on, and what to keep of it."""

    env: str = option(
        "HalfCheetah-v5",
        "a Gymnasium environment with Box observations and actions, or a probe (probe/delay)",
    )
    logdir: str = option("runs/preqn", "the run directory; an unfinished run in it goes on")
    eval_every: int = option(5000, "steps between noiseless evaluations", at_least=1)
    eval_episodes: int = option(10, "episodes of an evaluation", at_least=1)
    log_every: int = option(
        1000, "steps between lines of metrics.jsonl, each the mean since the last", at_least=1
    )
    checkpoint_every: int = option(10_000, "steps between checkpoints", at_least=1)
    diagnose_every: int = option(
        0,
        "steps between diagnoses of the critic, which say when it begins to diverge and how; 0 for "
        "none",
        at_least=0,
    )
    stop_on_divergence: bool = option(
        False, "end the run when a diagnosis finds that Q diverges, with the checkpoints before it"
    )
    workers: int | None = option(
        None,
        "processes that step the environments, each for whole seeds; 0 for none, with the same "
        "numbers "
        "(as many as there are cores or seeds; 0 for one seed)",
        at_least=0,
    )


DONE = "DONE"  # the file of a run directory that says that `num_steps` was reached
CONFIGS = (RunConfig, agents.AgentConfig, loop.LoopConfig)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; flags start with --, as in --env=Walker2d-v5"
        )
    agent_config = agents.resolve(flags.parse(agents.AgentConfig))
    return train(flags.parse(RunConfig), agent_config, flags.parse(loop.LoopConfig))


def train(run: RunConfig, agent_config: agents.AgentConfig, loop_config: loop.LoopConfig) -> int:
    """A whole run, or what is left of it. Returns the exit status; raises UserError."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # orbax narrates its saves
    validate(run, loop_config)
    with contextlib.ExitStack() as stack:
        spec = envs.spec(run.env)
        agent = agents.make(agent_config, spec)
        logdir = _open(run, agent_config, loop_config)
        if (logdir / DONE).exists():
            print(f"{logdir} holds a finished run of this command; nothing to do")
            _summarize(logdir, run, loop_config)
            return 0
        recipe = collect.Recipe(
            partial(agents.make, agent_config), run.env, loop_config, run.eval_episodes
        )
        workers = (
            collect.default_workers(len(loop_config.seeds)) if run.workers is None else run.workers
        )
        collector = stack.enter_context(contextlib.closing(collect.Collector(recipe, workers)))
        session = _Session(run, loop_config, agent, spec, collector, logdir, agent_config.discount)
        stack.callback(session.close)
        try:
            if not session.run():
                return 0
        except Stopped as error:
            if isinstance(error, Diverged | Diverging):
                session.note_divergence(error)
            kept = session.checkpoints.steps()
            where = (
                f"the checkpoint of step {kept[-1]} is kept in {logdir}"
                if kept
                else "there was no checkpoint yet"
            )
            raise UserError(f"{error}; {where}") from error
    _summarize(logdir, run, loop_config)
    plot.draw([logdir], logdir / "curve.png")
    print(f"curves: {logdir / 'curve.png'}")
    (logdir / DONE).touch()
    return 0


class _Session:
    """One process's share of a run: folds logging, evaluation and checkpoints over the rounds."""

    def __init__(
        self,
        run: RunConfig,
        config: loop.LoopConfig,
        agent: agents.Agent,
        spec: Spec,
        collector: collect.Collector,
        logdir: Path,
        discount: float,
    ):
        self.run_config, self.config, self.agent, self.collector = run, config, agent, collector
        self.discount = discount
        self.learner, self.counters = loop.init(agent, spec, config)
        self.pending: list[dict[str, Any]] = []  # measured since the last line of metrics.jsonl
        self.checkpoints = Checkpointer(logdir / "checkpoints")
        self.start = 0
        restored = self.checkpoints.restore(self.learner)
        if restored is not None:
            self.start, self.learner, self.counters, state, extra = restored
            collector.load(state)
            self.pending = extra["pending"]
            print(f"resuming {logdir} at step {self.start}", file=sys.stderr)
        self.recorder = Recorder(logdir, config.seeds, self.start, self._stays)
        self.latest = np.full(len(config.seeds), np.nan)
        self.look = make_monitor(agent, config, discount)
        self.found: dict[int, str] = {}  # seed -> the failure it was last warned of
        self.stopped = False

    def run(self) -> bool:
        """To the end, or to a SIGTERM or Ctrl-C, after which a checkpoint is written. Returns
        whether it reached the end.
        """
        every, num_steps = self.run_config, self.config.num_steps
        mark = (time.monotonic(), self.start, self.counters.updates)
        with self._signals(), self._progress() as bar:
            for done in loop.rounds(
                self.agent, self.collector, self.config, self.learner, self.counters
            ):
                self.learner, step = done.learner, done.step
                self._note(done)
                last = step == num_steps
                if step % every.log_every == 0 or last:
                    mark = self._log(step, mark)
                if step % every.log_every == 0:
                    # what is logged only for being the last is pending still, should the run be
                    # extended
                    self.pending = []
                if (
                    every.diagnose_every
                    and step % every.diagnose_every == 0
                    and self.counters.updates
                ):
                    mark = self._diagnose(step, mark)
                if step % every.eval_every == 0 or last:
                    mark = self._eval(step, mark)
                if step % every.checkpoint_every == 0 or last or self.stopped:
                    self._save(step)
                bar.update(self.config.update_every)
                if np.isfinite(self.latest).all():
                    bar.set_postfix_str(f"return {np.mean(self.latest):.0f}", refresh=False)
                if self.stopped and not last:
                    bar.close()
                    print(
                        f"stopped at step {step}; the same command goes on from there",
                        file=sys.stderr,
                    )
                    return False
        return True

    def _note(self, done: loop.Round) -> None:
        """Keep a round's numbers, as plain floats that a checkpoint can hold."""
        self.pending.append(
            {
                "metrics": {
                    name: [float(x).hex() for x in value] for name, value in done.metrics.items()
                },
                "episodes": [[i, total.hex()] for i, total in done.episodes],
            }
        )

    def _log(self, step: int, mark: tuple[float, int, int]) -> tuple[float, int, int]:
        now = (time.monotonic(), step, self.counters.updates)
        elapsed = max(now[0] - mark[0], 1e-9)
        clock = {
            "time/steps_per_s": (now[1] - mark[1]) / elapsed,
            "time/updates_per_s": (now[2] - mark[2]) / elapsed,
        }
        for i, seed in enumerate(self.config.seeds):
            self.recorder.write(step, seed, {**self._means(i), **clock})
        return now

    def _stays(self, line: dict[str, Any]) -> bool:
        """Whether a record belongs to a run that goes on: those of its former end may be there only
        for that.
        """
        if line["step"] < self.start or self.start == self.config.num_steps:
            return True
        for name, every in (
            ("eval/return_mean", self.run_config.eval_every),
            ("time/steps_per_s", self.run_config.log_every),
        ):
            if name in line:
                return self.start % every == 0
        return True

    def _means(self, i: int) -> dict[str, float]:
        """Of one seed's numbers since the last line."""
        sums: dict[str, list[float]] = {}
        for noted in self.pending:
            for name, values in noted["metrics"].items():
                sums.setdefault(name, []).append(float.fromhex(values[i]))
            sums.setdefault("train/return", []).extend(
                float.fromhex(r) for j, r in noted["episodes"] if j == i
            )
        return {
            name: float(np.nanmean(v)) if np.isfinite(v).any() else np.nan
            for name, v in sums.items()
            if v
        }

    def _eval(self, step: int, mark: tuple[float, int, int]) -> tuple[float, int, int]:
        began = time.monotonic()
        for i, evaluation in enumerate(self.collector.evaluate(self.learner.agent.actor, step)):
            returns = evaluation.rewards.sum(axis=0)
            line = {
                "eval/return_mean": returns.mean(),
                "eval/return_std": returns.std(),
                "eval/episodes": len(returns),
            }
            line["eval/discounted_max"] = attained(evaluation.rewards, self.discount)
            if self.run_config.diagnose_every:
                critic = jax.tree.map(lambda leaf, i=i: leaf[i], self.learner.agent.critic)
                off = bias(self.agent, critic, evaluation, self.discount)
                line |= {f"diagnose/{name}": value for name, value in off.items()}
            self.recorder.write(step, self.config.seeds[i], line)
            self.latest[i] = returns.mean()
        return (mark[0] + time.monotonic() - began, *mark[1:])  # evaluation is not training time

    def _diagnose(self, step: int, mark: tuple[float, int, int]) -> tuple[float, int, int]:
        """Records a diagnosis of every seed, and says what failure is building up, once for each
        that a seed comes to.

        Raises Diverging where there is one and the run should end.
        """
        began, worst = time.monotonic(), None
        for seed, measured in zip(
            self.config.seeds, self.look(self.learner, self.counters.round), strict=True
        ):
            if not measured:
                raise Diverged("the critic's next step", seed, step)
            finding = diagnostics.failure(measured)
            line = {f"diagnose/{name}": value for name, value in measured.items()}
            line["diagnose/failure"] = (
                1 + diagnostics.FAILURES.index(finding.mode) if finding else 0
            )
            self.recorder.write(step, seed, line)
            if finding and self.found.get(seed) != finding.mode:
                self.found[seed] = finding.mode
                tqdm.write(
                    f"step {step}, seed {seed}: {finding.mode}: {finding.evidence}; "
                    f"{finding.remedy}",
                    file=sys.stderr,
                )
            worst = worst or (finding and Diverging(finding, seed, step))
        if worst and self.run_config.stop_on_divergence:
            raise worst
        return (mark[0] + time.monotonic() - began, *mark[1:])

    def note_divergence(self, error: Diverged | Diverging) -> None:
        """The last lines of a run that diverged; one that goes on from a checkpoint drops them,
        with all that came after it.
        """
        step = (
            (error.step - 1) // self.config.update_every * self.config.update_every
        )  # of the last whole round
        for i, seed in enumerate(self.config.seeds):
            if self.pending:
                self.recorder.write(step, seed, self._means(i))
        quantity = {error.quantity: np.nan} if isinstance(error, Diverged) else {}
        self.recorder.write(error.step, error.seed, {"run/diverged": 1.0, **quantity})

    def _save(self, step: int) -> None:
        self.recorder.flush()
        self.checkpoints.save(
            step, self.learner, self.counters, self.collector.save(), {"pending": self.pending}
        )

    def _progress(self) -> tqdm:
        return tqdm(
            total=self.config.num_steps,
            initial=self.start,
            unit="step",
            desc=self.run_config.env,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(signum: int, frame: Any) -> None:
            self.stopped = True

        old = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for s, handler in old.items():
                signal.signal(s, handler)

    def close(self) -> None:
        self.recorder.close()
        self.checkpoints.close()


def validate(run: RunConfig, config: loop.LoopConfig) -> None:
    """Raises UserError where numbers are out of range or do not fit one another."""
    check(run)
    loop.validate(config)
    if run.stop_on_divergence and not run.diagnose_every:
        raise UserError(
            "stop_on_divergence is on, but nothing looks for divergence: add --diagnose_every=1000"
        )
    for name in ("eval_every", "log_every", "checkpoint_every", "diagnose_every"):
        if getattr(run, name) % config.update_every:
            raise UserError(
                f"{name} is {getattr(run, name)}, but it must be a multiple of update_every "
                f"({config.update_every})"
            )


def _open(run: RunConfig, agent_config: agents.AgentConfig, loop_config: loop.LoopConfig) -> Path:
    """The run directory with its config.json; refuses one that holds another configuration, but for
    a smaller `num_steps`.
    """
    logdir = Path(run.logdir)
    config = configuration(run, agent_config, loop_config)
    path = logdir / "config.json"
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            begun = compare(path, config)
            if (logdir / DONE).exists() and begun["num_steps"] < config["num_steps"]:
                if not any((logdir / "checkpoints").glob("*")):
                    raise UserError(
                        f"logdir {str(logdir)!r} holds a run of {begun['num_steps']} steps without "
                        f"its checkpoints, "
                        "so there is nothing to go on from; give another --logdir to make it anew"
                    )
                (
                    logdir / DONE
                ).unlink()  # before config.json, or the longer run would count as finished
        elif any(logdir.iterdir()):
            raise UserError(
                f"logdir {str(logdir)!r} holds other files and no config.json; give an empty or a "
                f"new directory"
            )
        else:
            begun = None
        if begun != config:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"config": config, **_provenance()}, indent=2) + "\n")
            os.replace(temporary, path)
        if not os.access(logdir, os.W_OK):
            raise PermissionError("not writable")
    except OSError as error:
        raise UserError(
            f"cannot write to logdir {str(logdir)!r}: {error.strerror or error}; give another "
            f"--logdir"
        ) from error
    return logdir


def configuration(
    run: RunConfig, agent_config: agents.AgentConfig, loop_config: loop.LoopConfig
) -> dict[str, Any]:
    """What config.json says of a run: all that its numbers depend on, as plain JSON."""
    config = {
        **dataclasses.asdict(run),
        **dataclasses.asdict(agent_config),
        **dataclasses.asdict(loop_config),
    }
    for name in (
        "logdir",
        "workers",
        "stop_on_divergence",
    ):  # a run may be moved, and go on with other processes, or after all
        config.pop(name)
    return json.loads(json.dumps(config))


def compare(path: Path, config: dict[str, Any], flag: str = "logdir") -> dict[str, Any]:
    """What the config.json at `path` says; `config` may have more steps, and checkpoints at others.

    Raises UserError if anything else differs; `flag` is the one that would lead elsewhere.
    """
    try:
        old = json.loads(path.read_text())["config"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run's config.json; give another --{flag}") from error
    since = {
        f.name: f.default for c in CONFIGS for f in dataclasses.fields(c) if f.name not in old
    }  # runs of earlier versions
    old = {
        **json.loads(
            json.dumps({name: default for name, default in since.items() if name in config})
        ),
        **old,
    }
    if old["num_steps"] > config["num_steps"]:
        raise UserError(
            f"logdir {str(path.parent)!r} holds a run with num_steps={old['num_steps']}, but this "
            f"command says "
            f"{config['num_steps']}; a run can be made longer, not shorter: use at least as many, "
            f"or another --{flag}"
        )
    for name in sorted({*old, *config} - {"num_steps", "checkpoint_every"}):
        if old.get(name) != config.get(name):
            raise UserError(
                f"logdir {str(path.parent)!r} holds a run with {name}={old.get(name)!r}, but this "
                f"command says "
                f"{config.get(name)!r}; use the same {name} to go on with it, or another --{flag}"
            )
    return old


def _provenance() -> dict[str, Any]:
    packages = (
        "preqn_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "gymnasium",
        "mujoco",
        "numpy",
        "orbax-checkpoint",
    )
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    device = jax.devices()[0]
    return {
        "versions": {"python": sys.version.split()[0], **versions},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "precision": {
            "type": "float32",
            "networks": getattr(jax.config, "jax_default_matmul_precision", None) or "default",
            "kernel": "highest",
        },
    }


def _summarize(logdir: Path, run: RunConfig, config: loop.LoopConfig) -> None:
    """The result of a run, in a few lines."""
    lines = read(logdir / "metrics.jsonl")
    print(
        f"{run.env}, {config.num_steps} steps, noiseless returns over {run.eval_episodes} episodes"
    )
    print(f"{'seed':>6} {'last':>10} {'last three':>11} {'best':>10}")
    for seed in config.seeds:
        evals = [
            line["eval/return_mean"]
            for line in lines
            if line["seed"] == seed and "eval/return_mean" in line
        ]
        print(f"{seed:>6} {evals[-1]:>10.1f} {np.mean(evals[-3:]):>11.1f} {max(evals):>10.1f}")
    for name, words in (
        ("critic/alignment", "mean alignment of updates"),
        ("linesearch/accepted", "share of updates accepted by the linesearch"),
        ("solve/finite", "share of solves that ended finite"),
        ("time/steps_per_s", "environment steps a second, of each seed"),
    ):
        values = [
            line[name]
            for line in lines
            if line.get(name) is not None and line["step"] > config.update_after
        ]
        if values:
            print(f"{words}: {np.mean(values):.4g}")


if __name__ == "__main__":
    flags.define(*CONFIGS)
    flags.run(main)
