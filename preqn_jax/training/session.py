"""One process's share of a run: rounds with their records, evaluations, diagnoses and
checkpoints.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from preqn_jax import agents, diagnostics, envs
from preqn_jax.agents import Agent
from preqn_jax.diagnostics import Finding
from preqn_jax.envs import codec
from preqn_jax.training import collect, directory, files, loop, memory, note
from preqn_jax.training.config import LoopConfig, RunConfig
from preqn_jax.training.errors import Diverged, Diverging
from preqn_jax.training.monitor import bias, make_monitor, stuck
from preqn_jax.training.record import Recorder
from preqn_jax.training.rollout import Evaluation, attained
from preqn_jax.training.trained import Trained
from preqn_jax.types import Spec

_log = logging.getLogger(__name__)
CONFIGS: tuple[Any, ...] = (RunConfig, agents.AgentConfig, LoopConfig)
DEFAULTS = {f.name: f.default for config in CONFIGS for f in dataclasses.fields(config)}


class Progress(NamedTuple):
    """What a round leaves behind; `trained` is gone with the next one: use it before going on."""

    step: int  # environment steps of each seed so far
    metrics: dict[str, np.ndarray]  # `[S]` each, means over the round's updates; {} before any
    episodes: list[tuple[int, float]]  # (index of the seed, return) of every episode that ended
    # One a seed, where this round ended with one; None of a seed that diverged.
    evaluations: list[Evaluation | None]
    findings: list[tuple[int, Finding]]  # (seed, failure that is building up), where it is news
    trained: Trained


class Plan(NamedTuple):
    """What a run is to be."""

    make_agent: Callable[[Spec], Agent]
    env: envs.Source
    run: RunConfig
    loop: LoopConfig
    discount: float
    described: dict[str, Any]  # for config.json


class Session:
    """One process's share of a run: folds records, evaluations and checkpoints over the rounds.

    A context, which closes what it holds. `stopping` may be set at any time, also by a signal's
    handler: the run ends after the round at hand, with a checkpoint.
    """

    def __init__(self, plan: Plan, hung: Callable[[envs.EnvError], None] = collect.say):
        """Raises UserError as `train`. A run directory is made or gone on with.

        `hung` is called, in a thread of its own, once an environment of this process hangs.
        """
        self.plan, self.config = plan, plan.loop
        self.stopping = False
        self.start = 0
        self.pending: list[dict[str, Any]] = []  # measured since the last line of metrics.jsonl
        self._found: dict[int, str] = {}  # seed -> the failure it was last warned of
        self._stuck: set[int] = set()  # seeds that were warned of as such
        self._hung = hung
        with collect.watched(plan.env, plan.run.env_timeout, hung):
            self.spec = envs.spec(plan.env)
        memory.check(self.spec, plan.loop, plan.described)
        self.agent = plan.make_agent(self.spec)
        self._recorder: Recorder | None = None
        self._checkpoints: Any = None
        self._collector: collect.Collector | None = None
        self.logdir: Path | None = None
        self._held = contextlib.ExitStack()  # closed last to first, whatever is raised
        if plan.run.logdir:
            self.logdir, lock = directory.open_(plan.run.logdir, plan.described, DEFAULTS)
            self._held.callback(lock.release)

    @property
    def finished(self) -> bool:
        """Whether the run directory holds this run, whole."""
        return self.logdir is not None and (self.logdir / directory.DONE).exists()

    @property
    def kept(self) -> list[int]:
        """Steps of the checkpoints on disk."""
        return self._checkpoints.steps() if self._checkpoints else []

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.close()

    def begin(self) -> None:
        """Environments and a learner, or all of it from the newest checkpoint."""
        plan, config = self.plan, self.config
        workers = plan.run.workers
        workers = collect.default_workers(len(config.seeds)) if workers is None else workers
        limits = plan.run.eval_episodes, plan.run.eval_max_steps, plan.run.env_timeout
        recipe = collect.Recipe(plan.make_agent, plan.env, config, *limits)
        log = self.logdir and self.logdir / directory.ENVIRONMENT_LOG
        self._collector = collect.Collector(recipe, workers, log, self._hung)
        self._held.callback(self._collector.close)
        self.learner, self.counters = loop.init(self.agent, self.spec, config)
        if self.logdir is not None:
            # Orbax, which a run that keeps nothing does without.
            from preqn_jax.training.checkpoint import Checkpointer

            with files.writing(str(self.logdir)):
                self._checkpoints = Checkpointer(self.logdir / directory.CHECKPOINTS)
            restored, expected = self._checkpoints.restore(self.learner, self._check), 0
            if restored is not None:
                self.start, self.learner, self.counters, state, extra = restored
                self._collector.load(state)
                self.pending, expected = codec.decode(extra["pending"]), extra["records"]
            self._recorder = Recorder(
                self.logdir, config.seeds, self.start, self._stays, expected, plan.run.track
            )
            self._held.callback(self._recorder.close)
        self._look = make_monitor(self.agent, config, plan.discount)
        self._acting = jax.jit(jax.vmap(self.agent.policy))

    def _check(self, noted: dict[str, Any]) -> None:
        """Raises where the note of a checkpoint is not one of this run."""
        assert self._collector is not None
        note.check(noted, self.config, self._collector.save())

    def _stays(self, line: dict[str, Any]) -> bool:
        """Whether a record belongs to a run that goes on: those of its former end may be there only
        for that.
        """
        if line["step"] < self.start or self.start == self.config.num_steps:
            return True
        for name, every in (
            ("eval/return_mean", self.plan.run.eval_every),
            ("time/steps_per_s", self.plan.run.log_every),
        ):
            if name in line:
                return self.start % every == 0
        return True

    def rounds(self) -> Generator[Progress]:
        """To the end, where the run directory is marked as whole, or until `stopping`.

        A seed that diverges is frozen, recorded and warned of, and the others go on.

        Raises:
          Diverged, Diverging: no seed is left, or the run should end; recorded, then raised.
          Stopped: what else the run cannot go on from.
        """
        if self._collector is None:
            self.begin()
        try:
            yield from self._rounds()
        except Diverging as error:
            self._note_divergence(error)
            raise

    def _rounds(self) -> Generator[Progress]:
        every, num_steps = self.plan.run, self.config.num_steps
        self._mark = (time.monotonic(), self.start, self.counters.updates)
        collector = self._collector
        assert collector is not None
        for done in loop.rounds(self.agent, collector, self.config, self.learner, self.counters):
            self.learner, self.counters, step = done.learner, done.counters, done.step
            for error in done.diverged:
                self._note_divergence(error)
            if len(self.counters.frozen) == len(self.config.seeds):
                raise done.diverged[-1]
            self.pending.append({"metrics": done.metrics, "episodes": done.episodes})
            last = step == num_steps
            if step % every.log_every == 0 or last:
                self._log(step)
            if step % every.log_every == 0:
                # What is logged only for being the last is pending still, should the run go on.
                self.pending = []
            findings = []
            if every.diagnose_every and step % every.diagnose_every == 0 and self.counters.updates:
                findings = self._off_the_clock(self._diagnose, step)
            evaluations = []
            if step % every.eval_every == 0 or last:
                evaluations = self._off_the_clock(self._evaluate, step)
            if step % every.checkpoint_every == 0 or last or self.stopping:
                self._save(step)
            here = (done.metrics, done.episodes, evaluations, findings, self.trained())
            try:
                yield Progress(step, *here)
            except GeneratorExit:  # a notebook's break
                self._save(step)
                raise
            if self.stopping and not last:
                return
        if self.logdir is not None:
            directory.finish(self.logdir)

    def trained(self) -> Trained:
        """What training has come to."""
        step = self.counters.round * self.config.update_every
        learned, described = self.learner.agent, self.plan.described
        return Trained(self.agent, learned, self.spec, self.config.seeds, step, described)

    def _write(self, step: int, seed: int, line: dict[str, Any]) -> None:
        if self._recorder is not None:
            self._recorder.write(step, seed, line)

    def _off_the_clock(self, act: Callable[[int], list[Any]], step: int) -> list[Any]:
        """What is no training takes none of its time."""
        began = time.monotonic()
        result = act(step)
        self._mark = (self._mark[0] + time.monotonic() - began, *self._mark[1:])
        return result

    def _log(self, step: int) -> None:
        now, mark = (time.monotonic(), step, self.counters.updates), self._mark
        elapsed = max(now[0] - mark[0], 1e-9)
        clock = {
            "time/steps_per_s": (now[1] - mark[1]) / elapsed,
            "time/updates_per_s": (now[2] - mark[2]) / elapsed,
        }
        for i, seed in self._going():
            means = self._means(i)
            self._write(step, seed, {**means, **clock})
            if (why := stuck(means)) and seed not in self._stuck:
                words = "no update of seed %d moved Q from step %d to %d: %s"
                _log.warning(words, seed, self._mark[1], step, why)
                self._stuck.add(seed)
        self._mark = now

    def _going(self) -> list[tuple[int, int]]:
        """(index, seed) of those that have not diverged."""
        frozen = self.counters.frozen
        return [(i, seed) for i, seed in enumerate(self.config.seeds) if i not in frozen]

    def _means(self, i: int) -> dict[str, float]:
        """Of one seed's numbers since the last line."""
        sums: dict[str, list[float]] = {}
        for noted in self.pending:
            for name, values in noted["metrics"].items():
                sums.setdefault(name, []).append(float(values[i]))
            returns = sums.setdefault("train/return", [])
            returns.extend(total for j, total in noted["episodes"] if j == i)
        return {
            name: float(np.nanmean(v)) if np.isfinite(v).any() else np.nan
            for name, v in sums.items()
            if v
        }

    def _evaluate(self, step: int) -> list[Evaluation | None]:
        assert self._collector is not None
        acting, frozen = self._acting(self.learner.agent), self.counters.frozen
        evaluations = self._collector.evaluate(acting, step, frozen)
        for i, seed in self._going():
            evaluation = evaluations[i]
            assert evaluation is not None
            returns = evaluation.rewards.sum(axis=0)
            line = {
                "eval/return_mean": returns.mean(),
                "eval/return_std": returns.std(dtype=np.float64),  # of 1e30 it overflows in float32
                "eval/episodes": len(returns),
                "eval/discounted_max": attained(evaluation.rewards, self.plan.discount),
            }
            if np.any(evaluation.cut):
                line["eval/cut"] = np.sum(evaluation.cut)
            if self.plan.run.diagnose_every:
                state = jax.tree.map(lambda leaf, i=i: leaf[i], self.learner.agent)
                off = bias(self.agent, self.agent.critic(state), evaluation, self.plan.discount)
                line |= {f"diagnose/{name}": value for name, value in off.items()}
            self._write(step, seed, line)
        return evaluations

    def _diagnose(self, step: int) -> list[tuple[int, Finding]]:
        """Records a diagnosis of every seed; returns what failure is building up, once for each
        that a seed comes to.

        Raises Diverging where there is one and the run should end.
        """
        news, worst = [], None
        looks = self._look(self.learner, self.counters.round)
        for i, seed in self._going():
            measured = looks[i]
            if not measured:  # training says so itself where it meets this
                continue
            finding = diagnostics.failure(measured)
            line = {f"diagnose/{name}": value for name, value in measured.items()}
            number = 1 + diagnostics.FAILURES.index(finding.mode) if finding else 0
            self._write(step, seed, {**line, "diagnose/failure": number})
            if finding and self._found.get(seed) != finding.mode:
                self._found[seed] = finding.mode
                news.append((seed, finding))
            worst = worst or (finding and Diverging(finding, seed, step))
        if worst and self.plan.run.stop_on_divergence:
            raise worst
        return news

    def _note_divergence(self, error: Diverged | Diverging) -> None:
        """The last lines of a seed that diverged, or of a run; one that goes on from a checkpoint
        drops them, with all that came after it.
        """
        every = self.config.update_every
        step = (error.step - 1) // every * every  # of the last whole round
        alone = isinstance(error, Diverged)
        mine = [(self.config.seeds.index(error.seed), error.seed)]
        for i, seed in (mine if alone else self._going()) if self.pending else ():
            self._write(step, seed, self._means(i))
        quantity = {error.quantity: np.nan} if alone else {}
        self._write(error.step, error.seed, {"run/diverged": 1.0, **quantity})
        if alone and len(self.counters.frozen) < len(self.config.seeds):
            _log.warning("%s; this seed is frozen there, and the others go on", error)

    def _save(self, step: int) -> None:
        if self._recorder is None or self._checkpoints is None or self._collector is None:
            return
        self._recorder.flush()
        extra = {
            "pending": codec.encode(self.pending),
            "seeds": list(self.config.seeds),
            "records": self._recorder.count,
        }
        state = self._collector.save()
        self._checkpoints.save(step, self.learner, self.counters, state, extra)
