"""What a session is to do, and what it tells of as it goes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from preqn_jax import envs
from preqn_jax.agents import Agent
from preqn_jax.diagnostics import Finding
from preqn_jax.training.config import LoopConfig, RunConfig
from preqn_jax.training.folder import Place
from preqn_jax.training.rollout import Evaluation
from preqn_jax.training.trained import Trained
from preqn_jax.types import Settings, Spec


class Progress(NamedTuple):
    """What a round leaves behind, or on the device a call of several; `trained` is gone with the
    next one: use it before going on.
    """

    step: int  # environment steps of each member so far
    # `[M]` each, means over the updates of the last round; {} before any
    metrics: dict[str, np.ndarray]
    episodes: list[tuple[int, float]]  # (index of the member, return) of every episode that ended
    # One a member, where this round ended with one; None of a member that diverged.
    evaluations: list[Evaluation | None]
    # (index of the member, failure that is building up), where it is news
    findings: list[tuple[int, Finding]]
    trained: Trained


class Plan(NamedTuple):
    """What a run is to be: its members are the seeds, or of a sweep (seed, settings)."""

    make_agent: Callable[[Spec], Agent]
    env: envs.Source
    run: RunConfig
    loop: LoopConfig  # with the seed of every member
    discount: float | np.ndarray  # gamma, or `[M]`
    described: dict[str, Any]  # for config.json
    settings: Settings = {}  # noqa: RUF012 (`[M]` each, what an agent of `agents.swept` takes)
    places: tuple[Place, ...] | None = None  # where members are kept; in `run.logdir` if None
    resting: tuple[int, ...] = ()  # members that take no part, by index
    ended: Callable[[Any], None] = lambda session: None  # called where it reached its end

    def homes(self) -> tuple[Place, ...]:
        """Where members are kept."""
        if self.places is not None:
            return self.places
        members = range(len(self.loop.seeds))
        return (Place(self.run.logdir, self.described, members),) if self.run.logdir else ()

    def name(self, member: int) -> str:
        """What to call a member, by index."""
        named = [f"{name}={values[member]:g}" for name, values in self.settings.items()]
        return ", ".join([*named, f"seed {self.loop.seeds[member]}"])
