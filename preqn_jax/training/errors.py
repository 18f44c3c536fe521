"""The exceptions that end a run early, and the flag by which it is asked to stop."""

from collections.abc import Callable

from preqn_jax.diagnostics import Finding
from preqn_jax.options import UserError


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
    """A diagnosis says that Q is about to diverge."""

    def __init__(self, finding: Finding, seed: int, step: int):
        super().__init__(
            f"Q of seed {seed} diverges at step {step}, by {finding.mode}: {finding.evidence}; "
            f"{finding.remedy}"
        )
        self.finding, self.seed, self.step = finding, seed, step


class Interrupted(Exception):
    """An evaluation was given up, because its run is to stop."""


class Flag:
    """Is set once a run is to stop, also by a signal handler. An object that holds the flag does
    not hold the run, so the run's memory can be freed.
    """

    up = False

    def __call__(self) -> bool:
        return self.up


Asked = Callable[[], bool]
"""Returns whether a run is to stop; polled during an evaluation."""


def never() -> bool:
    """The `Asked` of a run that is never asked to stop."""
    return False
