"""Numbers that documents quote are those of the kept records."""

import json
import re

import numpy as np
import pytest
from quoted import DOCS, RESULTS, flat, kept, last_ten, last_three, numbers, rows

from experiments.judge import published, scores, stability
from experiments.kit import curves

LONGER = {  # run beyond 300,000 steps: where, and to which
    "Ant-v5": ("scale_1m", "1,000,000"),
    "Hopper-v5": ("scale_1m", "1,000,000"),
    "Walker2d-v5": ("scale_500k", "500,000"),
}


def test_the_benchmarks_table_is_of_the_kept_records():
    env, found = "", rows("benchmark.md", "run", "accepted")
    assert len(found) == 11
    for row in found:
        env = row["environment"] or env
        of = kept(f"paper/{env}/{row['run']}", numbers(row["steps"])[0])
        assert last_three(of) == numbers(row["last three evaluations, by seed"])
        mean = scores.mean(last_ten(of("eval/return_mean")))
        quoted = numbers(row["last ten"])
        assert [round(x) for x in (mean.value, *(mean.interval or ()))][: len(quoted)] == quoted
        of = kept(f"paper/{env}/{row['run']}", numbers(row["steps"])[0], updates=True)
        assert round(of("critic/alignment").mean(), 3) == float(row["alignment"])
        if row["run"].startswith("preqn"):
            told = row["accepted"].replace("every update", "1.00000")
            assert f"{of('linesearch/accepted').mean():.{len(told) - 2}f}" == told


def test_the_pooled_returns_are_of_all_runs_none_picked():
    pooled, named = {"PreQN-sin": [], "TD3-relu": []}, set()
    for row in rows("benchmark.md", "runs", "where", "seed by seed"):
        values = numbers(row["seed by seed"])
        if row["where"] != "records not kept":
            folder = row["where"].strip("`")
            named.add(folder)
            assert last_three(kept(folder, 100_000)) == values
        pooled[row["runs"].split(",")[0]] += values
    there = {f"halfcheetah/{path.name}" for path in (RESULTS / "halfcheetah").iterdir()}
    roots = [root.parent.name for root in RESULTS.glob("*/HalfCheetah-v5")]
    assert {"paper", "scale"} <= set(roots)
    for root in roots:
        at = RESULTS / root / "HalfCheetah-v5"
        there |= {
            f"{root}/HalfCheetah-v5/{name}"
            for name in map(str.lower, pooled)
            if (at / name / "metrics.jsonl").exists() and not (at / name).is_symlink()
        }
    assert named == there
    for row in rows("benchmark.md", "pooled", "number of runs"):
        values = pooled.pop(row["pooled"])
        expected = [round(np.mean(values)), round(np.std(values, ddof=1)), len(values)]
        words = row["mean, standard deviation over runs"]
        assert numbers(f"{words} {row['number of runs']}")[:3] == expected
    assert not pooled


