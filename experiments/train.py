"""Train one algorithm on one environment, with any number of seeds side by side.

    python -m experiments.train --algorithm=preqn --env=HalfCheetah-v5 --seeds=0 --num_steps=1000000

The run directory (--logdir) holds config.json, metrics.jsonl, tensorboard/ and checkpoints/, and at
the end curve.png and DONE. If a run is stopped, the same command continues it from its newest
checkpoint, and it ends as if it had never been stopped. A larger --num_steps continues a run, even
a finished one, and it ends as if it had been given that number at the start. More --seeds on a
finished run train the new seeds in its folder added/, from which they then join the run.

SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and Ctrl-C end the run after the current round, with a checkpoint
and exit status 75. A second signal, a second or more later, ends it at once, without a new
checkpoint; the one before stays.
"""

import shlex
from pathlib import Path

import numpy as np

from experiments.kit import curves, flags, learning_curves, signals, streams
from experiments.kit.running import Running, WatchConfig, devices
from preqn_jax.options import UserError
from preqn_jax.training import added, directory
from preqn_jax.training import run as training
from preqn_jax.training.config import named
from preqn_jax.training.record import NAME, read
from preqn_jax.training.trackers import Tracker

if __name__ == "__mp_main__":  # a worker process
    streams.forgive()


def main(argv: list[str]) -> int:
    run_config, agent, loop = (flags.parse(config) for config in training.CONFIGS)
    plan = training.plan(flags.home(run_config, agent.algorithm), agent, loop)
    running = Running(flags.parse(WatchConfig))
    with signals.heard(running.stop, running.cut_off):
        joined = False
        for stage in added.stages(plan):
            with training.Session(stage, running.hung) as run:
                words = None if run.finished else _addition
                if not running.follow(run, plan.run.env, words) or running.stopping:
                    return signals.STOPPED
            joined = True
        plan = added.ordered(plan)
        with training.Session(plan, running.hung) as run:
            running.take(run)
            logdir = run.where
            if logdir is None:
                raise UserError("logdir is empty; name a run directory, as in --logdir=runs/x")
            trained = not run.finished
            if not trained and not joined:
                begun = directory.with_defaults(directory.config_of(logdir))
                other = [
                    name for name in directory.MAY_CHANGE if begun[name] != plan.described[name]
                ]
                words = ", ".join(f"{name}={begun[name]}" for name in other)
                made_with = f", made with {words}" * bool(other)
                print(f"{logdir} holds a finished run of this command{made_with}; nothing to do")
            elif trained and not running.follow(run, plan.run.env, _intention):
                return signals.STOPPED
            if not trained:
                Tracker(plan.run.track, logdir).close()  # which may lack some of its records
    diverged, picture = _summarize(logdir, plan), logdir / directory.PICTURE
    if trained or not picture.exists():
        learning_curves.draw([logdir], picture, flag="logdir")
    print(f"curves: {picture}")
    return int(bool(diverged))


def _intention(session: training.Session) -> str:
    """What a run will do, and how to watch it, as text."""
    made, config, where = session.plan.described, session.config, session.where
    shown = shlex.quote(str(where))
    sizes = "x".join(map(str, made.get("hidden_sizes", ())))
    waits = max(0, config.update_after - session.start)
    return (
        f"{curves.variant(made)}{f', networks of {sizes}' * bool(sizes)}, on {made['env']}: "
        f"{config.num_steps - session.start:,} steps for each of "
        f"{curves.count_seeds(len(config.seeds))}"
        f"{f', the first {waits:,} without updates' * bool(waits)}, "
        f"on {devices(len(config.seeds))}\n"
        f"into {where}; to watch: python -m experiments.plot {shown}, or, where it is installed, "
        f"tensorboard --logdir={shown}"
    )


def _addition(session: training.Session) -> str:
    """Which seeds are about to join a finished run, as text."""
    assert session.where is not None
    there = directory.read_config(session.where.parent / directory.CONFIG)["seeds"]
    new = sorted(set(session.config.seeds))
    return (
        f"adding {named(new)} to the finished run of "
        f"{curves.count_seeds(len(there))}, trained in {session.where}"
    )


def _summarize(logdir: Path, plan: training.Plan) -> list[int]:
    """Prints the result of a run in a few lines. Returns the seeds that diverged."""
    run, config = plan.run, plan.loop
    lines = read(logdir / NAME)
    episodes = f"noiseless returns over {run.eval_episodes} episodes"
    print(f"{run.env}, {config.num_steps} steps, {episodes}")
    print(f"{'seed':>6} {'last':>10} {'last three':>11} {'best':>10}")
    notes, diverged = [], []
    for seed, mine in curves.of_seeds(config.seeds, lines).items():
        evals = curves.evaluations(mine)
        last, three, best = curves.ends(evals)
        print(f"{seed:>6} {last:>10.1f} {three:>11.1f} {best:>10.1f}")
        if lost := np.count_nonzero(~np.isfinite(evals)):
            notes.append(f"seed {seed}: {lost} of {len(evals)} evaluations were not finite")
        if cut := sum(line.get("eval/cut", 0) for line in mine):
            words = f"evaluation episodes were cut off after {run.eval_max_steps} steps"
            notes.append(f"seed {seed}: {cut:.0f} {words}")
        for line in mine:
            if "run/diverged" in line:
                diverged.append(seed)
                names = [name for name, value in line.items() if value is None]
                notes.append(
                    f"seed {seed} diverged at step {line['step']}, where {' and '.join(names)} was "
                    f"not finite, and is frozen as it was before; the other seeds are unaffected"
                )
    print("\n".join(notes), end="\n" * bool(notes))
    for name, words in (
        ("critic/alignment", "mean alignment of updates (1: values move straight to targets)"),
        ("linesearch/accepted", "share of updates in which the linesearch found a step"),
        ("solve/finite", "share of solves that ended finite"),
        ("time/steps_per_s", "environment steps a second, of each seed"),
    ):
        if (value := curves.mean(lines, name, config.update_after)) is not None:
            print(f"{words}: {value:.4g}")
    return diverged


if __name__ == "__main__":
    flags.define(*training.CONFIGS, WatchConfig)
    flags.run(main, keeps=True)
