"""Many training runs as one command: lists them, finds out which are over, and makes the others.

A plan may be stopped and started again at any time, also on another machine; two commands at once
on one root share the work.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.kit import curves, flags, launch, launchers, output, signals
from experiments.kit.runs import Run, begun, diverged, execute, last, left
from preqn_jax import agents, envs
from preqn_jax.options import UserError, check, check_same, option
from preqn_jax.training import device, directory
from preqn_jax.training import run as training
from preqn_jax.training.config import RunConfig, named

ENVS = ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5", "Ant-v5", "Swimmer-v5")
EVERY = 5000  # steps between evaluations, and between lines of records
CHECKPOINT_EVERY = 25_000


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Which runs there should be, and where."""

    root: str = option(
        "runs/paper",
        "the folder of all runs, <root>/<env>/<variant>; finished runs are not trained again",
    )
    seeds: tuple[int, ...] | None = option(
        None,
        "seeds of every run (those of the plan in root; in a new plan 0:7 for benchmark, 0:3 for "
        "alignment and rivals)",
    )
    num_steps: int | None = option(
        None, "environment steps of each seed (that of the plan in root; 1,000,000 in a new plan)"
    )
    envs: tuple[str, ...] | None = option(
        None, "environments (those of the plan in root; the paper's five in a new plan)"
    )
    until: int | None = option(
        None,
        "train every run only up to this step (by default num_steps); a later call goes on",
        at_least=1,
    )
    only: tuple[str, ...] = option(
        (), "train only these runs now, as in HalfCheetah-v5/preqn-sin,Swimmer-v5/*"
    )
    report: bool = option(False, "train nothing, only report on the runs that are there")
    trust: bool = option(
        False,
        "import, and thereby run, modules of environments that only the plan in root names, as in "
        '"module:Env-v0"',
    )
    out: str = option(
        "", "folder for figures and tables (the folder in root with the command's name)"
    )
    timeout: float = option(60.0, "seconds in which a Ray cluster must answer", above=0)


class Kind(NamedTuple):
    """What the plans of one command have in common."""

    name: str  # of the command, and of the plan's file
    # name of a variant -> the flags that make it
    variants: Mapping[str, tuple[str, ...]]
    default_seeds: tuple[int, ...]  # of a new plan


def by_activation(*names: str) -> dict[str, tuple[str, ...]]:
    """The variants of these names, `<algorithm>-<activation>`, with those two flags and no other.

    >>> from experiments.kit import plan
    >>> plan.by_activation("td3-relu")
    {'td3-relu': ('--algorithm=td3', '--activation=relu')}
    """
    parts = {name: name.split("-") for name in names}
    return {name: (f"--algorithm={a}", f"--activation={b}") for name, (a, b) in parts.items()}


# --- what the runs are ----------------------------------------------------------------------------


def settle(kind: Kind, config: PlanConfig, extra: Sequence[str]) -> list[Run]:
    """All runs of the plan in `config.root`, which is written if it is new; `extra` are flags for
    every run.

    Raises:
      UserError: a flag out of range, an environment that does not exist, a plan or a run in root
        that says something else. Nothing is written then.
    """
    root = Path(config.root)
    path = root / f"{kind.name}.json"
    old = load(path) if path.exists() else {}
    wanted = {
        "seeds": config.seeds,
        "num_steps": config.num_steps,
        "envs": config.envs,
        "extra": tuple(extra) or None,
    }
    defaults = {"seeds": kind.default_seeds, "num_steps": 1_000_000, "envs": ENVS, "extra": ()}
    settings: dict[str, Any] = {}
    for name, default in defaults.items():
        value = wanted[name] if wanted[name] is not None else old.get(name, default)
        settings[name] = list(value) if isinstance(value, tuple) else value
    for name in ("envs", "seeds"):
        _check_some(name, settings[name])
    gone = [env for env in old.get("envs", ()) if env not in settings["envs"]]
    if gone:
        raise UserError(
            f"{str(path)!r} has {', '.join(gone)} among its envs, but --envs leaves it out; to "
            f"train a part of a plan use --only"
        )
    if old:
        _check_growth(path, old, settings)
    until = settings["num_steps"] if config.until is None else config.until
    if until > settings["num_steps"]:
        raise UserError(
            f"until is {until}, beyond the num_steps of the plan ({settings['num_steps']}); give "
            f"at most {settings['num_steps']}"
        )
    for env in settings["envs"]:
        if env not in (config.envs or ()):
            directory.trusted(env, f"the plan {str(path)!r}", config.trust)
    if not extra:  # then those of the plan's file, if any
        run, *_ = flags.read(settings["extra"], *training.CONFIGS)
        given = {**dataclasses.asdict(run), "env": ""}
        directory.source(given, f"the plan {str(path)!r}", config.trust)
    runs = [
        _run(root, env, variant, settings["seeds"], until, settings["extra"])
        for env in settings["envs"]
        for variant in kind.variants.items()
    ]
    choose(runs, config.only)  # raises here, before the plan is written
    plan = {**settings, "runs": {run.name: list(run.flags) for run in runs}}
    if plan != old:
        output.write_json(path, plan, "root")
    return runs


