"""Train many settings and seeds in one program.

    python -m experiments.sweep --algorithm=preqn --env=HalfCheetah-v5 --seeds=0:7 \\
        --sweep=critic_learning_rate=0.03,0.1,0.3 --sweep=eta=0.9,0.97 --logdir=runs/sweep

Every value of an axis is combined with every value of the other axes and with every seed. Each
combination is a member; here there are 42. Members that differ in numbers of the algorithm are
trained side by side in one program. What shapes a program (sizes, activations, algorithms,
environments) makes a program of its own for each value, one after the other.

Each member has its own run directory in --logdir, as experiments.train would make it, so that
experiments.plot, diagnose and the others can read it; the sweep adds summary.json, summary.md and
sweep.png. If a sweep is stopped, the same command continues it, and ends as if it had never been
stopped; with more values, more seeds or a larger --num_steps it trains what is missing. A member
that diverges is frozen where it stood, and does not affect the others. --report trains nothing, and
only writes the summary of the sweep in --logdir.

With --processes=N, N programs are trained at a time, each in its own process; --launcher=ray and
--launcher=submitit do this on a cluster (docs/clusters.md). The output of each program is in
--logdir/programs.

On several machines with one file system, start the same command on each, with --coordinator,
--num_processes and --process_id, or with --coordinator=auto: each trains its share of the members.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags as absl_flags

from experiments.judge import sweep_report
from experiments.kit import flags, launch, launch_sweep, processes, signals, streams
from experiments.kit.curves import plural
from experiments.kit.running import Running, WatchConfig, devices
from preqn_jax.options import UserError
from preqn_jax.training import directory
from preqn_jax.training import run as training
from preqn_jax.training import sweep as sweeps
from preqn_jax.training.lock import Busy, Lock
from preqn_jax.training.trackers import Tracker

if __name__ == "__mp_main__":  # a worker process
    streams.forgive()

_GROUP = "SweepConfig"


def define() -> None:
    """Defines the flags of the sweep itself, beside those of its runs."""
    absl_flags.DEFINE_multi_string(
        "sweep",
        [],
        "a setting and its values, as critic_learning_rate=0.03,0.1,0.3",
        module_name=_GROUP,
    )
    absl_flags.DEFINE_bool(
        "report", False, "train nothing, only report on the runs that are there", module_name=_GROUP
    )
    absl_flags.DEFINE_integer(
        "only_program",
        None,
        "train only this program, counted from 0, without a report; used by --launcher",
        lower_bound=0,
        module_name=_GROUP,
    )
    flags.group("What is swept, beside the seeds", ["sweep", "report", "only_program"])


def main(argv: list[str]) -> int:
    run, agent, loop = (flags.parse(config) for config in training.CONFIGS)
    run = flags.home(run, f"sweep-{agent.algorithm}")
    given, together = absl_flags.FLAGS, flags.parse(processes.ProcessesConfig)
    axes = sweeps.axes(given.sweep)
    if given.report:
        said = [name for name in directory.HINTS if given[name].present]
        (run, agent, loop), axes = sweeps.as_begun(
            Path(run.logdir or ""), (run, agent, loop), axes, said
        )
    sweep = sweeps.make(run.logdir, run, agent, loop, axes)
    if given.report and given.only_program is not None:
        raise UserError("--report trains nothing: leave out --only_program")
    if given.report:
        sweeps.check_begun(sweep)
    launching, status = flags.parse(launch.LaunchConfig), 0
    if given.only_program is not None:
        return _train_one(sweep, given.only_program)
    sent_later = [] if given.report else _finished(sweep)
    if launching != launch.LaunchConfig():
        ended = "done" if given.report else launch_sweep.train(sweep, launching, together)
        if ended == "stopped":
            return signals.STOPPED
        status = int(ended == "failed")
    elif not given.report:
        processes.meet(together, lambda: sweeps.open_(sweep))
        if not processes.first():
            sweeps.open_(sweep, write=False)
        running = Running(flags.parse(WatchConfig))
        with signals.heard(running.stop, running.cut_off):
            whole = _train(sweep, sweep.programs, running)
            if whole and processes.first():
                left, asked = (lambda: _left(sweep)), (lambda: running.stopping)
                status = int(not processes.wait(together, sweep.logdir, left, asked))
        if not whole or running.stopping:
            return signals.STOPPED
    if processes.first():
        _send(sweep, sent_later)
    diverged = processes.first() and sweep_report.report(sweep)
    return int(bool(status or diverged))


def _finished(sweep: sweeps.Sweep) -> list[Path]:
    """The run directories of the members that are finished."""
    folders = [sweep.logdir / member.name for member in sweep.members]
    return [one for one in folders if directory.finished(one, sweep.loop.num_steps)]


def _send(sweep: sweeps.Sweep, folders: Sequence[Path]) -> None:
    """Sends what the tracker, if one is asked for, lacks of the records of finished members."""
    for folder in folders if sweep.run.track else ():
        with contextlib.suppress(Busy):  # another command does so
            lock = Lock(folder)
            try:
                Tracker(sweep.run.track, folder).close()
            finally:
                lock.release()


# --- in this process ------------------------------------------------------------------------------


def _train_one(sweep: sweeps.Sweep, index: int) -> int:
    """Trains one program of the sweep, for `launch_sweep`. Returns the exit status."""
    if index >= len(sweep.programs):
        raise UserError(
            f"only_program is {index}, but the sweep has {plural(len(sweep.programs), 'program')}; "
            "count from 0"
        )
    sweeps.open_(sweep, write=False)
    folder = launch_sweep.runs_of(sweep)[index].folder
    with directory.writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder).sign()
    try:
        running = Running(flags.parse(WatchConfig))
        with signals.heard(running.stop, running.cut_off):
            whole = _train(sweep, [sweep.programs[index]], running)
        return 0 if whole else signals.STOPPED
    finally:
        lock.release()


def _left(sweep: sweeps.Sweep) -> bool:
    return any(sweeps.plans(sweep, program) for program in sweep.programs)


def _train(sweep: sweeps.Sweep, programs: Sequence[sweeps.Program], running: Running) -> bool:
    """Trains whatever is left of `programs`. Returns False if it was stopped."""
    seeds, counts = len(sweep.loop.seeds), [len(program.members) for program in programs]
    members = sum(counts)
    settings = plural(members // seeds, "setting")
    words = [
        f"{plural(members, 'member')} ({settings}, {plural(seeds, 'seed')})",
        f"in {plural(len(programs), 'program')},",
        f"on {devices(max(len(range(count)[processes.share(count)]) for count in counts))}",
    ]
    if jax.process_count() > 1:
        words.append(f"of process {jax.process_index() + 1} of {jax.process_count()}")
    print(f"{' '.join(words)}: {sweep.logdir}", file=sys.stderr)
    for number, program in enumerate(programs, 1):
        title = ", ".join(filter(None, (program.run.env, program.name)))
        if len(programs) > 1:
            title = f"program {number} of {len(programs)}: {title}"
        mine = processes.share(len(program.members))
        for plan in sweeps.plans(sweep, program, mine):
            if running.stopping:
                return False
            with training.Session(plan, running.hung) as session:
                if not running.follow(session, title):
                    return False
    return True


if __name__ == "__main__":
    flags.define(*training.CONFIGS, processes.ProcessesConfig, launch.LaunchConfig, WatchConfig)
    define()
    flags.run(main, keeps=True)
