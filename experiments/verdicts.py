"""How often `diagnostics.failure` is right: it judges short runs of every algorithm, with settings
that learn and settings that diverge, and is then compared with how the runs ended.

    python -m experiments.verdicts                  # the tables, from the stored records
    python -m experiments.verdicts --make           # makes missing records, in half an hour

How a run ended is decided without the verdict, by the last third of its diagnoses. It diverged if
it met a NaN, or |Q| stayed above twice what rewards can add up to. It was sound if |Q| was at most
1.1 times that, had never been above twice that, and was off the returns by at most three times
these. It fell back if |Q| had been above twice that before. The thresholds of the verdict were
chosen on even seeds; odd seeds are held out.
"""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from scipy import stats
from tqdm import tqdm

from experiments.kit import flags, output
from preqn_jax import diagnostics
from preqn_jax.diagnostics import failures
from preqn_jax.options import UserError, choose, option
from preqn_jax.training import monitor
from preqn_jax.training import run as training
from preqn_jax.training.errors import Diverged

SEEDS = tuple(range(8))
ENDS = SOUND, FELL_BACK, UNCLEAR, DIVERGED = "sound", "fell back", "unclear", "diverged"
HALVES = {"choosing": False, "held out": True}  # seeds: even, and odd
BEYOND, WITHIN = 2.0, 1.1  # |Q| over what rewards can add up to
OFF = 3.0  # |bias| over the returns: more is not sound, however small Q is
DIGITS = 4  # of the numbers in the records


class Setting(NamedTuple):
    """The settings of a group of runs, which differ in their seeds alone."""

    algorithm: str
    env: str
    options: dict[str, Any]

    @property
    def discount(self) -> float:
        return self.options["discount"]

    @property
    def entropy(self) -> float:
        """The most that SAC's bonus can be: gamma alpha times the entropy of uniform actions."""
        most = ACTIONS[self.env] * math.log(2)
        return 0.1 * self.discount * most if self.algorithm == "sac" else 0.0


_ALL = {
    "hidden_sizes": (64, 64),
    "batch_size": 64,
    "start_steps": 500,
    "update_after": 500,
    "num_envs": 10,
    "num_steps": 1500,
    "eval_episodes": 2,
    "polyak": 0.98,
}
ALGORITHMS = ("preqn", "ngql", "ddpg", "td3", "sac")  # the paper's, each with runs
ACTIONS = {"Hopper-v5": 3, "probe/time-limit": 1}
EVERY = 100  # steps between diagnoses
_HOPPER = {"discount": 0.98}
_RAW = {"target_networks": False}  # Q bootstraps from itself
_ONE = {**_RAW, "num_critics": 1}
_RELU = {"activation": "relu"}  # PreQN and NGQL, whose sin does not diverge
SETTINGS = {
    **{
        f"{name}-{what}": Setting(name, env, options)
        for name in ALGORITHMS
        for what, env, options in (
            ("hopper", "Hopper-v5", _HOPPER),
            ("at-the-bound", "probe/time-limit", {"discount": 0.9, "polyak": 0.9}),
        )
    },
    **{
        f"{name}-{what}": Setting(name, "Hopper-v5", {**_HOPPER, **options})
        for name, rows in {
            "ddpg": (_RAW | {"critic_learning_rate": 1e-3}, _RAW | {"critic_learning_rate": 1e-2}),
            "td3": (_ONE | {"critic_learning_rate": 3e-3}, _ONE | {"critic_learning_rate": 1e-2}),
            "sac": (_ONE | {"critic_learning_rate": 1e-3}, _ONE | {"critic_learning_rate": 1e-2}),
            "preqn": (
                _RELU | {"critic_learning_rate": 1.5, "eta": 0.0},
                _RELU | {"critic_learning_rate": 2.0, "eta": 0.0},
            ),
            "ngql": (
                _RELU | {"critic_learning_rate": 1.5},
                _RELU | {"critic_learning_rate": 2.0},
            ),
        }.items()
        for what, options in zip(("fast", "faster"), rows, strict=True)
    },
}


@dataclasses.dataclass(frozen=True)
class VerdictsConfig:
    """The records, and what to do with them."""

    data: str = option(
        "experiments/results/verdicts/runs.jsonl", "records of the runs, one line for each"
    )
    make: bool = option(False, "train the runs that are missing from the records")
    only: tuple[str, ...] = option(tuple(SETTINGS), "settings to train, with --make")
    json: str = option("", "also write the tables to this file")


# --- the runs -------------------------------------------------------------------------------------


def recorded(name: str, seeds: Sequence[int] = SEEDS, **smaller: Any) -> list[dict[str, Any]]:
    """A record of every seed of a setting, which this trains. `smaller` are options for a test."""
    looks, ended = _train(SETTINGS[name], seeds, smaller)
    return [_record(name, seed, ended.get(seed), looks[seed]) for seed in seeds]


