"""The training loop as a generator of rounds.

A round is: act for `update_every` steps with a frozen policy, add what happened to the replay, and
  take as many gradient steps in
one compiled call (Appendix B's "update frequency"). Every random number comes from a key folded
from (seed, purpose, round), so a run can go on from any round with nothing but the counters. All
arrays lead with a seed axis `[S]`: several seeds learn in one program.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import replay as replays
from preqn_jax.agents import Agent
from preqn_jax.training.collect import Collector
from preqn_jax.training.config import SAMPLE, UPDATE, LoopConfig, validate
from preqn_jax.training.errors import Diverged
from preqn_jax.types import Array, Key, Metrics, Spec, Transition


@flax.struct.dataclass
class Learner:
    """What lives on the device; every leaf leads with `[S]`."""

    agent: Any
    replay: replays.Replay


class Counters(NamedTuple):
    """How far a run is."""

    round: int = 0  # rounds done
    updates: int = 0  # gradient steps done
    frozen: tuple[
        int, ...
    ] = ()  # indices of the seeds that diverged: they stay as they were before


class Round(NamedTuple):
    """What one round leaves behind. `learner` is donated to the next: use it before going on."""

    step: int  # environment steps of each seed so far
    learner: Learner
    counters: Counters
    metrics: dict[
        str, np.ndarray
    ]  # `[S]` each, means over the round's updates; empty before the first
    episodes: list[tuple[int, float]]  # (index of the seed, return) of every episode that ended
    diverged: list[Diverged]  # whom this round froze


def keys(seeds: tuple[int, ...]) -> Key:
    """`[S]` keys."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def init(agent: Agent, spec: Spec, config: LoopConfig) -> tuple[Learner, Counters]:
    """A learner with empty replay, at the beginning. Raises UserError for a config that makes no
    sense.
    """
    validate(config)
    capacity = min(
        config.replay_capacity, config.num_steps
    )  # rows that could never fill are not allocated
    states = jax.jit(jax.vmap(agent.init))(keys(config.seeds))
    buffer = replays.init(spec, capacity)
    buffers = jax.tree.map(
        lambda leaf: jnp.zeros((len(config.seeds), *leaf.shape), leaf.dtype), buffer
    )
    return jax.device_put(Learner(states, buffers), seed_sharding(config)), Counters()


def rounds(
    agent: Agent, collector: Collector, config: LoopConfig, learner: Learner, counters: Counters
) -> Iterator[Round]:
    """Train until `num_steps`, yielding after every round; `collector` stands where `counters` say.

    A seed that meets a NaN or an infinity is frozen: it takes no further part, keeps the agent of
    the round before, and no other seed's numbers depend on that.

    Raises:
      Diverged: no seed is left; the round in which the last one diverged was yielded.
      Stopped: what else `collector` cannot go on from.
    """
    learn, acting = make_learn(agent, config), jax.jit(jax.vmap(agent.policy))
    while counters.round * config.update_every < config.num_steps:
        collected = collector.collect(acting(learner.agent), counters.round, counters.frozen)
        transitions, episodes, diverged = collected
        measured: dict[str, np.ndarray] = {}
        step = (counters.round + 1) * config.update_every
        updates = config.update_every if step >= config.update_after else 0
        out = {*counters.frozen, *(config.seeds.index(error.seed) for error in diverged)}
        frozen = np.isin(np.arange(len(config.seeds)), sorted(out))
        at = (jnp.uint32(counters.round), jnp.int32(counters.updates))
        if transitions is not None:
            learner, metrics = learn(learner, transitions, frozen, *at, updates)
            measured = {name: np.asarray(value) for name, value in metrics.items()}
        for i, error in _not_finite(measured, config, step):
            if i not in out:
                diverged, out = [*diverged, error], {*out, i}
        counters = Counters(counters.round + 1, counters.updates + updates, tuple(sorted(out)))
        yield Round(step, learner, counters, measured, episodes, diverged)
        if len(out) == len(config.seeds):
            raise diverged[-1]


Learn = Callable[[Learner, Transition, Any, Array, Array, int], tuple[Learner, Metrics]]


