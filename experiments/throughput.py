"""Environment steps per second in whole training: acting, stepping the environment, the replay
buffer and the updates, but no evaluation.

    python -m experiments.throughput --json=throughput.json
    python -m experiments.throughput --peers=td3,sac   # and agents of SBX (BUILD.md, "Peers")
    python -m experiments.throughput --on_device --env=native/pendulum --members=1,7,35,128

With `--on_device` the environments are stepped on the device on which the members learn. There is a
row for each number of members in one program, with the steps per second of all of them together;
they make as many updates.

Each row is a run that goes on by `--segment` steps whenever its turn comes. Its first segment, in
which everything is compiled, is not timed. Runs of this project use `training.loop.rounds`, or
`training.device` with `--on_device`; those of SBX use its `learn`, including its logging.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from experiments.bench import peers, timing
from experiments.bench.timing import REFERENCE, several
from experiments.kit import flags, output
from preqn_jax import agents, envs
from preqn_jax.options import UserError, check, option
from preqn_jax.training import collect, device, loop, provenance
from preqn_jax.training.config import RunConfig, check_multiple


@dataclasses.dataclass(frozen=True)
class ThroughputConfig:
    """What is timed; steps are environment steps."""

    env: str = option(
        "HalfCheetah-v5",
        "a Gymnasium environment with Box observations and actions, or a probe (probe/delay)",
    )
    peers_settings: str = option("default", peers.SETTINGS_HELP)
    peers: str = option("", peers.HELP)
    batch_size: int = option(256, "B, transitions in a minibatch", at_least=1)
    hidden_sizes: tuple[int, ...] = option((256, 256), "widths of the hidden layers", at_least=1)
    update_every: int = option(
        50, "steps between two blocks of updates, and updates in each", at_least=1
    )
    update_after: int = option(
        1000, "steps before the first update, with random actions", at_least=1
    )
    on_device: bool = option(False, "step functional environments on the device")
    members: tuple[int, ...] = option(
        (1,), "numbers of seeds in one program, with a row for each", at_least=1
    )
    segment: int = option(500, "steps that are timed together", at_least=1)
    repeats: int = option(11, "times each row is timed; medians are printed", at_least=1)
    json: str = option("", "also write the table to this file")


ROWS = {name: timing.ROWS[name] for name in ("PreQN sin", "PreQN relu", "DDPG relu", REFERENCE)}


def main(argv: list[str]) -> int:
    return run(flags.parse(ThroughputConfig))


def run(config: ThroughputConfig) -> int:
    """Measure, print, and write what is asked for. Returns the exit status; raises UserError."""
    _validate(config)
    names = peers.parse(config.peers, config.peers_settings)
    steps = {
        several(name, members): members * config.segment
        for name, members in itertools.product(ROWS, config.members)
    }
    runs = {
        several(name, members): _run(config, fields, members)
        for (name, fields), members in itertools.product(ROWS.items(), config.members)
    }
    runs |= {peers.label(name): _peer_run(config, name) for name in names}
    times = timing.in_turn(runs, config.repeats)
    references = peers.references(several(REFERENCE, config.members[0]), runs)
    rows = []
    for name in runs:
        each = [steps.get(name, config.segment) / t for t in times[name]]
        rows.append({"name": name, **timing.spread(each, "steps_per_s")})
    rates = {row["name"]: row["steps_per_s"] for row in rows}
    for row in rows:
        row["ratios"] = {name: row["steps_per_s"] / rates[name] for name in references}
    _print(config, rows, references)
    timing.write(config, rows=rows, peers=peers.versions() if names else None)
    return 0


def _validate(config: ThroughputConfig) -> None:
    check(config)
    output.check("json", config.json)
    if not config.members:
        raise UserError("members is empty; name a number of seeds, as in --members=1")
    check_multiple(config, ("update_after", "segment"), "update_every", config.update_every)
    device.wanted(RunConfig(on_device=config.on_device), config.env)
    if config.peers and envs.pure(config.env):
        raise UserError(
            f"SBX does not know the environment {config.env!r}; give a Gymnasium environment, or "
            f"leave out --peers"
        )


def _loop_config(config: ThroughputConfig, members: int) -> loop.LoopConfig:
    return loop.LoopConfig(
        seeds=tuple(range(members)),
        num_steps=_total(config),
        start_steps=config.update_after,
        update_after=config.update_after,
        update_every=config.update_every,
        batch_size=config.batch_size,
    )


def _total(config: ThroughputConfig) -> int:
    """The steps of a row: those before the first update, one segment to compile, and those that are
    timed.
    """
    return config.update_after + (1 + config.repeats) * config.segment


def _run(config: ThroughputConfig, fields: dict[str, Any], members: int) -> Callable[[], Any]:
    """A function that continues a run of ours by a segment; the first call starts the run."""
    loop_config = _loop_config(config, members)
    make_agent = partial(
        agents.make, agents.AgentConfig(hidden_sizes=config.hidden_sizes, **fields)
    )
    spec = envs.spec(config.env)
    agent, recipe = make_agent(spec), collect.Recipe(make_agent, config.env, loop_config, 1)
    start = loop.init(agent, spec, loop_config)
    if config.on_device:
        ends = math.gcd(config.update_after, config.segment)  # calls end at all multiples of either
        rounds = device.Resident(recipe, [ends]).rounds(*start)
    else:
        rounds = loop.rounds(agent, collect.Collector(recipe), loop_config, *start)
    steps = [0, config.update_after]  # done, and to be done when the next call returns

    def run() -> Any:
        steps[1] += config.segment
        done = None
        while steps[0] < steps[1]:
            done = next(rounds)
            steps[0] = done.step
        assert done is not None
        return done.learner.agent

    return run


def _peer_run(config: ThroughputConfig, name: str) -> Callable[[], Any]:
    settings: dict[str, Any] = {
        "batch_size": config.batch_size,
        "hidden_sizes": config.hidden_sizes,
        "every": config.update_every,
        "capacity": _total(config),
        "learning_starts": config.update_after,
    }
    go, first = (
        peers.apart(config.peers_settings, peers.training, name, config.env, **settings),
        [config.update_after],
    )

    def run() -> Any:
        return go(config.segment + (first.pop() if first else 0))

    return run


def _print(config: ThroughputConfig, rows: list[dict[str, Any]], references: list[str]) -> None:
    widths = ",".join(map(str, config.hidden_sizes))
    print(
        f"{config.env}, B={config.batch_size}, hidden sizes {widths}, "
        f"{config.update_every} updates every {config.update_every} steps, "
        f"median of {config.repeats} segments of {config.segment} steps; {provenance.machine()}"
    )
    peers.show(config.peers, config.peers_settings)
    print(timing.head("steps a second", "median", references))
    for row in rows:
        cells = [f"{row[name]:.1f}" for name in ("steps_per_s", "min", "max")]
        print(timing.line(row["name"], cells, row["ratios"]))


if __name__ == "__main__":
    flags.define(ThroughputConfig)
    flags.run(main)
