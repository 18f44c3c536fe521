"""SIGTERM, Ctrl-C and a closed terminal: the first asks a command to stop, the next ends it."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOPPED = os.EX_TEMPFAIL  # the exit status, 75, of a command that stopped with work left to do
_ECHO = 1.0  # seconds in which a second one is the same: terminals and batch systems send two


@contextlib.contextmanager
def heard(first: Callable[[], None], last: Callable[[], None]) -> Iterator[None]:
    """Inside, the first signal calls `first`; the next calls `last` and ends the process and its
    workers at once, with status 128 + its number.

    Both are called in a thread of their own: the main one may be in a computation, or in an
    environment that does not come back. A signal that is ignored, as by nohup, stays so.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old = {s: signal.getsignal(s) for s in _SIGNALS}
    old = {s: handler for s, handler in old.items() if handler is not signal.SIG_IGN}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for s in old:
        signal.signal(s, lambda *_: None)  # the pipe has it already
    listener = threading.Thread(target=_listen, args=(reader, first, last), daemon=True)
    listener.start()
    try:
        yield
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
        signal.set_wakeup_fd(woken)
        os.close(writer)
        listener.join()
        os.close(reader)


def _listen(reader: int, first: Callable[[], None], last: Callable[[], None]) -> None:
    asked = None
    while number := os.read(reader, 1):
        if number[0] not in _SIGNALS:
            continue
        if asked is None:
            asked = time.monotonic()
            first()
        elif time.monotonic() - asked > _ECHO:
            end(128 + number[0], last)


def end(status: int, last: Callable[[], None]) -> None:
    """Ends the process and its workers at once, whatever its other threads do, after `last`."""
    for process in multiprocessing.active_children():
        process.kill()
    try:
        last()
    finally:
        os._exit(status)
