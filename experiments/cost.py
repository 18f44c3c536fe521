"""What an update costs: every algorithm in one run, and the parts of a PreQN update (section 5.3).

    python -m experiments.cost --json=cost.json

Each figure is milliseconds an update inside one compiled scan of `--updates`, on transitions of HalfCheetah's sizes. Rows are
timed in turn, round after round, so that a drift of the machine's speed hits all alike; read the ratios.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments import flags
from preqn_jax import agents, linesearch, networks, ntk, replay
from preqn_jax.agents import base
from preqn_jax.options import UserError, check, option
from preqn_jax.training import loop
from preqn_jax.types import Array, QFunction, Spec, Transition


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What is timed."""

    batch_size: int = option(256, "B, transitions in a minibatch", at_least=1)
    hidden_sizes: tuple[int, ...] = option((256, 256), "widths of the hidden layers", at_least=1)
    obs_size: int = option(17, "numbers in an observation (HalfCheetah: 17)", at_least=1)
    action_size: int = option(6, "numbers in an action (HalfCheetah: 6)", at_least=1)
    updates: int = option(50, "updates in a scan", at_least=1)
    repeats: int = option(11, "times each row is timed; medians are printed", at_least=1)
    json: str = option("", "also write the table to this file")


ROWS: dict[str, dict[str, Any]] = {
    "PreQN sin, Jacobian kernel": {"algorithm": "preqn", "kernel": "jacobian"},
    "PreQN sin": {"algorithm": "preqn"},
    "PreQN relu": {"algorithm": "preqn", "activation": "relu"},
    "PreQN sin, eigh": {"algorithm": "preqn", "solver": "eigh"},
    "NGQL sin": {"algorithm": "ngql"},
    "DDPG relu": {"algorithm": "ddpg"},
    "TD3 relu": {"algorithm": "td3"},
    "SAC relu": {"algorithm": "sac"},
}
REFERENCE = "TD3 relu"


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags start with --, as in --json=cost.json")
    config = flags.parse(CostConfig)
    check(config)
    whole = {name: _agent_scan(config, fields) for name, fields in ROWS.items()}
    parts = _part_scans(config)
    times = _time({**whole, **parts}, config.repeats)
    rows = [_row(name, times[name], config.updates) for name in (*whole, *parts)]
    reference = next(row["ms"] for row in rows if row["name"] == REFERENCE)
    for row in rows:
        row["ratio"] = row["ms"] / reference
    _print(config, rows[: len(whole)], rows[len(whole) :])
    if config.json:
        _write(config, rows)
    return 0


def _agent_scan(config: CostConfig, fields: dict[str, Any]) -> Callable[[], Any]:
    """A function that takes `updates` gradient steps, as training does."""
    spec = Spec(config.obs_size, config.action_size, -np.ones(config.action_size), np.ones(config.action_size))
    agent = agents.make(base.AgentConfig(hidden_sizes=config.hidden_sizes, **fields), spec)
    loop_config = loop.LoopConfig(batch_size=config.batch_size)
    stored = jax.tree.map(lambda leaf: leaf[None], _transitions(config, 5000))
    buffer = jax.vmap(replay.add)(jax.tree.map(lambda leaf: leaf[None], replay.init(spec, 5000)), stored)
    state = [loop.Learner(jax.vmap(agent.init)(loop.keys((0,))), buffer)]
    new = jax.tree.map(lambda leaf: leaf[None], _transitions(config, config.updates))
    learn, done = loop.make_learn(agent, loop_config), [0]

    def run() -> Any:
        state[0], metrics = learn(state[0], new, jnp.uint32(done[0]), jnp.int32(done[0]), config.updates)
        done[0] += config.updates
        return state[0].agent, metrics

    return run


