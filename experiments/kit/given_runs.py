"""The run directories that a command takes as words, and the options that such commands share."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preqn_jax.options import UserError, option
from preqn_jax.training import directory


def parse_one(argv: Sequence[str], command: str) -> Path:
    """The only run directory that is given. Raises UserError if there is none, or several."""
    if len(argv) != 2:
        raise UserError(f"give one run directory, as in: python -m experiments.{command} runs/x")
    return Path(argv[1])


def parse_several(argv: Sequence[str], example: str) -> list[Path]:
    """All run directories that are given. Where there are several, as of runs/*, files and folders
    that are none are left out, with a note. Raises UserError if there is none, and then shows the
    `example` of a command line.
    """
    if len(argv) < 2:
        raise UserError(
            f"no run given; name run directories, as in: python -m experiments.{example}"
        )
    given = [Path(run) for run in argv[1:]]
    others = [one for one in given if one.exists() and not (one / directory.CONFIG).is_file()]
    if not others or len(others) == len(given):
        return given
    names = ", ".join(map(str, others))
    print(f"no run directories, and left out: {names}", file=sys.stderr)
    return [one for one in given if one not in others]


def trust() -> Any:
    """The option `trust`, of commands that make the run's environment. It is a function, as a base
    class would put the option before all others in --help.
    """
    return option(
        False, 'import, and thereby run, modules named by the run, as in --env="module:Env-v0"'
    )


def seed() -> Any:
    """The option `seed`, of commands that use the networks of one of the run's seeds."""
    return option(
        None, "the seed whose networks are used (the run's first)", at_least=0, below=2**32
    )
