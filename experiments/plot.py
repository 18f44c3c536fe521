"""Plot learning curves of any runs, with the spread over seeds, and panels of Q, alignment and TD
error beside them.

    python -m experiments.plot RUN [RUN ...] --out=curve.png

The numbers at the ends of the curves are printed, and written to curve.txt, beside the picture.
"""

import dataclasses
from pathlib import Path

from experiments.kit import flags, given_runs, learning_curves, output
from preqn_jax.options import UserError, check, choose, option


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """The file and the size of the figure."""

    out: str = option("curve.png", "the picture to write: .png, .pdf or .svg")
    format: str = option("", "png, pdf or svg, instead of the ending of --out")
    width: float = option(
        0.0, "width of the picture in inches; 0: what its panels need", at_least=0, below=200
    )
    height: float = option(
        0.0, "height of the picture in inches; 0: what its panels need", at_least=0, below=200
    )


def main(argv: list[str]) -> int:
    runs = given_runs.parse_several(argv, "plot runs/x --out=curve.png")
    config = flags.parse(PlotConfig)
    check(config)
    if not config.out:
        raise UserError("out is empty; name a picture, as in --out=curve.png")
    out = Path(config.out)
    if not out.name:
        raise UserError(f"out is {config.out!r}, a folder; name a picture, as in --out=curve.png")
    if config.format:
        kind = choose("format", config.format.lower(), output.PICTURES)
        other = out.suffix[1:].lower() in output.PICTURES  # and no part of a name, as in eta=0.9
        out = out.with_suffix(f".{kind}") if other else out.with_name(f"{out.name}.{kind}")
    output.check("format" if config.format else "out", str(out), picture=True)
    numbers = out.with_suffix(".txt")
    if numbers.exists() and not numbers.read_bytes().startswith(learning_curves.HEAD[0].encode()):
        raise UserError(
            f"{str(numbers)!r} is there already, where the numbers would be written, and holds "
            "something else; give another --out"
        )
    text = learning_curves.draw(runs, out, (config.width, config.height))
    print(text, end="")
    output.write(numbers, text.encode(), "out")
    print(out)
    return 0


if __name__ == "__main__":
    flags.define(PlotConfig)
    flags.run(main, takes_words=True, keeps=True)
