"""How the time and the memory of a critic step grow with batch, width, depth and seeds: `python -m
experiments.cost --grid`.

One of these four numbers is varied at a time; the others stay as `--batch_size` and
`--hidden_sizes` say, with one seed. A step is one of `steps`, from the forward pass to the moved
parameters, always of the same sin network; the linesearch takes its first candidate, as it nearly
always does in training. Peak memory is XLA's own plan for the compiled steps (their arguments,
results and scratch space), which is the same on every call. `ntk.kernel` on a thousand inputs, the
analysis of section 5.1, is measured as well.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from experiments.bench import timing
from experiments.kit import output, style
from preqn_jax import networks, ntk, steps
from preqn_jax.options import UserError, option
from preqn_jax.training import provenance
from preqn_jax.types import Array, Params, QFunction, Transition

MIB, GIB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class GrowthConfig(timing.SizesConfig):
    """What is timed, and the point around which the grids lie."""

    members: tuple[int, ...] = option(
        (1, 2, 4, 8, 16), "with --grid: numbers of seeds side by side", at_least=1
    )
    repeats: int = option(11, "times each row is timed; medians are printed", at_least=1)
    json: str = option("", "also write the table to this file")
    figure: str = option("", "with --grid: also draw the results, to this .png, .pdf or .svg")
    jacobian_gib: float = option(
        4.0, "with --grid: leave out rows that hold a Jacobian of more GiB than this", above=0
    )


class Point(NamedTuple):
    """A point of the grid."""

    batch: int
    width: int
    depth: int
    seeds: int


AXES: dict[str, tuple[int, ...]] = {
    "batch": (64, 128, 256, 512, 1024),
    "width": (64, 128, 256, 512, 1024),
    "depth": (1, 2, 3, 4),
}
WORDS = {
    "batch": "batch size B",
    "width": "width of a hidden layer",
    "depth": "hidden layers",
    "seeds": "seeds side by side",
}
METHODS = {
    "structured": "PreQN, structured kernel",
    "jacobian": "PreQN, Jacobian kernel",
    "gradient": "gradient (Adam)",
}
STYLES = {  # colour, marker, line
    "structured": (style.COLOURS[0], "o", "-"),
    "jacobian": (style.COLOURS[1], "s", "--"),
    "gradient": (style.COLOURS[2], "^", ":"),
}
KERNEL = ("structured", "jacobian")  # methods of ntk.kernel
BLOCKS = (100, 250, 1000)  # numbers of rows in a block of ntk.kernel
SAMPLE = 0.2  # about how many seconds of work make up one timing

Run = Callable[[int], Any]  # runs that many updates


def run(
    config: GrowthConfig, axes: dict[str, tuple[int, ...]] | None = None, points: int = 1000
) -> int:
    """Measure, print, and write what is asked for. Returns the exit status; raises UserError."""
    if len(set(config.hidden_sizes)) != 1:
        raise UserError(
            f"hidden_sizes are {list(config.hidden_sizes)}, but a grid needs layers of one width, "
            f"as in 256,256"
        )
    output.check("figure", config.figure, picture=True)
    axes = {**AXES, "seeds": config.members} if axes is None else axes
    rows, kernel = measure(config, axes, points)
    _print(config, rows, kernel, points)
    timing.write(config, points=points, rows=rows, kernel=kernel)
    if config.figure:
        draw(config, rows, Path(config.figure))
        print(config.figure)
    return 0


def measure(
    config: GrowthConfig, axes: dict[str, tuple[int, ...]], points: int
) -> tuple[list[dict], list[dict]]:
    """Rows of the grids and of the kernel analysis.

    A row has `method` and its place in the grid, and then either `ms`, `min`, `max` and `bytes`, or
    `needs`: the bytes of a Jacobian over the limit, for which it was left out.
    """
    centre = Point(config.batch_size, config.hidden_sizes[0], len(config.hidden_sizes), 1)
    grid = [
        (axis, value, centre._replace(**{axis: value}))
        for axis, values in axes.items()
        for value in values
    ]
    limit, runs, counts = config.jacobian_gib * GIB, {}, {}
    places: dict[
        Any, dict[str, Any]
    ] = {}  # (point or block, method) -> what is known of it without timing

    def add(
        place: Any, method: str, jacobian: int, compile_: Callable[[], tuple[Run, int]]
    ) -> None:
        if (place, method) in places:
            return
        if method == "jacobian" and jacobian > limit:
            places[place, method] = {"needs": jacobian}
            return
        go, size = compile_()
        places[place, method] = {"bytes": size}
        counts[place, method] = _count(go)
        runs[place, method] = partial(go, counts[place, method])

    for _, _, point in grid:
        for method in METHODS:
            jacobian = 4 * point.seeds * point.batch * _parameters(config, point)
            add(point, method, jacobian, partial(_step, config, point, method))
    for method, block in itertools.product(KERNEL, BLOCKS):
        jacobian = 4 * 2 * min(block, points) * _parameters(config, centre)
        add(block, method, jacobian, partial(_kernel, config, centre, method, points, block))

    for key, times in timing.in_turn(runs, config.repeats).items():
        places[key] |= timing.spread([1e3 * t / counts[key] for t in times], "ms")
    rows = [
        {"axis": a, "value": v, "method": m, **places[point, m]}
        for a, v, point in grid
        for m in METHODS
    ]
    kernel = [
        {"block": b, "method": m, **places[b, m]} for m, b in itertools.product(KERNEL, BLOCKS)
    ]
    return rows, kernel


def _count(go: Run) -> int:
    """How many updates make up a timing. At least two, as the first also waits for its memory."""
    jax.block_until_ready(go(1))
    return max(2, min(200, round(SAMPLE / timing.seconds(lambda: go(1)))))


def _critic(config: GrowthConfig, point: Point) -> tuple[QFunction, Callable[..., Params]]:
    critic = networks.Critic(hidden_sizes=(point.width,) * point.depth, activation="sin")
    return critic.apply, lambda key: critic.init(
        key, jnp.zeros(config.obs_size), jnp.zeros(config.action_size)
    )


def _parameters(config: GrowthConfig, point: Point) -> int:
    """d, the number of parameters of one critic."""
    theta = jax.eval_shape(_critic(config, point)[1], jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(theta))


def _value_step(q: QFunction, method: str) -> steps.ValueStep:
    if method == "gradient":
        return steps.gradient(q, optax.adam(1e-3))
    return steps.preconditioned(q, eta=-0.999, method=cast(ntk.Method, method))


def _step(config: GrowthConfig, point: Point, method: str) -> tuple[Run, int]:
    """A function that takes a given number of critic steps, and the bytes of memory it needs."""
    q, init = _critic(config, point)
    step = _value_step(q, method)
    theta = jax.vmap(init)(jax.random.split(jax.random.key(0), point.seeds))
    state = jax.vmap(step.init)(theta)

    def body(batch: Transition, carry: Any) -> Any:
        theta, state = carry
        moved, state, _ = jax.vmap(step.update)(
            theta, state, (batch.obs, batch.action), jnp.asarray(batch.reward)
        )
        # Every iteration depends on the one before, and yet theta hardly moves, so that the last
        # one costs as much as the first.
        return jax.tree.map(lambda old, new: old + 1e-6 * (new - old), theta, moved), state

    return _compile(config, body, (theta, state), (point.seeds, point.batch))


def _kernel(
    config: GrowthConfig, point: Point, method: str, points: int, block: int
) -> tuple[Run, int]:
    """A function that computes a given number of kernels between `points` inputs, and its bytes."""
    q, init = _critic(config, point)

    def body(data: Transition, carry: Any) -> Any:
        theta, _ = carry
        gram = ntk.kernel(
            q, theta, (data.obs, data.action), method=cast(ntk.Method, method), block=block
        )
        return jax.tree.map(lambda leaf: leaf + 1e-9 * gram[0, 0], theta), gram

    return _compile(config, body, (init(jax.random.key(0)), jnp.zeros((points, points))), (points,))


def _compile(
    config: GrowthConfig, body: Callable, start: Any, sizes: tuple[int, ...]
) -> tuple[Run, int]:
    """`body(transitions, carry)` as a compiled loop, and its bytes of memory. The loop takes two
    batches of `sizes` in turn: with a single one XLA would compute X X^T only once.
    """
    flat = timing.transitions(config, 2 * math.prod(sizes))
    data = jax.tree.map(lambda leaf: jnp.reshape(leaf, (2, *sizes, *leaf.shape[1:])), flat)

    def loop(n: Array, carry: Any, data: Transition) -> Any:
        return jax.lax.fori_loop(
            0, n, lambda i, c: body(jax.tree.map(lambda leaf: leaf[i % 2], data), c), carry
        )

    compiled = jax.jit(loop).lower(jnp.int32(1), start, data).compile()
    plan = compiled.memory_analysis()
    assert plan is not None
    size = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )
    return lambda n: compiled(jnp.int32(n), start, data), size


def _print(config: GrowthConfig, rows: list[dict], kernel: list[dict], points: int) -> None:
    widths = ",".join(map(str, config.hidden_sizes))
    print(
        f"a critic step around B={config.batch_size}, hidden sizes {widths}, one seed, sin; "
        f"{provenance.machine()}"
    )
    print(f"ms: medians of {config.repeats}; MiB: peak memory, as XLA plans it")
    for axis in dict.fromkeys(row["axis"] for row in rows):
        print(_head(axis, METHODS.values()))
        table = [row for row in rows if row["axis"] == axis]
        for value in dict.fromkeys(row["value"] for row in table):
            print(
                _line(
                    value, {row["method"]: row for row in table if row["value"] == value}, METHODS
                )
            )
    words = {method: METHODS[method].removeprefix("PreQN, ") for method in KERNEL}
    print(f"ntk.kernel of {points} inputs with each other, hidden sizes {widths}")
    print(_head("block", words.values()))
    for block in dict.fromkeys(row["block"] for row in kernel):
        print(_line(block, {row["method"]: row for row in kernel if row["block"] == block}, words))
    for row in (*rows, *kernel):
        if "needs" in row:
            where = (
                f"{row['axis']} {row['value']}"
                if "axis" in row
                else f"ntk.kernel, block {row['block']}"
            )
            print(
                f"left out: {where}, whose Jacobian has {row['needs'] / GIB:.2g} GiB "
                f"(--jacobian_gib={config.jacobian_gib:g})"
            )


def _head(first: str, columns: Iterable[str]) -> str:
    names = [*columns, "Jacobian / structured"]
    units = f"{'ms':>15}{'MiB':>11}" * len(names)
    return f"{'':<8}{''.join(f'{name:>26}' for name in names)}\n{first:<8}{units}"


def _line(value: int, by_method: dict[str, dict[str, Any]], methods: Iterable[str]) -> str:
    cells = "".join(
        f"{by_method[m]['ms']:>15.3f}{by_method[m]['bytes'] / MIB:>11.2f}"
        if "ms" in by_method[m]
        else f"{'left out':>26}"
        for m in methods
    )
    structured, jacobian = by_method["structured"], by_method["jacobian"]
    if "ms" in jacobian:
        time, memory = (jacobian[kind] / structured[kind] for kind in ("ms", "bytes"))
        cells += f"{time:>15.1f}{memory:>11.1f}"
    return f"{value:<8}{cells}"


def redraw(path: Path, out: Path) -> None:
    """Draws the figure from a file that `--grid --json` wrote. Raises UserError for other files."""
    with output.expecting(
        f"{str(path)!r} holds no rows of experiments.cost --grid; make it again with its --json"
    ):
        data = json.loads(path.read_text())
        rows, given = data["rows"], data["config"]  # which may lack newer options
        names = {field.name for field in dataclasses.fields(GrowthConfig)} & given.keys()
        config = GrowthConfig(**{name: given[name] for name in names})
        if not {"axis", "value", "method"} <= rows[0].keys():
            raise KeyError("axis, value or method")
    draw(config, rows, out)


def draw(config: GrowthConfig, rows: list[dict], out: Path) -> None:
    """Draws time above and memory below, with a column for each axis of the grid. Raises UserError
    if `out` cannot be written.
    """
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    size = (1.5 + 3.0 * len(axes), 6.2)
    figure, panels = plt.subplots(
        2, len(axes), figsize=size, sharex="col", sharey="row", squeeze=False, layout="constrained"
    )
    for column, axis in enumerate(axes):
        for method, (colour, marker, dashes) in STYLES.items():
            line = [
                row
                for row in rows
                if row["axis"] == axis and row["method"] == method and "ms" in row
            ]
            x = [row["value"] for row in line]
            look: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "ls": dashes,
                "ms": 4,
                "lw": 1.5,
                "label": METHODS[method],
            }
            panels[0, column].plot(x, [row["ms"] for row in line], **look)
            panels[0, column].fill_between(
                x,
                [row["min"] for row in line],
                [row["max"] for row in line],
                color=colour,
                alpha=0.2,
                lw=0,
            )
            panels[1, column].plot(x, [row["bytes"] / MIB for row in line], **look)
        values = list(dict.fromkeys(row["value"] for row in rows if row["axis"] == axis))
        for panel in panels[:, column]:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(values, [str(v) for v in values])
            style.tidy(panel)
        panels[1, column].set_xlabel(WORDS[axis])
    panels[0, 0].set_ylabel("a critic step (ms)")
    panels[1, 0].set_ylabel("peak memory (MiB)")
    panels[0, 0].legend(frameon=False, fontsize=8)
    widths = ",".join(map(str, config.hidden_sizes))
    figure.suptitle(
        f"sin networks around B = {config.batch_size}, hidden sizes {widths}, one seed; "
        f"medians of {config.repeats}, bands from least to most; memory as XLA plans it",
        fontsize=9,
    )
    output.save_figure(figure, out, "figure")
