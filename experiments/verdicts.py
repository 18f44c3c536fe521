"""What section 5.2 says of PreQN, judged one statement at a time on the records of runs."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import scores
from experiments.curves import Curves, count_seeds

ETA = 0.97  # Appendix B
_FEW = 5  # evaluations whose mean tells learning from noise
_FINITE = ("critic/q_mean", "critic/td_abs", "critic/norm", "actor/norm", "eval/return_mean")

RULES = f"""\
A seed is stable if
  (a) it did not diverge, and its Q, its networks and its returns are finite on every line of its
      records;
  (b) once it has learned, no mean of {_FEW} evaluations in a row falls below half of the best such
      mean's gain over the first evaluation (it has learned if that gain exceeds the mean spread
      over an evaluation's episodes);
  (c) no mean Q of a line is above the largest discounted return that any of its evaluations went
      through.
A seed's alignment is the mean over its updates; one that the linesearch rejects counts as 0. Two
variants are compared, environment by environment, at the last step that both reached. Clear:
Welch's {scores.LEVEL:.0%} interval of the difference does not hold zero, or one of the two
diverged. "Generally": clear on at least one environment, clearly the other way round on none, and
by the mean on more than half. "Comparing favorably": clearly worse on fewer than half of all pairs
of an environment and a baseline.
A statement in several parts is borne out if all of them are; it cannot be judged while runs are
missing or unfinished."""


class Half(NamedTuple):
    """One half of a statement: what is said, what was found, and whether that bears it out."""

    words: str
    evidence: str
    borne_out: bool | None  # None: it cannot be judged


class Verdict(NamedTuple):
    """A statement of section 5.2."""

    statement: str
    halves: list[Half]

    @property
    def borne_out(self) -> bool | None:
        known = [half.borne_out for half in self.halves]
        return False if False in known else None if None in known else True


Runs = dict[tuple[str, str], Curves]  # (env, variant) -> its records


def judge(found: Sequence[Curves], envs: Sequence[str]) -> list[Verdict]:
    """All statements, on the runs that are there; `envs` are those that there should be."""
    runs = {(run.env, run.variant): run for run in found}
    return [
        Verdict(
            "PreQN is stable, despite not using target networks", _stable(runs, envs, "preqn-sin")
        ),
        Verdict(
            "PreQN is performant, comparing favorably with the baseline algorithms (TD3 and SAC)",
            [_favorable(runs, envs, "preqn-sin", ("td3-relu", "sac-relu"))],
        ),
        Verdict(
            "in some cases it outperforms (eg Swimmer and Ant)",
            _somewhere(runs, envs, ("Swimmer", "Ant"), 1),
        ),
        Verdict(
            "and in some cases it underperforms (eg Hopper)",
            _somewhere(runs, envs, ("Hopper",), -1),
        ),
        Verdict(
            "PreQN produces high alignment regardless of architecture by design",
            [_aligned(runs, envs, variant) for variant in ("preqn-sin", "preqn-relu")],
        ),
        Verdict(
            "TD3-sin produces updates that are better-aligned with their targets than TD3-relu",
            [_generally(runs, envs, "td3-sin", "td3-relu", "better aligned than", alignments)],
        ),
        Verdict(
            "performance for TD3-sin was generally weaker than performance for TD3-relu",
            [_generally(runs, envs, "td3-relu", "td3-sin", "stronger than", performances)],
        ),
        Verdict(
            "performance for PreQN-relu was generally weaker than PreQN-sin, primarily due to "
            "occasional divergence",
            [
                _generally(runs, envs, "preqn-sin", "preqn-relu", "stronger than", performances),
                _less_stable(runs, envs),
            ],
        ),
    ]


# --- a seed ---------------------------------------------------------------------------------------


def collapsed(returns: np.ndarray, spread: float) -> bool:
    """Rule (b) on the evaluations of one seed: mean returns `[T]`, and the mean spread over the
    episodes of one.
    """
    if len(returns) < _FEW:
        return False
    windows = np.convolve(returns, np.ones(_FEW) / _FEW, "valid")
    best, first = int(np.argmax(windows)), returns[0]
    gain = windows[best] - first
    return bool(gain > spread and windows[best:].min() < first + gain / 2)


class Faults(NamedTuple):
    """The seeds of a run that break each part of the rule of stability; None where the records do
    not tell.
    """

    a: list[int]
    b: list[int]
    c: list[int] | None


def faults(run: Curves) -> Faults:
    """Who breaks the rule of stability."""
    returns, spreads = (run.metric(name)[1] for name in ("eval/return_mean", "eval/return_std"))
    a, b, c = [], [], []
    told = True
    for i, (seed, lines) in enumerate(zip(run.seeds, run.lines, strict=True)):
        if (run.diverged and run.diverged[1] == seed) or any(
            line.get(name, 0) is None for line in lines for name in _FINITE
        ):
            a.append(seed)
        if collapsed(returns[i][np.isfinite(returns[i])], float(np.nanmean(spreads[i]))):
            b.append(seed)
        q, worth = (_values(lines, name) for name in ("critic/q_mean", "eval/discounted_max"))
        told = told and bool(q and worth)
        if told and max(q) > max(worth):
            c.append(seed)
    return Faults(a, b, c if told else None)


def _values(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines if line.get(name) is not None]


def alignments(run: Curves, at: int) -> np.ndarray:
    """Mean cos(Q'-Q, y-Q) of each seed's updates up to step `at`, `[S]`."""
    steps, values = run.metric("critic/alignment")
    return np.nanmean(values[:, steps <= at], axis=1)


def performances(run: Curves, at: int) -> np.ndarray:
    """Scores `[S]` at step `at`."""
    steps, returns = run.metric("eval/return_mean")
    return scores.last(steps, returns, at)


# --- statements -----------------------------------------------------------------------------------


def _whole(runs: Runs, envs: Iterable[str], variants: Iterable[str]) -> str:
    """What keeps a statement on these runs from being judged; "" if nothing does."""
    wanted = [(env, variant) for env in envs for variant in variants]
    missing = [f"{env}/{variant}" for env, variant in wanted if (env, variant) not in runs]
    missing += [
        runs[key].name
        for key in wanted
        if key in runs and not (runs[key].finished or runs[key].diverged)
    ]
    return f"needs {', '.join(missing)}" if missing else "" if wanted else "needs runs"


def _stable(runs: Runs, envs: Sequence[str], variant: str) -> list[Half]:
    words = {
        "a": f"{variant}: finite in every seed",
        "b": f"{variant}: no seed's return collapses after it has learned",
        "c": f"{variant}: no seed's mean Q is above what its evaluations attained",
    }
    lacking = _whole(runs, envs, [variant])
    if lacking:
        return [Half(said, lacking, None) for said in words.values()]
    total = sum(len(runs[env, variant].seeds) for env in envs)
    halves = []
    for rule, said in words.items():
        broken = {env: getattr(faults(runs[env, variant]), rule) for env in envs}
        if None in broken.values():
            halves.append(Half(said, "the records have no eval/discounted_max", None))
            continue
        bad = "; ".join(
            f"{env} seed {', '.join(map(str, seeds))}" for env, seeds in broken.items() if seeds
        )
        count = sum(map(len, broken.values()))
        halves.append(
            Half(
                said, f"{total - count} of {total} seeds{', not ' + bad if bad else ''}", not count
            )
        )
    return halves


def _aligned(runs: Runs, envs: Sequence[str], variant: str) -> Half:
    said = f"{variant}: alignment at least {ETA} in every seed"
    lacking = _whole(runs, envs, [variant])
    if lacking:
        return Half(said, lacking, None)
    least = {
        env: float(alignments(runs[env, variant], runs[env, variant].reached).min()) for env in envs
    }
    return Half(
        said,
        "least: " + ", ".join(f"{env} {value:.4f}" for env, value in least.items()),
        min(least.values()) >= ETA,
    )


def compare(
    one: Curves, other: Curves, measure: Callable[[Curves, int], np.ndarray]
) -> tuple[int, float, str]:
    """Of two runs on one environment: 1, 0 or -1 (clearly more, neither, clearly less), the
    difference, and the numbers.
    """
    at = min(one.reached, other.reached)
    difference = scores.difference(measure(one, at), measure(other, at))
    digits = ".3f" if measure is alignments else ",.0f"
    interval = (
        f" [{difference.interval[0]:{digits}}, {difference.interval[1]:{digits}}]"
        if difference.interval
        else ""
    )
    words = f"{one.env} {difference.value:+{digits}}{interval}"
    if measure is performances and bool(one.diverged) != bool(other.diverged):
        better = 1 if other.diverged else -1
        return (
            better,
            float(better),
            f"{one.env}: {(other if other.diverged else one).variant} diverged",
        )
    return scores.clearly(difference), difference.value, words


def _generally(
    runs: Runs,
    envs: Sequence[str],
    one: str,
    other: str,
    words: str,
    measure: Callable[[Curves, int], np.ndarray],
) -> Half:
    said = f"{one} is generally {words} {other}"
    lacking = _whole(runs, envs, [one, other])
    if lacking:
        return Half(said, lacking, None)
    compared = [compare(runs[env, one], runs[env, other], measure) for env in envs]
    ways, means = [way for way, _, _ in compared], [mean for _, mean, _ in compared]
    good = 1 in ways and -1 not in ways and 2 * sum(mean > 0 for mean in means) > len(means)
    return Half(said, "; ".join(text for _, _, text in compared), good)


def _favorable(runs: Runs, envs: Sequence[str], one: str, baselines: Sequence[str]) -> Half:
    said = f"{one} is clearly worse than {' or '.join(baselines)} on fewer than half of the pairs"
    lacking = _whole(runs, envs, [one, *baselines])
    if lacking:
        return Half(said, lacking, None)
    pairs = [
        (other, *compare(runs[env, one], runs[env, other], performances))
        for env in envs
        for other in baselines
    ]
    ways = [way for _, way, _, _ in pairs]
    counts = (
        f"better on {ways.count(1)}, worse on {ways.count(-1)}, neither on {ways.count(0)} of "
        f"{len(ways)}"
    )
    return Half(
        said,
        f"{counts}: " + "; ".join(f"{text} over {other}" for other, _, _, text in pairs),
        2 * ways.count(-1) < len(ways),
    )


def _somewhere(runs: Runs, envs: Sequence[str], names: Sequence[str], way: int) -> list[Half]:
    """For each of the environments that the paper names: clearly better (1) or worse (-1) than both
    baselines.
    """
    halves = []
    for name in names:
        said = (
            f"preqn-sin is clearly {'better' if way > 0 else 'worse'} than td3-relu and sac-relu "
            f"on {name}"
        )
        versions = [env for env in envs if env.split("-")[0] == name]
        lacking = (
            _whole(runs, versions, ["preqn-sin", "td3-relu", "sac-relu"])
            if versions
            else f"needs runs on {name}"
        )
        if lacking:
            halves.append(Half(said, lacking, None))
            continue
        env = versions[0]
        compared = [
            (b, *compare(runs[env, "preqn-sin"], runs[env, b], performances))
            for b in ("td3-relu", "sac-relu")
        ]
        evidence = "; ".join(f"{text} over {other}" for other, _, _, text in compared)
        if (env, "ddpg-relu") in runs:  # which stands far above both on Swimmer
            evidence += (
                f"; {compare(runs[env, 'preqn-sin'], runs[env, 'ddpg-relu'], performances)[2]} "
                f"over ddpg-relu"
            )
        halves.append(Half(said, evidence, all(found == way for _, found, _, _ in compared)))
    return halves


def _less_stable(runs: Runs, envs: Sequence[str]) -> Half:
    """Seeds that break rule (a) or (b): (c) is no divergence yet."""
    said = "more seeds of preqn-relu than of preqn-sin diverge or collapse (rules a and b)"
    lacking = _whole(runs, envs, ["preqn-sin", "preqn-relu"])
    if lacking:
        return Half(said, lacking, None)
    shares, evidence = {}, []
    for variant in ("preqn-relu", "preqn-sin"):
        bad = [len({*found.a, *found.b}) for found in (faults(runs[env, variant]) for env in envs)]
        total = sum(len(runs[env, variant].seeds) for env in envs)
        shares[variant] = sum(bad) / total
        evidence.append(f"{variant} {sum(bad)} of {total}")
    evidence += [
        f"{variant} breaks rule c in {_overvalued(runs, envs, variant)}" for variant in shares
    ]
    return Half(said, ", ".join(evidence), shares["preqn-relu"] > shares["preqn-sin"])


def _overvalued(runs: Runs, envs: Sequence[str], variant: str) -> str:
    broken = [faults(runs[env, variant]).c for env in envs]
    return (
        "who knows how many" if None in broken else f"{sum(len(seeds or ()) for seeds in broken)}"
    )


def show(verdicts: Sequence[Verdict], runs: Sequence[Curves], envs: Sequence[str]) -> None:
    """Prints the statements, what was found, and the rules."""
    answers = {True: "yes", False: "no", None: "cannot be judged"}
    print(
        f"\nSection 5.2 says, judged on {', '.join(envs)} with {count_seeds(runs)}, "
        f"{max(run.reached for run in runs):,} steps:"
    )
    for verdict in verdicts:
        print(f'  "{verdict.statement}": {answers[verdict.borne_out]}')
        for half in verdict.halves:
            words = f"{half.words}: {answers[half.borne_out]} ({half.evidence})"
            print(textwrap.fill(words, 126, initial_indent=" " * 6, subsequent_indent=" " * 10))
    print("\n" + RULES)


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The same for a file."""
    return [
        {
            "statement": v.statement,
            "borne_out": v.borne_out,
            "halves": [half._asdict() for half in v.halves],
        }
        for v in verdicts
    ]
