"""Docstrings as this package writes them, brought into the form that mkdocstrings reads.

Fields of a record are described by the comment behind each or on the lines above it, or by lines
`name: words` in the record's docstring; examples are doctests that stand wherever they fit.
"""

import itertools
import re
from typing import Any

import griffe

FIELD = re.compile(r"(\w+): ")
STAR = re.compile(r"`[^`]*`|(?<=\w)\*")


class Docstrings(griffe.Extension):
    """Changes every docstring of a package, once it is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self._walk(pkg)

    def _walk(self, one: griffe.Object) -> None:
        for member in one.members.values():
            if not member.is_alias:
                self._walk(member)
        if one.is_class:
            _describe_fields(one)
        if one.docstring:
            one.docstring.value = _readable(one.docstring.value)


def _describe_fields(record: griffe.Object) -> None:
    """A docstring for every field that has none: its comment, or its line in the record's."""
    fields = {n: m for n, m in record.members.items() if m.is_attribute and not m.docstring}
    words = {name: _comment(field) or _above(field) for name, field in fields.items()}
    if record.docstring:
        kept, name = [], ""
        for line in record.docstring.value.splitlines():
            start = FIELD.match(line)
            if start and start[1] in fields:
                name = start[1]
                words[name] = line[start.end() :]
            elif name and line.startswith("  "):
                words[name] += " " + line.strip()
            else:
                name = ""
                kept.append(line)
        record.docstring.value = "\n".join(kept).strip()
    for name, field in fields.items():
        if words[name]:
            field.docstring = griffe.Docstring(_readable(words[name]), parent=field)


def _comment(field: griffe.Object) -> str:
    return " ".join(part[1].strip() for line in field.lines if (part := line.split("  # ", 1))[1:])


def _above(field: griffe.Object) -> str:
    """The comment that ends on the line before a field."""
    before = field.lines_collection[field.filepath][: (field.lineno or 1) - 1]
    above = itertools.takewhile(lambda line: line.startswith("# "), map(str.strip, before[::-1]))
    return " ".join(line[2:] for line in reversed(list(above)))


def _readable(text: str) -> str:
    """Doctests in fences, and stars that are no emphasis, as in Q*."""
    lines: list[str] = []
    margin = None  # of the example at hand
    for line in [*text.splitlines(), ""]:
        start = line.lstrip().startswith(">>> ")
        if margin is None and start:
            margin = line[: len(line) - len(line.lstrip())]
            lines += ["", margin + "```pycon"]
        elif margin is not None and not line.strip():
            lines.append(margin + "```")
            margin = None
        lines.append(line if margin is not None else STAR.sub(_escaped, line))
    return "\n".join(lines).strip()


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0] != "*" else r"\*"
