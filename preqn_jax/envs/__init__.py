"""Environments: `make(env_id, num_envs)` builds a vector of any Gymnasium environment, of a probe,
of a finite problem, or of one written in JAX: our own (`native/`), Brax's, MuJoCo Playground's.
"""

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from preqn_jax.envs import brax, playground
from preqn_jax.envs.base import EnvError, Step, VectorEnv, derive_seed, staying_here
from preqn_jax.envs.finite import FINITE, PREFIX
from preqn_jax.envs.functional import FunctionalEnv, FunctionalVector, Outcome
from preqn_jax.envs.native import NATIVE
from preqn_jax.envs.probe import PROBES
from preqn_jax.envs.source import GymSource, Wrapper, check, name
from preqn_jax.options import UserError, choose
from preqn_jax.problems import PROBLEMS, Problem
from preqn_jax.types import Spec

__all__ = [
    "FINITE",
    "FOR_DEVICES",
    "NATIVE",
    "PROBES",
    "EnvError",
    "FunctionalEnv",
    "GymSource",
    "Outcome",
    "Source",
    "Step",
    "VectorEnv",
    "Wrapper",
    "derive_seed",
    "described",
    "make",
    "name",
    "problem",
    "pure",
    "spec",
    "staying_here",
]

_log = logging.getLogger(__name__)

Source = str | FunctionalEnv | GymSource | Callable[[], Any]
"""The ways to give an environment: a Gymnasium id, the name of a functional environment (a probe, a
finite problem, "brax/halfcheetah"), a `FunctionalEnv`, a function without arguments that makes a
`gymnasium.Env`, or a `GymSource`, which adds arguments and wrappers.
"""
FOR_DEVICES = ("native/", brax.PREFIX, playground.PREFIX)
"""Prefixes of the names of environments that are fastest on the device of the learner."""


def described(
    env: Source, kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[str] = ()
) -> Source:
    """The environment `env` with arguments and wrappers, if there are any, as `RunConfig` has them.

    Raises UserError where these make no sense, or `env` is a functional one, which takes none.

    >>> from preqn_jax import envs
    >>> envs.described("Hopper-v5", {"frame_skip": 2}).kwargs
    {'frame_skip': 2}
    """
    check(kwargs, wrappers)
    if not kwargs and not wrappers:
        return env
    if isinstance(env, GymSource):
        env, kwargs, wrappers = (
            env.env,
            {**env.kwargs, **(kwargs or {})},
            (*env.wrappers, *wrappers),
        )
    if isinstance(env, FunctionalEnv) or pure(env) is not None:
        given = "env_kwargs" if kwargs else "wrappers"
        raise UserError(
            f"{given} is for Gymnasium environments, and {name(env)!r} is a functional one, which "
            "takes none: leave it out"
        )
    return GymSource(env, json.loads(json.dumps(kwargs or {})), tuple(wrappers))


def make(source: Source, num_envs: int = 1, ask: Callable[[], None] = lambda: None) -> VectorEnv:
    """`num_envs` copies of an environment. `ask` is called before each call of a Gymnasium
    environment among them, its construction included, so that a watchdog sees that the call before
    has returned.

    Raises:
      UserError: there is no such environment, or its spaces are not supported.
      EnvError: the environment raised when it was made.
    """
    env = pure(source)
    if env is not None:
        return FunctionalVector(env, num_envs, name(source))
    # Imported here: it needs gymnasium and mujoco, which notebooks on kernels do without.
    from preqn_jax.envs.gym import GymVector

    assert not isinstance(source, FunctionalEnv)
    return GymVector(source, num_envs, ask)


def pure(source: Source) -> FunctionalEnv | None:
    """The functional environment of a source; None for one of Gymnasium. Raises as `make` does.

    >>> from preqn_jax import envs
    >>> envs.pure("native/pendulum").time_limit, envs.pure("HalfCheetah-v5")
    (200, None)
    """
    if isinstance(source, str) and source.startswith(("probe/", PREFIX, *FOR_DEVICES)):
        return _functional(source)
    return source if isinstance(source, FunctionalEnv) else None


@functools.cache  # so that all vectors of one share its compiled functions
def _functional(env_id: str) -> FunctionalEnv:
    for library in (brax, playground):
        if env_id.startswith(library.PREFIX):
            return library.make(env_id)
    known = {**PROBES, **FINITE, **NATIVE}
    return known[choose("environment", env_id, known)]()


def problem(source: Source) -> Problem | None:
    """The finite problem behind an environment `tabular/...`; None for any other environment.

    >>> from preqn_jax import envs
    >>> envs.problem("tabular/chain").rho.shape, envs.problem("HalfCheetah-v5")
    ((8, 2), None)
    """
    if not isinstance(source, str) or source not in FINITE:
        return None
    return PROBLEMS[source.removeprefix(PREFIX)]()


@staying_here()
def spec(source: Source, ask: Callable[[], None] | None = None) -> Spec:
    """Sizes and bounds of an environment. With `ask`, also log a warning if the environment does
    not follow its seed; `ask` is called before each reset that this takes, so that a watchdog sees
    that the call before has returned. Raises as `make` does.
    """
    env = make(source, 1)
    follows = getattr(env, "follows_its_seed", lambda _: True)  # a functional one always does
    if ask is not None and not follows(ask):
        _log.warning(
            "environment %r does not follow its seed, so its runs cannot be repeated, nor resumed "
            "exactly: in its reset, call super().reset(seed=seed), and draw from self.np_random",
            name(source),
        )
    try:
        env.close()
    except EnvError as error:
        _log.warning("%s", error)  # not an error: the spec is known
    return env.spec
