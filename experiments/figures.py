"""Draw the figures of the paper and of docs/ from the data that is kept in experiments/results,
without training or timing anything. The figures of a report (rivals, the device, acceptance) are
drawn by the report's own command instead, which is given beside them.

    python -m experiments.figures --out=figures

Where the data of a figure is missing, the figure is named, with the command that makes its data.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments import alignment, benchmark, diagnose, failure_modes
from experiments.bench import growth
from experiments.judge import section_5_1, standing
from experiments.kit import curves, flags, learning_curves, output, plan
from preqn_jax.options import UserError, option


@dataclasses.dataclass(frozen=True)
class FiguresConfig:
    """The folders of the data and of the pictures."""

    results: str = option("experiments/results", "the folder that holds the data")
    out: str = option("figures", "the folder to write the pictures to")


Draw = Callable[[Path, Path], list[Path]]
"""`(data, out) -> pictures`. Raises UserError where the data is not whole."""


class Maker(NamedTuple):
    """Some figures, the data they are drawn from, and the command that makes this data."""

    what: str
    data: str  # below `results`
    command: str  # that makes the data
    draw: Draw


def main(argv: list[str]) -> int:
    config = flags.parse(FiguresConfig)
    output.check("out", str(Path(config.out) / "figure_2.png"))
    return draw(Path(config.results), Path(config.out))


def draw(results: Path, out: Path) -> int:
    """Draws all figures whose data is there. Returns the exit status: 1 if any is missing."""
    if not results.is_dir():
        raise UserError(f"there is no folder {str(results)!r}; name one with --results")
    missing = 0
    for maker in MAKERS:
        try:
            if not (results / maker.data).exists():
                raise UserError(f"there is no {str(results / maker.data)!r}")
            for path in maker.draw(results / maker.data, out):
                print(path)
        except UserError as error:
            missing += 1
            print(f"error: {maker.what}: {error}; made by: {maker.command}", file=sys.stderr)
    return int(missing > 0)


def _kernels(data: Path, out: Path) -> list[Path]:
    return section_5_1.draw(section_5_1.load(data), out)


def _benchmark(data: Path, out: Path) -> list[Path]:
    """Draws Figure 2. For data other than that of `paper`, the picture's name ends with the
    folder's.
    """
    runs, envs = _gather(benchmark.KIND, data)
    path = out / ("figure_2.png" if data.name == "paper" else f"figure_2_{data.name}.png")
    standing.draw(runs, envs, path)
    return [path]


def _alignment(data: Path, out: Path) -> list[Path]:
    return alignment.draw(*_gather(alignment.KIND, data), out)


def _gather(kind: plan.Kind, root: Path) -> tuple[list[curves.Curves], list[str]]:
    """The runs of a plan, and its environments; missing and unfinished runs are named on stderr."""
    envs, seeds = plan.remembered(kind, root)
    runs, notes = plan.gather(kind, root, envs, seeds)
    for note in notes:
        print(f"{kind.name}: {note}", file=sys.stderr)
    return runs, list(envs)


def _one(draw: Callable[[Path, Path], Any], name: str) -> Draw:
    """A function that draws one picture, in a file of that name."""

    def drawn(data: Path, out: Path) -> list[Path]:
        draw(data, out / name)
        return [out / name]

    return drawn


def _runs(*names: str) -> Callable[[Path, Path], Any]:
    return lambda data, out: learning_curves.draw([data / name for name in names], out)


_POLES = ("cartpole-preqn", "cartpole-preqn-two", "cartpole-dqn")
KEEP = (
    "and config.json and metrics.jsonl of each run copied to "
    "experiments/results/paper/<env>/<variant>"
)
MAKERS = (
    Maker(
        "Figures 1 and 4 to 9",
        "ntk_init/data.json",
        "python -m experiments.ntk_init --out=experiments/results/ntk_init",
        _kernels,
    ),
    Maker(
        "Figure 2",
        "paper",
        f"python -m experiments.benchmark --root=runs/paper, {KEEP}",
        _benchmark,
    ),
    *(
        Maker(
            f"Figure 2 on {words}",
            name,
            f"the commands of docs/results/benchmark.md, {KEEP.replace('/paper/', f'/{name}/')}",
            _benchmark,
        )
        for name, words in (("scale", "five environments"), ("scale_300k", "some, to 300,000"))
    ),
    Maker(
        "Figures 3 and 10 to 14",
        "paper",
        f"python -m experiments.alignment --root=runs/paper, {KEEP}",
        _alignment,
    ),
    Maker(
        "the failure modes",
        "failure_modes/failure_modes.json",
        "python -m experiments.failure_modes "
        "--json=experiments/results/failure_modes/failure_modes.json",
        _one(failure_modes.redraw, "failure_modes.png"),
    ),
    Maker(
        "the diagnosis of a run",
        "diagnosis/ddpg",
        "the first command of docs/results/diagnoses.md, config.json and metrics.jsonl copied",
        _one(diagnose.redraw, "diagnosis.png"),
    ),
    Maker(
        "how a step grows",
        "growth.json",
        "python -m experiments.cost --grid --json=experiments/results/growth.json",
        _one(growth.redraw, "growth.png"),
    ),
    Maker(
        "two runs on HalfCheetah",
        "halfcheetah",
        "the train commands of docs/results/benchmark.md",
        _one(_runs("preqn", "td3"), "halfcheetah.png"),
    ),
    Maker(
        "finitely many actions",
        "discrete",
        "the train commands of docs/results/discrete.md, config.json and metrics.jsonl copied",
        _one(_runs(*_POLES, "acrobot-preqn", "acrobot-dqn"), "discrete.png"),
    ),
)


if __name__ == "__main__":
    flags.define(FiguresConfig)
    flags.run(main)
