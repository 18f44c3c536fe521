"""Training on the device alone: many rounds of collection and updates in one compiled call, for
environments that are pure functions.

Between two calls the host records what happened, evaluates and saves. A call ends wherever one of
these is due, and is short enough for a signal to be answered within seconds. How many rounds a call
does changes no number.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import envs
from preqn_jax.agents import Agent
from preqn_jax.envs import codec, derive_seed
from preqn_jax.envs.functional import FunctionalEnv, many
from preqn_jax.options import UserError
from preqn_jax.training import collect, loop
from preqn_jax.training.config import EVAL_ENV, TRAIN_ENV, LoopConfig, RunConfig
from preqn_jax.training.device_rounds import (
    QUANTITIES,
    DeviceRounds,
    Streams,
    World,
    make_rounds,
)
from preqn_jax.training.errors import Asked, Diverged, Interrupted, never
from preqn_jax.training.local import Recipe
from preqn_jax.training.loop import Counters, Learner, Round
from preqn_jax.training.rollout import Evaluation
from preqn_jax.types import Key, Params

_MOST_ROUNDS = 1000  # rounds in a call, at most
_MOST_ROWS = 2**22  # transitions whose returns a call reports, at most
_SECONDS = 1.0  # seconds that a call should take
_CHUNK = 1000  # steps of a call of an evaluation, at most


def wanted(run: RunConfig, env: envs.Source) -> bool:
    """Whether a run's environments are stepped on the device. Raises UserError where that is asked
    for but impossible, and as `envs.make` does.
    """
    on = run.on_device
    if on is None:
        on = isinstance(env, str) and env.startswith(envs.FOR_DEVICES)
    if on and envs.pure(env) is None:
        raise UserError(
            f"environment {envs.name(env)!r} cannot be stepped on the device: `on_device=True` is "
            f"for functional ones; leave it out, or use one of {', '.join(envs.FOR_DEVICES)}"
        )
    if on and run.workers:
        raise UserError(
            f"workers is {run.workers}, but environments on the device need no worker processes: "
            "leave it out, or say `on_device=False`"
        )
    return on


@functools.lru_cache(maxsize=16)  # as `loop.make_learn`
def _compiled(
    agent: Agent,
    env: FunctionalEnv,
    name: str,
    config: LoopConfig,
    sizes: tuple[int, int],
    sharding: jax.sharding.Sharding,
) -> DeviceRounds:
    """The compiled functions of a run. Every device works on its share of the members, and waits
    for no other device.
    """
    worlds = many(env, name, axes=2)
    program = make_rounds(agent, worlds, env.spec, config, *sizes)

    def on_devices(function: Callable, counts: int, arguments: int, **options: Any) -> Any:
        shares = loop.by_shares(function, sharding, arguments, counts)
        return jax.jit(shares, out_shardings=sharding, **options)

    return DeviceRounds(
        on_devices(program.start, 0, 1),
        on_devices(program.rounds, 2, 3, donate_argnums=(0, 1)),
        on_devices(program.begin, 0, 1),
        on_devices(program.act, 1, 3, donate_argnums=1),
        jax.jit(program.look, out_shardings=sharding),
    )


class Resident:
    """The environments of all members, on the devices where the members learn. It takes the place
    of a `collect.Collector`.
    """

    def __init__(self, recipe: Recipe, stops: Sequence[int] = (), asked: Asked = never):
        """`stops`: intervals in steps, at whose multiples the host has something to do, so that
        calls end there. An evaluation is given up once the run is `asked` to stop.

        Raises EnvError where the functional environment raises, or returns something wrong, as it
        is reset; the first call of `rounds` does so for its steps.
        """
        env, config, name = envs.pure(recipe.env), recipe.config, envs.name(recipe.env)
        assert env is not None
        self.config, self._recipe, self._stops = config, recipe, (*stops, config.num_steps)
        self._said: set[str] = set()
        self._asked = asked
        self._sharding = loop.members_sharding(config)
        self._seeds = loop.padded(config, np.array(config.seeds, np.uint32))
        most = (
            min(self._stops) // config.update_every,
            _MOST_ROWS // (config.update_every * len(self._seeds)),
        )
        self._most = max(1, min(_MOST_ROUNDS, *most))
        limit = min(env.time_limit or recipe.eval_max_steps, recipe.eval_max_steps)
        self._chunk = min(limit, _CHUNK)
        agent = recipe.make_agent(env.spec)
        sizes = self._most, self._chunk
        self._run = _compiled(agent, env, name, config, sizes, self._sharding)
        self._env_seeds = self._derived(config.num_envs, TRAIN_ENV)
        self._streams = self._put(Streams(jnp.asarray(self._seeds), _keys(self._env_seeds)))
        self._world = self._run.start(self._streams.envs)
        self._pace = _Pace(config, self._stops, self._most)

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, self._sharding)

    def _derived(self, count: int, *words: int) -> np.ndarray:
        """The seeds `[P, count]` of environments, derived as in `rollout`."""
        each = [[derive_seed(int(s), *words, e) for e in range(count)] for s in self._seeds]
        return np.array(each, np.uint32)

    def rounds(self, learner: Learner, counters: Counters) -> Iterator[Round]:
        """As `loop.rounds`, but `Round.learner` is that after the last round of the call. Only this
        last round is `settled`: at the others the learner must not be saved or evaluated.
        """
        config = self.config
        size, self._world = len(config.seeds), self._frozen(counters.frozen)
        while counters.round * config.update_every < config.num_steps:
            count, began = self._pace.count(counters.round), time.monotonic()
            at = jnp.int32(counters.round), jnp.int32(count)
            learner, self._world, report = self._run.rounds(
                learner, self._world, self._streams, *at
            )
            report = jax.tree.map(lambda leaf: np.asarray(leaf)[:size], report)
            self._pace.took(count, time.monotonic() - began)
            for k in range(count):
                row = jax.tree.map(lambda leaf, k=k: leaf[:, k], report)
                done = self._round(learner, row, counters)
                counters, everyone = done.counters, len(done.counters.frozen) == size
                yield done._replace(settled=everyone or k == count - 1)
                if everyone:
                    raise done.diverged[-1][1]

    def _frozen(self, frozen: Sequence[int]) -> World:
        """The world in which the `frozen` members, and the rows that only fill up a device's share,
        are frozen.
        """
        rows = np.arange(len(self._seeds))
        stays = np.isin(rows, frozen) | (rows >= len(self.config.seeds))
        return replace(self._world, frozen=self._put(jnp.asarray(stays)))

    def _round(self, learner: Learner, report: Any, counters: Counters) -> Round:
        """The `Round` that the `Report` of one round describes."""
        config, n = self.config, self.config.update_every
        start, updates = counters.round * n, 0
        measured: dict[str, np.ndarray] = {}
        if start + n >= config.update_after:
            measured, updates = report.metrics, n
        diverged = []
        for i in np.flatnonzero(report.fault):
            at = start + (int(report.row[i]) // config.num_envs + 1) * config.num_envs
            what = QUANTITIES[report.fault[i] - 1]
            diverged.append((int(i), Diverged(what, config.seeds[i], at)))
        diverged, frozen = loop.froze(diverged, counters.frozen, measured, config, start + n)
        ended = np.argwhere(report.ended)  # in the order of members
        episodes = [(int(i), float(report.returns[i, t])) for i, t in ended]
        now = Counters(counters.round + 1, counters.updates + updates, frozen)
        return Round(start + n, learner, now, measured, episodes, diverged)

    def evaluate(
        self, params: Params, step: int, frozen: Sequence[int] = ()
    ) -> list[Evaluation | None]:
        """As `Collector.evaluate`, all members at once; `params [P]`."""
        keys = self._put(_keys(self._derived(self._recipe.eval_episodes, EVAL_ENV, step)))
        episodes, chunks, left = self._run.begin(keys), [], self._recipe.eval_max_steps
        stays = self._frozen(frozen).frozen
        episodes = replace(episodes, running=episodes.running & ~stays[:, None])
        while left > 0 and bool(jnp.any(episodes.running)):
            if self._asked():
                raise Interrupted
            count = jnp.int32(min(left, self._chunk))
            episodes, *rows = self._run.act(params, episodes, keys, count)
            chunks.append(jax.device_get(rows))
            left -= self._chunk
        now = jax.device_get(episodes)
        rows = [np.concatenate(leaves, axis=1) for leaves in zip(*chunks, strict=True)]
        members = range(len(self.config.seeds))
        found = [None if i in frozen else _evaluation(i, now, *rows) for i in members]
        collect.warn(found, step, self._recipe.eval_max_steps, self._said)
        return found

    def save(self) -> list[Any]:
        """The state of every member's environments, as plain JSON."""
        world = jax.device_get(self._world)
        leaves = jax.tree.leaves(world.env)
        return [
            {
                "env": {
                    "leaves": codec.encode([leaf[i] for leaf in leaves]),
                    "seeds": seeds,
                    "seen": codec.encode(world.obs[i]),
                },
                "returns": codec.encode(world.returns[i]),
            }
            for i, seeds in enumerate(self._env_seeds[: len(self.config.seeds)].tolist())
        ]

    def load(self, state: list[Any]) -> None:
        """Go on from what `save` returned, bit for bit."""
        each = [
            [*codec.decode(one["env"]["leaves"]), codec.decode(one["returns"])] for one in state
        ]
        stacked = [loop.padded(self.config, np.stack(leaves)) for leaves in zip(*each, strict=True)]
        env = jax.tree.unflatten(jax.tree.structure(self._world.env), stacked[:-1])
        env, returns = self._put((env, stacked[-1]))
        seen = [one["env"].get("seen") for one in state]
        if None in seen:  # saved by an earlier version
            obs = self._run.look(env)
        else:  # another program, which looked again, might round differently
            obs = self._put(loop.padded(self.config, np.stack([*map(codec.decode, seen)])))
        self._world = World(env, obs, returns, self._world.frozen)

    def close(self) -> None:
        pass