def _check_growth(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises UserError unless the plan at `path` stays as it is, or gets only more environments,
    seeds and steps.
    """
    if new["num_steps"] < old["num_steps"]:
        raise UserError(
            f"{str(path)!r} says num_steps={old['num_steps']}, but this command says "
            f"{new['num_steps']}; a plan can be made longer, not shorter: use "
            f"`until={new['num_steps']}` to stop there for now, or give another `root`"
        )
    more = {"seeds": None} if set(old["seeds"]) <= set(new["seeds"]) else {}
    free = {"envs": None, "runs": None, "num_steps": None, **more}
    check_same(f"{str(path)!r} says", {**old, **free}, {**new, **free}, "root")


def load(path: Path) -> dict[str, Any]:
    """A plan, read from its file. Raises UserError for any other file."""
    with output.expecting(
        f"{str(path)!r} is not a plan of runs; move it away, or give another --root"
    ):
        plan = json.loads(path.read_bytes().decode())
        good = type(plan["num_steps"]) is int and isinstance(plan["runs"], dict)
        for name, kind in (("seeds", int), ("envs", str), ("extra", str)):
            good = good and isinstance(plan[name], list) and {*map(type, plan[name])} <= {kind}
        if not good or any(".." in Path(env).parts for env in plan["envs"]):
            raise ValueError
        return {name: plan[name] for name in ("seeds", "num_steps", "envs", "extra", "runs")}


def _run(
    root: Path,
    env: str,
    variant: tuple[str, tuple[str, ...]],
    seeds: list[int],
    num_steps: int,
    extra: list[str],
) -> Run:
    """The run of a variant, with Appendix B's settings. If another plan has begun it with these
    seeds and more, it is taken as it is; if it is finished with fewer, the others are to be added.
    """
    name, own = variant
    folder = root / env / name
    there = begun(Run(f"{env}/{name}", folder, (), (), num_steps)).get("seeds", ())
    seeds = there if set(seeds) <= set(there) else seeds
    given = (
        *own,
        f"--env={env}",
        f"--seeds={','.join(map(str, seeds))}",
        f"--eval_every={EVERY}",
        "--eval_episodes=10",
        f"--log_every={EVERY}",
        f"--checkpoint_every={CHECKPOINT_EVERY}",
        *extra,
    )
    planned = Run(f"{env}/{name}", folder, given, tuple(seeds), num_steps)
    configs = flags.read((f"--num_steps={num_steps}", *given), *training.CONFIGS)
    run, described = configs[0], training.plan(*configs).described
    if num_steps % run.eval_every:  # runs of whichever plans are compared at evaluations
        raise UserError(
            f"runs end at step {num_steps}, but are evaluated every {run.eval_every} steps; "
            f"give a multiple of that as until or num_steps"
        )
    alone = flags.read((f"--num_steps={num_steps}", *own), *training.CONFIGS)
    fixed = directory.describe(*alone)
    fixed = {setting: fixed[setting] for setting in flags.given(own, *training.CONFIGS)}
    fixed |= {"env": env, "seeds": seeds, "num_steps": num_steps}
    changed = [setting for setting, value in fixed.items() if described[setting] != value]
    if changed or (run.logdir, run.workers) != (RunConfig.logdir, RunConfig.workers):
        names = ", ".join(changed) or "logdir or workers"
        raise UserError(
            f"{' '.join(extra)!r} after -- sets {names}, which the plan sets for each run; leave "
            f"it out"
        )
    if (folder / directory.CONFIG).exists():
        grows = set(there) < set(seeds)
        copied = not (folder / directory.CHECKPOINTS).exists()
        if grows and not copied and not directory.finished(folder):
            raise UserError(
                f"{str(folder)!r} holds an unfinished run of {named(there)}, but seeds can be "
                f"added only to a finished one; finish it with `seeds={tuple(there)}` first"
            )
        made = not grows and last(planned).get("step", 0) >= num_steps
        past = max(num_steps, begun(planned).get("num_steps", 0)) if made else num_steps
        wanted = {**described, "num_steps": past, "seeds": there if grows else seeds}
        directory.compare(folder / directory.CONFIG, wanted, flag="root")
    else:
        agents.check_kind(described["algorithm"], envs.spec(run.source))
        device.wanted(run, run.source)  # raises where that is impossible
    return planned


def choose(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """The runs whose names match any of the patterns; all if there are no patterns. Raises
    UserError for a pattern that matches no run.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(run.name, pattern) for run in runs):
            raise UserError(
                f"only is {pattern!r}, which matches none of the runs of this plan: "
                f"{', '.join(run.name for run in runs)}"
            )
    return [
        run
        for run in runs
        if not patterns or any(fnmatch.fnmatchcase(run.name, pattern) for pattern in patterns)
    ]