def make_learn(agent: Agent, config: LoopConfig, side_by_side: bool | None = None) -> Learn:
    """`(learner, transitions [S, n], frozen [S], round, updates done, updates to do) -> (learner,
    metrics [S])`: one compiled call.

    The learner is donated. Every device has its share of the seeds and waits for no other. The
    seeds of a share learn side by side (`vmap`), or one after the other (`lax.map`), which is the
    default on CPUs: one seed's arrays fit a core's cache, several seeds' do not.
    """
    sharding = seed_sharding(config)
    split, same = sharding.spec, jax.sharding.PartitionSpec()
    if side_by_side is None:
        side_by_side = next(iter(sharding.device_set)).platform != "cpu"

    @partial(jax.jit, donate_argnums=0, static_argnums=5, out_shardings=sharding)
    def learn(
        learner: Learner,
        transitions: Transition,
        frozen: Array,
        round_: Array,
        done: Array,
        updates: int,
    ):
        one = partial(_learn_one, agent, config, updates)

        def share(seeds: tuple[Learner, Transition, Array, Key], round_: Array, done: Array):
            if side_by_side:
                return jax.vmap(one, in_axes=(0, None, None))(seeds, round_, done)
            return jax.lax.map(lambda seed: one(seed, round_, done), seeds)

        specs = (split, same, same)
        shares = jax.shard_map(
            share, mesh=sharding.mesh, in_specs=specs, out_specs=split, check_vma=False
        )
        return shares((learner, transitions, frozen, keys(config.seeds)), round_, done)

    return learn


def seed_sharding(config: LoopConfig) -> jax.sharding.NamedSharding:
    """How leaves `[S, ...]` lie on the devices: on as many as can have equal shares of the
    seeds.
    """
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if len(config.seeds) % n == 0)
    mesh = jax.make_mesh(
        (count,), ("seeds",), (jax.sharding.AxisType.Auto,), devices=devices[:count]
    )
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seeds"))


def _learn_one(
    agent: Agent,
    config: LoopConfig,
    updates: int,
    seed: tuple[Learner, Transition, Array, Key],
    round_: Array,
    done: Array,
) -> tuple[Learner, Metrics]:
    """A round of one seed: leaves without `[S]`. The counters are the same for all seeds, so that
    under a `vmap` they stay one number each and a delayed policy update is really skipped."""
    learner, transitions, frozen, key = seed
    buffer = replays.add(learner.replay, transitions)
    if not updates:
        return Learner(learner.agent, buffer), {}
    sample_key = jax.random.fold_in(jax.random.fold_in(key, SAMPLE), round_)
    batches = replays.sample(buffer, sample_key, (updates, config.batch_size))

    def update(state: Any, x: tuple[Transition, Array]):
        batch, i = x
        return agent.update(
            state, batch, jax.random.fold_in(jax.random.fold_in(key, UPDATE), done + i), done + i
        )

    state, metrics = jax.lax.scan(update, learner.agent, (batches, jnp.arange(updates)))
    # A failed solve has no residual: its metrics are means over the others, its failure is in
    # "solve/finite".
    means = {
        k: (jnp.nanmean if k.startswith("solve/") else jnp.mean)(m) for k, m in metrics.items()
    }
    means |= agent.summary(state)
    broken = jnp.any(jnp.stack([~jnp.isfinite(means[k]) for k in VITAL if k in means] or [False]))
    stays = frozen | broken
    state = jax.tree.map(lambda new, old: jnp.where(stays, old, new), state, learner.agent)
    return Learner(state, buffer), means


VITAL = ("critic/q_mean", "critic/td_abs", "critic/norm", "actor/norm")
"""Metrics without which a seed cannot go on."""


def _not_finite(
    metrics: dict[str, np.ndarray], config: LoopConfig, step: int
) -> Iterator[tuple[int, Diverged]]:
    """(index of a seed, what broke it), in the order of `VITAL`."""
    for name in VITAL:
        for i in np.flatnonzero(~np.isfinite(metrics.get(name, np.zeros(1)))):
            yield int(i), Diverged(name, config.seeds[int(i)], step)
