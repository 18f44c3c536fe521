"""Export what a run has learned, for use without this package.

    python -m experiments.export runs/x --out=policy.stablehlo
    python -m experiments.export runs/x --out=policy.npz

The first command writes a program for batches of any size, with its parameters inside; jax alone
loads and runs it (`jax.export.deserialize`), on all --platforms. The second writes the parameters
as named arrays, for an implementation of the network in any other framework. docs/after-training.md
shows both in use.
"""

import dataclasses
import io
from pathlib import Path

import numpy as np

import preqn_jax
from experiments.kit import flags, given_runs, output
from preqn_jax.options import UserError, check, choose, option
from preqn_jax.training import exported
from preqn_jax.training.trained import Trained

FORMATS = ("npz", "stablehlo")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What to export, and in which format."""

    out: str = option("", "the file to write (policy.stablehlo, or as --what and --format say)")
    what: str = option("policy", "policy or critic; the first of several critics")
    format: str | None = option(
        None, "stablehlo, or npz for arrays (npz if --out ends in .npz, else stablehlo)"
    )
    platforms: tuple[str, ...] = option(
        ("cpu", "cuda", "tpu"), "where the program should run: cpu, cuda, rocm, tpu"
    )
    seed: int | None = given_runs.seed()
    trust: bool = given_runs.trust()


def main(argv: list[str]) -> int:
    run = given_runs.parse_one(argv, "export")
    print(export(run, flags.parse(ExportConfig)))
    return 0


def export(run: Path, given: ExportConfig) -> Path:
    """Writes what a run has learned to a file. Returns its path. Raises UserError."""
    check(given)
    choose("thing to export", given.what, exported.WHAT)
    ending = "npz" if given.out.endswith(".npz") else "stablehlo"
    format_ = choose("format", given.format or ending, FORMATS)
    out = Path(given.out or f"{given.what}.{format_}")
    output.check("out", str(out))
    trained = preqn_jax.load(run, trust=given.trust)
    make = _npz if format_ == "npz" else _stablehlo
    output.write(out, make(trained, given))
    return out


def _npz(trained: Trained, given: ExportConfig) -> bytes:
    file = io.BytesIO()
    np.savez(file, **exported.arrays(trained, given.what, given.seed))  # pyright: ignore
    return file.getvalue()


def _stablehlo(trained: Trained, given: ExportConfig) -> bytes:
    program = exported.program(trained, given.what, given.seed, given.platforms)
    try:
        return bytes(program.serialize())
    except ImportError as error:
        raise UserError(
            "a program needs flatbuffers, which is not installed: pip install flatbuffers, or "
            "export arrays with --format=npz"
        ) from error


if __name__ == "__main__":
    flags.define(ExportConfig)
    flags.run(main, takes_words=True)
