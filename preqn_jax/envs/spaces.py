"""The spaces of a Gymnasium environment: what they tell agents, and which cannot be trained on."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import gymnasium
import numpy as np

from preqn_jax import actions
from preqn_jax.envs import contract
from preqn_jax.options import UserError
from preqn_jax.types import Spec


def spec(name: str, env: gymnasium.Env) -> Spec:
    """Sizes and bounds. Raises UserError for spaces that are not supported."""
    spec = _sizes(name, env)
    bounding = "`wrappers=['preqn_jax.envs.gym:BoundAction(low=-1,high=1)']`"
    actions.check(spec, f"environment {name!r}", f", as with {bounding}")
    return spec


def _sizes(name: str, env: gymnasium.Env) -> Spec:
    both = attrgetter("observation_space", "action_space")  # either may be missing
    obs, action = contract.ask(name, "its spaces", both, env)
    for what, space, advice in (
        ("action", action, _advice_on_actions(action)),
        ("observation", obs, _advice_on_observations(obs)),
    ):
        if advice:
            shown = " ".join(str(space).split())[:160]
            raise UserError(f"environment {name!r} has the {what} space {shown}, but {advice}")
    assert obs.shape is not None
    if isinstance(action, gymnasium.spaces.Discrete):
        return actions.spec(int(np.prod(obs.shape)), int(action.n), int(action.start))
    assert isinstance(action, gymnasium.spaces.Box)
    low, high = (bound.reshape(-1).astype(np.float64) for bound in (action.low, action.high))
    return Spec(int(np.prod(obs.shape)), int(np.prod(action.shape)), low, high)


def _advice_on_actions(space: Any) -> str:
    """Advice for an unsupported action space, or "" where it is supported."""
    if _box(space, np.floating) or isinstance(space, gymnasium.spaces.Discrete):
        return ""
    needs = "these algorithms need a Box of floats, or Discrete actions"
    if getattr(space, "spaces", None) and boxes(space):
        return f"{needs}: convert it by `wrappers=['preqn_jax.envs.gym:FlattenAction']`"
    return f"{needs}, as in HalfCheetah-v5 or CartPole-v1: choose one, or write a wrapper"


def _advice_on_observations(space: Any) -> str:
    """Advice for an unsupported observation space, or "" where it is supported."""
    if _box(space, np.floating) or (_box(space, np.integer) and not _image(space)):
        return ""
    needs, flat = "these networks need vectors of numbers", "gymnasium.wrappers:FlattenObservation"
    if _image(space):
        grey = len(space.shape) == 3 and space.shape[-1] == 3
        first = "gymnasium.wrappers:GrayscaleObservation"
        words = f"'{first}', '{flat}'" if grey else f"'{flat}'"
        return (
            f"it is an image, and {needs}: convert it by `wrappers=[{words}]`, and make it smaller "
            "by gymnasium.wrappers:ResizeObservation before that"
        )
    if getattr(space, "is_np_flattenable", False):
        return f"{needs}, a Box: convert it by `wrappers=['{flat}']`"
    return f"{needs}, a Box: write a wrapper that converts it, as docs/extend.md shows"


def _box(space: Any, kind: type) -> bool:
    return isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, kind)


def boxes(space: Any) -> bool:
    """Whether a space is a Box of floats, or a Dict or a Tuple of nothing else."""
    inner = getattr(space, "spaces", None)
    parts = inner.values() if isinstance(inner, Mapping) else inner
    return _box(space, np.floating) if parts is None else all(map(boxes, parts))


def _image(space: Any) -> bool:
    return _box(space, np.uint8) and len(space.shape) > 1