def _part_scans(config: CostConfig) -> dict[str, Callable[[], Any]]:
    """The parts of a PreQN-sin update by themselves. Each feeds its result into the next iteration, so that none is hoisted."""
    agent_config = base.resolve(base.AgentConfig(hidden_sizes=config.hidden_sizes))
    network: dict[str, Any] = {"hidden_sizes": config.hidden_sizes, "activation": agent_config.activation}
    critic, actor = networks.Critic(**network), networks.Actor(config.action_size, **network)
    q: QFunction = critic.apply
    policy: Callable[..., Any] = actor.apply
    batch = jax.tree.map(jnp.asarray, _transitions(config, config.batch_size))
    inputs = (batch.obs, batch.action)
    theta = critic.init(jax.random.key(0), batch.obs[0], batch.action[0])
    phi = actor.init(jax.random.key(1), batch.obs[0])
    solve = base.SOLVERS[agent_config.solver](agent_config)
    lin = jax.jit(lambda p: ntk.linearize(q, p, inputs)[:2])(theta)
    delta = jnp.asarray(batch.reward) - lin[0]
    z = jax.jit(solve)(lin[1], delta)[0]
    move = jax.jit(lambda p, z: ntk.linearize(q, p, inputs).pullback(z))(theta, z)

    def values(p: Any) -> Array:
        return jax.vmap(q, in_axes=(None, 0, 0))(p, *inputs)

    def targets(carry: Any) -> Any:
        action = jax.vmap(policy, in_axes=(None, 0))(phi, batch.next_obs + carry)
        return 1e-9 * jnp.mean(batch.reward + 0.99 * jax.vmap(q, in_axes=(None, 0, 0))(theta, batch.next_obs, action))

    def kernel(p: Any) -> Any:
        lin = ntk.linearize(q, p, inputs)
        step = lin.pullback(lin.values + 1e-9 * jnp.sum(lin.gram, axis=1))
        return jax.tree.map(lambda a, b: a + 1e-9 * b, p, step)

    def solving(carry: Any) -> Any:
        return 1e-6 * solve(lin[1], delta + carry)[0]

    def search(p: Any) -> Any:
        before = values(theta)  # hoisted: the step has it from the linearization

        def accept(scale: Array) -> tuple[Array, Array]:
            moved = jax.tree.map(lambda a, m: a + 1e-3 * scale * m, p, move)
            cos = linesearch.cosine(values(moved) - before, delta)
            return cos > -2, cos

        found = linesearch.backtrack(accept)
        return jax.tree.map(lambda a, m: a + 1e-6 * found.scale * found.aux * m, p, move)

    def improving(p: Any) -> Any:
        def loss(p: Any) -> Array:
            action = jax.vmap(policy, in_axes=(None, 0))(p, batch.obs)
            return -jnp.mean(jax.vmap(q, in_axes=(None, 0, 0))(theta, batch.obs, action))

        return jax.tree.map(lambda a, g: a - 1e-6 * g, p, jax.grad(loss)(p))

    def scan(body: Callable[[Any], Any], start: Any) -> Callable[[], Any]:
        run = jax.jit(lambda carry: jax.lax.scan(lambda c, _: (body(c), None), carry, length=config.updates)[0])
        return lambda: run(start)

    return {
        "targets": scan(targets, jnp.float32(0)),
        "kernel, values, pullback": scan(kernel, theta),
        "solve": scan(solving, jnp.zeros_like(delta)),
        "linesearch (one candidate)": scan(search, theta),
        "actor": scan(improving, phi),
    }


def _transitions(config: CostConfig, n: int) -> Transition:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(n, *shape)).astype(np.float32)

    action = np.clip(normal(config.action_size), -1, 1)
    return Transition(normal(config.obs_size), action, normal(), np.ones(n, np.float32), normal(config.obs_size))


def _time(scans: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each scan, `repeats` times, in turn."""
    for run in tqdm(scans.values(), desc="compiling"):
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in scans}
    for _ in tqdm(range(repeats), desc="timing"):
        for name, run in scans.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return times


def _row(name: str, seconds: list[float], updates: int) -> dict[str, Any]:
    ms = 1e3 * np.array(seconds) / updates
    return {"name": name, "ms": float(np.median(ms)), "min": float(ms.min()), "max": float(ms.max())}


def _machine() -> str:
    device, xla_flags = jax.devices()[0], os.environ["XLA_FLAGS"]
    return f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores, jax {jax.__version__}, XLA_FLAGS={xla_flags!r}"


def _print(config: CostConfig, whole: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    widths = ",".join(map(str, config.hidden_sizes))
    print(f"B={config.batch_size}, hidden sizes {widths}, median of {config.repeats} scans of {config.updates}; {_machine()}")
    print(f"{'an update of':<28} {'ms':>9} {'min':>9} {'max':>9}   ratio to {REFERENCE}")
    for row in whole:
        print(f"{row['name']:<28} {row['ms']:>9.3f} {row['min']:>9.3f} {row['max']:>9.3f} {row['ratio']:>8.2f}")
    print("the parts of PreQN sin, each alone in a scan")
    for row in parts:
        print(f"  {row['name']:<26} {row['ms']:>9.3f} {row['min']:>9.3f} {row['max']:>9.3f} {row['ratio']:>8.2f}")
    ms = {row["name"]: row["ms"] for row in whole}
    print(f"PreQN sin / PreQN relu: {ms['PreQN sin'] / ms['PreQN relu']:.2f}")
    print(f"Jacobian kernel / structured kernel: {ms['PreQN sin, Jacobian kernel'] / ms['PreQN sin']:.1f}")


def _write(config: CostConfig, rows: list[dict[str, Any]]) -> None:
    table = {"config": dataclasses.asdict(config), "machine": _machine(), "rows": rows}
    try:
        Path(config.json).write_text(json.dumps(table, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {config.json!r}: {error.strerror}; give another --json") from error


if __name__ == "__main__":
    flags.define(CostConfig)
    flags.run(main)
