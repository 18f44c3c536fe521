"""Writes the files of a run directory, so that each is whole or not there, and none is written
through a link.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from preqn_jax.options import UserError
from preqn_jax.training.errors import Stopped

_OLD = 24 * 3600.0  # seconds after which a temporary file counts as abandoned


def is_temporary(name: str, of: str) -> bool:
    """Whether `name` is that of a temporary file, which takes the place of the file `of` when it is
    whole, or is what a kill left of it.
    """
    return re.fullmatch(re.escape(of) + r"(\.[0-9a-f]{8})?\.tmp", name) is not None


def replace(path: Path, content: bytes) -> None:
    """Writes `path` so that, even after a kill, it is either whole or as it was. A link that lies
    there is replaced, not followed. Raises OSError.
    """
    with anew(path) as file:
        file.write(content)


@contextlib.contextmanager
def anew(path: Path) -> Iterator[BinaryIO]:
    """Yields an empty file to write to, which takes the place of `path` at the end. Several
    processes, on any machines, may do so at once, each with a file of its own; that of the last one
    stays. Raises OSError.
    """
    _clear(path)
    written = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(written, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(fd, "w+b") as file:
            yield file
            settle(file)
        os.replace(written, path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def settle(file: BinaryIO) -> None:
    """Forces what was written to the disk. Raises OSError, as where there is no room for it."""
    file.flush()
    os.fsync(file.fileno())


def _clear(path: Path) -> None:
    """Removes temporary files of `path` that kills have left. Its folder may not be locked, so only
    an old file is known to be abandoned.
    """
    with contextlib.suppress(OSError), os.scandir(path.parent) as found:
        for one in (one for one in found if is_temporary(one.name, path.name)):
            if time.time() - one.stat(follow_symlinks=False).st_mtime > _OLD:
                os.unlink(one)


def append(path: Path) -> int:
    """A file descriptor for adding to the end of a file, which is made if it is not there. Raises
    OSError, also where `path` is a link.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.open(path, flags, 0o666)


def write_all(fd: int, content: bytes) -> None:
    """Writes all of `content` at the end of the file or, where it raises OSError, nothing."""
    end = os.fstat(fd).st_size
    try:
        while content:
            content = content[os.write(fd, content) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, end)
        raise


def add(path: Path, content: bytes) -> None:
    """Adds `content` to the end of a file: `append`, then `write_all`."""
    fd = append(path)
    try:
        write_all(fd, content)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Removes a file, a folder with all in it, or a link, but not what it points to. Raises
    OSError.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by its path there. Raises OSError, and ValueError for a
    link.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path.relative_to(folder)} in it is a link")
        if path.is_file():
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@contextlib.contextmanager
def writing(what: str, cure: str = "", kind: type[UserError] = Stopped) -> Iterator[None]:
    """A context that turns an OSError into Stopped, or another `kind`, which says what could not be
    written, why, and the `cure`, if there is one.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"cannot write {what}: {error.strerror or error}{cure}") from error


def size(count: float) -> str:
    """A number of bytes as text, as "3.2 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"
