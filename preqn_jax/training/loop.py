"""The training loop as a generator of rounds.

A round is: act for `update_every` steps with a frozen policy, add what happened to the replay, and take as many gradient steps in
one compiled call (Appendix B's "update frequency"). Every random number comes from a key folded from (seed, purpose,
round), so a run can go on from any round with nothing but the counters. All arrays lead with a seed axis `[S]`: several
seeds learn in one program.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import replay as replays
from preqn_jax.agents import Agent
from preqn_jax.envs import VectorEnv, derive_seed
from preqn_jax.options import UserError, check, option
from preqn_jax.types import Array, Key, Metrics, Params, Transition

_ACT, _SAMPLE, _UPDATE = range(3)  # purposes of keys
TRAIN_ENV, EVAL_ENV = range(2)  # purposes of environment seeds


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How a run is conducted; steps are environment steps of one seed."""

    seeds: tuple[int, ...] = option((0,), "seeds, trained side by side in one program", at_least=0, below=2**32)
    num_steps: int = option(1_000_000, "environment steps of each seed", at_least=1)
    num_envs: int = option(1, "environments of each seed, stepped as one vector", at_least=1)
    start_steps: int = option(5000, "steps at the beginning that act uniformly at random", at_least=0)
    update_after: int = option(5000, "steps before the first update", at_least=1)
    update_every: int = option(50, "steps between occasions of updating, and updates at each", at_least=1)
    batch_size: int = option(256, "B, transitions in a minibatch", at_least=1)
    replay_capacity: int = option(1_000_000, "transitions the replay buffer D holds", at_least=1)


def validate(config: LoopConfig) -> None:
    """Raises UserError where numbers are out of range or do not fit one another."""
    check(config)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds are {list(config.seeds)}, but each seed trains once: give different numbers, as in --seeds=0,1,2")
    if config.num_steps < config.update_after:
        raise UserError(
            f"num_steps is {config.num_steps}, below update_after ({config.update_after}): nothing would be learned; "
            "raise num_steps or lower update_after"
        )
    for name in ("num_steps", "update_after"):
        if getattr(config, name) % config.update_every:
            raise UserError(
                f"{name} is {getattr(config, name)}, but it must be a multiple of update_every ({config.update_every})"
            )
    if config.update_every % config.num_envs:
        raise UserError(f"update_every is {config.update_every}, but it must be a multiple of num_envs ({config.num_envs})")
    if config.replay_capacity < config.update_every:
        raise UserError(f"replay_capacity is {config.replay_capacity}, below update_every ({config.update_every})")


class Diverged(UserError):
    """A NaN or an infinity, in what the environment returned or in what was learned."""

    def __init__(self, quantity: str, seed: int, step: int):
        super().__init__(f"{quantity} is not finite at step {step}, seed {seed}")
        self.quantity, self.seed, self.step = quantity, seed, step


@flax.struct.dataclass
class Learner:
    """What lives on the device; every leaf leads with `[S]`."""

    agent: Any
    replay: replays.Replay


@dataclasses.dataclass
class Host:
    """What lives on the host: where acting goes on, and the counters."""

    round: int  # rounds done
    updates: int  # gradient steps done
    obs: np.ndarray  # `[S*E, obs]`
    returns: np.ndarray  # `[S*E]`, rewards of the unfinished episodes so far


class Round(NamedTuple):
    """What one round leaves behind. `learner` is donated to the next: use it before going on."""

    step: int  # environment steps of each seed so far
    learner: Learner
    host: Host
    metrics: dict[str, np.ndarray]  # `[S]` each, means over the round's updates; empty before the first
    episodes: list[tuple[int, float]]  # (index of the seed, return) of every episode that ended


def keys(seeds: tuple[int, ...]) -> Key:
    """`[S]` keys."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def init(agent: Agent, env: VectorEnv, config: LoopConfig) -> tuple[Learner, Host]:
    """A learner with empty replay, and the environments' first observations."""
    validate(config)
    capacity = min(config.replay_capacity, config.num_steps)  # rows that could never fill are not allocated
    states = jax.jit(jax.vmap(agent.init))(keys(config.seeds))
    buffer = replays.init(env.spec, capacity)
    buffers = jax.tree.map(lambda leaf: jnp.zeros((len(config.seeds), *leaf.shape), leaf.dtype), buffer)
    obs = env.reset([derive_seed(seed, TRAIN_ENV, e) for seed in config.seeds for e in range(config.num_envs)])
    return Learner(states, buffers), Host(0, 0, obs, np.zeros(env.num_envs))


def rounds(agent: Agent, env: VectorEnv, config: LoopConfig, learner: Learner, host: Host) -> Iterator[Round]:
    """Train until `num_steps`, yielding after every round. `env` holds S*E environments, a seed's E side by side.

    Raises:
      Diverged: naming the quantity, the seed and the step; the learner of the round before is gone by then.
    """
    act, learn = make_act(agent, config), make_learn(agent, config)
    while host.round * config.update_every < config.num_steps:
        transitions, episodes = _collect(act, env, config, learner.agent.actor, host)
        step = (host.round + 1) * config.update_every
        updates = config.update_every if step >= config.update_after else 0
        learner, metrics = learn(learner, transitions, jnp.uint32(host.round), jnp.int32(host.updates), updates)
        host.round, host.updates = host.round + 1, host.updates + updates
        measured = {name: np.asarray(value) for name, value in metrics.items()}
        _check_finite(measured, config, step)
        yield Round(step, learner, host, measured, episodes)


