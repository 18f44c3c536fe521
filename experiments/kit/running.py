"""Training sessions with a progress bar, which signals can stop."""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from experiments.kit import flags, output, signals, streams
from experiments.kit.curves import plural
from preqn_jax.envs import EnvError, staying_here
from preqn_jax.options import UserError, option
from preqn_jax.training import loop
from preqn_jax.training.errors import Diverged, Stopped
from preqn_jax.training.run import Session


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """How a run is profiled."""

    profile: str = option(
        "", "a folder for a trace of three rounds with updates, by jax.profiler (none)"
    )


def devices(members: int) -> str:
    """The devices that so many members use, as text: "2 cpu devices", or "1 of 2 cpu devices" if
    not all devices of this process have a member.
    """
    there, used = jax.local_devices(), len(loop.devices_for(members))
    kind, platform = there[0].device_kind, there[0].platform
    words = f"{plural(len(there), f'{platform} device')}{f' ({kind})' * (kind != platform)}"
    return f"{used} of {words}" if used < len(there) else words


class Running:
    """Holds the current session, so that signals reach it; signals before it starts are kept for
    it.
    """

    session: Session | None = None
    stopping = False

    def __init__(self, watch: WatchConfig | None = None):
        self._watch = watch or WatchConfig()
        if self._watch.profile:
            output.check("profile", os.path.join(self._watch.profile, "trace"))

    def stop(self) -> None:
        """The response to a first signal: end after the current round, with a checkpoint."""
        self.stopping = True
        if self.session is not None:
            self.session.stopping = True

    def take(self, session: Session) -> None:
        self.session = session
        session.stopping = self.stopping

    def kept(self) -> str:
        """Which checkpoint there is, as text for a message."""
        try:
            steps = self.session.kept if self.session is not None else []
        except OSError as error:
            return f"the list of checkpoints cannot be read ({error.strerror})"
        if self.session is None or not steps:
            return "there was no checkpoint yet"
        return f"the checkpoint of step {steps[-1]} is kept in {self.session.where}"

    def cut_off(self) -> None:
        print(f"ended at once, at a second signal; {self.kept()}", file=sys.stderr)

    def hung(self, error: EnvError) -> None:
        """Ends the process when an environment hangs: its thread may never return, so nothing can
        be closed.
        """
        words = flags.in_flags(f"error: {error}; {self.kept()}")
        signals.end(1, lambda: print(words, file=sys.stderr))

    def follow(
        self, session: Session, title: str, words: Callable[[Session], str] | None = None
    ) -> bool:
        """Trains the session to the end, or to a signal, after which a checkpoint is written; the
        text of `words` is printed as it begins. Returns whether it reached the end, which it also
        does if no member of a sweep is left.

        Raises UserError if it cannot go on; the message names the checkpoint that is kept.
        """
        self.take(session)
        try:
            with staying_here():
                return _follow(session, title, words, Trace(self._watch.profile))
        except Diverged as error:
            if session.plan.places is None:
                raise UserError(f"{error}; {self.kept()}") from None
            return True
        except (Stopped, EnvError) as error:
            raise UserError(f"{error}; {self.kept()}") from error.__cause__
        except jax.errors.JaxRuntimeError as error:
            if (why := flags.out_of_memory(error)) is None:
                raise
            raise UserError(f"{why}; {self.kept()}") from error


def _follow(
    session: Session, title: str, words: Callable[[Session], str] | None, trace: "Trace"
) -> bool:
    compiled = _compiling()
    session.begin()
    step = session.start
    if step:
        print(f"resuming {session.where} at step {step}", file=sys.stderr)
    members = len(session.config.seeds)
    if words is not None:
        print(words(session), file=sys.stderr)
    latest, clock = np.full(members, np.nan), Clock(session.config.num_steps)
    steps = session.config.num_steps, session.start
    with contextlib.closing(trace), streams.bar(*steps, desc=title) as bar:
        for progress in () if session.stopping else session.rounds():
            step = progress.step
            trace.round(bool(progress.metrics))
            if told := clock.first_words(step, bool(progress.metrics)):
                tqdm.write(f"{title}: {told}", file=sys.stderr)
            for i, finding in progress.findings:
                tqdm.write(
                    f"step {step}, {session.plan.name(i)}: {finding.mode}: {finding.evidence}; "
                    f"{flags.in_flags(finding.remedy)}",
                    file=sys.stderr,
                )
            for i, evaluation in enumerate(progress.evaluations):
                latest[i] = np.nan if evaluation is None else evaluation.returns.mean()
            bar.update(step - bar.n)
            bar.set_postfix_str(_state(session, latest), refresh=False)
    if session.stopping and not session.finished:
        step = session.counters.round * session.config.update_every
        print(f"stopped at step {step}; the same command goes on from there", file=sys.stderr)
        return False
    print(f"seconds spent compiling, once a process: {sum(compiled):.0f}", file=sys.stderr)
    return True


def _compiling() -> list[float]:
    """A list to which the seconds of every compilation from now on are added."""
    seconds: list[float] = []

    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(heard)
    return seconds


class Trace:
    """A trace of what the device does in three rounds with updates, after those that compile."""

    FIRST, COUNT = 3, 3

    def __init__(self, folder: str):
        self._folder, self._rounds, self._open = folder, 0, False

    def round(self, updates: bool) -> None:
        """To be called after each round."""
        self._rounds += updates
        if not self._folder or not updates:
            return
        if self._rounds == self.FIRST:
            jax.profiler.start_trace(self._folder)
            self._open = True
        elif self._rounds == self.FIRST + self.COUNT:
            self._stop()

    def close(self) -> None:
        """To be called after the last round, however it ended."""
        if self._open:
            self._stop()
        elif self._folder and self._rounds < self.FIRST:
            words = f"no trace: it begins after {self.FIRST} rounds with updates, but there "
            tqdm.write(f"{words}were only {self._rounds}", file=sys.stderr)

    def _stop(self) -> None:
        self._open, rounds = False, plural(self._rounds - self.FIRST, "round")
        words = f"trace of {rounds}: {self._folder} (tensorboard or ui.perfetto.dev)"
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:  # as for a full disk: no reason to end a run
            words = f"no trace: {str(error).splitlines()[0]}"
        tqdm.write(words, file=sys.stderr)


class Clock:
    """Says once how long a run will take, as soon as the rate of its updates is known."""

    WAIT = 5.0  # seconds of updates, after those that compile

    def __init__(self, num_steps: int):
        self._num_steps, self._rounds, self._said = num_steps, 0, False
        self._began = (0.0, 0)

    def first_words(self, step: int, updates: bool, now: float | None = None) -> str | None:
        """What to print after a round that ended at `step`, None for nothing. Only rounds with
        updates count.
        """
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


def _state(session: Session, latest: np.ndarray) -> str:
    """The text beside the progress bar: how many members are alive, if there are several, and their
    mean return.
    """
    members, frozen = len(latest), len(session.counters.frozen)
    alive = f"{members - frozen} of {members} alive" if frozen else f"{members} members"
    words = [alive] if members > 1 else []
    if np.isfinite(latest).any():
        words.append(f"return {np.nanmean(latest):.0f}")
    return ", ".join(words)
