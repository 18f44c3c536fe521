"""Configuration: the fields of frozen dataclasses, with help texts and ranges, their checks, and
`UserError`, the error for a mistake that the user can mend.
"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake in a flag, an environment, a checkpoint or a config. The message is one sentence,
    which says what was seen and what to do.
    """


def to_install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml; the package is in no registry."""
    return f"pip install -e '.[{extra}]' in the checkout"


def option(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    schedule: bool = False,
):
    """A dataclass field with a help text and a range. The range holds for each entry of a tuple;
    None passes. With `schedule`, the value may also be a function of the number of updates.
    """
    metadata = {"help": help, "above": above, "at_least": at_least, "below": below}
    metadata["schedule"] = schedule
    return dataclasses.field(default=default, metadata=metadata)


def check(config: Any) -> None:
    """Raises UserError where a field's value is not of its annotated type, or out of its range.
    Arrays, tracers and schedules pass: their values may not be known yet.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        known = isinstance(value, numbers.Number | str | list | tuple | None)
        scheduled = callable(value) and field.metadata.get("schedule", False)
        known = known or not (hasattr(value, "shape") or scheduled)
        words = " or ".join(_WORDS[kind] for kind in kinds if kind in _WORDS)
        if known and words and not fits(value, hint):
            several = field.default and isinstance(field.default, tuple)
            example = f", as in `{field.default}`" if several else ""
            raise UserError(f"{field.name} is {value!r}, but it must be {words}{example}")
        for entry in value if isinstance(value, tuple) else (value,):
            if isinstance(entry, numbers.Real) and not isinstance(entry, bool):
                _check_range(field.name, entry, field.metadata)


_KINDS = {int: numbers.Integral, float: numbers.Real}
_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a word, in quotes",
    tuple[int, ...]: "a tuple of whole numbers",
    tuple[str, ...]: "a tuple of words, in quotes",
}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type `hint`; a bool does not count as a number."""
    if isinstance(hint, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    kind: Any = typing.get_origin(hint) or hint
    if not isinstance(value, _KINDS.get(kind, kind)) or isinstance(value, bool) > (kind is bool):
        return False
    return kind is not tuple or all(fits(entry, typing.get_args(hint)[0]) for entry in value)


def inner(hint: Any) -> Any:
    """`X` for the type `X | None`; a type that is not a union is returned as it is."""
    if not isinstance(hint, types.UnionType):
        return hint
    return next(one for one in typing.get_args(hint) if one is not type(None))


def _check_range(name: str, value: Any, metadata: Any) -> None:
    above, at_least, below = metadata["above"], metadata["at_least"], metadata["below"]
    if below is None and isinstance(value, numbers.Integral):
        below = 2**31  # counters are int32
    finite = isinstance(value, numbers.Integral) or math.isfinite(value)
    good = finite and (above is None or value > above) and (at_least is None or value >= at_least)
    if good and (below is None or value < below):
        return
    words = [] if finite else ["finite"]
    words += [f"above {above}"] * (above is not None)
    words += [f"at least {at_least}"] * (at_least is not None)
    words += [f"below {below}"] * (below is not None)
    raise UserError(f"{name} is {value}, but it must be {' and '.join(words)}")


def require(value: Any, good: Callable[[Any], bool], words: str) -> None:
    """Raises ValueError, with `words` and the value, where a plain number is not `good`. Arrays and
    tracers pass: their values may not be known yet.
    """
    if isinstance(value, numbers.Real) and not good(value):
        raise ValueError(f"{words}, got {value}")


def choose(kind: str, name: str, choices: Iterable[str]) -> str:
    """`name`, if it is one of `choices`. Raises UserError, which lists them and the nearest."""
    choices = sorted(choices)
    if name in choices:
        return name
    near = difflib.get_close_matches(name, choices, n=1) if isinstance(name, str) else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(f"unknown {kind} {name!r}{hint}; choose one of {', '.join(choices)}")


def check_same(begun: str, old: Mapping[str, Any], new: Mapping[str, Any], elsewhere: str) -> None:
    """Raises UserError for the first setting that differs between `old`, with which the work was
    begun, and `new`, the settings of this command. For the message, `begun` introduces the old
    value, as "'plan.json' says", and `elsewhere` is the argument that would name another place.
    """
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise UserError(
                f"{begun} {name}={old.get(name)!r}, but this command says {new.get(name)!r}; "
                f"use the same {name} to go on with it, or another `{elsewhere}`"
            )
