"""The records of finished and unfinished runs, as arrays."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.kit import output
from preqn_jax.options import UserError
from preqn_jax.training import directory, record
from preqn_jax.training.config import named

Lines = list[record.Line]  # of one seed


class Curves(NamedTuple):
    """The records of one run `<env>/<variant>`."""

    env: str
    variant: str
    config: dict[str, Any]
    seeds: tuple[int, ...]  # S of them
    lines: list[Lines]  # `[S]`
    diverged: dict[int, int]  # seed -> step, of those that diverged

    @property
    def name(self) -> str:
        return f"{self.env}/{self.variant}"

    @property
    def reached(self) -> int:
        """The last step at which every seed was evaluated, 0 before that. Seeds that diverged do
        not count, unless all did.
        """
        last = {
            seed: max((line["step"] for line in lines if "eval/return_mean" in line), default=0)
            for seed, lines in zip(self.seeds, self.lines, strict=True)
        }
        going = {seed: step for seed, step in last.items() if seed not in self.diverged}
        return min((going or last).values(), default=0)

    @property
    def ended(self) -> bool:
        """Whether divergence ended all seeds: all diverged, or one did and was to end the run."""
        if set(self.seeds) <= set(self.diverged):
            return bool(self.seeds)
        return any(wanted_end(line) for lines in self.lines for line in lines)

    @property
    def finished(self) -> bool:
        return self.reached >= self.config["num_steps"]

    def cut(self, at: int) -> "Curves":
        """The run as it was at step `at`; if divergence ended it before, as it was at its end."""
        lines = [[line for line in mine if line["step"] <= at] for mine in self.lines]
        so_far = {s: step for s, step in self.diverged.items() if step <= at}
        if self.ended and self.reached < at:
            so_far = self.diverged
        return self._replace(lines=lines, diverged=so_far)

    def metric(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps `[T]` and values `[S, T]`, NaN where a seed has none."""
        return matrix(self.lines, name)


def load(folder: Path) -> tuple[dict[str, Any], Lines]:
    """The configuration and the records of a run directory. Raises UserError if it is no run
    directory, or has no records yet.
    """
    with output.expecting(f"the run {str(folder)!r} cannot be read"):
        config = directory.config_of(folder, "run")
        if lines := record.of_run(folder):
            return config, lines
    raise UserError(f"the run {str(folder)!r} has no records yet")


def recorded(folder: Path) -> bool:
    """Whether there are records in a run directory. Raises UserError where they cannot be read."""
    path = folder / record.NAME
    if not path.is_file():
        return path.exists()  # `load` says what is wrong with it
    with output.expecting(f"{str(path)!r} cannot be read"), path.open("rb") as file:
        return any(record.parse(line) is not None for line in file)


def of_seeds(seeds: Iterable[int], lines: Lines) -> dict[int, Lines]:
    """The records of each seed."""
    return {seed: [line for line in lines if line["seed"] == seed] for seed in seeds}


def evaluations(lines: Lines) -> np.ndarray:
    """The mean returns `[T]` of one seed's evaluations; NaN for a null, which was not finite."""
    return np.array([x["eval/return_mean"] for x in lines if "eval/return_mean" in x], float)


def ends(returns: np.ndarray) -> tuple[float, float, float]:
    """Of one seed's mean returns `[T]`: the last, the mean of the last three, and the best finite
    one; NaN where there is none.
    """
    if not len(returns):
        return np.nan, np.nan, np.nan
    best = max(returns[np.isfinite(returns)], default=np.nan)
    return float(returns[-1]), float(returns[-3:].mean()), float(best)


def mean(lines: Iterable[record.Line], name: str, after: int) -> float | None:
    """The mean of a metric past step `after`; None where it was not recorded there."""
    values = [line[name] for line in lines if line["step"] > after and line.get(name) is not None]
    return float(np.mean(values)) if values else None


def diverged(lines: Iterable[record.Line]) -> dict[int, int]:
    """seed -> step of its divergence, for the seeds that diverged."""
    return {line["seed"]: line["step"] for line in lines if line.get("run/diverged") is not None}


def wanted_end(line: record.Line) -> bool:
    """Whether this line records a divergence that ended the run with all its seeds
    (--stop_on_divergence). Where a divergence only froze its seed, the line has the null that froze
    it.
    """
    return line.get("run/diverged") is not None and not record.frozen([line])


def differing(
    config: dict[str, Any], others: Iterable[dict[str, Any]], left_out: Collection[str]
) -> list[str]:
    """The settings in which a run differs from any of the others."""
    names = dict.fromkeys(name for one in (config, *others) for name in one)
    return [
        name
        for name in names
        if name not in left_out and any(one.get(name) != config.get(name) for one in others)
    ]


def short(value: Any) -> str:
    """A setting as a short text: sizes as 64x64."""
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def variant(config: dict[str, Any]) -> str:
    """The name of a run's variant: "preqn-sin"; without an activation for agents of a user's own
    parts.
    """
    words = [config["algorithm"], config.get("activation")]
    return "-".join(word for word in words if word)


