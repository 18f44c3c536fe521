"""Files that the binaries leave: JSON, all of it or nothing, and figures; what cannot be written is
said in one sentence.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from preqn_jax.options import UserError
from preqn_jax.training import files

matplotlib.use("Agg")  # a terminal is all that a binary needs
temporary = files.temporary


def check_folder(flag: str, path: str) -> None:
    """Raises UserError, before anything is measured, if the file of `--flag` has no folder to lie
    in.
    """
    if path and not os.access(Path(path).parent, os.W_OK):
        raise UserError(
            f"cannot write {path!r}: {str(Path(path).parent)!r} is no folder to write to; give "
            f"another --{flag}"
        )


def write_json(path: Path, content: Any, flag: str = "json") -> None:
    """`path` and its folder; `flag` is the one to mend where that fails, in a UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"cannot write {str(path)!r}: {error.strerror}; give another --{flag}"
        ) from error


@contextlib.contextmanager
def expecting(sentence: str) -> Iterator[None]:
    """What is read inside and is not there, or not what it should be, is a UserError with this
    sentence.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{sentence} ({error.strerror})") from None
    except (LookupError, TypeError, AttributeError, ValueError):
        raise UserError(sentence) from None


def save_figure(figure: Figure, path: Path, flag: str = "out", dpi: int = 120) -> None:
    """Writes and closes a figure, and makes its folder. Raises UserError where that fails, or for
    an unknown kind of picture.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.anew(path) as written:
            figure.savefig(written, dpi=dpi, format=path.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write the figure {str(path)!r}: {getattr(error, 'strerror', None) or error}; "
            f"give another --{flag}"
        ) from error
    finally:
        plt.close(figure)