def test_the_table_of_longer_runs_is_of_the_kept_records():
    env, run, folder, quoted = "", "", "", set()
    for row in rows("benchmark.md", "seeds", "at the last step", "attained"):
        env, run = row["environment"] or env, row["run"] or run
        folder = f"scale/{env}/{run}"
        step, *last = numbers(row["at the last step"].replace("-v5", ""))
        for at, told in ((100_000, numbers(row["at 100,000"])), (step, last)):
            of = kept(folder, at)
            returns = of("eval/return_mean")
            mean = scores.mean(last_ten(returns))
            values = [round(x) for x in (mean.value, *mean.interval)]
            assert values == told or not told
            quoted.add(tuple(values))
        of = kept(folder, step)
        if row["seeds"]:
            assert len(returns) == int(row["seeds"])
        if row["mean Q"]:
            q, attained = of("critic/q_mean")[:, -1], of("eval/discounted_max").max(axis=1)
            assert [round(x.mean()) for x in (q, attained)] == [
                int(row["mean Q"]),
                int(row["attained"]),
            ]
    env = ""
    for row in rows("benchmark.md", "run of three seeds", "return at 300,000"):
        env, run = row["environment"] or env, row["run of three seeds"]
        of = kept(f"scale_300k/{env}/{run}", 300_000)
        mean = scores.mean(last_ten(of("eval/return_mean")))
        quoted.add(values := tuple(round(x) for x in (mean.value, *mean.interval)))
        assert list(values) == numbers(row["return at 300,000"])
        if row["mean Q"]:
            q, attained = of("critic/q_mean")[:, -1], of("eval/discounted_max").max(axis=1)
            told = [int(row["mean Q"]), int(row["attained"])]
            assert [round(x.mean()) for x in (q, attained)] == told
        at = published.of(env, 300_000)
        mine = [round(one.mean) for one in at if one.algorithm == run.split("-")[0]]
        assert mine == numbers(row["published"])
    for env in LONGER:
        for row in rows("benchmark.md", f"{env} at step", "published TD3"):
            quoted.add(tuple(numbers(row["preqn-sin, three seeds"])))
    readme = (DOCS.parent.parent / "README.md").read_text()
    for told in re.findall(r"[\d,]+ \[[\d, ]+\]", readme):
        assert tuple(numbers(told)) in quoted


@pytest.mark.parametrize("env", LONGER)
def test_the_tables_of_the_longest_runs_are_of_the_kept_records(env):
    root, end = LONGER[env]
    table = rows("benchmark.md", f"{env} at step", "published TD3")
    assert [row[f"{env} at step"] for row in table][-1] == end
    for row in table:
        (step,) = numbers(row[f"{env} at step"])
        of = kept(f"{root}/{env}/preqn-sin", step)
        q, attained = of("critic/q_mean")[:, -1], of("eval/discounted_max").max(axis=1)
        assert row["preqn-sin, three seeds"] == estimated(f"{root}/{env}/preqn-sin", step)
        assert [row["mean Q"], row["attained"]] == [f"{x.mean():.0f}" for x in (q, attained)]
        means = spinning_up(env, step)
        for algorithm in ("td3", "sac"):
            assert row[f"published {algorithm.upper()}"] == means.get(algorithm, "")