def matrix(curves: Sequence[Lines], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[T]` and values `[S, T]` of one metric, NaN where a seed has none."""
    rows = [
        {line["step"]: line[name] for line in lines if line.get(name) is not None}
        for lines in curves
    ]
    steps = sorted(set().union(*rows))
    return np.array(steps), np.array([[row.get(step, np.nan) for step in steps] for row in rows])


def at_common_steps(curves: Sequence[Lines], name: str) -> tuple[np.ndarray, np.ndarray]:
    """As `matrix`, but only at the steps for which every seed has a line, seeds that diverged
    before excepted. So the mean has no jump where a seed was evaluated less often than others or
    ended between two evaluations, and it ends where the shortest run ends.
    """
    lines = [[line for line in mine if name in line] for mine in curves]
    steps, values = matrix(lines, name)
    at = [{line["step"] for line in mine} for mine in lines]
    lasting = [
        max(mine) for mine, all_ in zip(at, curves, strict=True) if mine and not diverged(all_)
    ]
    end = min(lasting, default=np.inf)
    whole = [
        step <= end and all(not mine or step > max(mine) or step in mine for mine in at)
        for step in steps
    ]
    return steps[whole], values[:, whole]


def gather(
    root: Path, envs: Iterable[str], variants: Iterable[str], seeds: Sequence[int] | None = None
) -> tuple[list[Curves], list[str]]:
    """The runs `<root>/<env>/<variant>` that have been evaluated, or ended by divergence before
    that; and a sentence about each run that is missing or incomplete.

    `seeds` picks some of a run's seeds, with a sentence about those that are missing; None takes
    all. Raises UserError for a folder that is damaged.
    """
    found, notes = [], []
    for env in envs:
        for variant in variants:
            folder = root / env / variant
            if not recorded(folder):
                notes.append(f"{env}/{variant} is missing")
                continue
            run = _select(env, variant, *(loaded := load(folder)), seeds)
            if lacking := [seed for seed in seeds or () if seed not in run.config["seeds"]]:
                notes.append(f"{run.name} lacks {named(lacking)}")
            lost, stopped = diverged(loaded[1]), any(map(wanted_end, loaded[1]))
            for seed, step in run.diverged.items():
                left = [s for s in run.config["seeds"] if lost.get(s, np.inf) > step]
                went_on = left and not stopped
                last = "; its others went on" if went_on else ", which ended all its seeds"
                notes.append(f"{run.name} diverged at step {step:,}, seed {seed}{last}")
            if not run.seeds or not (run.reached or run.ended):
                notes.append(f"{run.name} has no evaluation of these seeds yet")
                continue
            found.append(run)
            if not run.ended and not run.finished:
                notes.append(
                    f"{run.name} stands at step {run.reached:,} of {run.config['num_steps']:,}"
                )
    return found, [*notes, *_schedules(found)]


def _schedules(runs: Sequence[Curves]) -> list[str]:
    """A sentence about each environment on which some runs were evaluated more often than others,
    up to the step that all of them reached.
    """
    notes = []
    for env in dict.fromkeys(run.env for run in runs):
        mine = [run for run in runs if run.env == env and not run.ended]
        end = min((run.reached for run in mine), default=0)
        counts = {
            run.variant: len({x["step"] for lines in run.lines for x in _evaluated(lines, end)})
            for run in mine
        }
        if len({*counts.values()}) > 1:
            words = ", ".join(f"{variant} {count}" for variant, count in counts.items())
            notes.append(
                f"{env} has unequal numbers of evaluations up to step {end:,} ({words}): a mean of "
                "so many is of a longer stretch where there are fewer"
            )
    return notes


def _evaluated(lines: Lines, end: int) -> Lines:
    return [line for line in lines if "eval/return_mean" in line and line["step"] <= end]


def _select(
    env: str, variant: str, config: dict[str, Any], lines: Lines, seeds: Sequence[int] | None
) -> Curves:
    chosen = tuple(seed for seed in config["seeds"] if seeds is None or seed in seeds)
    by_seed = of_seeds(chosen, lines)
    lost = {seed: step for seed, step in diverged(lines).items() if seed in chosen}
    return Curves(env, variant, config, chosen, list(by_seed.values()), lost)


def common_step(runs: Iterable[Curves]) -> int:
    """The last step that every seed of all runs has reached, not counting runs that ended by
    divergence. If all ended so, the step at which the last of them did, so that none stands as it
    was before.
    """
    runs = list(runs)
    going = [run.reached for run in runs if not run.ended]
    return min(going) if going else max(max(run.diverged.values()) for run in runs)


def plural(count: int, thing: str) -> str:
    """A count with its noun: "1 seed", "2 seeds"."""
    return f"{count} {thing}{'s' * (count != 1)}"


def count_seeds(*counts: int) -> str:
    """The least and the largest count, as text: "3 seeds", or "2 to 3 seeds"."""
    least, most = min(counts), max(counts)
    return ("" if least == most else f"{least} to ") + plural(most, "seed")


def seeds_of(runs: Iterable[Curves]) -> str:
    """How many seeds the runs have, as text."""
    return count_seeds(*(len(run.seeds) for run in runs))


def judged_on(runs: Sequence[Curves], envs: Iterable[str]) -> str:
    """Environments, seeds and step on which runs are compared, as text."""
    there = {run.env for run in runs}
    named = ", ".join(env for env in envs if env in there)
    return f"{named} with {seeds_of(runs)}, all at step {common_step(runs):,}"
