"""What section 5.2 says of PreQN, judged one statement at a time. The evidence is the records of
runs, all cut at the same step (`curves.common_step`).
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.judge import power, published, scores, verdict
from experiments.judge.comparison import Measure, alignments, compare
from experiments.judge.scores import performances
from experiments.judge.stability import FEW, faults
from experiments.judge.verdict import Part, Verdict
from experiments.kit.curves import Curves

ETA = 0.97  # Appendix B
BASELINES = ("td3-relu", "sac-relu")
NEEDED = ("preqn-sin", *BASELINES)  # what the statements on Figure 2 are about

RULES = f"""\
All runs are judged at one step, the last that every seed of all that a statement needs has reached,
on their records up to there; a run that diverged holds back no other, and stands as it ended.
A seed is stable if
  (a) it did not diverge, and its Q, its networks and its returns are finite on every line of its
      records;
  (b) once it has learned, no mean of {FEW} evaluations in a row falls below half of the gain over
      the first evaluation of the best such mean so far, whatever comes after (it has learned if
      that gain exceeds the mean, of the evaluations up to there, of the spread over an evaluation's
      episodes; with {FEW} evaluations or fewer it cannot be judged);
  (c) no mean Q of a line is above the largest discounted return that any of its evaluations went
      through.
Each part is absolute, and may be hard on a task for any algorithm: beside it stand the seeds of the
baselines that break it, and the p-value of equal shares (Fisher's exact test, two-sided, of the
seeds of all tasks together on which a baseline has runs). A seed that breaks (a) is left out of (b)
and (c), unless it breaks them too.
A seed's alignment is the mean over the lines of its records past step update_after, each of as many
updates; one that the linesearch rejects counts as 0.
Clear: Welch's {scores.LEVEL:.0%} interval of the difference does not hold zero; where there is no
interval, as with a single seed, it cannot be judged. Where seeds diverged, the interval is of the
others, and it is clear if the better one lost no larger share of its seeds; or if those shares
differ with a p-value of at most {1 - scores.LEVEL:.2f} by the same test, and the others do not
clearly say the opposite; or if one lost all its seeds, and the other none. "Generally": clear
on at least one environment, clearly the other way round on none, and by the mean on more than half;
where it is clear on none, either way, it cannot be judged.
"In some cases": clear against both baselines on the task that is named; a no, where it is clearly
the other way round against one of them; else it cannot be judged. "Occasional divergence": a larger
share of seeds breaks (a) or (b), with a p-value of at most {1 - scores.LEVEL:.2f} by the same test;
a no, where it is a smaller one, with such a p-value; else it cannot be judged.
"Comparing favorably": the interquartile mean over tasks, which weigh the same, is at least
{1 - power.MARGIN:.0%} of the better baseline's, and at least the lesser baseline's. Where it is,
but one that truly attains {power.TOO_LITTLE:.0%} of the better baseline would get as far with a
probability above {power.LEVEL:.0%}, by simulation with scores that spread over seeds as these do,
it cannot be judged. By simulation with five tasks and a spread of a quarter of the mean, one that
truly attains 60, 70, 80, 90, 100, 110 % of both baselines gets a yes with probability 0.00, 0.00,
0.00, 0.10, 0.50, 0.88 with three seeds, and 0.00, 0.00, 0.00, 0.04, 0.58, 0.97 with seven. A no
says that what was found falls short, not that PreQN does: one that truly attains 100, 110 % of both
gets it with probability 0.50, 0.12 with three seeds, and 0.42, 0.03 with seven.
A seed that diverged has no score: PreQN with one does not compare favorably; where a baseline has
one, the other baseline can still give a no, and nothing a yes.
A statement in several parts is borne out if all of them are, and is not as soon as one is not; it
cannot be judged while runs are missing."""

Runs = dict[tuple[str, str], Curves]  # (env, variant) -> its records


def on_benchmark(found: Iterable[Curves], envs: Sequence[str]) -> list[Verdict]:
    """Verdicts on the statements about Figure 2, from the runs `found`; `envs` are the environments
    that should have runs.
    """
    runs = {(run.env, run.variant): run for run in found}
    return [
        Verdict(
            "PreQN is stable, despite not using target networks", _stable(runs, envs, "preqn-sin")
        ),
        Verdict(
            "PreQN is performant, comparing favorably with the baseline algorithms (TD3 and SAC)",
            [_favorable(runs, envs)],
        ),
        Verdict(
            "in some cases it outperforms (eg Swimmer and Ant)",
            [_somewhere(runs, envs, name, "better") for name in ("Swimmer", "Ant")],
        ),
        Verdict(
            "and in some cases it underperforms (eg Hopper)",
            [_somewhere(runs, envs, "Hopper", "worse")],
        ),
    ]


def on_alignment(found: Iterable[Curves], envs: Sequence[str]) -> list[Verdict]:
    """Verdicts on the statements about sin and relu (Figures 3 and 10 to 14), likewise."""
    runs = {(run.env, run.variant): run for run in found}
    return [
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


def show(judged: Iterable[Verdict], where: str, notes: Iterable[str]) -> None:
    """Prints the verdicts, the runs they are based on, and the rules; and `notes` on missing and
    unfinished runs to stderr.
    """
    print(f"\nSection 5.2 says, judged on {where}:")
    verdict.show(judged)
    print("\n" + RULES)
    for note in notes:
        print(note, file=sys.stderr)


# --- of a run -------------------------------------------------------------------------------------


def normalised(runs: Iterable[Curves]) -> list[np.ndarray]:
    """Scores `[S]` of each run, on a scale common to all tasks."""
    return [performances(run) / (published.scale(run.env) or np.nan) for run in runs]


# --- statements -----------------------------------------------------------------------------------


def _lacking(runs: Runs, envs: Iterable[str], variants: Iterable[str]) -> str:
    """Why a statement on these runs cannot be judged: the runs that are missing; "" if none is."""
    wanted = [(env, variant) for env in envs for variant in variants]
    missing = [f"{env}/{variant}" for env, variant in wanted if (env, variant) not in runs]
    return f"needs {', '.join(missing)}" if missing else "" if wanted else "needs runs"


def _stable(runs: Runs, envs: Sequence[str], variant: str) -> list[Part]:
    rules = {
        "a": ("finite in every seed", "one seed diverges, or has a number that is not finite"),
        "b": (
            "no seed's return collapses after it has learned",
            f"the mean of {FEW} evaluations of one seed loses half of its best gain",
        ),
        "c": (
            "no seed's mean Q is above what its evaluations attained",
            "one seed has such a mean Q on one line of its records",
        ),
    }
    few, worth = f"a seed has {FEW} evaluations or fewer", "the records have no eval/discounted_max"
    untold = {"a": "", "b": few, "c": worth}
    lacking, parts = _lacking(runs, envs, [variant]), []
    for rule, (said, refuted_by) in rules.items():
        said = f"{variant}: {said}"
        own = _tally(runs, envs, variant, rule)
        untold_of = [env for env, seeds in own.broken.items() if seeds is None]
        if not own.count and (lacking or untold_of):
            evidence = lacking or untold[rule]
            parts.append(Part(said, evidence, None, refuted_by))
            continue
        evidence = f"{own.total - own.count} of {own.total} seeds"
        evidence += f", not {own}" * bool(own.count)
        evidence += _beside(runs, rule, own, variant) + f"; {lacking}" * bool(lacking)
        evidence += f"; on {', '.join(untold_of)} {untold[rule]}" * bool(untold_of)
        parts.append(Part(said, evidence, not own.count if own.total else None, refuted_by))
    return parts


class Tally(NamedTuple):
    """Which seeds of a variant break a rule of stability."""

    broken: dict[str, list[int] | None]  # env -> seeds; None where the records do not tell
    count: int
    total: int  # seeds, without those about which the records, or an early end, do not tell

    def __str__(self) -> str:
        return "; ".join(
            f"{env} seed {', '.join(map(str, seeds))}"
            for env, seeds in self.broken.items()
            if seeds
        )


def _tally(runs: Runs, envs: Sequence[str], variant: str, rule: str) -> Tally:
    there = {env: runs[env, variant] for env in envs if (env, variant) in runs}
    broken, total = {}, 0
    for env, run in there.items():
        found = faults(run)
        broken[env] = seeds = getattr(found, rule)
        # One that diverged before it broke (b) or (c) did not live to do so.
        left_out = {*found.a} - {*(seeds or ())}
        total += len({*run.seeds} - left_out) if seeds is not None else 0
    return Tally(broken, sum(len(seeds or ()) for seeds in broken.values()), total)


def _beside(runs: Runs, rule: str, own: Tally, variant: str) -> str:
    """Which seeds of the baselines break a rule on the same tasks, as text; "" if there are no such
    runs. Without it nothing would tell a fault of PreQN from one of the task.
    """
    told = [env for env, seeds in own.broken.items() if seeds is not None]
    told = [env for env in told if any((env, baseline) in runs for baseline in BASELINES)]
    found = {name: _tally(runs, told, name, rule) for name in BASELINES}
    found = {name: one for name, one in found.items() if one.total}
    if not found:
        return ""
    counts = " and ".join(
        f"{name} {one.count} of {one.total}" + f" ({one})" * bool(one.count)
        for name, one in found.items()
    )
    others = sum(one.count for one in found.values()), sum(one.total for one in found.values())
    there = _tally(runs, told, variant, rule)
    p_value = scores.same_share((there.count, there.total), others)
    less = (there.count, there.total) != (own.count, own.total)
    where = f", where they have runs ({there.count} of {there.total})" * less
    return f"; of the baselines {counts} break it; equal shares{where}: p = {p_value:.2g}"


def _aligned(runs: Runs, envs: Sequence[str], variant: str) -> Part:
    said = (
        f"{variant}: alignment at least {ETA} in every seed, which the linesearch nearly ensures: "
        f"it takes no step below that, and only rejected ones, as 0, can lower the mean"
    )
    refuted_by = f"one seed's mean is below {ETA}: some {1 - ETA:.0%} of its updates are rejected"
    lacking = _lacking(runs, envs, [variant])
    if lacking:
        return Part(said, lacking, None, refuted_by)
    least = {env: float(alignments(runs[env, variant]).min()) for env in envs}
    if np.isnan(list(least.values())).any():
        return Part(said, "a seed has no line of records past update_after yet", None, refuted_by)
    evidence = "least: " + ", ".join(f"{env} {value:.4f}" for env, value in least.items())
    return Part(said, evidence, min(least.values()) >= ETA, refuted_by)


def _generally(
    runs: Runs, envs: Sequence[str], one: str, other: str, words: str, measure: Measure
) -> Part:
    said = f"{one} is generally {words} {other}"
    refuted_by = (
        f"{one} is clearly behind on one environment, or clearly ahead on one and by the mean "
        f"ahead on half of them or fewer"
    )
    lacking = _lacking(runs, envs, [one, other])
    if lacking:
        return Part(said, lacking, None, refuted_by)
    compared = [compare(runs[env, one], runs[env, other], measure) for env in envs]
    ways, means = [way for way, _, _ in compared], [mean for _, mean, _ in compared]
    good = 1 in ways and -1 not in ways and 2 * sum(mean > 0 for mean in means) > len(means)
    open_ = -1 not in ways and (None in ways or 1 not in ways)
    evidence = "; ".join(text for _, _, text in compared)
    return Part(said, evidence, None if open_ else good, refuted_by)


def _favorable(runs: Runs, envs: Sequence[str]) -> Part:
    said = (
        f"preqn-sin's interquartile mean over tasks is at least {1 - power.MARGIN:.0%} of the "
        f"better baseline's, and at least the lesser's"
    )
    known = [env for env in envs if published.scale(env)]
    if envs and not known:
        words = f"no published returns to scale {', '.join(envs)} by"
        return Part(said, words, None, "that interquartile mean is below either of the two")
    envs = known
    variants = NEEDED
    lacking = _lacking(runs, envs, variants)
    if lacking:
        return Part(said, lacking, None, "that interquartile mean is below either of the two")
    own, *rivals = ([*normalised(runs[env, v] for env in envs)] for v in variants)
    estimates = map(scores.interquartile_mean, (own, *rivals))
    found: dict[str, scores.Estimate] = dict(zip(variants, estimates, strict=True))
    evidence = ", ".join(f"{variant} {estimate:.3f}" for variant, estimate in found.items())
    evidence, borne_out = f"{evidence}; over {', '.join(envs)}", power.favorable(own, rivals)
    lost = [variant for variant, estimate in found.items() if not np.isfinite(estimate.value)]
    if lost:
        evidence = f"{evidence}; not every seed of {' and '.join(lost)} has a score"
        refuted_by = f"preqn-sin has no score, or less than {1 - power.MARGIN:.0%} of a finite one"
        return Part(said, evidence, borne_out, refuted_by)
    threshold = float(power.threshold([found[name].value for name in BASELINES]))
    refuted_by = f"that interquartile mean is below {threshold:.3f}"
    evidence = f"{evidence}{_overlap(found)}{_power(own, rivals)}"
    return Part(said, evidence, borne_out, refuted_by)


def _overlap(found: Mapping[str, scores.Estimate]) -> str:
    """Which baselines' intervals overlap preqn-sin's, as text for `_favorable`; "" where one is
    missing.
    """
    intervals = [estimate.interval for estimate in found.values() if estimate.interval]
    if len(intervals) < len(found):
        return ""
    (least, most), *others = intervals
    alike = [
        name
        for name, (low, high) in zip(BASELINES, others, strict=True)
        if low <= most and least <= high
    ]
    return f"; its interval overlaps that of {' and '.join(alike) or 'neither baseline'}"


def _power(own: power.Scores, rivals: Sequence[power.Scores]) -> str:
    """How much the rule of `_favorable` can tell with scores like these, as text."""
    deviations, seeds = power.deviations([own, *rivals]), power.seeds([own, *rivals])
    if seeds < 2:
        return "; a single seed has no spread"
    levels = np.mean([[values.mean() for values in one] for one in rivals], axis=0)
    return (
        f"; with {seeds} seeds that spread by {np.sqrt(np.mean(deviations**2)):.3f} "
        f"{power.words(power.power(levels, deviations, seeds))} of both baselines"
    )


def _somewhere(runs: Runs, envs: Sequence[str], name: str, direction: str) -> Part:
    """Whether PreQN is clearly better or worse than both baselines on an environment that the paper
    names. With few seeds the intervals are wide, and one that holds zero decides nothing.
    """
    said = f"preqn-sin is clearly {direction} than {' and '.join(BASELINES)} on {name}"
    opposite = {"better": "worse", "worse": "better"}[direction]
    refuted_by = f"it is clearly {opposite} than one of the two"
    versions = [env for env in envs if published.task(env) == name]
    lacking = _lacking(runs, versions, NEEDED) if versions else f"needs runs on {name}"
    if lacking:
        return Part(said, lacking, None, refuted_by)
    # DDPG is shown too: it is far above both on Swimmer.
    others = [b for b in (*BASELINES, "ddpg-relu") if (versions[0], b) in runs]
    compared = {
        other: compare(runs[versions[0], "preqn-sin"], runs[versions[0], other], performances)
        for other in others
    }
    evidence = "; ".join(
        f"{text} over {other}" + ", undecided: the interval holds zero" * (way == 0)
        for other, (way, _, text) in compared.items()
    )
    wanted = 1 if direction == "better" else -1
    ways = {compared[baseline][0] for baseline in BASELINES}
    borne_out = False if -wanted in ways else True if ways == {wanted} else None
    return Part(said, evidence, borne_out, refuted_by)


def _less_stable(runs: Runs, envs: Sequence[str]) -> Part:
    """Whether more of preqn-relu's seeds than of preqn-sin's break rule (a) or (b); breaking (c) is
    not yet a divergence.
    """
    said = "a larger share of preqn-relu's seeds than of preqn-sin's diverges or collapses (a, b)"
    alpha = 1 - scores.LEVEL
    refuted_by = f"preqn-sin's share is the larger one, with a p-value of at most {alpha:.2f}"
    lacking = _lacking(runs, envs, ["preqn-sin", "preqn-relu"])
    if lacking:
        return Part(said, lacking, None, refuted_by)
    shares, evidence = [], []
    for variant in ("preqn-relu", "preqn-sin"):
        found = [faults(runs[env, variant]) for env in envs]
        if any(one.b is None for one in found):
            words = f"{variant} has a seed with {FEW} evaluations or fewer"
            return Part(said, words, None, refuted_by)
        bad = sum(len({*one.a, *(one.b or ())}) for one in found)
        total = sum(len(runs[env, variant].seeds) for env in envs)
        shares.append((bad, total))
        told = all(one.c is not None for one in found)
        overvalued = sum(len(one.c or ()) for one in found) if told else "who knows how many"
        evidence.append(f"{variant} {bad} of {total}, and rule c broken by {overvalued}")
    p_value = scores.same_share(*shares)
    relu, sin = (bad / total for bad, total in shares)
    evidence.append(f"equal shares: p = {p_value:.2g}")
    borne_out = relu > sin if p_value <= alpha else None
    return Part(said, "; ".join(evidence), borne_out, refuted_by)
