"""The training loop as a generator of rounds.

A round is: act for `update_every` steps with a frozen policy, add them to the replay buffer, and
make as many updates in one compiled call (Appendix B's "update frequency"). Every random number
comes from a key folded from (seed, purpose, round), so a run can go on from any round with nothing
but the counters. All arrays lead with an axis of members `[M]`, which learn in one program.
Each has a seed and, in a sweep, settings of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import replay as replays
from preqn_jax.agents import Agent
from preqn_jax.options import UserError
from preqn_jax.training.collect import Collector
from preqn_jax.training.config import SAMPLE, UPDATE, LoopConfig, stream, validate
from preqn_jax.training.errors import Diverged
from preqn_jax.types import (
    KEEP_KEY_DATA,
    Array,
    Key,
    Metrics,
    Settings,
    Spec,
    Transition,
    holds_key,
)


@flax.struct.dataclass
class Learner:
    """The state that lives on the devices. Every leaf leads with `[P]`: the M members, and copies
    that make the shares of all devices equal.
    """

    agent: Any
    replay: replays.Replay


class Counters(NamedTuple):
    """How far a run has come."""

    round: int = 0  # rounds done
    updates: int = 0  # gradient steps done
    # indices of the members that diverged: they stay as they were before
    frozen: tuple[int, ...] = ()


class Round(NamedTuple):
    """The result of one round. `learner` is donated to the next round: use it before going on."""

    step: int  # environment steps of each member so far
    learner: Learner
    counters: Counters
    # `[M]` each, means over the round's updates; empty before the first
    metrics: dict[str, np.ndarray]
    episodes: list[tuple[int, float]]  # (index of the member, return) of every episode that ended
    diverged: list[tuple[int, Diverged]]  # (index, why) of the members that this round froze
    # Whether `learner` is that of this round; on the device it is that of the last round of a call.
    settled: bool = True


def keys(seeds: Sequence[int] | np.ndarray | Array) -> Key:
    """The keys `[M]` of seeds."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def init(
    agent: Agent, spec: Spec, config: LoopConfig, settings: Settings | None = None
) -> tuple[Learner, Counters]:
    """A new learner with an empty replay buffer, and counters at 0; `settings [M]` are those that
    an agent of `agents.swept` takes. Raises UserError for a config that makes no sense, and a
    random key in the agent's state.
    """
    validate(config)
    seeds, places = config.seeds, members_sharding(config)
    given = (np.array(seeds), *([settings] if settings else []))
    seeds, *rest = jax.tree.map(partial(padded, config), given)
    states = each(agent.init)(keys(seeds), *rest)
    if holds_key(states):
        raise UserError(
            f"the agent's state holds a random key, which no checkpoint can hold: {KEEP_KEY_DATA}"
        )
    # Rows that could never fill are not allocated.
    form = jax.eval_shape(lambda: replays.init(spec, min(config.replay_capacity, config.num_steps)))

    def empty(leaf: Any) -> Array:  # made where it stays, or memory would hold a copy too
        return jnp.zeros((len(seeds), *leaf.shape), leaf.dtype, device=places)

    return Learner(jax.device_put(states, places), jax.tree.map(empty, form)), Counters()


