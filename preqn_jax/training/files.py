"""Files of a run directory: each whole or not there, and none written through a link."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from preqn_jax.options import UserError
from preqn_jax.training.errors import Stopped


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(path.name + ".tmp")


def replace(path: Path, content: bytes) -> None:
    """Writes `path` so that it is whole or as it was, also after a kill. A link that lies there is
    replaced, not followed. Raises OSError.
    """
    with anew(path) as written:
        written.write_bytes(content)


@contextlib.contextmanager
def anew(path: Path) -> Iterator[Path]:
    """An empty file of this process's own to write to, which takes the place of `path` at the end.
    Raises OSError.
    """
    written = temporary(path)
    written.unlink(missing_ok=True)  # of a kill; a link goes, and not what it points to
    try:
        os.close(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield written
        with written.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(written, path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def append(path: Path) -> int:
    """A file descriptor to add to a file. Raises OSError, also where `path` is a link."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.open(path, flags, 0o666)


def write_all(fd: int, content: bytes) -> None:
    """All of it at the end of the file, or, with an OSError, nothing."""
    end = os.fstat(fd).st_size
    try:
        while content:
            content = content[os.write(fd, content) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, end)
        raise


def add(path: Path, content: bytes) -> None:
    """`append` and `write_all`."""
    fd = append(path)
    try:
        write_all(fd, content)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """A file, a folder with all in it, or a link, and not what it points to. Raises OSError."""
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
    """An OSError inside is Stopped, or another `kind`: what could not be written, why, and the
    `cure`, if there is one.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"cannot write {what}: {error.strerror or error}{cure}") from error


def size(count: float) -> str:
    """Bytes in words, as "3.2 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"
