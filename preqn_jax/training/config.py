"""The configuration of a run and of its loop, and the numbers that keep random streams apart."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from preqn_jax import envs
from preqn_jax.options import UserError, check, option
from preqn_jax.training import trackers
from preqn_jax.types import Key

ACT, SAMPLE, UPDATE, LOOK = range(4)  # purposes of keys
TRAIN_ENV, EVAL_ENV = range(2)  # purposes of environment seeds


def stream(key: Key, purpose: int, count: Any) -> Key:
    """The key for one purpose in one round (for UPDATE, in one update), from a seed's own `key`."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), count)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How training proceeds; steps are environment steps of one seed."""

    seeds: tuple[int, ...] = option(
        (0,), "seeds, trained side by side in one program", at_least=0, below=2**32
    )
    num_steps: int = option(1_000_000, "environment steps of each seed", at_least=1)
    num_envs: int = option(1, "environments of each seed, stepped together", at_least=1)
    start_steps: int = option(
        5000, "steps at the beginning with uniformly random actions", at_least=0
    )
    update_after: int = option(5000, "steps before the first update", at_least=1)
    update_every: int = option(
        50, "steps between two blocks of updates, and updates in each", at_least=1
    )
    batch_size: int = option(256, "B, transitions in a minibatch", at_least=1)
    replay_capacity: int = option(1_000_000, "transitions the replay buffer D holds", at_least=1)

    @property
    def first_round(self) -> int:
        """The first round with updates, from 0."""
        return self.update_after // self.update_every - 1


def named(seeds: Sequence[int]) -> str:
    """Seeds as text, as "seeds 0, 1"."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def check_multiple(config: Any, names: Sequence[str], of: str, size: int) -> None:
    """Raises UserError for the first of these options that is no multiple of the option `of`."""
    for name in names:
        if getattr(config, name) % size:
            seen = getattr(config, name)
            raise UserError(f"{name} is {seen}, but it must be a multiple of {of} ({size})")


def validate(config: LoopConfig) -> None:
    """Raises UserError where numbers are out of range or do not fit one another."""
    check(config)
    if not config.seeds:
        raise UserError("seeds is empty, but a run needs at least one, as in `seeds=(0,)`")
    if config.num_steps < config.update_after:
        raise UserError(
            f"num_steps is {config.num_steps}, below update_after ({config.update_after}): nothing "
            f"would be learned; "
            "raise num_steps or lower update_after"
        )
    check_multiple(config, ("num_steps", "update_after"), "update_every", config.update_every)
    check_multiple(config, ("update_every",), "num_envs", config.num_envs)
    if config.replay_capacity < config.update_every:
        raise UserError(
            f"replay_capacity is {config.replay_capacity}, below update_every "
            f"({config.update_every})"
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The environment, and what is recorded."""

    env: str = option(
        "HalfCheetah-v5",
        "a Gymnasium environment with Box observations and Box or Discrete actions "
        "(module:Env-v0 for one that the module registers), one on the device (native/pendulum, "
        "brax/halfcheetah, playground/CheetahRun), a finite problem (tabular/chain), or a probe "
        "(probe/delay)",
    )
    logdir: str | None = option(
        None,
        "the run directory; an unfinished run in it is resumed (runs/<algorithm>-<env>, and "
        "runs/sweep-... for a sweep)",
    )
    env_kwargs: Mapping[str, Any] | None = option(
        None,
        'arguments of a Gymnasium environment, as JSON: {"frame_skip": 2} (none)',
    )
    wrappers: tuple[str, ...] = option(
        (),
        "wrappers around a Gymnasium environment, the innermost first, as "
        "gymnasium.wrappers:FlattenObservation or module:Wrapper(name=value,...) (none)",
    )
    eval_every: int = option(5000, "steps between noiseless evaluations", at_least=1)
    eval_episodes: int = option(10, "episodes of an evaluation", at_least=1)
    eval_max_steps: int = option(
        10_000,
        "steps after which an episode of an evaluation is cut off, and counts as truncated",
        at_least=1,
    )
    log_every: int = option(
        1000, "steps between lines of metrics.jsonl, each the mean since the last", at_least=1
    )
    checkpoint_every: int = option(10_000, "steps between checkpoints", at_least=1)
    diagnose_every: int = option(
        0,
        "steps between diagnoses of the critic, which say when it begins to diverge and how; 0 for "
        "none",
        at_least=0,
    )
    stop_on_divergence: bool = option(
        False, "end the run when a diagnosis finds that Q diverges; earlier checkpoints are kept"
    )
    on_device: bool | None = option(
        None,
        "step functional environments on the device too, many rounds in one compiled call "
        "(by default those of native/, brax/ and playground/)",
    )
    workers: int | None = option(
        None,
        "processes that step the environments, each for whole seeds; 0 for none; results do not "
        "depend on their number (one for each core or seed, whichever are fewer; 0 for one seed)",
        at_least=0,
    )
    env_timeout: float = option(
        600.0,
        "seconds after which an environment that has not returned from a call counts as hung; "
        "0 for never",
        at_least=0,
        below=1e9,  # which threads can wait for
    )
    track: str = option("", "a tracker to which records are sent too: wandb or mlflow (none)")

    @property
    def source(self) -> envs.Source:
        """The source that environments are made from."""
        return envs.described(self.env, self.env_kwargs, self.wrappers)


def validate_run(run: RunConfig, config: LoopConfig) -> None:
    """Raises UserError where numbers are out of range or do not fit one another."""
    check(run)
    envs.check(run.env_kwargs, run.wrappers)
    if len(set(config.seeds)) < len(config.seeds):
        raise UserError(
            f"seeds are {list(config.seeds)}, but each seed trains once: give different numbers, "
            "as in `seeds=(0, 1, 2)`"
        )
    validate(config)
    if run.logdir and re.match(r"\w+:/", run.logdir):
        raise UserError(
            f"logdir is {run.logdir!r}, an address, but a run writes to a folder of this machine: "
            "give one, as in `logdir=runs/x`, and copy it there at the end"
        )
    trackers.check(run.track, run.logdir or "")
    if run.stop_on_divergence and not run.diagnose_every:
        raise UserError(
            "stop_on_divergence is on, but nothing looks for divergence: add `diagnose_every=1000`"
        )
    often = ("eval_every", "log_every", "checkpoint_every", "diagnose_every")
    check_multiple(run, often, "update_every", config.update_every)