@lru_cache(maxsize=64)
def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, mapped over all members and compiled."""
    return jax.jit(jax.vmap(function))


def padded(config: LoopConfig, leaf: np.ndarray) -> np.ndarray:
    """`leaf [M, ...]`, padded to `[P, ...]` with copies of the last row."""
    return np.pad(leaf, [(0, _rows(config) - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)], mode="edge")


def rounds(
    agent: Agent, collector: Collector, config: LoopConfig, learner: Learner, counters: Counters
) -> Iterator[Round]:
    """Train until `num_steps`, yielding after every round; `collector` must be at the round that
    `counters` say.

    A member that meets a NaN or an infinity is frozen: it takes no further part, keeps the agent
    of the round before, and no other member's numbers depend on that.

    Raises:
      Diverged: no member is left; the round in which the last one diverged was yielded.
      Stopped: `collector` cannot go on for another reason.
    """
    learn, acting = make_learn(agent, config), each(agent.policy)
    size, seeds = len(config.seeds), np.array(config.seeds, np.uint32)
    while counters.round * config.update_every < config.num_steps:
        collected = collector.collect(acting(learner.agent), counters.round, counters.frozen)
        transitions, episodes, diverged = collected
        measured: dict[str, np.ndarray] = {}
        step = (counters.round + 1) * config.update_every
        updates = config.update_every if step >= config.update_after else 0
        stays = np.isin(np.arange(size), [*counters.frozen, *(i for i, _ in diverged)])
        at = (jnp.uint32(counters.round), jnp.int32(counters.updates))
        if transitions is not None:
            learner, metrics = learn(learner, seeds, transitions, stays, *at, updates)
            measured = {name: np.asarray(value)[:size] for name, value in metrics.items()}
        diverged, frozen = froze(diverged, counters.frozen, measured, config, step)
        counters = Counters(counters.round + 1, counters.updates + updates, frozen)
        yield Round(step, learner, counters, measured, episodes, diverged)
        if len(frozen) == size:
            raise diverged[-1][1]


Learn = Callable[[Learner, Any, Transition, Any, Array, Array, int], tuple[Learner, Metrics]]


def make_learn(agent: Agent, config: LoopConfig, turns: bool | None = None) -> Learn:
    """`(learner, seeds [M], transitions [M, n], frozen [M], round, updates done, updates to do) ->
    (learner, metrics [P])`: one compiled call, which serves any seeds of this number.

    The learner is donated. Every device has its share of the members and waits for no other. The
    members of a share learn side by side (`vmap`), or take `turns`, which is the default on CPUs:
    one member's arrays fit a core's cache, several members' do not. Where they take turns, a
    member's numbers do not depend on the other members, bit for bit.
    """
    turns = take_turns(config) if turns is None else turns
    any_ = replace(config, seeds=(0,) * len(config.seeds))
    return _learn(agent, any_, turns, members_sharding(config))


@lru_cache(maxsize=16)  # so that the same run, repeated or resumed, compiles nothing
def _learn(agent: Agent, config: LoopConfig, turns: bool, sharding: jax.sharding.Sharding) -> Learn:
    rows = _rows(config)

    @partial(jax.jit, donate_argnums=0, static_argnums=6, out_shardings=sharding)
    def learn(
        learner: Learner,
        seeds: Array,
        transitions: Transition,
        frozen: Array,
        round_: Array,
        done: Array,
        updates: int,
    ):
        def share(members: tuple[Learner, Transition, Array, Key], round_: Array, done: Array):
            learner, transitions, frozen, key = members
            buffer = jax.vmap(replays.add)(learner.replay, transitions, frozen)
            states = observe(agent, learner.agent, transitions, frozen, turns)
            if not updates:
                return Learner(states, buffer), {}
            batches = draw(config, updates, buffer, key, round_)

            def one(member: tuple[Any, Transition, Array, Key]) -> tuple[Any, Metrics]:
                return learn_one(agent, updates, *member, done, turns)

            states, metrics = over_members(one, turns)((states, batches, frozen, key))
            return Learner(states, buffer), metrics

        def fill(leaf: Array, value: Any) -> Array:
            missing = jnp.full((rows - len(leaf), *leaf.shape[1:]), value, leaf.dtype)
            return jnp.concatenate([leaf, missing])

        transitions = jax.tree.map(lambda leaf: fill(jnp.asarray(leaf), 0), transitions)
        each = keys(fill(jnp.asarray(seeds), 0))
        members = learner, transitions, fill(jnp.asarray(frozen), True), each
        return by_shares(share, sharding, 1, 2)(members, round_, done)

    return learn


def devices_for(members: int) -> list[Any]:
    """The devices of this process among which so many members are divided: as few as make the
    largest share as small as possible.
    """
    devices = jax.local_devices()
    share = max(1, -(-members // len(devices)))  # a process may have no members
    return devices[: -(-members // share)]


def members_sharding(config: LoopConfig) -> jax.sharding.Sharding:
    """The sharding of leaves `[P, ...]` over the members' devices. One device has no mesh: JAX
    cannot differentiate convolutions for each example on one.
    """
    devices = devices_for(len(config.seeds))
    if len(devices) == 1:
        return jax.sharding.SingleDeviceSharding(devices[0])
    axis = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), ("members",), axis, devices=devices)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("members"))


def by_shares(
    function: Callable[..., Any], sharding: jax.sharding.Sharding, members: int, others: int
) -> Callable[..., Any]:
    """`function` of each device's share of its first arguments, so many, whose leaves are of
    `[P, ...]` as the result's, and of `others` that all devices have. What it returns raises
    UserError where JAX cannot share it out.
    """
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return function
    split, same = sharding.spec, jax.sharding.PartitionSpec()
    specs = (*[split] * members, *[same] * others)
    shared = jax.shard_map(
        function, mesh=sharding.mesh, in_specs=specs, out_specs=split, check_vma=False
    )

    def checked(*given: Any) -> Any:
        try:
            return shared(*given)
        except NotImplementedError as error:
            if str(error):  # JAX's own has no words
                raise
            raise UserError(
                "JAX cannot compute this agent on several devices, as it has no rule there for the "
                "gradients of a convolution for each example: train one seed at a time"
            ) from error

    return checked


def _rows(config: LoopConfig) -> int:
    """P: the number of members, plus copies of the last, frozen from the start, that make shares
    equal.
    """
    count = len(devices_for(len(config.seeds)))
    return -(-len(config.seeds) // count) * count


def _in_turn(one: Callable[[Any], Any], members: Any) -> Any:
    """As `lax.map`, but what is compiled for one member does not depend on their number: for a
    single member XLA would drop the loop and the axis, and round differently.
    """
    one = jax.jit(one)  # so that finding its shapes and running it trace it once
    size = len(jax.tree.leaves(members)[0])
    if size == 1:
        members = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), members)
    rows = max(size, 2)

    def pick(i: Any) -> Any:
        return jax.tree.map(partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False), members)

    def turn(i: Array, found: Any) -> Any:
        put = partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return jax.tree.map(put, found, one(pick(i)))

    shapes = jax.eval_shape(lambda: one(pick(0)))
    blank = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), shapes)
    turns = jax.lax.optimization_barrier(jnp.int32(size))
    return jax.tree.map(lambda leaf: leaf[:size], jax.lax.fori_loop(0, turns, turn, blank))


def over_members(one: Callable[[Any], Any], turns: bool) -> Callable[[Any], Any]:
    """Calls `one` for every member of a device's share: in turn, or side by side by `vmap`."""
    return partial(_in_turn, one) if turns else jax.vmap(one)


