"""One verdict: a statement of the paper, what was found, and what would have spoken against it."""

import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

ANSWERS = {True: "yes", False: "no", None: "cannot be judged"}


class Part(NamedTuple):
    """A part of a statement that is judged by itself."""

    words: str
    evidence: str
    borne_out: bool | None  # None: it cannot be judged
    refuted_by: str  # what makes it a no, with the threshold


class Verdict(NamedTuple):
    """A statement of the paper, and the parts in which it is judged."""

    statement: str
    parts: list[Part]

    @property
    def borne_out(self) -> bool | None:
        """False if any part is refuted, True if all parts are borne out, else None."""
        known = [part.borne_out for part in self.parts]
        return False if False in known else None if None in known else True

    def as_json(self) -> dict[str, Any]:
        parts = [part._asdict() for part in self.parts]
        return {"statement": self.statement, "borne_out": self.borne_out, "parts": parts}


def show(verdicts: Iterable[Verdict]) -> None:
    """Prints each statement with its answer, and its parts below it."""
    for verdict in verdicts:
        print(f'  "{verdict.statement}": {ANSWERS[verdict.borne_out]}')
        for words, evidence, borne_out, refuted_by in verdict.parts:
            found = f"{words}: {ANSWERS[borne_out]} ({evidence}). No, if: {refuted_by}."
            print(textwrap.fill(found, 100, initial_indent=" " * 6, subsequent_indent=" " * 10))
