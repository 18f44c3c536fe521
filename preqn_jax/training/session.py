"""One process's share of a run: rounds with their records, evaluations, diagnoses and
checkpoints.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from preqn_jax import diagnostics, envs
from preqn_jax.diagnostics import Finding
from preqn_jax.options import UserError
from preqn_jax.training import collect, device, directory, folder, loop, memory, rows
from preqn_jax.training.errors import Diverged, Diverging, Flag, Interrupted
from preqn_jax.training.folder import Folder
from preqn_jax.training.monitor import advice, bias, make_exact, make_looks, measure
from preqn_jax.training.plan import Plan, Progress
from preqn_jax.training.rollout import Evaluation, discounted_max
from preqn_jax.training.trained import Trained, agent_of

_log = logging.getLogger(__name__)


class Session:
    """One process's share of a run: does its rounds, with records, evaluations and checkpoints.

    A context manager, which closes what it holds. `stopping` may be set at any time, also by a
    signal handler: the run then ends after the current round, with a checkpoint; an evaluation is
    given up, and is made first when the run is resumed.
    """

    def __init__(self, plan: Plan, hung: Callable[[envs.EnvError], None] = collect.say):
        """Makes the run directories, or opens those of a run to resume. Raises UserError as
        `train`.

        `hung` is called, in a thread of its own, once an environment of this process hangs.
        """
        self.plan, self.config = plan, plan.loop
        self._asked = Flag()
        self.start = 0
        self._due: list[int] = []  # members whose evaluation at the start was given up
        self.pending: list[dict[str, Any]] = []  # measured since the last line of metrics.jsonl
        self._found: dict[int, str] = {}  # member -> the failure it was last warned of
        self._told: set[tuple[int, str]] = set()  # (member, warning) of each warning given
        self._hung = hung
        with collect.watched(plan.env, plan.run.env_timeout, hung) as reset:
            self._on_device = device.wanted(plan.run, plan.env)
            self.spec = envs.spec(plan.env, ask=reset)
        self.agent = agent_of(plan.make_agent, self.spec)
        memory.check(self.spec, plan.loop, plan.described, self.agent, plan.settings)
        etas = plan.settings.get("eta", plan.described.get("eta", 1.0))
        etas = -1.0 if plan.described.get("relative_eta") else etas  # every solve reaches this
        self._etas = np.broadcast_to(etas, len(plan.loop.seeds))
        self._discounts = np.broadcast_to(plan.discount, len(plan.loop.seeds))
        self._begun = False
        self._collector: collect.Collector | device.Resident
        self._folders: list[Folder] = []
        self._home: dict[int, Folder] = {}  # of every member that is kept
        with contextlib.ExitStack() as held:
            memory.make_room_for_files(len(homes := plan.homes()))
            for place in homes:
                self._folders.append(Folder(place, plan.loop))
                held.callback(self._folders[-1].close)
                self._home.update(dict.fromkeys(place.members, self._folders[-1]))
            self._held = held.pop_all()  # closed last to first, whatever is raised

    @property
    def finished(self) -> bool:
        """Whether this run is finished in all its run directories."""
        return bool(self._folders) and all(one.finished for one in self._folders)

    @property
    def where(self) -> Path | None:
        """The run directory, or the folder that holds them all; None where nothing is kept."""
        kept = [place.logdir for place in self.plan.homes()]
        return Path(os.path.commonpath(kept)) if kept else None

    @property
    def kept(self) -> list[int]:
        """Steps of the checkpoints on disk. Raises OSError."""
        kept = [set(one.steps()) for one in self._folders]
        return sorted(set.intersection(*kept)) if kept else []

    @property
    def stopping(self) -> bool:
        return self._asked()

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._asked.up = value

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with contextlib.suppress(OSError):
            if isinstance(error, UserError) and self.kept:
                # A notebook shows this below the traceback; the command says so itself.
                error.add_note(f"the checkpoint of step {self.kept[-1]} is kept in {self.where}")
        self._held.close()

    def begin(self) -> None:
        """Makes environments and a learner, or restores them from the newest checkpoint."""
        plan, config = self.plan, self.config
        workers = plan.run.workers
        if workers is None:
            workers = collect.default_workers(len(config.seeds), collect.cores())
        limits = plan.run.eval_episodes, plan.run.eval_max_steps, plan.run.env_timeout
        recipe = collect.Recipe(plan.make_agent, plan.env, config, *limits)
        log = self.where and self.where.absolute() / directory.ENVIRONMENT_LOG
        if self._on_device:
            each = plan.run.log_every, plan.run.eval_every, plan.run.checkpoint_every
            stops = (*each, plan.run.diagnose_every) if plan.run.diagnose_every else each
            self._collector = resident = device.Resident(recipe, stops, self._asked)
            self._rounds = resident.rounds
        else:
            self._collector = host = collect.Collector(
                recipe, workers, log, self._hung, self._asked
            )
            self._rounds = partial(loop.rounds, self.agent, host, config)
        self._held.callback(self._collector.close)
        self.learner, counters = loop.init(self.agent, self.spec, config, plan.settings)
        self.counters = counters._replace(frozen=plan.resting)
        if self._folders:
            self._resume()
        self._looks = make_looks(self.agent, config)
        told = self._discounts, plan.described, plan.settings
        self._exact = make_exact(self.agent, envs.problem(plan.env), *told)
        self._acting = loop.each(self.agent.policy)
        self._begun = True

    def _resume(self) -> None:
        """Restores the newest checkpoint that all folders have, if there is one, and opens the
        records.
        """
        for one in self._folders:
            one.open_checkpoints()
        agent, bare = self.learner.agent, folder.bare(self.learner)
        restored = folder.restore(self._folders, bare, self._collector.save())
        noted = [folder.Noted()] * len(self._folders)
        if restored is not None:
            self.start, moment, noted = restored
            self.counters, self.pending = moment.counters, moment.pending
            self.learner = folder.dressed(moment.learner, agent)
            self._collector.load(moment.collector)
        for one in self._folders:  # all, before the first is changed
            one.check_records()
        for one, said in zip(self._folders, noted, strict=True):
            keep = partial(self._stays, said.eval_every or self.plan.run.eval_every)
            one.begin_records(self.start, keep, said.records, self.plan.run.track)
            at_end = self.start == self.config.num_steps
            if said.eval_every and (self.start % said.eval_every == 0 or at_end):
                told = one.evaluated(self.start)
                self._due += [i for i in one.members if self.config.seeds[i] not in told]
            # Called before any folder is closed, so that all trackers have the same time to end.
            self._held.callback(one.end_records)

    def _stays(self, eval_every: int, line: dict[str, Any]) -> bool:
        """Whether a record is kept when the run is resumed. Those of the step from which it goes on
        are dropped if they were written only because the run ended there, or because a member
        diverged just after. `eval_every` was the interval of evaluations until then.
        """
        if line["step"] < self.start or self.start == self.config.num_steps:
            return True
        if "eval/return_mean" in line:
            return self.start % eval_every == 0
        if "time/steps_per_s" in line:
            return not self.pending  # what was logged only as the last step is still pending
        return "diagnose/failure" in line or "run/diverged" in line

    def rounds(self) -> Generator[Progress]:
        """Train to the end, where the run directories are marked as finished, or until `stopping`.

        A member that diverges is frozen, recorded and warned of, and the others go on.

        Raises:
          Diverged, Diverging: no member is left, or the run should end; recorded, then raised.
          Stopped: the run cannot go on for another reason.
        """
        if not self._begun:
            self.begin()
        every, num_steps, size = self.plan.run, self.config.num_steps, len(self.config.seeds)
        self._mark = (time.monotonic(), self.start, self.counters.updates)
        if len(self.counters.frozen) == size:  # as in a sweep that was resumed in new groups
            return self._finish()
        evaluations: list[Evaluation | None] | None = []
        if due := [i for i in self._going() if i in self._due]:
            evaluations = self._off_the_clock(self._evaluate, self.start, due)
            if evaluations is None:
                return
            self._due = []
        episodes: list[tuple[int, float]] = []  # that ended since the last yield
        for done in self._rounds(self.learner, self.counters):
            self.learner, self.counters, step = done.learner, done.counters, done.step
            self._metrics = done.metrics
            for member, error in done.diverged:
                self._note_divergence(member, error)
            if len(self.counters.frozen) == size:
                raise done.diverged[-1][1]
            self.pending.append({"metrics": done.metrics, "episodes": done.episodes})
            episodes += done.episodes
            if not done.settled:
                continue
            last = step == num_steps
            if step % every.log_every == 0 or last:
                self._log(step)
            if step % every.log_every == 0:
                # What is logged only as the last step stays pending, should the run be made longer.
                self.pending = []
            findings = []
            if every.diagnose_every and step % every.diagnose_every == 0 and self.counters.updates:
                findings = self._off_the_clock(self._diagnose, step)
            if step % every.eval_every == 0 or last:
                before = self.moment() if self._folders else None
                evaluations = self._off_the_clock(self._evaluate, step)
                if evaluations is None:
                    return self._save(step, before)
            if saved := step % every.checkpoint_every == 0 or last or self.stopping:
                self._save(step)
            here = (done.metrics, episodes, evaluations, findings, self.trained())
            episodes, evaluations = [], []
            try:
                yield Progress(step, *here)
            except GeneratorExit:  # the caller's loop was left, as by a break in a notebook
                if not saved:
                    self._save(step)
                raise
            if self.stopping and not last:
                if not saved:  # `stopping` was set by the caller
                    self._save(step)
                return
        self._finish()

    def _finish(self) -> None:
        for one in self._folders:
            one.finish()
        self.plan.ended(self)

    def trained(self) -> Trained:
        """The agent and the states that training has come to."""
        step = self.counters.round * self.config.update_every
        states, described = self.learner.agent, self.plan.described
        return Trained(self.agent, states, self.spec, self.config.seeds, step, described)

    def _write(self, step: int, member: int, line: dict[str, Any]) -> None:
        if self._folders:
            self._home[member].write(step, member, line)

    def _off_the_clock(self, act: Callable[..., Any], *given: Any) -> Any:
        """Calls `act`, and leaves the time it takes out of the rates that are logged."""
        began = time.monotonic()
        result = act(*given)
        self._mark = (self._mark[0] + time.monotonic() - began, *self._mark[1:])
        return result

    def _log(self, step: int) -> None:
        now, mark = (time.monotonic(), step, self.counters.updates), self._mark
        elapsed = max(now[0] - mark[0], 1e-9)
        clock = {
            "time/steps_per_s": (now[1] - mark[1]) / elapsed,
            "time/updates_per_s": (now[2] - mark[2]) / elapsed,
        }
        for i in self._going():
            means = self._means(i)
            self._write(step, i, {**means, **clock})
            words, why = advice(means, self._etas[i])
            if why and (i, words) not in self._told:
                _log.warning(words, self.plan.name(i), self._mark[1], step, why)
                self._told.add((i, words))
        self._mark = now

    def _going(self) -> list[int]:
        """Indices of the members that are not frozen."""
        return [i for i in range(len(self.config.seeds)) if i not in self.counters.frozen]

    def _means(self, i: int) -> dict[str, float]:
        """The mean of each of one member's metrics since the last line of records."""
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

    def _evaluate(
        self, step: int, members: Sequence[int] | None = None
    ) -> list[Evaluation | None] | None:
        """Evaluates all members that are not frozen, and records the evaluations of `members`, of
        all if None. Returns None where it was given up.
        """
        acting, frozen = self._acting(self.learner.agent), self.counters.frozen
        try:
            evaluations = self._collector.evaluate(acting, step, frozen)
        except Interrupted:
            return None
        for i in self._going() if members is None else members:
            evaluation, discount = evaluations[i], float(self._discounts[i])
            assert evaluation is not None
            returns = evaluation.returns
            line = {
                "eval/return_mean": returns.mean(),
                "eval/return_std": returns.std(),
                "eval/episodes": len(returns),
                "eval/discounted_max": discounted_max(evaluation, discount),
            }
            if np.any(evaluation.cut):
                line["eval/cut"] = np.sum(evaluation.cut)
            if self.plan.run.diagnose_every:
                state = rows.of_member(i, self.learner.agent)
                off = bias(self.agent, self.agent.critic(state), evaluation, discount)
                line |= {f"diagnose/{name}": value for name, value in off.items()}
            self._write(step, i, line)
        return evaluations

    def _diagnose(self, step: int) -> list[tuple[int, Finding]]:
        """Records a diagnosis of every member; returns (index, failure that is building up) for
        members whose failure is new.

        Raises Diverging, once it is recorded, where there is a failure and the run should end at
        one.
        """
        news, worst = [], None
        looks = self._looks(self.learner, self.counters.round)
        for i in self._going():
            discrete = self.spec.num_actions is not None
            measured = measure(self.agent, looks[i], float(self._discounts[i]), discrete)
            if not measured:  # a NaN or an infinity, which training itself reports
                continue
            finding = diagnostics.failure(measured)
            line = {f"diagnose/{name}": value for name, value in measured.items()}
            adapted = self._metrics.get("solve/damping")
            adapted = None if adapted is None else float(adapted[i])
            line |= self._exact(self.learner, i, measured["alpha"], adapted)
            number = 1 + diagnostics.FAILURES.index(finding.mode) if finding else 0
            self._write(step, i, {**line, "diagnose/failure": number})
            if finding and self._found.get(i) != finding.mode:
                self._found[i] = finding.mode
                news.append((i, finding))
            if finding and worst is None:
                worst = i, Diverging(finding, self.config.seeds[i], step)
        if worst and self.plan.run.stop_on_divergence:
            self._note_divergence(*worst)
            raise worst[1]
        return news

    def _note_divergence(self, member: int, error: Diverged | Diverging) -> None:
        """Writes the last records of a member that diverged, or of a run that ends by it; a resumed
        run drops them.
        """
        every, alone = self.config.update_every, isinstance(error, Diverged)
        step = (error.step - 1) // every * every if alone else error.step  # the last whole round's
        for i in ([member] if alone else self._going()) if self.pending else ():
            self._write(step, i, self._means(i))
        quantity = {error.quantity: np.nan} if isinstance(error, Diverged) else {}
        self._write(error.step, member, {"run/diverged": 1.0, **quantity})
        if alone and len(self.counters.frozen) < len(self.config.seeds):
            words = f"; this {'member' if self.plan.settings else 'seed'} is frozen there"
            named = f"{self.plan.name(member)}: " if self.plan.settings else ""
            _log.warning("%s%s%s, and the others go on", named, error, words)

    def _save(self, step: int, moment: folder.Moment | None = None) -> None:
        if not self._folders:
            return
        moment = moment or self.moment()
        for one in self._folders:
            one.save(step, folder.part(moment, one.members))

    def moment(self) -> folder.Moment:
        """All that the run can go on from; the learner's leaves may have more rows than there are
        members.
        """
        learner, state = folder.bare(self.learner), self._collector.save()
        return folder.Moment(learner, self.counters, state, self.pending)
