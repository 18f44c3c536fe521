"""Train one algorithm on one environment, with any number of seeds side by side.

    python -m experiments.train --algorithm=preqn --env=HalfCheetah-v5 --seeds=0 --num_steps=1000000

The run directory (--logdir) holds config.json, metrics.jsonl, tensorboard/, checkpoints/, and at
the end curve.png and DONE. The same command on a directory that holds a checkpoint goes on from
there, and ends as if it had never been stopped. With a larger --num_steps it goes on to there,
finished or not, and ends as if it had been given that number at the start.

SIGTERM, SIGHUP and Ctrl-C end the run after the round at hand, with a checkpoint; a second one, a
second or more later, ends it at once, and leaves the checkpoint before.
"""

import sys
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments import plot
from experiments.kit import curves, flags, signals, streams
from preqn_jax.envs import EnvError
from preqn_jax.options import UserError
from preqn_jax.training import run as training
from preqn_jax.training.errors import Stopped
from preqn_jax.training.record import read

if __name__ == "__mp_main__":  # a worker
    streams.forgive()


class _Run:
    """A session that signals reach, also before it is there."""

    session: training.Session | None = None
    stopping = False

    def stop(self) -> None:
        self.stopping = True
        if self.session is not None:
            self.session.stopping = True

    def take(self, session: training.Session) -> None:
        self.session = session
        session.stopping = self.stopping

    def kept(self) -> str:
        steps = self.session.kept if self.session is not None else []
        if self.session is None or not steps:
            return "there was no checkpoint yet"
        return f"the checkpoint of step {steps[-1]} is kept in {self.session.logdir}"

    def cut_off(self) -> None:
        print(f"ended at once, at a second signal; {self.kept()}", file=sys.stderr)

    def hung(self, error: EnvError) -> None:
        """Its thread may never come back, so nothing can be closed."""
        words = flags.in_flags(f"error: {error}; {self.kept()}")
        signals.end(1, lambda: print(words, file=sys.stderr))


def main(argv: list[str]) -> int:
    plan = training.plan(*(flags.parse(config) for config in training.CONFIGS))
    run = _Run()
    with signals.heard(run.stop, run.cut_off), training.Session(plan, run.hung) as session:
        run.take(session)
        logdir = session.logdir
        if logdir is None:
            raise UserError("logdir is empty; name a run directory, as in --logdir=runs/x")
        trained = not session.finished
        if not trained:
            print(f"{logdir} holds a finished run of this command; nothing to do")
        else:
            try:
                if not _train(session):
                    return 0
            except (Stopped, EnvError) as error:
                raise UserError(f"{error}; {run.kept()}") from error.__cause__
    diverged, picture = _summarize(logdir, plan), logdir / "curve.png"
    if trained or not picture.exists():
        plot.draw([logdir], picture)
    print(f"curves: {picture}")
    return int(bool(diverged))


def _train(session: training.Session) -> bool:
    """To the end, or to a signal, after which a checkpoint is written. Returns whether it reached
    the end.
    """
    session.begin()
    step = session.start
    if step:
        print(f"resuming {session.logdir} at step {step}", file=sys.stderr)
    print(_intention(session), file=sys.stderr)
    latest, clock = np.full(len(session.config.seeds), np.nan), _Clock(session.config.num_steps)
    with _progress(session) as bar:
        for progress in () if session.stopping else session.rounds():
            step = progress.step
            if words := clock.first_words(step, bool(progress.metrics)):
                tqdm.write(words, file=sys.stderr)
            for seed, finding in progress.findings:
                tqdm.write(
                    f"step {step}, seed {seed}: {finding.mode}: {finding.evidence}; "
                    f"{flags.in_flags(finding.remedy)}",
                    file=sys.stderr,
                )
            for i, evaluation in enumerate(progress.evaluations):
                latest[i] = np.nan if evaluation is None else evaluation.rewards.sum(axis=0).mean()
            bar.update(step - bar.n)
            if np.isfinite(latest).any():
                bar.set_postfix_str(f"return {np.nanmean(latest):.0f}", refresh=False)
    if session.stopping and step < session.config.num_steps:
        print(f"stopped at step {step}; the same command goes on from there", file=sys.stderr)
        return False
    return True


