"""How a user names an environment: by an id or a function, for one of Gymnasium with arguments and
wrappers.
"""

import ast
import difflib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from preqn_jax.envs import contract
from preqn_jax.options import UserError

# Wrappers of Gymnasium that only compute: safe even in a run directory from a stranger.
_HARMLESS = {
    "ClipAction",
    "ClipReward",
    "DelayObservation",
    "DtypeObservation",
    "FilterObservation",
    "FlattenObservation",
    "FrameStackObservation",
    "GrayscaleObservation",
    "MaxAndSkipObservation",
    "RepeatAction",
    "RescaleAction",
    "RescaleObservation",
    "ReshapeObservation",
    "ResizeObservation",
    "StickyAction",
    "TimeAwareObservation",
    "TimeLimit",
}
_OURS = {"BoundAction", "FlattenAction"}


class GymSource(NamedTuple):
    """An environment of Gymnasium, with its arguments and wrappers."""

    env: str | Callable[..., Any]  # an id, or a function that makes an environment
    kwargs: Mapping[str, Any]  # its arguments by name, with values that JSON can hold
    wrappers: tuple[str, ...] = ()  # as `Wrapper.parse` takes them, from the inside out


class Wrapper(NamedTuple):
    """A wrapper's module and name, and its arguments other than the environment."""

    module: str
    name: str
    kwargs: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Wrapper":
        """Read "module:Class" or "module:Class(name=value,...)", where the values are literals.

        Raises UserError for anything else.

        >>> from preqn_jax.envs import Wrapper
        >>> Wrapper.parse("gymnasium.wrappers:RescaleAction(min_action=-1,max_action=1)")[1:]
        ('RescaleAction', {'min_action': -1, 'max_action': 1})
        """
        try:
            module, _, rest = text.partition(":")
            call = ast.parse(rest.strip(), mode="eval").body
            words = call.keywords if isinstance(call, ast.Call) and not call.args else []
            named = call.func if isinstance(call, ast.Call) and not call.args else call
            kwargs = {str(word.arg): ast.literal_eval(word.value) for word in words if word.arg}
            parts = module.split(".")
            whole = len(kwargs) == len(words) and all(map(str.isidentifier, parts))
            if isinstance(named, ast.Name) and whole:
                return cls(module, named.id, kwargs)
        except (AttributeError, SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            pass
        raise UserError(
            f"wrappers has {text!r}, but a wrapper is given as module:Class, as in "
            "`wrappers=['gymnasium.wrappers:RescaleAction(min_action=-1,max_action=1)']`"
        )

    def found(self) -> Callable[..., Any]:
        """Import its class. Raises UserError if there is none."""
        named = f"wrapper {f'{self.module}:{self.name}'!r} cannot be imported"
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            raise UserError(
                f"{named} ({error}); modules are looked for in the current folder and among "
                "installed packages"
            ) from error
        except contract.RAISED as error:
            raise UserError(f"{named}: its module raised {contract.said(error)}") from error
        try:
            return getattr(module, self.name)
        except (AttributeError, ImportError):
            near = difflib.get_close_matches(self.name, dir(module), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            words = f"module {self.module!r} has no wrapper {self.name!r}{hint}"
            raise UserError(words) from None

    @property
    def harmless(self) -> bool:
        """Whether this wrapper is known to do no more than compute."""
        known = {"gymnasium.wrappers": _HARMLESS, "preqn_jax.envs.gym": _OURS}
        return self.name in known.get(self.module, ())


def name(source: Any) -> str:
    """The name of an environment: its id, or the name of the function that makes it."""
    if isinstance(source, GymSource):
        source = source.env
    if isinstance(source, str):
        return source
    return getattr(source, "__qualname__", type(source).__name__)


def check(kwargs: Any, wrappers: Sequence[str]) -> None:
    """Raises UserError if `kwargs` is neither None nor a dict of JSON values by name, or if
    `wrappers` is not a list of strings that `Wrapper.parse` can read.
    """
    as_in = '`env_kwargs={"max_episode_steps": 200}`'
    if kwargs is not None and not (
        isinstance(kwargs, dict) and all(isinstance(name, str) for name in kwargs)
    ):
        raise UserError(
            f"env_kwargs is {kwargs!r:.80}, but it must be a dict of arguments, as in {as_in}"
        )
    for name, value in (kwargs or {}).items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise UserError(
                f"env_kwargs has {name}={value!r:.60}, which JSON cannot hold; give numbers, "
                f"strings, lists of these, as in {as_in}, or a function that makes the environment"
            ) from None
    if isinstance(wrappers, str):
        raise UserError(f"wrappers is the string {wrappers!r}, but it must be a list of strings")
    for text in wrappers:
        Wrapper.parse(text)
