"""The signals that ask a command to stop: SIGTERM, Ctrl-C, a closed terminal, and what batch
systems send before a time limit (SIGUSR1, SIGUSR2). The first asks it to stop, the next ends it.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_OF_USERS = (signal.SIGUSR1, signal.SIGUSR2)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *_OF_USERS)
STOPPED = os.EX_TEMPFAIL  # the exit status, 75, of a command that stopped with work left to do
# Exit statuses of a command that was asked to end: 75, or the signal's, of which it dies if it
# does not listen yet, or 128 + the signal, after a second one.
ASKED = {STOPPED, *(status for s in _SIGNALS for status in (-s, 128 + s))}
ECHO = 1.0  # seconds in which another signal counts as the same: some systems send two


@contextlib.contextmanager
def handled(handler: Any, *numbers: int) -> Iterator[None]:
    """Sets a handler for signals (by default those that ask to end) within this context. A signal
    that is ignored, as under nohup, stays so. By default SIGUSR1 and 2 also stay as they are where
    they have a handler already, like that of submitit, which queues its job again.
    """
    old = {s: signal.getsignal(s) for s in numbers or _SIGNALS}
    old = {s: former for s, former in old.items() if former is not signal.SIG_IGN}
    if not numbers:
        taken = {s for s in _OF_USERS if s in old and old[s] is not signal.SIG_DFL}
        old = {s: former for s, former in old.items() if s not in taken}
    for s in old:
        signal.signal(s, handler)
    try:
        yield
    finally:
        for s, former in old.items():
            signal.signal(s, former)


@contextlib.contextmanager
def heard(first: Callable[[], None], last: Callable[[], None]) -> Iterator[None]:
    """Within this context, the first signal calls `first`; the next calls `last` and ends the
    process and its workers at once, with status 128 + its number.

    Both are called in a thread of their own: the main one may be in a computation, or in an
    environment that does not return.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(reader, first, last), daemon=True)
    listener.start()
    try:
        with handled(lambda *_: None):  # the pipe has received the signal
            yield
    finally:
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
        elif time.monotonic() - asked > ECHO:
            end(128 + number[0], last)


def end(status: int, last: Callable[[], None]) -> None:
    """Kills the worker processes, calls `last`, and ends the process, whatever its other threads
    do.
    """
    for process in multiprocessing.active_children():
        process.kill()
    try:
        last()
    finally:
        os._exit(status)
