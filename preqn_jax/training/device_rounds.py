"""Rounds and evaluations as pure functions of all members, for environments that are pure functions
themselves; `training.device` compiles them.

A round does the same as in `training.loop`, and draws from the same keys: from the same environment
it collects the same as `training.rollout`, up to rounding.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from preqn_jax import replay as replays
from preqn_jax.actions import to_environment
from preqn_jax.agents import Agent
from preqn_jax.envs.functional import Many
from preqn_jax.training import loop
from preqn_jax.training.config import LoopConfig
from preqn_jax.training.loop import VITAL, Learner
from preqn_jax.training.rollout import make_acting
from preqn_jax.types import Array, Key, Metrics, Params, Spec, Transition

QUANTITIES = ("the environment's observation", "the environment's reward")


@flax.struct.dataclass
class World:
    """The state of the environments of all members."""

    env: Any  # leaves `[P, E, ...]`, a state of `envs.functional.Many`
    obs: Array  # `[P, E, obs]`, the current observations
    returns: Array  # `[P, E]`, rewards of the unfinished episodes so far
    frozen: Array  # `[P]` bool, members that take no further part


class Streams(NamedTuple):
    """The seeds and keys from which all random numbers of a run are derived."""

    seeds: Array  # `[P]` uint32
    envs: Key  # `[P, E]`


class Report(NamedTuple):
    """What happened in a round of n = `update_every` steps; for K rounds all leaves are
    `[P, K, ...]`.
    """

    metrics: Metrics  # `[P]`, NaN before the first update and for frozen members
    ended: Array  # `[P, n]` bool, whether an episode ended with this step
    returns: Array  # `[P, n]`, its return
    fault: Array  # `[P]` int32, what was not finite: 1 + index in QUANTITIES; 0 for nothing
    row: Array  # `[P]` int32, in which of the n steps


class DeviceRounds(NamedTuple):
    """Rounds and evaluations as pure functions of all members.

    start: `environments' keys [P, E] -> World`, where nobody is frozen.
    rounds: `(learner, world, streams, round, number of rounds) -> (learner, world, Report)`: does
      that many rounds, but no more than `most`, and none once all members are frozen.
    begin: `keys [P, n] -> Episodes` at their beginning.
    act: `(params [P], Episodes, keys [P, n], steps) -> (Episodes, rewards [P, T, n], obs [P, T, n,
      obs], actions [P, T, n, act])`: does that many noiseless steps, fewer where all episodes end
      before. T is the largest number of steps in a call.
    look: `states [P, E] -> obs [P, E, obs]`, the observations in states of environments.
    """

    start: Callable[[Key], World]
    rounds: Callable[..., tuple[Learner, World, Report]]
    begin: Callable[[Key], "Episodes"]
    act: Callable[..., tuple["Episodes", Array, Array, Array]]
    look: Callable[[Any], Array]


@flax.struct.dataclass
class Episodes:
    """The state of the episodes of an evaluation."""

    env: Any  # `[P, n, ...]`
    obs: Array  # `[P, n, obs]`
    running: Array  # `[P, n]` bool
    terminated: Array  # `[P, n]` bool
    lengths: Array  # `[P, n]` int32


def make_rounds(
    agent: Agent, env: Many, spec: Spec, config: LoopConfig, most: int, steps: int
) -> DeviceRounds:
    """The functions of a run, whose environments `env` lead with `[P, E]`. `most` is the largest
    number of rounds in a call, and `steps` is T.
    """
    each, learn = partial(_each, config), _make_learn(agent, config)
    collect = each(_make_collect(agent, env, spec, config), 3)

    def start(keys: Key) -> World:
        state = env.start(keys)
        nobody = jnp.zeros(len(keys), bool)
        return World(state, env.observe(state), jnp.zeros(keys.shape, jnp.float32), nobody)

    def one(learner: Learner, world: World, streams: Streams, round_: Array):
        params = jax.vmap(agent.policy)(learner.agent)
        world, transitions, report = collect(params, world, streams, round_)
        learner, metrics, frozen = learn(learner, transitions, world.frozen, streams, round_)
        return learner, replace(world, frozen=frozen), report._replace(metrics=metrics)

    def rounds(learner: Learner, world: World, streams: Streams, round_: Array, count: Array):
        shapes = jax.eval_shape(one, learner, world, streams, round_)[2]
        blank = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)

        def goes_on(carry: Any) -> Array:
            i, _, world, _ = carry
            return (i < count) & ~jnp.all(world.frozen)

        def body(carry: Any) -> Any:
            i, learner, world, reports = carry
            learner, world, report = one(learner, world, streams, round_ + i)
            reports = jax.tree.map(lambda rows, row: rows.at[i].set(row), reports, report)
            return i + 1, learner, world, reports

        carry = (jnp.int32(0), learner, world, blank)
        _, learner, world, reports = jax.lax.while_loop(goes_on, body, carry)
        return learner, world, jax.tree.map(lambda rows: jnp.moveaxis(rows, 0, 1), reports)

    begin, act = _make_evaluation(agent, env, spec, steps)
    first, begin, act = each(start, 1), each(begin, 1), each(act, 3)
    return DeviceRounds(first, rounds, begin, act, env.observe)


def _each(config: LoopConfig, function: Callable, count: int) -> Callable:
    """A function `(*arrays [P, ...], *others) -> arrays [P, ...]`, whose first `count` arguments
    are arrays of members. It calls `function` on all members at once or, where they take turns, on
    one at a time, so that a member's numbers do not depend on the others.
    """

    def run(*given: Any) -> Any:
        if not loop.take_turns(config):
            return function(*given)
        members, others = given[:count], given[count:]

        def one(member: tuple) -> Any:
            alone = jax.tree.map(lambda x: x[None], member)
            return jax.tree.map(lambda x: x[0], function(*alone, *others))

        return loop.over_members(one, turns=True)(members)

    return run


def _make_collect(agent: Agent, env: Many, spec: Spec, config: LoopConfig) -> Callable:
    """`(params, world, streams, round) -> (world, transitions [P, n], Report without metrics)`; a
    member that meets a NaN or an infinity is frozen, in its state before the round.
    """
    acting, count = make_acting(agent, spec, config), config.num_envs
    explore, draw = jax.vmap(acting.explore), jax.vmap(acting.draw, in_axes=(0, None))
    in_units = jax.vmap(jax.vmap(partial(to_environment, spec)))

    def collect(params: Params, world: World, streams: Streams, round_: Array):
        start = round_ * config.update_every
        keys, uniform = (jnp.moveaxis(x, 1, 0) for x in draw(streams.seeds, round_))

        def step(carry: Any, x: tuple[Array, Array, Array]) -> Any:
            (state, obs, returns), (t, keys, uniform) = carry, x
            random = start + t * count < config.start_steps
            action = jnp.where(random, uniform, explore(params, obs, keys))
            state, out = env.advance(state, in_units(action), streams.envs)
            returns, ended = returns + out.reward, out.terminated | out.truncated
            discount = 1 - out.terminated.astype(jnp.float32)
            row = Transition(obs, action, out.reward, discount, out.next_obs)
            return (state, out.obs, jnp.where(ended, 0, returns)), (row, ended, returns)

        before = (world.env, world.obs, world.returns)
        after, rows = jax.lax.scan(step, before, (jnp.arange(len(uniform)), keys, uniform))
        transitions, ended, returns = jax.tree.map(_in_order_of_time, rows)
        fault, row = _fault(transitions)
        stays = world.frozen | (fault > 0)
        report = Report(
            {}, ended & ~stays[:, None], returns, jnp.where(world.frozen, 0, fault), row
        )
        return World(*_kept(stays, before, after), frozen=stays), transitions, report

    return collect


def _in_order_of_time(leaf: Array) -> Array:
    """`[T, P, E, ...]` to `[P, T * E, ...]`."""
    steps, members, count = leaf.shape[:3]
    return jnp.moveaxis(leaf, 0, 1).reshape(members, steps * count, *leaf.shape[3:])


def _kept(stays: Array, old: Any, new: Any) -> Any:
    """The `old` arrays for members that stay, the `new` ones for the others."""
    each = jax.vmap(jnp.where)
    return jax.tree.map(lambda a, b: each(stays, a, b), old, new)


def _fault(transitions: Transition) -> tuple[Array, Array]:
    """`Report.fault` and `Report.row` of transitions `[P, n]`."""
    members, n = transitions.reward.shape
    fault, row = jnp.zeros((2, members), jnp.int32)
    for number, value in (
        (1, transitions.obs),  # also those of resets
        (2, transitions.reward),
        (1, transitions.next_obs),
    ):
        bad = ~jnp.isfinite(value.reshape(members, n, -1)).all(axis=2)
        found = bad.any(axis=1)  # the last one found counts: the host's order, reversed
        fault = jnp.where(found, number, fault)
        row = jnp.where(found, jnp.argmax(bad, axis=1).astype(jnp.int32), row)
    return fault, row


def _make_learn(agent: Agent, config: LoopConfig) -> Callable:
    """`(learner, transitions [P, n], frozen [P], streams, round) -> (learner, metrics [P],
    frozen [P])`.
    """
    updates, first, turns = config.update_every, config.first_round, loop.take_turns(config)

    def learn(
        learner: Learner, transitions: Transition, frozen: Array, streams: Streams, round_: Array
    ):
        keys = jax.vmap(jax.random.key)(streams.seeds)
        replay = jax.vmap(replays.add)(learner.replay, transitions, frozen)
        seen = loop.observe(agent, learner.agent, transitions, frozen, turns)
        batches = loop.draw(config, updates, replay, keys, round_)
        done = jnp.maximum(round_ - first, 0) * updates

        def update(states: Any) -> tuple[Any, Metrics]:
            def one(member: tuple[Any, Transition, Array, Key]) -> tuple[Any, Metrics]:
                return loop.learn_one(agent, updates, *member, done, turns)

            return loop.over_members(one, turns)((states, batches, frozen, keys))

        def skip(states: Any) -> tuple[Any, Metrics]:
            shapes = jax.eval_shape(update, states)[1]
            return states, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

        begun = round_ >= first
        states, metrics = jax.lax.cond(begun, update, skip, seen)
        for name in VITAL:  # another order is another program, which no cache holds
            if name in metrics:
                frozen = frozen | (begun & ~jnp.isfinite(metrics[name]))
        return Learner(states, replay), metrics, frozen

    return learn


def _make_evaluation(agent: Agent, env: Many, spec: Spec, steps: int) -> tuple[Callable, Callable]:
    """`begin` and `act` of a DeviceRounds."""
    act = jax.vmap(jax.vmap(agent.act, in_axes=(None, 0)))
    in_units = jax.vmap(jax.vmap(partial(to_environment, spec)))

    def begin(keys: Key) -> Episodes:
        state, none = env.start(keys), jnp.zeros(keys.shape, bool)
        return Episodes(state, env.observe(state), ~none, none, jnp.zeros(keys.shape, jnp.int32))

    def several(params: Params, episodes: Episodes, keys: Key, count: Array):
        def blank(x: Array) -> Array:
            return jnp.zeros((steps, *x.shape), jnp.float32)

        def goes_on(carry: Any) -> Array:
            i, now, _ = carry
            return (i < count) & jnp.any(now.running)

        def body(carry: Any) -> Any:
            i, now, rows = carry
            action = act(params, now.obs)
            state, out = env.advance(now.env, in_units(action), keys)
            row = jnp.where(now.running, out.reward, 0), now.obs, action
            rows = jax.tree.map(lambda rows, row: rows.at[i].set(row), rows, row)
            terminated = now.terminated | (now.running & out.terminated)
            running = now.running & ~(out.terminated | out.truncated)
            now = Episodes(state, out.obs, running, terminated, now.lengths + now.running)
            return i + 1, now, rows

        action = jax.eval_shape(act, params, episodes.obs)
        rows = blank(episodes.lengths), blank(episodes.obs), blank(action)
        _, episodes, rows = jax.lax.while_loop(goes_on, body, (jnp.int32(0), episodes, rows))
        return episodes, *(jnp.moveaxis(x, 0, 1) for x in rows)

    return begin, several
