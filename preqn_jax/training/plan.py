"""`Plan`, what a session is to do, and `Progress`, what it yields as it goes."""

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
    """What a session yields after a round or, on the device, after a call of several rounds.
    `trained` is gone with the next round: use it before going on.
    """

    step: int  # environment steps of each member so far
    # `[M]` each, means over the updates of the last round; {} before any
    metrics: dict[str, np.ndarray]
    episodes: list[tuple[int, float]]  # (index of the member, return) of every episode that ended
    # One for each member, None for one that diverged; empty unless an evaluation was due.
    evaluations: list[Evaluation | None]
    # (index of the member, failure that is building up), each when it is new
    findings: list[tuple[int, Finding]]
    trained: Trained


class Plan(NamedTuple):
    """All that a session needs to know of a run. Its members are its seeds or, in a sweep, pairs
    (seed, settings).
    """

    make_agent: Callable[[Spec], Agent]
    env: envs.Source
    run: RunConfig
    loop: LoopConfig  # with the seed of every member
    discount: float | np.ndarray  # gamma, or `[M]`
    described: dict[str, Any]  # for config.json
    settings: Settings = {}  # noqa: RUF012 (`[M]` each, what an agent of `agents.swept` takes)
    places: tuple[Place, ...] | None = None  # where members are kept; in `run.logdir` if None
    resting: tuple[int, ...] = ()  # members that take no part, by index
    ended: Callable[[Any], None] = lambda session: None  # called with a finished session

    def homes(self) -> tuple[Place, ...]:
        """The run directories of all members; none for a run that keeps nothing."""
        if self.places is not None:
            return self.places
        members = range(len(self.loop.seeds))
        return (Place(self.run.logdir, self.described, members),) if self.run.logdir else ()

    def name(self, member: int) -> str:
        """The name of a member, by index, for messages."""
        named = [f"{name}={values[member]:g}" for name, values in self.settings.items()]
        return ", ".join([*named, f"seed {self.loop.seeds[member]}"])
