"""The files that commands write: JSON, never half of it, and figures. An error in writing is
reported in one sentence.
"""

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from preqn_jax.options import UserError
from preqn_jax.training import directory, files, sweep

matplotlib.use("Agg")  # commands need no display
matplotlib.rcdefaults()  # figures look alike for all, and need none of a user's fonts, or TeX
# All formats but those that need TeX, or that no program shows.
PICTURES = sorted({*FigureCanvasAgg.get_supported_filetypes()} - {"pgf", "raw", "rgba"})


def check(flag: str, path: str, *, picture: bool = False) -> None:
    """Raises UserError, before anything is measured, if the file of `--flag` could not be written:
    if it is a folder, or a file of a run, if its own folder cannot be made or written to, or if it
    is no kind of picture. An empty path is no file, and passes.
    """
    if not path:
        return
    file = Path(path)
    folder = next(parent for parent in (file.absolute().parents) if parent.exists())
    kinds = PICTURES if picture else ()
    if file.is_dir():
        why = "it is a folder"
    elif directory.is_of_a_run(file) or (file.name == sweep.NAME and file.exists()):
        why = "it is a file that a run, or a sweep, needs"
    elif file.is_symlink() or (file.exists() and not file.is_file()):
        why = "it is a link or a device, which a file would replace"
    elif not folder.is_dir() or not os.access(folder, os.W_OK):
        why = f"{str(folder)!r} is not a folder to write to"
    elif picture and file.suffix[1:].lower() not in kinds:
        why = f"pictures end in {', '.join(f'.{kind}' for kind in kinds)}"
    else:
        return
    raise UserError(f"cannot write {path!r}: {why}; give another --{flag}")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it can also be read as plain text; ends with a new line."""
    cells = [[text.replace("|", r"\|") for text in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:], ""])


def aligned(lines: Sequence[Sequence[str]], columns: str) -> str:
    """A table in text, whose columns are as wide as they need to be. `columns` has a letter for
    each, "l" for left and "r" for right; the last letter is for all that follow. Ends with a new
    line.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    columns = columns.ljust(len(widths), columns[-1])
    put = {"l": str.ljust, "r": str.rjust}
    texts = (
        "  ".join(put[c](text, w) for c, text, w in zip(columns, line, widths, strict=True))
        for line in lines
    )
    return "".join(text.rstrip() + "\n" for text in texts)


def write_json(path: Path, content: Any, flag: str = "json") -> None:
    """Writes JSON, as `write` does; numbers that are not finite become null."""
    write(path, (json.dumps(_finite(content), indent=1) + "\n").encode(), flag)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write(path: Path, content: bytes, flag: str = "out") -> None:
    """Writes a file, and makes its folder. Where that fails, the UserError asks for another
    `--flag`.
    """
    with files.writing(repr(str(path)), f"; give another --{flag}", UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, content)


@contextlib.contextmanager
def expecting(sentence: str) -> Iterator[None]:
    """Turns an error within this context, from reading what is missing or malformed, into a
    UserError with this sentence.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{sentence} ({error.strerror})") from None
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        raise UserError(sentence) from None


def save_figure(figure: Figure, path: Path, flag: str = "out", dpi: int = 120) -> None:
    """Writes and closes a figure, and makes its folder. Raises UserError if that fails, or for an
    unknown kind of picture.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.anew(path) as file, warnings.catch_warnings():
            warnings.filterwarnings("error", "constrained_layout not applied")
            figure.savefig(file, dpi=dpi, format=path.suffix[1:] or "png")
    except UserWarning:
        raise UserError(
            "the panels do not fit into a picture of {:g} x {:g} inches; make it larger".format(
                *figure.get_size_inches()
            )
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write the figure {str(path)!r}: {getattr(error, 'strerror', None) or error}; "
            f"give another --{flag}"
        ) from error
    finally:
        plt.close(figure)
