"""The time of one update, for every algorithm in one run, and of the parts of a PreQN update
(section 5.3).

    python -m experiments.cost --json=cost.json
    python -m experiments.cost --rivals      # and PreQN's variants and rivals (experiments.rivals)
    python -m experiments.cost --peers=td3,sac,ddpg,crossq   # and agents of SBX (BUILD.md, "Peers")
    python -m experiments.cost --grid --json=growth.json     # how a critic step grows, in time and
                                                             # memory; --figure=growth.png draws it

Times are milliseconds per update, inside one compiled scan of `--updates` updates, on random
transitions of HalfCheetah's sizes. The rows are timed in turn, round after round, so that drift in
the machine's speed affects all alike: rely on the ratios. The time includes sampling the
minibatches from a full replay buffer, also for SBX, whose buffer lies on the host.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import growth, parts, peers, timing
from experiments.bench.timing import REFERENCE, ROWS, several
from experiments.kit import flags, output
from experiments.kit.running import devices
from experiments.kit.variants import VARIANTS
from preqn_jax import agents
from preqn_jax.options import UserError, check, option
from preqn_jax.training import loop, provenance
from preqn_jax.types import Transition


@dataclasses.dataclass(frozen=True)
class CostConfig(growth.GrowthConfig):
    """What is timed."""

    updates: int = option(50, "updates in one compiled scan", at_least=1)
    many: tuple[int, ...] = option(
        (4,), "numbers of seeds to time in one program, beside a single seed", at_least=1
    )
    peers_settings: str = option("default", peers.SETTINGS_HELP)
    peers: str = option("", peers.HELP)
    rivals: bool = option(False, "also time the variants of experiments.rivals")
    grid: bool = option(
        False,
        "instead: time and memory of a critic step, by batch size, width, depth and seeds",
    )


WITH_GRID = ("members", "jacobian_gib", "figure")  # flags that matter with --grid alone
WITHOUT_GRID = ("updates", "many", "peers_settings", "peers", "rivals")  # and only without it
SEVERAL = ("PreQN sin", "TD3 relu")  # rows that `--many` times with several seeds
STORED = 5000  # transitions in the replay buffer


def main(argv: list[str]) -> int:
    return run(flags.parse(CostConfig))


def run(config: CostConfig) -> int:
    """Measure, print, and write what is asked for. Returns the exit status; raises UserError."""
    check(config)
    output.check("json", config.json)
    _refuse_ignored(config)
    if config.grid:
        return growth.run(config)
    names = peers.parse(config.peers, config.peers_settings)
    rows = ROWS | (_rivals() if config.rivals else {})
    whole = {name: _agent_scan(config, fields) for name, fields in rows.items()}
    for seeds, name in itertools.product(config.many, SEVERAL):
        whole[several(name, seeds)] = _agent_scan(config, ROWS[name], seeds)
    whole |= {peers.label(name): _peer_scan(config, name) for name in names}
    sizes = config.hidden_sizes, config.spec, timing.transitions(config, config.batch_size)
    pieces = {**parts.scans(*sizes, config.updates), **parts.calls(*sizes, config.updates)}
    times = timing.in_turn({**whole, **pieces}, config.repeats)
    references = peers.references(REFERENCE, whole)
    rows = [_row(name, times, references, config.updates) for name in times]
    _print(config, rows[: len(whole)], rows[len(whole) :], references)
    timing.write(config, rows=rows, peers=peers.versions() if names else None)
    return 0


def _refuse_ignored(config: CostConfig) -> None:
    """Raises UserError for a flag that has no effect with, or without, --grid."""
    names, way, mend = WITH_GRID, "without", "add --grid"
    if config.grid:
        names, way, mend = WITHOUT_GRID, "with", "leave --grid out"
    for name in names:
        value = getattr(config, name)
        if value != getattr(CostConfig, name):
            raise UserError(
                f"{name} is {value!r}, but has no effect {way} --grid: {mend}, or leave "
                f"--{name} out"
            )


def _rivals() -> dict[str, dict[str, Any]]:
    """For each variant of `experiments.rivals`, the settings that its flags give."""
    rows = {}
    for name, words in VARIANTS.items():
        (made,) = flags.read(words, agents.AgentConfig)
        rows[name] = {key: getattr(made, key) for key in flags.given(words, agents.AgentConfig)}
    return rows


def _agent_scan(config: CostConfig, fields: dict[str, Any], seeds: int = 1) -> Callable[[], Any]:
    """A function that takes `updates` gradient steps of each seed, as training does."""
    spec = config.spec
    agent = agents.make(agents.AgentConfig(**{"hidden_sizes": config.hidden_sizes, **fields}), spec)
    loop_config = loop.LoopConfig(
        tuple(range(seeds)), num_steps=STORED, batch_size=config.batch_size
    )
    learn, done = loop.make_learn(agent, loop_config), [0]

    def new(n: int) -> Transition:
        return jax.tree.map(lambda leaf: np.stack([leaf] * seeds), timing.transitions(config, n))

    each, none = np.arange(seeds), np.zeros(seeds, bool)  # seeds, and which of them are frozen
    empty, _ = loop.init(agent, spec, loop_config)
    learner = [learn(empty, each, new(STORED), none, jnp.uint32(0), jnp.int32(0), 0)[0]]
    fresh = new(config.updates)

    def run() -> Any:
        learner[0], metrics = learn(
            *(learner[0], each, fresh, none),
            *(jnp.uint32(done[0]), jnp.int32(done[0]), config.updates),
        )
        done[0] += config.updates
        return learner[0].agent, metrics

    return run


def _peer_scan(config: CostConfig, name: str) -> Callable[[], Any]:
    return peers.apart(
        config.peers_settings,
        peers.updates,
        name,
        config.spec,
        timing.transitions(config, STORED),
        config.batch_size,
        config.hidden_sizes,
        config.updates,
    )


def _row(
    name: str, times: dict[str, list[float]], references: list[str], updates: int
) -> dict[str, Any]:
    """Milliseconds per update, and the ratio to each reference: that of the medians, and the
    smallest and the largest ratio of any round.
    """
    row: dict[str, Any] = {
        "name": name,
        **timing.spread([1e3 * t / updates for t in times[name]], "ms"),
        "ratios": {},
    }
    for reference in references:
        rounds = np.array(times[name]) / np.array(times[reference])
        ratio = float(np.median(times[name]) / np.median(times[reference]))
        row["ratios"][reference] = {
            "ratio": ratio,
            "min": float(rounds.min()),
            "max": float(rounds.max()),
        }
    return row


def _print(
    config: CostConfig,
    whole: list[dict[str, Any]],
    pieces: list[dict[str, Any]],
    references: list[str],
) -> None:
    widths = ",".join(map(str, config.hidden_sizes))
    print(
        f"B={config.batch_size}, hidden sizes {widths}, median of {config.repeats} scans of "
        f"{config.updates}; {provenance.machine()}"
    )
    peers.show(config.peers, config.peers_settings)
    print(timing.head("an update of", "ms", references))
    for row in whole:
        print(_line(row, ""))
    print("the parts of PreQN sin, each alone in a scan")
    for row in pieces:
        print(_line(row, "  "))
    table = {row["name"]: row for row in [*whole, *pieces]}
    ratio = table[parts.DIAGNOSIS]["ms"] / table[parts.LINEARIZATION]["ms"]
    print(f"diagnose / one linearization: {ratio:.2f}")
    print(f"PreQN sin / PreQN relu: {table['PreQN sin']['ms'] / table['PreQN relu']['ms']:.2f}")
    ms = table["PreQN sin, Jacobian kernel"]["ms"]
    print(f"Jacobian kernel / structured kernel: {ms / table['PreQN sin']['ms']:.1f}")
    for seeds, name in itertools.product(config.many, SEVERAL):
        ms = table[several(name, seeds)]["ms"]
        print(
            f"{several(name, seeds)} / one: {ms / table[name]['ms']:.2f}, on {devices(seeds)}; "
            f"{1e3 * seeds / ms:.0f} updates a second in total"
        )
    for reference in references:
        ratio = table["PreQN sin"]["ratios"][reference]
        print(
            f"PreQN sin / {reference}: {ratio['ratio']:.2f} (rounds {ratio['min']:.2f} to "
            f"{ratio['max']:.2f})"
        )


def _line(row: dict[str, Any], indent: str) -> str:
    ratios = {name: ratio["ratio"] for name, ratio in row["ratios"].items()}
    return timing.line(
        indent + row["name"], [f"{row[k]:.3f}" for k in ("ms", "min", "max")], ratios
    )


if __name__ == "__main__":
    flags.define(CostConfig)
    flags.run(main)
