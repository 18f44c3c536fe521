"""The configuration of the loop, what may stop it, and the numbers that keep its random streams
apart.
"""

import dataclasses

from preqn_jax.diagnostics import Finding
from preqn_jax.options import UserError, check, option

ACT, SAMPLE, UPDATE, LOOK = range(4)  # purposes of keys
TRAIN_ENV, EVAL_ENV = range(2)  # purposes of environment seeds


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How a run is conducted; steps are environment steps of one seed."""

    seeds: tuple[int, ...] = option(
        (0,), "seeds, trained side by side in one program", at_least=0, below=2**32
    )
    num_steps: int = option(1_000_000, "environment steps of each seed", at_least=1)
    num_envs: int = option(1, "environments of each seed, stepped as one vector", at_least=1)
    start_steps: int = option(
        5000, "steps at the beginning that act uniformly at random", at_least=0
    )
    update_after: int = option(5000, "steps before the first update", at_least=1)
    update_every: int = option(
        50, "steps between occasions of updating, and updates at each", at_least=1
    )
    batch_size: int = option(256, "B, transitions in a minibatch", at_least=1)
    replay_capacity: int = option(1_000_000, "transitions the replay buffer D holds", at_least=1)


def validate(config: LoopConfig) -> None:
    """Raises UserError where numbers are out of range or do not fit one another."""
    check(config)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(
            f"seeds are {list(config.seeds)}, but each seed trains once: give different numbers, "
            f"as in --seeds=0,1,2"
        )
    if config.num_steps < config.update_after:
        raise UserError(
            f"num_steps is {config.num_steps}, below update_after ({config.update_after}): nothing "
            f"would be learned; "
            "raise num_steps or lower update_after"
        )
    for name in ("num_steps", "update_after"):
        if getattr(config, name) % config.update_every:
            raise UserError(
                f"{name} is {getattr(config, name)}, but it must be a multiple of update_every "
                f"({config.update_every})"
            )
    if config.update_every % config.num_envs:
        raise UserError(
            f"update_every is {config.update_every}, but it must be a multiple of num_envs "
            f"({config.num_envs})"
        )
    if config.replay_capacity < config.update_every:
        raise UserError(
            f"replay_capacity is {config.replay_capacity}, below update_every "
            f"({config.update_every})"
        )


class Stopped(UserError):
    """A run cannot go on; what it has saved so far is good."""


class Diverged(Stopped):
    """A NaN or an infinity, in what the environment returned or in what was learned."""

    def __init__(self, quantity: str, seed: int, step: int):
        super().__init__(f"{quantity} is not finite at step {step}, seed {seed}")
        self.quantity, self.seed, self.step = quantity, seed, step

    def __reduce__(self):  # it may come from another process
        return Diverged, (self.quantity, self.seed, self.step)


class Diverging(Stopped):
    """A diagnosis says that Q is on its way."""

    def __init__(self, finding: Finding, seed: int, step: int):
        super().__init__(
            f"Q of seed {seed} diverges at step {step}, by {finding.mode}: {finding.evidence}; "
            f"{finding.remedy}"
        )
        self.finding, self.seed, self.step = finding, seed, step
