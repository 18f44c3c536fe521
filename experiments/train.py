"""Train one algorithm on one environment, with any number of seeds side by side.

    python -m experiments.train --algorithm=preqn --env=HalfCheetah-v5 --seeds=0 --num_steps=1000000

The run directory (--logdir) holds config.json, metrics.jsonl, tensorboard/, checkpoints/, and at
the end curve.png and DONE. The same command on a directory that holds a checkpoint goes on from
there, and ends as if it had never been stopped. With a larger --num_steps it goes on to there,
finished or not, and ends as if it had been given that number at the start.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments import plot
from experiments.kit import flags
from preqn_jax.options import UserError
from preqn_jax.training import run as training
from preqn_jax.training.errors import Stopped
from preqn_jax.training.record import read


def main(argv: list[str]) -> int:
    plan = training.plan(*(flags.parse(config) for config in training.CONFIGS))
    with training.Session(plan) as session:
        logdir = session.logdir
        if logdir is None:
            raise UserError("logdir is empty; name a run directory, as in --logdir=runs/x")
        if session.finished:
            print(f"{logdir} holds a finished run of this command; nothing to do")
            _summarize(logdir, plan)
            return 0
        session.begin()
        if session.start:
            print(f"resuming {logdir} at step {session.start}", file=sys.stderr)
        try:
            if not _run(session):
                return 0
        except Stopped as error:
            kept = session.kept
            where = (
                f"the checkpoint of step {kept[-1]} is kept in {logdir}"
                if kept
                else "there was no checkpoint yet"
            )
            raise UserError(f"{error}; {where}") from error
    _summarize(logdir, plan)
    plot.draw([logdir], logdir / "curve.png")
    print(f"curves: {logdir / 'curve.png'}")
    return 0


def _run(session: training.Session) -> bool:
    """To the end, or to a SIGTERM or Ctrl-C, after which a checkpoint is written. Returns whether
    it reached the end.
    """
    latest = np.full(len(session.config.seeds), np.nan)
    step = session.start
    with _signals(session), _progress(session) as bar:
        for progress in session.rounds():
            step = progress.step
            for seed, finding in progress.findings:
                tqdm.write(
                    f"step {step}, seed {seed}: {finding.mode}: {finding.evidence}; "
                    f"{flags.in_flags(finding.remedy)}",
                    file=sys.stderr,
                )
            for i, evaluation in enumerate(progress.evaluations):
                latest[i] = evaluation.rewards.sum(axis=0).mean()
            bar.update(step - bar.n)
            if np.isfinite(latest).all():
                bar.set_postfix_str(f"return {np.mean(latest):.0f}", refresh=False)
        if session.stopping and step < session.config.num_steps:
            bar.close()
            print(f"stopped at step {step}; the same command goes on from there", file=sys.stderr)
            return False
    return True


def _progress(session: training.Session) -> tqdm:
    return tqdm(
        total=session.config.num_steps,
        initial=session.start,
        unit="step",
        desc=session.plan.run.env,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
    )


@contextlib.contextmanager
def _signals(session: training.Session) -> Iterator[None]:
    def stop(signum: int, frame: Any) -> None:
        session.stopping = True

    old = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def _summarize(logdir: Path, plan: training.Plan) -> None:
    """The result of a run, in a few lines."""
    run, config = plan.run, plan.loop
    lines = read(logdir / "metrics.jsonl")
    episodes = f"noiseless returns over {run.eval_episodes} episodes"
    print(f"{run.env}, {config.num_steps} steps, {episodes}")
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
    flags.define(*training.CONFIGS)
    flags.run(main)
