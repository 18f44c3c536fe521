"""`plan`, which describes a run, and `train`, which makes it in a notebook.

The command `experiments.train` does not call `train`: it runs a `Session` itself.
"""

import atexit
import concurrent.futures.thread  # noqa: F401, its exit handler runs after those registered later
import dataclasses
import logging
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from preqn_jax import agents, envs
from preqn_jax.agents import Agent
from preqn_jax.agents.resolved import unread
from preqn_jax.options import UserError, choose, inner
from preqn_jax.training import added, directory
from preqn_jax.training.config import LoopConfig, RunConfig, validate_run
from preqn_jax.training.directory import CONFIGS, HINTS
from preqn_jax.training.plan import Plan, Progress
from preqn_jax.training.session import Session
from preqn_jax.training.trained import Trained, check_function
from preqn_jax.types import Spec

_log = logging.getLogger(__name__)

__all__ = ["CONFIGS", "Plan", "Progress", "Session", "plan", "train"]


def plan(
    run: RunConfig,
    config: agents.AgentConfig | agents.Resolved,
    loop_config: LoopConfig,
    env: envs.Source | None = None,
) -> Plan:
    """The plan of a run with these three configs; environments are made from `env` where it is
    given. Raises UserError where the configs make no sense.
    """
    made = agents.resolve(config) if isinstance(config, agents.AgentConfig) else config
    validate_run(run, loop_config)
    usual = agents.AgentConfig()
    for name in sorted(unread(made)):
        if (value := getattr(made.config, name)) != getattr(usual, name):
            words = "`%s=%s` has no effect: %s does not use it with these settings"
            _log.warning(words, name, value, made.config.algorithm)
    described = directory.describe(run, made.config, loop_config)
    make = partial(agents.make, made)
    return Plan(
        make, run.source if env is None else env, run, loop_config, made.config.discount, described
    )


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def _close() -> None:
    """Closes the runs that a script leaves open, which saves their state, while the threads that
    saving needs still run.
    """
    for run in list(_open):
        try:
            run.close()
        except Exception as error:
            _log.error("a run that was left open could not be saved: %s", error)


os.register_at_fork(after_in_child=_open.clear)  # they are the parent's
# This is called before the threads of concurrent.futures, with which orbax writes, end.
getattr(threading, "_register_atexit", atexit.register)(_close)


def train(
    agent: str | Callable[[Spec], Agent] = "preqn",
    env: envs.Source = "HalfCheetah-v5",
    *,
    logdir: str | Path | None = None,
    **options: Any,
) -> Generator[Progress, None, Trained]:
    """Train, yielding after every round; the generator returns what training came to.

    Args:
      agent: the name of an algorithm, or a function that makes an agent of your own parts.
      env: a Gymnasium id, a probe ("probe/delay"), a functional environment, or a function that
        makes a `gymnasium.Env`, with `env_kwargs` where these are given.
      logdir: a run directory, as `experiments.train` keeps one: records, checkpoints, and where an
        interrupted run goes on. Nothing is written without it. Where it holds a finished run of
        some of the seeds, the other seeds are trained first, and join it; rounds until then are of
        these alone.
      options: fields of `RunConfig`, `LoopConfig` and, where `agent` is a name, `AgentConfig`:
        the flags of `experiments.train`. `discount` is needed for any agent whose gamma is not .99.

    Raises:
      UserError: an option that makes no sense, an environment that cannot be made, a run directory
        that holds another run.
      Stopped: the run cannot go on; what it has saved so far is good.
      envs.EnvError: likewise, because an environment raised, or returned what does not fit its
        spaces.

    Example:
      >>> import preqn_jax
      >>> small = {"hidden_sizes": (16, 16), "start_steps": 50, "update_after": 50, "batch_size": 8}
      >>> for progress in preqn_jax.train("preqn", "probe/delay", num_steps=200, **small):
      ...     pass
      >>> progress.step, sorted(progress.metrics)[:2]
      (200, ['actor/norm', 'critic/alignment'])
    """
    run = _train(agent, env, logdir, options)
    _open.add(run)
    return run


def _train(
    agent: str | Callable[[Spec], Agent],
    env: envs.Source,
    logdir: str | Path | None,
    options: dict[str, Any],
) -> Generator[Progress, None, Trained]:
    if not isinstance(agent, str):
        check_function(agent)
    if "algorithm" in options:
        raise UserError(
            f"algorithm is {options['algorithm']!r}, but in Python the algorithm is the first "
            f"argument, `agent`: train({options['algorithm']!r}, ...)"
        )
    home = os.path.expanduser(logdir or "")
    run, agent_config, loop_config = configs(agent, env, home, options)
    env = envs.described(env, run.env_kwargs, run.wrappers)
    if callable(agent):
        validate_run(run, loop_config)
        own = {
            "algorithm": getattr(agent, "__qualname__", "own"),
            "discount": agent_config.discount,
        }
        described = directory.describe(run, own, loop_config)
        planned = Plan(agent, env, run, loop_config, agent_config.discount, described)
    else:
        planned = plan(run, agent_config, loop_config, env)
    for stage in added.stages(planned):
        with envs.staying_here(), Session(stage) as session:
            yield from session.rounds()
    with Session(added.ordered(planned)) as session:
        yield from session.rounds()
        return session.trained()


def _plain(value: Any) -> Any:
    """A number of NumPy's or JAX's as a Python number, which JSON can hold; any other value as it
    is.
    """
    one = isinstance(value, np.generic | np.ndarray | jax.Array) and value.ndim == 0
    return value.item() if one else value


def configs(
    agent: Any, env: envs.Source, logdir: str, options: dict[str, Any]
) -> tuple[RunConfig, agents.AgentConfig, LoopConfig]:
    """The three configs that the arguments of `train` make. Raises UserError for an option that
    none of them has.
    """
    named = {} if callable(agent) else {"algorithm": agent}
    given = {"workers": 0, **options, **named, "env": envs.name(env), "logdir": logdir}
    fields = {config: {f.name for f in dataclasses.fields(config)} for config in CONFIGS}
    known = set().union(*fields.values())
    if callable(agent):
        known -= fields[agents.AgentConfig] - {"discount"}
    for name in given:
        choose("option", name, known)
    for name in ("seeds", "hidden_sizes", "critic_hidden_sizes", "wrappers"):
        if given.get(name) is not None and not isinstance(given[name], str):
            one = not isinstance(given[name], Iterable) or np.ndim(given[name]) == 0
            given[name] = (_plain(given[name]),) if one else tuple(map(_plain, given[name]))
    given = {name: _plain(value) for name, value in given.items()}
    for name, value in given.items():
        if callable(value) or hasattr(value, "shape"):
            raise UserError(
                f"{name} is {type(value).__name__}, but an option must be a plain value, which "
                f"config.json can hold; for {name} of another kind give an agent of your own "
                "parts, as docs/extend.md shows; to try several values, use a sweep"
            )
    for name, value in given.items():
        if inner(HINTS[name]) is int and isinstance(value, float) and value.is_integer():
            given[name] = int(value)  # num_steps=1e6
    given["env_kwargs"] = given.get("env_kwargs") or None
    parts = [
        config(**{k: v for k, v in given.items() if k in fields[config]}) for config in CONFIGS
    ]
    return parts[0], parts[1], parts[2]