def take_turns(config: LoopConfig) -> bool:
    """Whether the members take turns on their devices, as they do on CPUs."""
    return devices_for(len(config.seeds))[0].platform == "cpu"


def observe(agent: Agent, states: Any, transitions: Transition, frozen: Array, turns: bool) -> Any:
    """The agents' states `[P]` after `Agent.observe` has seen the observations of a round `[P, n]`;
    those of frozen members stay.
    """
    look = agent.observe
    if look is None:
        return states

    def one(member: tuple[Any, Array, Array]) -> Any:
        state, obs, stays = member
        return jax.lax.cond(stays, lambda state, _: state, look, state, obs)

    return over_members(one, turns)((states, transitions.obs, frozen))


def draw(
    config: LoopConfig, updates: int, replay: replays.Replay, keys: Key, round_: Array
) -> Transition:
    """The minibatches `[P, updates, B, ...]` of a round, drawn by the members' `keys` `[P]`."""

    def one(replay: replays.Replay, key: Key) -> Transition:
        sample_key = stream(key, SAMPLE, round_)
        return replays.sample(replay, sample_key, (updates, config.batch_size))

    return jax.vmap(one)(replay, keys)


def learn_one(
    agent: Agent,
    updates: int,
    state: Any,
    batches: Transition,
    frozen: Array,
    key: Key,
    done: Array,
    turns: bool,
) -> tuple[Any, Metrics]:
    """One member's updates of a round, on leaves without `[P]`. The count `done` is the same for
    all members, so that under `vmap` it stays one number, and a delayed policy update is really
    skipped. A frozen member's updates are skipped where members take `turns`. Side by side they are
    made and thrown away: under `vmap` a branch whose predicate differs among members runs both
    sides, and so would every branch within it.
    """

    @jax.jit  # so that finding its shapes and running it trace it once
    def learn(old: Any) -> tuple[Any, Metrics]:
        def update(state: Any, x: tuple[Transition, Array]):
            batch, i = x
            return agent.update(state, batch, stream(key, UPDATE, done + i), done + i)

        state, metrics = jax.lax.scan(update, old, (batches, jnp.arange(updates)))
        # A failed solve has no residual: means of solve metrics leave it out, and "solve/finite"
        # shows the failure.
        means = {
            k: (jnp.nanmean if k.startswith("solve/") else jnp.mean)(m) for k, m in metrics.items()
        }
        means |= agent.summary(state)
        vital = [~jnp.isfinite(means[name]) for name in VITAL if name in means]
        broken = jnp.any(jnp.stack(vital or [jnp.bool_(False)]))
        return jax.tree.map(lambda new, old: jnp.where(broken, old, new), state, old), means

    def stay(old: Any) -> tuple[Any, Metrics]:
        _, means = jax.eval_shape(learn, old)
        return old, jax.tree.map(lambda mean: jnp.full(mean.shape, jnp.nan, mean.dtype), means)

    if turns:
        return jax.lax.cond(frozen, stay, learn, state)
    keep = lambda old, new: jnp.where(frozen, old, new)  # noqa: E731
    return jax.tree.map(keep, stay(state), learn(state))


VITAL = ("critic/q_mean", "critic/td_abs", "critic/norm", "actor/norm")
"""Metrics that must be finite: a member is frozen once one of them is not."""


def froze(
    diverged: Sequence[tuple[int, Diverged]],
    frozen: Sequence[int],
    metrics: dict[str, np.ndarray],
    config: LoopConfig,
    step: int,
) -> tuple[list[tuple[int, Diverged]], tuple[int, ...]]:
    """The members that a round froze, each with its error, and all that are frozen after it, by
    index. Those that `diverged` in collecting come first, then those with a metric of `VITAL` that
    is not finite.
    """
    diverged, out = list(diverged), {*frozen, *(i for i, _ in diverged)}
    for name in VITAL:
        for i in np.flatnonzero(~np.isfinite(metrics.get(name, np.zeros(1)))).tolist():
            if i not in out:
                diverged.append((i, Diverged(name, config.seeds[i], step)))
                out.add(i)
    return diverged, tuple(sorted(out))
