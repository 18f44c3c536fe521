"""Standard output and error that may be closed, or piped to a process that has ended: what is said
there is lost then, and nothing else.
"""

import contextlib
import os
import sys
from typing import Any


class _Tolerant:
    """A text stream that goes on into nothing once it cannot be written to."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Any, *given: Any) -> None:
        try:
            act(*given)
        except (OSError, ValueError):
            # What is buffered still would fail again as the interpreter ends.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerate() -> None:
    """Makes such streams of this process's."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed as the process started
            stream = open(os.devnull, "w")  # noqa: SIM115
        setattr(sys, name, _Tolerant(stream))