# --- the command ----------------------------------------------------------------------------------


Report = Callable[[Path, Sequence[str], Sequence[int] | None, Path], None]
"""`(root, environments, seeds or None for all, folder for figures and tables)`; prints, and
writes.
"""


def define() -> None:
    """Defines the flags of a plan."""
    flags.define(PlanConfig, launch.LaunchConfig)


def parse() -> tuple[PlanConfig, launch.LaunchConfig]:
    """The configs that the flags of a plan describe."""
    return flags.parse(PlanConfig), flags.parse(launch.LaunchConfig)


def main(
    kind: Kind,
    configs: tuple[PlanConfig, launch.LaunchConfig],
    extra: Sequence[str],
    report: Report,
) -> int:
    """Settles the plan, makes its runs, and reports on them. Returns the exit status; raises
    UserError.
    """
    config, launching = configs
    flags.refuse([word for word in extra if not word.startswith("--")])
    check(config)
    for env in config.envs or ():
        if (config.envs or ()).count(env) > 1:
            raise UserError(f"envs names {env} more than once; name each environment once")
    status = 0
    out = Path(config.out or Path(config.root) / kind.name)
    output.check("out" if config.out else "root", str(out / "report.json"))
    for name in ("envs", "seeds"):
        _check_some(name, getattr(config, name))
    if config.report:
        _check_report(config, launching, extra)
    else:
        jax.config.update("jax_platforms", "cpu")  # of this process: accelerators are for the runs
        launcher = launchers.launcher(launching, config.timeout, Path(config.root) / ".submitit")
        runs = choose(settle(kind, config, extra), config.only)
        outcomes = execute(runs, launching.processes, launcher, launching.cpus)
        states = [outcome.state for outcome in outcomes]
        print(
            f"{len(outcomes)} runs: "
            f"{', '.join(f'{states.count(state)} {state}' for state in dict.fromkeys(states))}"
        )
        for outcome in outcomes:
            if outcome.state in ("diverged", "failed", "elsewhere"):
                print(outcome.sentence)
        if words := left(states):
            print(words)
            return signals.STOPPED
        status = int("failed" in states or any(map(diverged, runs)))
    known_envs, known_seeds = remembered(kind, Path(config.root))
    report(Path(config.root), config.envs or known_envs, config.seeds or known_seeds, out)
    return status


def _check_some(name: str, values: Sequence[Any] | None) -> None:
    """Raises UserError if a list of values is given, but empty."""
    if values is not None and not values:
        raise UserError(f"{name} is empty, but a plan needs at least one; leave --{name} out")


def _check_report(config: PlanConfig, launching: launch.LaunchConfig, extra: Sequence[str]) -> None:
    """Raises UserError for flags about making runs, as --report makes none."""
    given = [f"--{name}" for name in ("num_steps", "until") if getattr(config, name) is not None]
    given += ["--only"] * bool(config.only)
    for field in dataclasses.fields(launching):
        if getattr(launching, field.name) != field.default:
            given.append(f"--{field.name}")
    if given := [*given, *extra]:
        raise UserError(
            f"--report trains nothing, and judges the runs that are there, at the last step that "
            f"all have reached; leave out {' '.join(given)}"
        )


def gather(
    kind: Kind, root: Path, envs: Sequence[str], seeds: Sequence[int] | None
) -> tuple[list[curves.Curves], list[str]]:
    """As `curves.gather`, but raises UserError also if there is no run to report on."""
    runs, notes = curves.gather(root, envs, kind.variants, seeds)
    if not runs:
        raise UserError(
            f"there are no runs to report on in {str(root)!r}; train some with: python -m "
            f"experiments.{kind.name} --root={root}"
        )
    return runs, notes


def remembered(kind: Kind, root: Path) -> tuple[Sequence[str], Sequence[int] | None]:
    """The environments and seeds of the plan in root. Without a plan: the paper's environments, and
    None for all seeds that are there.
    """
    path = root / f"{kind.name}.json"
    known = load(path) if path.exists() else {}
    return known.get("envs", ENVS), known.get("seeds")