def _intention(session: training.Session) -> str:
    """What a run will do, and how to watch it."""
    made, config, where = session.plan.described, session.config, session.logdir
    sizes = "x".join(map(str, made.get("hidden_sizes", ())))
    device = jax.devices()[0]
    return (
        f"{curves.variant(made)}{f', networks of {sizes}' * bool(sizes)}, on {made['env']}: "
        f"{config.num_steps - session.start:,} steps for each of "
        f"{curves.count_seeds(len(config.seeds))}, the first {config.update_after:,} without "
        f"updates, on {jax.local_device_count()} {device.platform} device(s)\n"
        f"into {where}; to watch: tensorboard --logdir={where}, or "
        f"python -m experiments.plot {where}"
    )


class _Clock:
    """How long a run will take, once, as soon as the rate of its updates is known."""

    WAIT = 5.0  # seconds of updates, after those that compile

    def __init__(self, num_steps: int):
        self._num_steps, self._rounds, self._said = num_steps, 0, False
        self._began = (0.0, 0)

    def first_words(self, step: int, updates: bool, now: float | None = None) -> str | None:
        """After a round that ended at `step`; a round without updates tells nothing."""
        now = time.monotonic() if now is None else now
        self._rounds += updates
        if self._said or not updates:
            return None
        if self._rounds == 2:
            self._began = (now, step)
        if self._rounds <= 2 or now - self._began[0] < self.WAIT:
            return None
        self._said = True
        rate = (step - self._began[1]) / (now - self._began[0])
        left = (self._num_steps - step) / rate
        words = f"{left / 3600:.1f} hours" if left > 5400 else f"{max(1, left / 60):.0f} minutes"
        return f"{rate:.0f} steps a second: about {words} to go" if left >= 60 else None


def _progress(session: training.Session) -> tqdm:
    return tqdm(
        total=session.config.num_steps,
        initial=session.start,
        unit="step",
        desc=session.plan.run.env,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
    )


def _summarize(logdir: Path, plan: training.Plan) -> list[int]:
    """The result of a run, in a few lines. Returns the seeds that diverged."""
    run, config = plan.run, plan.loop
    lines = read(logdir / "metrics.jsonl")
    episodes = f"noiseless returns over {run.eval_episodes} episodes"
    print(f"{run.env}, {config.num_steps} steps, {episodes}")
    print(f"{'seed':>6} {'last':>10} {'last three':>11} {'best':>10}")
    notes, diverged = [], []
    for seed in config.seeds:
        mine = [line for line in lines if line["seed"] == seed and "eval/return_mean" in line]
        # A null is one that was not finite.
        evals = np.array([line["eval/return_mean"] for line in mine] or [None], float)
        finite = evals[np.isfinite(evals)]
        best = finite.max() if len(finite) else np.nan
        print(f"{seed:>6} {evals[-1]:>10.1f} {evals[-3:].mean():>11.1f} {best:>10.1f}")
        if lost := len(evals) - len(finite):
            notes.append(f"seed {seed}: {lost} of {len(evals)} evaluations were not finite")
        if cut := sum(line.get("eval/cut", 0) for line in mine):
            words = f"evaluation episodes were cut off after {run.eval_max_steps} steps"
            notes.append(f"seed {seed}: {cut:.0f} {words}")
        for line in lines:
            if line["seed"] == seed and "run/diverged" in line:
                diverged.append(seed)
                names = [name for name, value in line.items() if value is None]
                notes.append(
                    f"seed {seed} diverged at step {line['step']}, where {' and '.join(names)} was "
                    f"not finite, and stands as it was before; the others are whole"
                )
    print("\n".join(notes), end="\n" * bool(notes))
    for name, words in (
        ("critic/alignment", "mean alignment of updates (1: values move straight to targets)"),
        ("linesearch/accepted", "share of updates in which the linesearch found a step"),
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
    return diverged


if __name__ == "__main__":
    flags.define(*training.CONFIGS)
    flags.run(main)