Act = Callable[[Params, Any, Any, Any], Array]
Learn = Callable[[Learner, Transition, Array, Array, int], tuple[Learner, Metrics]]


def make_act(agent: Agent, config: LoopConfig) -> Act:
    """`(actor params [S], obs [S, E, obs], round, t) -> actions [S, E, act]`: the exploring policy, compiled.

    `t` is the index of the vector step inside its round; the first `start_steps` act uniformly at random.
    """

    @jax.jit
    def act(actor: Params, obs: Array, round_: Array, t: Array) -> Array:
        step = round_.astype(jnp.int32) * config.update_every + t.astype(jnp.int32) * config.num_envs

        def one_seed(actor: Params, obs: Array, key: Key) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, _ACT), round_), t)
            explore_key, uniform_key = jax.random.split(key)
            chosen = jax.vmap(agent.explore, in_axes=(None, 0, 0))(actor, obs, jax.random.split(explore_key, obs.shape[0]))
            uniform = jax.random.uniform(uniform_key, chosen.shape, minval=-1, maxval=1)
            return jnp.where(step < config.start_steps, uniform, chosen)

        return jax.vmap(one_seed)(actor, obs, keys(config.seeds))

    return act


def make_learn(agent: Agent, config: LoopConfig) -> Learn:
    """`(learner, transitions [S, n], round, updates done, updates to do) -> (learner, metrics [S])`: one compiled call.

    The learner is donated. A scan over updates holds a `vmap` over seeds, in this order, so that the update counter is one
    number for all seeds and a delayed policy update is really skipped.
    """

    @partial(jax.jit, donate_argnums=0, static_argnums=4)
    def learn(learner: Learner, transitions: Transition, round_: Array, done: Array, updates: int):
        buffers = jax.vmap(replays.add)(learner.replay, transitions)
        if not updates:
            return Learner(learner.agent, buffers), {}

        def draw(buffer: replays.Replay, key: Key) -> Transition:
            key = jax.random.fold_in(jax.random.fold_in(key, _SAMPLE), round_)
            return replays.sample(buffer, key, (updates, config.batch_size))

        def update(state: Any, x: tuple[Transition, Array]):
            batch, i = x
            fold = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, _UPDATE), done + i))
            return jax.vmap(agent.update, in_axes=(0, 0, 0, None))(state, batch, fold(keys(config.seeds)), done + i)

        batches = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), jax.vmap(draw)(buffers, keys(config.seeds)))
        state, metrics = jax.lax.scan(update, learner.agent, (batches, jnp.arange(updates)))
        # A failed solve has no residual: its metrics are means over the others, its failure is in "solve/finite".
        means = {k: (jnp.nanmean if k.startswith("solve/") else jnp.mean)(m, axis=0) for k, m in metrics.items()}
        means["actor/norm"] = jax.vmap(_norm)(state.actor)
        means["critic/norm"] = jax.vmap(_norm)(state.critic)
        return Learner(state, buffers), means

    return learn


def _norm(params: Params) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)))


def _collect(
    act: Act, env: VectorEnv, config: LoopConfig, actor: Params, host: Host
) -> tuple[Transition, list[tuple[int, float]]]:
    """Step the environments through one round with a frozen policy; transitions `[S, n]`, a seed's in order of time."""
    seeds, envs = len(config.seeds), config.num_envs
    steps, episodes = [], []
    round_ = jnp.uint32(host.round)
    for t in range(config.update_every // envs):
        obs = host.obs
        action = np.asarray(act(actor, obs.reshape(seeds, envs, -1), round_, np.uint32(t))).reshape(seeds * envs, -1)
        out = env.step(action)
        _check_env(out, config, host.round * config.update_every + (t + 1) * envs)
        steps.append(Transition(obs, action, out.reward, 1 - out.terminated.astype(np.float32), out.next_obs))
        host.obs, host.returns = out.obs, host.returns + out.reward
        for i in np.flatnonzero(out.terminated | out.truncated):
            episodes.append((int(i) // envs, float(host.returns[i])))
            host.returns[i] = 0

    def stack(*rows: np.ndarray) -> np.ndarray:
        stacked = np.stack(rows)  # `[t, S*E, ...]`
        stacked = stacked.reshape(len(rows), seeds, envs, *stacked.shape[2:]).swapaxes(0, 1)
        return stacked.reshape(seeds, len(rows) * envs, *stacked.shape[3:])

    return jax.tree.map(stack, *steps), episodes


def _check_env(out: Any, config: LoopConfig, step: int) -> None:
    for quantity, value in (("the environment's observation", out.next_obs), ("the environment's reward", out.reward)):
        bad = ~np.isfinite(value).reshape(value.shape[0], -1).all(axis=1)
        if bad.any():
            raise Diverged(quantity, config.seeds[int(np.argmax(bad)) // config.num_envs], step)


def _check_finite(metrics: dict[str, np.ndarray], config: LoopConfig, step: int) -> None:
    for name in ("critic/q_mean", "critic/td_abs", "critic/norm", "actor/norm"):
        bad = ~np.isfinite(metrics.get(name, np.zeros(1)))
        if bad.any():
            raise Diverged(name, config.seeds[int(np.argmax(bad))], step)
