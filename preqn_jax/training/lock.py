"""The lock on a run directory, held for as long as its process lives.

It is an flock on a file in the directory: the kernel releases it when the process ends, killed or
not, and a process may pass it on to one that it starts. The text in the file is for people.
"""

import contextlib
import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from preqn_jax.options import UserError

_log = logging.getLogger(__name__)
NAME = "lock"
INHERITED = "PREQN_JAX_LOCK"  # in the environment: the file descriptor that a parent passed on


class Busy(UserError):
    """The lock is held already."""


class Lock:
    """A held lock."""

    def __init__(self, folder: Path):
        """Takes the lock of an existing folder, or takes over one that a parent process passed on.

        Raises Busy, which says who holds it, and OSError where its file cannot be made.
        """
        self._path = folder / NAME
        self.fd = self._inherited()
        while self.fd is None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                _flock(fd)
            except BlockingIOError:
                holder = os.read(fd, 200).decode(errors="replace").strip()
                os.close(fd)
                raise Busy(_busy(folder, holder)) from None
            if self._is(fd):
                self.fd = fd
            else:  # its holder has just removed the file, and ends
                os.close(fd)

    def sign(self) -> "Lock":
        """Writes into the file who holds the lock. Raises OSError."""
        assert self.fd is not None
        words = f"{_here()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, words.encode(), 0)
        return self

    def _inherited(self) -> int | None:
        fd = os.environ.pop(INHERITED, "")  # not for processes that this one starts
        with contextlib.suppress(OSError, ValueError):
            if self._is(int(fd)):
                _flock(int(fd))
                os.set_inheritable(int(fd), False)
                return int(fd)
        return None

    def _is(self, fd: int) -> bool:
        """Whether `fd` is the file that lies in the folder."""
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def release(self, remove: bool = True) -> None:
        """Releases the lock and removes its file; without `remove`, a process that it was passed on
        to still holds it.
        """
        if self.fd is None:
            return
        with contextlib.suppress(OSError):
            if remove and self._is(self.fd):
                self._path.unlink()
        os.close(self.fd)
        self.fd = None


def _flock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # some network file systems have no locks
        _log.warning(
            "cannot lock the run directory (%s): let only one process use it", error.strerror
        )


def _here() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _busy(folder: Path, holder: str) -> str:
    words = f"logdir {str(folder)!r} is in use by {holder or 'another process'}"
    if holder.startswith(f"{_here()} "):
        return f"{words}, which is this process: close its earlier `train` first"
    return f"{words}; wait for it, end it, or give another `logdir`"
