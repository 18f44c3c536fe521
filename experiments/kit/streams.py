"""Output of long work, which a command does whether or not anybody reads the output."""

import contextlib
import os
import sys
from typing import Any, TextIO

from tqdm import tqdm


class Forgiving:
    """A text stream that drops what cannot be written, and keeps the first error of that in `lost`.
    A closed pipe, whose reader has seen enough, is replaced by /dev/null, for good.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        with self._dropping():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:  # nothing of it was written
                plain = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
                self._stream.write(plain)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self):
        try:
            yield
        except BrokenPipeError:  # else Python would try again at its end to write the rest
            with contextlib.suppress(OSError):
                _to_nowhere(self._stream.fileno())
        except OSError as error:  # a full disk
            self.lost = self.lost or error
        except ValueError:  # closed by somebody
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive() -> None:
    """Makes stdout and stderr of this process forgiving from now on, even if they were closed
    before it began.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115
        setattr(sys, name, Forgiving(stream))


def bar(total: int, initial: int, **more: Any) -> tqdm:
    """A progress bar of environment steps, updated often on a terminal and seldom in a log."""
    every = 0.5 if sys.stderr.isatty() else 30
    shown = {"unit": "step", "mininterval": every, "dynamic_ncols": True, **more}
    return tqdm(total=total, initial=initial, **shown)


def _to_nowhere(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != fd:
        os.dup2(nowhere, fd)
        os.close(nowhere)