def _keys(seeds: np.ndarray) -> Key:
    return jax.vmap(jax.vmap(jax.random.key))(jnp.asarray(seeds))


def _evaluation(
    i: int, now: Any, rewards: np.ndarray, obs: np.ndarray, action: np.ndarray
) -> Evaluation:
    """The Evaluation of one member, from the arrays of all."""
    lengths = now.lengths[i]
    rows = slice(0, lengths.max())
    seen = rewards[i, rows], obs[i, rows], action[i, rows]
    return Evaluation(*seen, lengths, now.terminated[i], now.running[i]).marked()


class _Pace:
    """Decides how many rounds go into a call."""

    def __init__(self, config: LoopConfig, stops: Sequence[int], most: int):
        self._config, self._stops, self._most = config, stops, most
        self._allowed, self._calls = 1, 0  # how long a round takes is not known yet

    def count(self, round_: int) -> int:
        """The number of rounds in a call that begins with this one."""
        n = self._config.update_every
        due = [every // n - round_ % (every // n) for every in self._stops]
        first = self._config.first_round
        if round_ < first:
            due.append(first - round_)
        elif round_ == first:  # updates begin: a round takes longer now
            self._allowed, self._calls = 1, 0
        return min(self._allowed, self._most, *due)

    def took(self, count: int, seconds: float) -> None:
        """Adapts to the time of a call, except the first, which may have compiled."""
        self._calls += 1
        if self._calls > 1:
            most = int(_SECONDS * count / max(seconds, 1e-9))
            self._allowed = max(1, min(most, 4 * self._allowed))