def test_what_is_said_of_ant_at_a_million_is_of_the_kept_records():
    text, of = flat("benchmark.md"), kept("scale_1m/Ant-v5/preqn-sin", 1_000_000)
    ddpg = spinning_up("Ant-v5", 1_000_000)["ddpg"]
    assert f"plain DDPG, with one critic and target networks, has {ddpg} there" in text
    seeds = [f"{x:,.0f}" for x in last_ten(of("eval/return_mean"))]
    assert "Its seeds have {}, {} and {}.".format(*seeds) in text
    values, best = of("critic/q_mean"), np.maximum.accumulate(of("eval/discounted_max"), axis=1)
    assert (values < best[:, -1:]).all()  # rule (c)
    early = [x.max() for x in values[:, : 300_000 // 5000]]
    passed = [5000 * (1 + int(np.argmax(b > most))) for b, most in zip(best, early, strict=True)]
    assert f"overtook even that, at {min(passed):,} to {max(passed):,}" in text
    last = of("critic/alignment")[:, -1]
    assert f"alignment is {last.min():.4f} to {last.max():.4f} at the end" in text
    assert of("linesearch/accepted").min() == 1


def test_what_is_said_of_hopper_at_a_million_is_of_the_kept_records():
    text, folder = flat("benchmark.md"), "scale_1m/Hopper-v5/preqn-sin"
    seeds = [
        "{:,.0f}, {:,.0f} and {:,.0f}".format(*last_ten(kept(one, 300_000)("eval/return_mean")))
        for one in (folder, "scale_300k/Hopper-v5/preqn-sin")
    ]
    assert f"at 300,000 they have {seeds[0]}, those {seeds[1]})" in text
    td3 = last_ten(kept("scale_300k/Hopper-v5/td3-relu", 300_000)("eval/return_mean")).mean()
    assert f"below the {td3:,.0f} that TD3 has here at 300,000" in text
    ddpg = spinning_up("Hopper-v5", 1_000_000)["ddpg"]
    assert f"plain DDPG has {ddpg} in the same source" in text
    of = kept(folder, 1_000_000)
    returns, values = of("eval/return_mean"), of("critic/q_mean")
    best, last = returns.max(axis=1), returns[:, -10:]
    assert "seeds are {:,.0f}, {:,.0f} and {:,.0f}, but".format(*best) in text
    ends = np.stack([last.min(axis=1), last.max(axis=1)], axis=1).ravel()
    ways = "from {:,.0f} to {:,.0f}, from {:,.0f} to {:,.0f} and from {:,.0f} to {:,.0f}."
    assert ways.format(*ends) in text
    attained, most = np.maximum.accumulate(of("eval/discounted_max"), axis=1), values.max(axis=1)
    (run,), _ = curves.gather(RESULTS / "scale_1m", ["Hopper-v5"], ["preqn-sin"])
    found = stability.faults(run)
    assert (found.a, found.b, found.c) == ([], [0, 1, 2], [2])
    words = f"seed 2 the early overshoot, a mean Q of {most[2]:.0f}, is still above all that it "
    assert f"{words}attained, {attained[2, -1]:.0f};" in text
    at = [5000 * (1 + int(np.argmax(attained[i] > most[i]))) for i in (0, 1)]
    passed = "overtook theirs, {:.0f} and {:.0f}, at {:,} and {:,}.".format(*most[:2], *at)
    assert passed in text
    above = 5000 * (1 + int(np.nonzero((values > attained).any(axis=0))[0].max()))
    assert f"below what is attained since {above:,} at the latest" in text
    align, rejected = of("critic/alignment")[:, -1], 1 - of("linesearch/accepted")
    assert f"The alignment is {align.min():.4f} to {align.max():.4f} at the end" in text
    count = 50 * rejected[:, 0].sum() + 5000 * rejected[:, 1:].sum()  # the first line is of a round
    assert f"of the three million updates the linesearch rejected {count:.0f}." in text


def test_what_is_said_of_walker2d_at_half_a_million_is_of_the_kept_records():
    text, folder = flat("benchmark.md"), "scale_500k/Walker2d-v5/preqn-sin"
    told = lambda values: "{:,.0f}, {:,.0f} and {:,.0f}".format(*values)
    seeds = [
        told(last_ten(kept(one, 300_000)("eval/return_mean")))
        for one in (folder, "scale_300k/Walker2d-v5/preqn-sin")
    ]
    assert f"at 300,000 they have {seeds[0]}, those {seeds[1]})" in text
    td3, sac = (
        last_ten(kept(f"scale_300k/Walker2d-v5/{one}-relu", 300_000)("eval/return_mean")).mean()
        for one in ("td3", "sac")
    )
    assert f"At 300,000 TD3 has {td3:,.0f} here and SAC {sac:,.0f};" in text
    means = spinning_up("Walker2d-v5", 1_000_000)
    assert f"published TD3 and SAC come to {means['td3']} and {means['sac']} at a mill" in text
    of = kept(folder, 500_000)
    returns, values = of("eval/return_mean"), of("critic/q_mean")
    last = returns[:, -10:]
    assert f"The seeds have {told(last_ten(returns))} at the end" in text
    assert f"best evaluations are {told(returns.max(axis=1))}, but" in text
    ends = np.stack([last.min(axis=1), last.max(axis=1)], axis=1).ravel()
    ways = "three go from {:,.0f} to {:,.0f}, from {:,.0f} to {:,.0f} and from {:,.0f} to {:,.0f}."
    assert ways.format(*ends) in text
    (run,), _ = curves.gather(RESULTS / "scale_500k", ["Walker2d-v5"], ["preqn-sin"])
    assert stability.faults(run) == ([], [1], [])
    attained = np.maximum.accumulate(of("eval/discounted_max"), axis=1)
    above = 5000 * (1 + int(np.nonzero((values > attained).any(axis=0))[0].max()))
    assert f"what is attained since {above:,} at the latest" in text
    at = 5000 * (1 + np.argmax(attained > values.max(axis=1, keepdims=True), axis=1))
    assert "its largest values, at {:,}, {:,} and {:,}.".format(*at) in text
    align, rejected = of("critic/alignment")[:, -1], 1 - of("linesearch/accepted")
    count = 50 * rejected[:, 0].sum() + 5000 * rejected[:, 1:].sum()
    words = f"is {align.min():.4f} to {align.max():.4f} at the end; of the one and a half million"
    assert f"{words} updates the linesearch rejected {count:.0f}." in text


def spinning_up(env, step):
    """Published means at a step, by algorithm."""
    at = [one for one in published.of(env, step) if one.source == "Spinning Up"]
    return {one.algorithm: f"{one.mean:,.0f}" for one in at}


def estimated(folder, step):
    """The mean of the last ten evaluations up to a step, with its interval, in the format of the
    pages.
    """
    return f"{scores.mean(last_ten(kept(folder, step)('eval/return_mean'))):,.0f}"


RUNS = {"PreQN": "preqn-sin", "TD3": "td3-relu", "SAC": "sac-relu"}
RIVALS = {
    "CrossQ": "crossq-256",
    "SAC": "sac",
    "TD3": "td3",
    "PreQN": "preqn",
    "`preqn_twin`": "preqn-twin",
    "`preqn_averaged`": "preqn-averaged",
}


def test_the_readmes_returns_are_those_of_the_kept_records():
    found = rows("../../README.md", "environment", "PreQN", "SAC")
    assert len(found) == 7
    roots = {300_000: "scale_300k", 1_000_000: "scale_1m"}
    for row in found:
        (step,) = numbers(row["steps"])
        means = published.of(row["environment"], step)
        for name, run in RUNS.items():
            if row[name].endswith(" published"):
                told = [one.mean for one in means if one.algorithm == name.lower()]
                assert row[name] == f"{min(told):,} to {max(told):,} published"
            else:
                assert row[name] == estimated(f"{roots[step]}/{row['environment']}-v5/{run}", step)


def test_the_returns_by_which_to_choose_are_those_of_the_kept_records():
    env, found = "", rows("../which-algorithm.md", "environment", "`preqn_averaged`")
    assert len(found) == 10
    for row in found:
        env, step = row.pop("environment") or env, int(numbers(row.pop("at step"))[0])
        for name, cell in row.items():
            if not cell:
                continue
            root, run = ("scale_300k" if step == 300_000 else "scale"), RUNS.get(name)
            if step == 100_000 and (RESULTS / "rivals" / f"{env}-v5").exists():
                root, run = "rivals", RIVALS[name]
            assert cell == estimated(f"{root}/{env}-v5/{run}", step), (env, step, name)


def test_the_interquartile_means_by_which_to_choose_are_those_of_the_reports():
    of_run = {
        "rivals/rivals": RIVALS,
        "scale/benchmark": RUNS,
        "scale_300k/benchmark": RUNS,
    }
    found = rows("../which-algorithm.md", "environments", "CrossQ")
    for (folder, runs), row in zip(of_run.items(), found, strict=True):
        report = json.loads((RESULTS / folder / "report.json").read_text())
        assert int(numbers(row["at step"])[0]) == report["step"]
        means = {one["variant"]: f"{one['mean']:.2f}" for one in report["together"]}
        for name in ("CrossQ", "SAC", "TD3", "PreQN"):
            assert row[name] == means.get(runs.get(name), "")


def fallen(*variants):
    """How many seeds the stored runs of these variants have, how many diverged, and the
    environments where one lost its gain. A seed that repeats another's evaluations, as far as both
    go, counts once.
    """
    seeds, diverged, lost = {}, set(), set()
    for root in ("paper", "scale", "scale_h200", "scale_300k", "scale_500k", "scale_1m"):
        for path in sorted((RESULTS / root).glob("*-v5/*")):
            if path.name not in variants or path.is_symlink():  # it belongs to another root
                continue
            (run,), _ = curves.gather(RESULTS / root, [path.parent.name], [path.name])
            found, (steps, values) = stability.faults(run), run.metric("eval/return_mean")
            for seed, row in zip(run.seeds, values, strict=True):
                mine = dict(zip(steps.tolist(), row.tolist(), strict=True))
                there = seeds.setdefault((path.parent.name, path.name, seed), [])
                same = [one for one in there if all(one[at] == mine[at] for at in {*one} & {*mine})]
                number = there.index(same[0]) if same else len(there)
                there[number : number + 1] = [{**mine, **(same[0] if same else {})}]
                name = path.parent.name, path.name, seed, number
                diverged |= {name} if seed in found.a else set()
                lost |= {name} if seed in (found.b or ()) else set()
    return sum(map(len, seeds.values())), len(diverged), [name[0] for name in lost]


def test_the_seeds_that_diverged_or_lost_their_gain_are_counted():
    text = flat("../which-algorithm.md")
    seeds, diverged, lost = fallen("preqn-sin")
    assert diverged == 0 and f"none of the benchmark's {seeds} seeds diverged" in text
    counts = (
        "{} ({})".format(env, lost.count(f"{env}-v5")) for env in ("Hopper", "Swimmer", "Walker2d")
    )
    where = "{}, {} and {}".format(*counts)
    assert f"But {len(lost)} of them, on {where}, lost half" in text
    assert len(lost) == sum(lost.count(f"{env}-v5") for env in ("Hopper", "Swimmer", "Walker2d"))
    others, _, fell = fallen("td3-relu", "sac-relu")
    assert f"{len(fell)} of the {others} of TD3 and SAC did" in text
    words = f"PreQN's {seeds} seeds diverged, and {len(lost)} broke (b); so did {len(fell)} of the "
    assert f"{words}{others} of TD3 and SAC." in flat("benchmark.md")


def test_the_table_of_the_second_runs_is_of_the_kept_records():
    env, found = "", rows("benchmark.md", "at", "return, by seed")
    assert len(found) == 6
    for row in found:
        env = row["environment"] or env
        returns = kept(f"scale_h200/{env}/{row['run']}", numbers(row["at"])[0])("eval/return_mean")
        assert [round(x) for x in returns[:, -1]] == numbers(row["return, by seed"])


def test_the_table_of_alignments_in_longer_runs_is_of_the_kept_report():
    report = json.loads((RESULTS / "scale_300k/alignment/report.json").read_text())
    found = {(row["env"], row["variant"]): row for row in report["alignment"]}
    assert f"at step {report['step']:,}" in flat("alignment.md")
    table = rows("alignment.md", "environment", "its smallest line")
    assert {row["environment"] for row in table} == {env for env, _ in found}
    for row in table:
        own = found[row["environment"], "preqn-sin"]
        assert [row["PreQN-sin"], row["its smallest line"]] == [
            f"{own[name]:.4f}" for name in ("mean", "least")
        ]
        other = found.get((row["environment"], "td3-relu"))
        assert row["TD3-relu"] == (f"{other['mean']:.4f}" if other else "not run")


def test_the_tables_of_overshooting_are_of_the_kept_records():
    studied = ("paper", "pytorch", "rate", "targets", "two-smoothed")
    table = rows("overshooting.md", "change", "mean Q at the end")
    for folder, row in zip(studied, table, strict=True):
        of = kept(f"overshoot_study/{folder}")
        q = of("critic/q_mean")
        end, most = numbers(row["mean Q at the end"])[:2], numbers(row["mean Q at the end"])[2:]
        assert [round(x) for x in q[:, -1]] == end
        assert [round(x) for x in q.max(axis=1)] == most or not most
        attained = of("eval/discounted_max").max(axis=1)
        assert [round(x) for x in attained] == numbers(
            row["largest discounted return of an evaluation"]
        )
        assert last_three(of) == numbers(row["last three evaluations"])
    for row in rows("overshooting.md", "steps", "HalfCheetah", "Ant"):
        step = row.pop("steps")
        for env, cell in row.items():
            q, attained, *at = numbers(cell)
            of = kept(f"scale/{env}-v5/preqn-sin", at[0] if at else numbers(step)[0])
            assert round(of("critic/q_mean")[:, -1].mean()) == q
            assert round(of("eval/discounted_max").max(axis=1).mean()) == attained


def test_the_table_of_what_bootstraps_is_of_the_kept_records():
    found = rows("../rivals.md", "what bootstraps", "bias of Q")
    folders = {
        "one critic": "scale/HalfCheetah-v5/preqn-sin",
        "mean of two": "pessimism_study/mean",
        "minimum of two": "pessimism_study/least",
        "one critic, smoothed": "pessimism_study/smoothed",
        "minimum of two, smoothed": "rivals/HalfCheetah-v5/preqn-twin",
        "between, measured, smoothed": "pessimism_study/measured",
        "TD3": "scale/HalfCheetah-v5/td3-relu",
    }
    assert len(found) == len(folders)
    for row in found:
        of = kept(folders[row["what bootstraps"].split(" (")[0]], 15_000)
        for name, column in (
            ("eval/return_mean", "return"),
            ("critic/q_mean", "mean Q"),
            ("diagnose/bias", "bias of Q"),
        ):
            if row[column] != "not diagnosed":
                assert [round(x) for x in of(name)[:3, -1]] == numbers(row[column])


def test_records_name_no_folder_of_a_machine():
    for path in RESULTS.rglob("*.json"):
        assert not re.search(r'"/(root|home|Users|tmp|work)\b', path.read_text()), path


def test_what_the_page_on_rivals_says_is_what_its_reports_give():
    text = " ".join((DOCS.parent / "rivals.md").read_text().split())
    report = json.loads((RESULTS / "rivals/rivals/report.json").read_text())
    for row in rows("../rivals.md", "target networks", "better than preqn"):
        run = row["run"]
        for env in ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5"):
            if run.startswith("published"):
                at = {one.algorithm: round(one.mean) for one in published.of(env, 100_000)}
                assert numbers(row[env]) == [at[run.split()[1].lower()]]
                continue
            returns = kept(f"rivals/{env}/{run.replace('_', '-')}", 100_000)("eval/return_mean")
            assert row[env] == f"{scores.mean(last_ten(returns)):,.0f}"
    estimate = lambda row: scores.Estimate(row["mean"], row["interval"])
    for row in (*report["better"], *report["together"]):
        assert f"{estimate(row):.2f}" in text
    related = {(row["measured"], row["share"]): row for row in report["relations"]}
    for row in rows("../rivals.md", "measured", "at 25 %", "at 100 %"):
        for share, column in ((0.25, "at 25 %"), (0.5, "at 50 %"), (1.0, "at 100 %")):
            found = related[row["measured"].strip("`"), share]
            assert found["seeds"] == 36 and f"{found['rank_correlation']:+.2f}" == row[column]
    timed = json.loads((RESULTS / "cost/rivals-zen4.json").read_text())["rows"]
    cost = {row["name"]: row["ms"] for row in timed}
    (listed,) = re.findall(r"\*\*What an update costs\*\*(.*?), and CrossQ with", text)
    told = dict(re.findall(r"`([a-z0-9_-]+)` (\d\.\d\d)", listed))
    assert len(told) == 7
    for name, ratio in told.items():
        assert f"{cost[name.replace('_', '-')] / cost['preqn']:.2f}" == ratio