def _record(
    name: str, seed: int, nan: int | None, looks: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """A line of the records, as `load` reads it."""
    off = looks[-1].get("bias_relative", math.nan) if looks else math.nan
    names = [number for number in looks[0] if number != "bias_relative"] if looks else []
    measured = {number: [_short(look[number]) for look in looks] for number in names}
    return {
        "setting": name,
        "seed": seed,
        "nan": nan,
        "bias_relative": _short(off),
        "measured": measured,
    }


def _train(
    setting: Setting, seeds: Sequence[int], smaller: dict[str, Any]
) -> tuple[dict[int, list[dict[str, float]]], dict[int, int]]:
    """Trains the seeds. Returns the diagnoses of each up to its NaN, and the steps of the NaNs."""
    options = {**_ALL, **setting.options, **smaller, "seeds": tuple(seeds)}
    every = options["num_steps"]
    options |= {"eval_every": every, "log_every": every, "checkpoint_every": every}
    run, agent, loop = training.configs(setting.algorithm, setting.env, "", options)
    found: dict[int, list[dict[str, float]]] = {seed: [] for seed in seeds}
    ended: dict[int, int] = {}
    with training.Session(training.plan(run, agent, loop)) as session:
        looks = monitor.make_looks(session.agent, loop)

        def note(step: int) -> None:
            for i in session.counters.frozen:
                ended.setdefault(seeds[i], step)

        try:
            for done in session.rounds():
                note(done.step)
                if done.step % EVERY or not session.counters.updates:
                    continue
                for seed, look in zip(
                    seeds, looks(session.learner, session.counters.round), strict=True
                ):
                    gone = seed in ended
                    measured = {} if gone else monitor.measure(session.agent, look, agent.discount)
                    if not measured:  # the critic's next step would not be finite
                        ended.setdefault(seed, done.step)
                        continue
                    found[seed].append({"step": done.step, "seen": look.reward_bound, **measured})
                for i, (seed, episodes) in enumerate(zip(seeds, done.evaluations, strict=False)):
                    if episodes is None or seed in ended:
                        continue
                    state = jax.tree.map(lambda leaf, i=i: leaf[i], session.learner.agent)
                    params = session.agent.critic(state)
                    off = monitor.bias(session.agent, params, episodes, agent.discount)
                    found[seed][-1] |= {k: off[k] for k in off if k == "bias_relative"}
        except Diverged as error:  # no seed is left
            note(error.step)
    return found, ended


def _short(value: float) -> float | None:
    """A number for JSON, rounded to `DIGITS` digits; None where it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


# --- how they ended, and what was said of them ----------------------------------------------------


class Trial(NamedTuple):
    """One seed of a setting: its diagnoses, and how it ended."""

    setting: str
    seed: int
    nan: int | None  # the step of a NaN, which ended it
    bias_relative: float | None  # at its end, where returns are known
    looks: list[dict[str, float]]  # diagnoses, in the order of time

    @property
    def algorithm(self) -> str:
        return SETTINGS[self.setting].algorithm

    @property
    def held_out(self) -> bool:
        return self.seed % 2 == 1

    @property
    def end(self) -> str:
        """How it ended, one of `ENDS`: by a NaN, or by |Q| in the last third of its diagnoses."""
        if self.nan is not None:
            return DIVERGED
        setting = SETTINGS[self.setting]
        # |Q| over what rewards as large as any seen add up to, with the most entropy there can be.
        beyond = [
            look["q_largest"] * (1 - setting.discount) / (look["seen"] + setting.entropy)
            for look in self.looks
        ]
        tail = beyond[-math.ceil(len(beyond) / 3) :]
        if min(tail) > BEYOND:
            return DIVERGED
        if max(tail) > WITHIN or abs(self.bias_relative or 0.0) > OFF:
            return UNCLEAR
        return FELL_BACK if max(beyond) > BEYOND else SOUND

    @property
    def findings(self) -> list[diagnostics.Finding | None]:
        return [diagnostics.failure(look) for look in self.looks]


def load(data: Path) -> list[Trial]:
    """The runs in the records. Raises UserError where there are none."""
    with output.expecting(f"{str(data)!r} holds no runs of experiments.verdicts; add --make"):
        lines = map(json.loads, data.read_text().splitlines() or [""])
        return [run for run in map(_trial, lines) if run.end]  # which raises for senseless numbers


def _trial(kept: dict[str, Any]) -> Trial:
    """The trial of one record, where a null stands for an overflow and becomes infinity."""
    columns = {
        name: [math.inf if value is None else value for value in values]
        for name, values in kept["measured"].items()
    }
    looks = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for look in looks:  # TD errors over what rewards can add up to
        look["td_share"] = look["td_error"] / look["q_largest"] * look["soft_divergence"]
    return Trial(kept["setting"], kept["seed"], kept["nan"], kept["bias_relative"], looks)


def separation(runs: Iterable[Trial], name: str) -> float:
    """The probability that a number is higher in a diagnosis of a diverged run with |Q| beyond its
    bound than in a diagnosis of a sound one (AUC), overflows left out; NaN without either.
    """
    runs = list(runs)
    high, low = (
        [
            look[name]
            for run in runs
            if run.end == end
            for look in run.looks
            if look["soft_divergence"] > beyond and math.isfinite(look.get(name, math.nan))
        ]
        for end, beyond in ((DIVERGED, 1.0), (SOUND, -1.0))
    )
    if not high or not low:
        return math.nan
    result: Any = stats.mannwhitneyu(high, low)
    return float(result.statistic / (len(high) * len(low)))


def score(runs: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for each algorithm, half and end: how many runs and diagnoses, and how many have a
    finding.
    """
    rows = []
    for algorithm, half, end in itertools.product(ALGORITHMS, HALVES, ENDS):
        which = (algorithm, HALVES[half], end)
        mine = [run for run in runs if (run.algorithm, run.held_out, run.end) == which]
        findings = [run.findings for run in mine]
        modes = collections.Counter(one.mode for found in findings for one in found if one)
        rows.append(
            {
                "algorithm": algorithm,
                "half": half,
                "end": end,
                "runs": len(mine),
                "flagged": sum(any(found) for found in findings),
                "looks": sum(map(len, findings)),
                "flagged_looks": sum(modes.values()),
                "modes": dict(modes),
            }
        )
    return rows


def crossings(runs: Sequence[Trial], held_out: bool) -> dict[str, dict[str, str]]:
    """In how many diagnoses, of how many, each sign is beyond its threshold: among all diagnoses
    of sound runs, and among those of diverged runs that have a finding.
    """
    mine = [run for run in runs if run.held_out == held_out]
    looks = {
        SOUND: [look for run in mine if run.end == SOUND for look in run.looks],
        DIVERGED: [
            look
            for run in mine
            if run.end == DIVERGED
            for look, finding in zip(run.looks, run.findings, strict=True)
            if finding
        ],
    }
    return {
        name: {
            end: f"{sum(line < look[name] < math.inf for look in some)} of {len(some)}"
            for end, some in looks.items()
        }
        for name, line, *_ in failures.SIGNS
    }


# --- the tables -----------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    config = flags.parse(VerdictsConfig)
    output.check("json", config.json)
    data, only = Path(config.data), [choose("setting", name, SETTINGS) for name in config.only]
    if not config.make and config.only != VerdictsConfig.only:
        raise UserError("--only has no effect without --make: add --make, or leave --only out")
    if config.make:
        output.check("data", config.data)
        _make_missing(data, only)
    runs = load(data)
    rows, numbers = score(runs), _separations(runs)
    crossed = {half: crossings(runs, out) for half, out in HALVES.items()}
    for half in HALVES:
        show([row for row in rows if row["half"] == half], half)
        print(f"\n{half}: diagnoses beyond a sign's threshold: of sound, diverged, flagged runs")
        lines = [[name, *ends.values()] for name, ends in crossed[half].items()]
        print(output.aligned(lines, "lr"), end="")
    show_separations(numbers)
    if config.json:
        content = {"scores": rows, "crossings": crossed, "separation": numbers}
        output.write_json(Path(config.json), content)
    return 0


def _make_missing(data: Path, only: Sequence[str]) -> None:
    kept = {run.setting for run in load(data)} if data.exists() and data.stat().st_size else set()
    for name in tqdm([name for name in only if name not in kept], desc="settings"):
        lines = "".join(json.dumps(run) + "\n" for run in recorded(name))
        output.write(data, (data.read_bytes() if data.exists() else b"") + lines.encode(), "data")


def _separations(runs: Sequence[Trial]) -> dict[str, dict[str, float | None]]:
    """The `separation` of each number, by half and algorithm."""
    return {
        name: {
            f"{half}, {algorithm}": _short(
                separation((r for r in runs if (r.held_out, r.algorithm) == (out, algorithm)), name)
            )
            for half, out in HALVES.items()
            for algorithm in ALGORITHMS
        }
        for name in (*diagnostics.GLOSSARY, "td_share")
        if not name.startswith("bias")
    }


def show(rows: Sequence[dict[str, Any]], half: str) -> None:
    print(f"\n{half}: runs with a finding, of all that ended so (diagnoses)")
    lines = [["", *ENDS, "modes where it diverged"]]
    for algorithm in ALGORITHMS:
        mine = {row["end"]: row for row in rows if row["algorithm"] == algorithm}
        modes = ", ".join(f"{mode} {count}" for mode, count in mine[DIVERGED]["modes"].items())
        lines.append([algorithm, *map(cell, mine.values()), modes])
    print(output.aligned(lines, f"l{'r' * len(ENDS)}l"), end="")


def cell(row: dict[str, Any]) -> str:
    """Runs with a finding, and diagnoses with one, as text."""
    return f"{row['flagged']} of {row['runs']} ({row['flagged_looks']} of {row['looks']})"


def show_separations(numbers: dict[str, dict[str, float | None]]) -> None:
    print("\nchance that a number is higher where Q diverges than where it is sound")
    heads = (column.split(", ") for column in next(iter(numbers.values())))
    lines = [["", *line] for line in zip(*heads, strict=True)]
    for name, row in numbers.items():
        lines.append([name, *(f"{math.nan if v is None else v:.2f}" for v in row.values())])
    print(output.aligned(lines, "lr"), end="")


if __name__ == "__main__":
    flags.define(VerdictsConfig)
    flags.run(main)
