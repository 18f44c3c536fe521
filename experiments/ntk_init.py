"""Neural tangent kernels of critics at initialisation, by activation, width and depth (section 5.1; Figures 1 and 4 to 9).

    python -m experiments.ntk_init --out=runs/ntk_init

For each environment, `--points` state-action pairs of a rails-random policy are collected once. For each critic, K of these pairs
gives an average row ratio and an average diagonal, for each of `--seeds` initialisations. `--out` holds data.json with all the
numbers, and the figures; the same command on a directory with some of the numbers goes on from there. At the end a table says
which of the paper's findings the numbers bear out, by the rules printed below it.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from experiments import flags
from experiments.plot import COLOURS
from preqn_jax import diagnostics, envs, networks, ntk
from preqn_jax.options import UserError, check, choose, option
from preqn_jax.types import Array, Key, Params, QFunction

DEPTH = 2  # hidden layers of the networks of `widths`
WIDTH = 64  # hidden units of the networks of `depths`
_BLOCK = 500  # pairs whose gradients are held at a time


@dataclasses.dataclass(frozen=True)
class NtkInitConfig:
    """Which kernels. The defaults are the paper's, on today's environments, and two initialisations that it does not have."""

    envs: tuple[str, ...] = option(("HalfCheetah-v5", "Walker2d-v5", "Ant-v5"), "environments that the pairs come from")
    activations: tuple[str, ...] = option(("tanh", "relu", "sin"), "activations of the critics")
    widths: tuple[int, ...] = option((32, 64, 128, 256), f"widths of critics with {DEPTH} hidden layers", at_least=1)
    depths: tuple[int, ...] = option((1, 2, 3, 4), f"hidden layers of critics with {WIDTH} units in each", at_least=1)
    initializers: tuple[str, ...] = option(("glorot", "lecun", "pytorch"), "how weights are drawn: glorot, lecun, pytorch, siren")
    points: int = option(1000, "N, state-action pairs from each environment", at_least=2)
    seeds: tuple[int, ...] = option((0, 1, 2), "initialisations of each critic, two at the least", at_least=0)
    data_seed: int = option(0, "the seed of the environments and the rails-random policy", at_least=0)
    out: str = option("runs/ntk_init", "the folder of data.json and the figures; unfinished numbers in it go on")
    json: str = option("", "also write the table of findings to this file")


class Pairs(NamedTuple):
    """State-action pairs (s, a) of one environment."""

    obs: np.ndarray  # `[N, obs]` float32
    action: np.ndarray  # `[N, act]` float32, each entry -1 or 1
    episodes: int  # episodes begun


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags start with --, as in --envs=Walker2d-v5")
    config = flags.parse(NtkInitConfig)
    data = run(config)
    for path in draw(data, Path(config.out)):
        print(path)
    table = findings(data)
    _print(table)
    if config.json:
        _write(Path(config.json), {"rules": RULES, "findings": table}, "json")
    return 0


# --- the numbers -----------------------------------------------------------------------------------------------------


def run(config: NtkInitConfig) -> dict[str, Any]:
    """All the numbers of `config`, computed or found in `config.out`, which holds them as data.json afterwards.

    Returns:
      {"config", "versions", "device", "data": {env: ...}, "cells": [{"env", "initializer", "activation", "hidden_sizes",
      "row_ratio" `[S]`, "diagonal" `[S]`}]}, the last two averages over the N pairs, for each of S initialisations.

    Raises:
      UserError: a field out of range or unknown, a folder that cannot be used, or numbers in it that belong to something else.
    """
    _validate(config)
    path = Path(config.out) / "data.json"
    data = _open(path, config)
    missing = [cell for cell in _cells(config) if _find(data, *cell) is None]
    pairs = {env: collect(env, config.points, config.data_seed) for env in config.envs if any(env == c[0] for c in missing)}
    for env, found in pairs.items():
        _same_data(path, data, env, found)
    if missing:  # what cannot be written is said now, and nothing is left behind by a misspelt environment
        _write(path, data, "out")
    for env, activation, hidden_sizes, initializer in tqdm(missing, desc="kernels"):
        keys = _keys(config.seeds, f"{env}/{activation}/{hidden_sizes}/{initializer}")
        row_ratio, diagonal = measure(pairs[env], hidden_sizes, activation, initializer, keys)
        cell = {"env": env, "initializer": initializer, "activation": activation, "hidden_sizes": list(hidden_sizes)}
        if not np.isfinite([row_ratio, diagonal]).all():
            raise UserError(f"the kernel of {cell} is not finite; look at the observations of {env}")
        data["cells"].append({**cell, "row_ratio": row_ratio, "diagonal": diagonal})
        _write(path, data, "out")
    return data


def collect(env_id: str, points: int, seed: int) -> Pairs:
    """The first `points` pairs of a rails-random policy, a = sgn(u) with u uniform over the actions, across episodes."""
    env = envs.make(env_id, 1)
    spec, rng = env.spec, np.random.default_rng(seed)
    actions = np.where(rng.uniform(-1, 1, (points, spec.action_size)) < 0, -1, 1).astype(np.float32)
    obs, episodes = np.zeros((points, spec.obs_size), np.float32), 1
    now = env.reset([envs.derive_seed(seed)])
    for i in range(points):
        obs[i] = now[0]
        step = env.step(actions[i : i + 1])
        now = step.obs
        episodes += int(i + 1 < points and (step.terminated | step.truncated)[0])
    env.close()
    return Pairs(obs, actions, episodes)


def measure(
    pairs: Pairs, hidden_sizes: Sequence[int], activation: str, initializer: str, keys: Key
) -> tuple[list[float], list[float]]:
    """The average row ratio `[S]` and the average diagonal `[S]` of K, one critic for each of `keys [S]`, on the same pairs."""
    critic = networks.Critic(tuple(hidden_sizes), activation, initializer)
    obs, action = jnp.asarray(pairs.obs), jnp.asarray(pairs.action)
    params = jax.vmap(critic.init, (0, None, None))(keys, obs[0], action[0])
    row_ratio, diagonal = _statistics(tuple(hidden_sizes), activation)(params, obs, action)
    return np.asarray(row_ratio).tolist(), np.asarray(diagonal).tolist()


def _keys(seeds: Sequence[int], cell: str) -> Key:
    """`[S]`, of this cell alone: critics of one shape must not share their draws where environments count as evidence."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(cell.encode()))


@functools.lru_cache
def _statistics(hidden_sizes: tuple[int, ...], activation: str) -> Callable[[Params, Array, Array], tuple[Array, Array]]:
    """Compiled once for a shape: the initialisation is not part of it."""
    q: QFunction = networks.Critic(hidden_sizes, activation).apply

    def averages(params: Params, obs: Array, action: Array) -> tuple[Array, Array]:
        gram = ntk.kernel(q, params, (obs, action), block=_BLOCK)
        return jnp.mean(diagnostics.row_ratio(gram)), jnp.mean(jnp.diagonal(gram))

    return jax.jit(jax.vmap(averages, (0, None, None)))


def _cells(config: NtkInitConfig) -> list[tuple[str, str, tuple[int, ...], str]]:
    """(env, activation, hidden sizes, initializer), those that share a compiled function one after the other."""
    sizes = dict.fromkeys([(width,) * DEPTH for width in config.widths] + [(WIDTH,) * depth for depth in config.depths])
    return [(e, a, s, i) for a in config.activations for s in sizes for e in config.envs for i in config.initializers]


def _find(
    data: dict[str, Any], env: str, activation: str, hidden_sizes: Sequence[int], initializer: str
) -> dict[str, Any] | None:
    wanted = {"env": env, "activation": activation, "hidden_sizes": list(hidden_sizes), "initializer": initializer}
    return next((cell for cell in data["cells"] if all(cell[name] == value for name, value in wanted.items())), None)


# --- files -----------------------------------------------------------------------------------------------------------


def _validate(config: NtkInitConfig) -> None:
    check(config)
    for activation in config.activations:
        choose("activation", activation, networks.ACTIVATIONS)
    for initializer in config.initializers:
        choose("initializer", initializer, networks.INITIALIZERS)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise UserError(f"{field.name} is {','.join(map(str, value))!r}, but each entry may be there only once")
        if value == () and field.name not in ("widths", "depths"):
            raise UserError(f"{field.name} is empty; name at least one, or leave --{field.name} out for the paper's")
    if not config.widths and not config.depths:
        raise UserError("widths and depths are both empty; name at least one width or depth, as in --widths=32,64")
    if len(config.seeds) < 2:
        raise UserError("seeds names one initialisation, but a spread needs at least two, as in --seeds=0,1,2")


def load(path: Path) -> dict[str, Any]:
    """The numbers of a data.json that `run` wrote. Raises UserError if it is none."""
    try:
        data = json.loads(path.read_text())
        if not {"config", "data", "cells"} <= data.keys():
            raise KeyError("config, data or cells")
    except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError):
        raise UserError(f"{str(path)!r} does not hold numbers of experiments.ntk_init; give another --out") from None
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return data


def _open(path: Path, config: NtkInitConfig) -> dict[str, Any]:
    """The numbers so far. Refuses a folder with other files, or with numbers of another configuration."""
    wanted = dataclasses.asdict(config)
    wanted = json.loads(json.dumps({name: value for name, value in wanted.items() if name not in ("out", "json")}))
    if path.exists():
        data = load(path)
        for name in sorted({*wanted, *data["config"]}):
            if wanted.get(name) != data["config"].get(name):
                raise UserError(
                    f"{str(path)!r} holds numbers with {name}={data['config'].get(name)!r}, but this command says "
                    f"{wanted.get(name)!r}; use the same {name} to go on with them, or another --out"
                )
        return data
    if path.parent.is_dir() and any(other != _temporary(path) for other in path.parent.iterdir()):
        raise UserError(f"out {str(path.parent)!r} holds other files and no data.json; give an empty or a new folder")
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "gymnasium", "mujoco", "numpy")}
    device = jax.devices()[0]
    return {
        "config": wanted,
        "versions": versions,
        "device": f"{device.platform} ({device.device_kind})",
        "data": {},
        "cells": [],
    }


def _same_data(path: Path, data: dict[str, Any], env: str, pairs: Pairs) -> None:
    """Notes which pairs the kernels of `env` are of; refuses to go on where the environment now gives others."""
    obs_size, action_size = pairs.obs.shape[1], pairs.action.shape[1]
    digest = hashlib.sha256(pairs.obs.tobytes() + pairs.action.tobytes()).hexdigest()
    note = {"obs_size": obs_size, "action_size": action_size, "episodes": pairs.episodes, "sha256": digest}
    if data["data"].setdefault(env, note) != note:
        raise UserError(
            f"{str(path)!r} holds kernels of other pairs of {env} than this machine collects (other versions of gymnasium or "
            "mujoco?); give another --out"
        )


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _write(path: Path, content: Any, flag: str) -> None:
    """JSON, all of it or nothing; `flag` is the one to mend where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _temporary(path).write_text(json.dumps(content, indent=1) + "\n")
        os.replace(_temporary(path), path)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; give another --{flag}") from error


# --- the paper's findings --------------------------------------------------------------------------------------------

RULES = """\
Clear: beyond two standard errors, over initialisations. A series is one environment and one activation; it rises or falls where
the least-squares slope of all its values (against log2 width, or depth) is clear. An activation rises or falls if it does so
in more than half of the environments. A tendency is borne out if all activations show it; "neither", if no activation shows
either. A statement on relu or sin is borne out if it is clear for more than half of all pairs of an environment and a network
size. A finding is borne out if both of its halves are. x1.2: the largest network's mean over the smallest's, geometric mean over
environments."""


class Half(NamedTuple):
    """One half of a finding: what is said, how often it was found, and whether that bears it out."""

    words: str
    evidence: str
    borne_out: bool | None  # None: the numbers cannot tell


def findings(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The four findings of section 5.1 under each initialisation, judged on `data` by `RULES`.

    Returns:
      A row each: {"initializer", "finding" (1 to 4), "words", "borne_out" (None where the numbers cannot tell), "halves"}.
    """
    rows = []
    for initializer in data["config"]["initializers"]:
        by_width, by_depth = (functools.partial(_trend, data, initializer, sweep) for sweep in ("width", "depth"))
        lead = functools.partial(_lead, data, initializer)
        four = (
            (
                "Diagonal elements tend to increase with width and decrease with depth",
                by_width("diagonal", "rises"),
                by_depth("diagonal", "falls"),
            ),
            (
                "Row ratios tend to increase with depth, and do not clearly correlate with width",
                by_depth("row_ratio", "rises"),
                by_width("row_ratio", None),
            ),
            (
                "Relu nets commonly have the largest diagonal elements and row ratios",
                lead("relu", "diagonal", "largest", lambda own, others: all(_clear(own, other) for other in others)),
                lead("relu", "row_ratio", "largest", lambda own, others: all(_clear(own, other) for other in others)),
            ),
            (
                "Sin nets have high diagonal elements and low off-diagonal elements",
                lead("sin", "diagonal", "not smallest", lambda own, others: any(_clear(own, other) for other in others)),
                lead("sin", "row_ratio", "smallest", lambda own, others: all(_clear(other, own) for other in others)),
            ),
        )
        for number, (words, *halves) in enumerate(four, start=1):
            verdicts = [half.borne_out for half in halves]
            verdict = None if None in verdicts else all(verdicts)
            row = {"initializer": initializer, "finding": number, "words": words, "borne_out": verdict}
            rows.append({**row, "halves": [half._asdict() for half in halves]})
    return rows


def _trend(data: dict[str, Any], initializer: str, sweep: str, quantity: str, direction: str | None) -> Half:
    """Whether `quantity` "rises" or "falls" along a sweep with every activation, or (None) does neither with any."""
    said = f"{_WORDS[quantity]} {direction or 'neither rises nor falls'} with {sweep}"
    sizes, config = _sizes(data, sweep), data["config"]
    if len(sizes) < 2:
        return Half(said, f"needs two {sweep}s", None)
    x = np.log2(list(sizes)) if sweep == "width" else np.array(list(sizes), np.float64)
    ways, evidence = [], []  # of each activation
    for activation in config["activations"]:
        series = [
            np.array([_values(data, env, activation, hidden, initializer, quantity) for hidden in sizes.values()])
            for env in config["envs"]
        ]
        slopes = [_slope(x, values) for values in series]
        clear = {
            "rises": sum(slope > 2 * error for slope, error in slopes),
            "falls": sum(-slope > 2 * error for slope, error in slopes),
        }
        ways.append(next((way for way, count in clear.items() if 2 * count > len(series)), None))
        factor = math.exp(np.mean([np.log(values[-1].mean() / values[0].mean()) for values in series]))
        counts = ", ".join(f"{way} in {count}" for way, count in clear.items() if count) or "no clear trend"
        evidence.append(f"{activation} x{factor:.2f}, {counts} of {len(series)}")
    return Half(said, "; ".join(evidence), all(way == direction for way in ways))


def _lead(
    data: dict[str, Any],
    initializer: str,
    activation: str,
    quantity: str,
    place: str,
    ahead: Callable[[np.ndarray, list[np.ndarray]], bool],
) -> Half:
    """Whether an activation is `ahead` of the others in most pairs of an environment and a network size."""
    said, config = f"{activation}'s {_WORDS[quantity]} is the {place}".replace("the not", "not the"), data["config"]
    others = [name for name in config["activations"] if name != activation]
    if activation not in config["activations"] or not others:
        return Half(said, f"needs {activation} and another activation", None)
    networks_seen = {tuple(hidden) for sweep in ("width", "depth") for hidden in _sizes(data, sweep).values()}
    won = []
    for env in config["envs"]:
        for hidden in sorted(networks_seen):
            own, *rest = (_values(data, env, name, hidden, initializer, quantity) for name in (activation, *others))
            won.append(ahead(own, rest))
    return Half(said, f"in {sum(won)} of {len(won)}", 2 * sum(won) > len(won))


def _clear(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the mean of `a` is above that of `b` by two standard errors of their difference."""
    return bool(a.mean() - b.mean() > 2 * math.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size))


def _slope(x: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The least-squares slope of `values [sizes, S]` against `x [sizes]`, and its standard error."""
    x, y = np.repeat(x, values.shape[1]), values.ravel()
    x, y = x - x.mean(), y - y.mean()
    slope = x @ y / (x @ x)
    residual = y - slope * x
    return float(slope), math.sqrt(residual @ residual / (x.size - 2) / (x @ x))


def _sizes(data: dict[str, Any], sweep: str) -> dict[int, list[int]]:
    """Width or depth -> the hidden sizes of its networks, smallest first."""
    if sweep == "width":
        return {width: [width] * DEPTH for width in sorted(data["config"]["widths"])}
    return {depth: [WIDTH] * depth for depth in sorted(data["config"]["depths"])}


def _values(
    data: dict[str, Any], env: str, activation: str, hidden_sizes: Sequence[int], initializer: str, quantity: str
) -> np.ndarray:
    """`[S]`. Raises ValueError where `data` is of an unfinished run."""
    cell = _find(data, env, activation, hidden_sizes, initializer)
    if cell is None:
        raise ValueError(f"data has no cell for {env}, {initializer}, {activation}, {hidden_sizes}: it is of an unfinished run")
    return np.array(cell[quantity])


def _print(table: list[dict[str, Any]]) -> None:
    verdicts = {True: "yes", False: "no", None: "cannot tell"}
    for row in table:
        if row["finding"] == 1:
            print(f"\ninitialisation: {row['initializer']}")
        print(f"  {row['finding']}. {row['words']}: {verdicts[row['borne_out']]}")
        for half in row["halves"]:
            print(f"       {half['words']}: {verdicts[half['borne_out']]} ({half['evidence']})")
    print("\n" + RULES)


# --- the figures -----------------------------------------------------------------------------------------------------

_WORDS = {"row_ratio": "average row ratio", "diagonal": "average diagonal"}
_LABELS = {"row_ratio": r"average row ratio $R_i(K)$", "diagonal": r"average diagonal $K_{ii}$"}
_PAPER = {  # (sweep, environment without its version) -> the paper's figure
    ("width", "Ant"): 4,
    ("width", "HalfCheetah"): 5,
    ("width", "Walker2d"): 6,
    ("depth", "Ant"): 7,
    ("depth", "HalfCheetah"): 8,
    ("depth", "Walker2d"): 9,
}


def draw(data: dict[str, Any], out_dir: Path) -> list[Path]:
    """Figures 1 and 4 to 9 from numbers that are there (`load`), and the like for other environments; nothing is computed.

    Returns the pictures' paths in `out_dir`. Raises UserError where one cannot be written, ValueError for unfinished data.
    """
    config, paths = data["config"], []
    for env in config["envs"]:
        name = env.split("-")[0]
        if name == "Walker2d" and config["widths"]:
            paths.append(_figure(data, env, "width", ("row_ratio",), 1, out_dir / "figure_1.png"))
        for sweep in ("width", "depth"):
            if config[sweep + "s"]:
                number = _PAPER.get((sweep, name))
                stem = f"figure_{number}" if number else f"{sweep}_{env}".replace("/", "_")
                paths.append(_figure(data, env, sweep, ("row_ratio", "diagonal"), number, out_dir / f"{stem}.png"))
    return paths


def _figure(data: dict[str, Any], env: str, sweep: str, quantities: Sequence[str], number: int | None, path: Path) -> Path:
    """A panel for each initialisation (across) and quantity (down): bars by size and activation."""
    config = data["config"]
    figure, axes = plt.subplots(
        len(quantities),
        len(config["initializers"]),
        figsize=(1 + 3.3 * len(config["initializers"]), 1.2 + 2.5 * len(quantities)),
        squeeze=False,
        constrained_layout=True,
    )
    for column, initializer in enumerate(config["initializers"]):
        for row, quantity in enumerate(quantities):
            _bars(axes[row, column], data, env, sweep, initializer, quantity)
        axes[0, column].set_title(f"{initializer} initialisation", fontsize=10)
        axes[-1, column].set_xlabel("units in each of 2 hidden layers" if sweep == "width" else f"hidden layers of {WIDTH} units")
    for row, quantity in enumerate(quantities):
        axes[row, 0].set_ylabel(_LABELS[quantity])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, ncols=len(labels), loc="outside lower center")
    after = f"As Figure {number} of the paper: " if number else ""
    figure.suptitle(
        f"{after}K of {config['points']:,} rails-random pairs of {env}, critics at initialisation\n"
        f"bars: mean and standard deviation over {len(config['seeds'])} initialisations, same pairs",
        fontsize=10,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise UserError(f"cannot write the figure {str(path)!r}: {error.strerror}") from error
    finally:
        plt.close(figure)
    return path


def _bars(ax: Any, data: dict[str, Any], env: str, sweep: str, initializer: str, quantity: str) -> None:
    sizes, activations = _sizes(data, sweep), data["config"]["activations"]
    width = 0.8 / len(activations)
    for i, activation in enumerate(activations):
        values = np.array([_values(data, env, activation, hidden, initializer, quantity) for hidden in sizes.values()])
        ax.bar(
            np.arange(len(sizes)) + (i - (len(activations) - 1) / 2) * width,
            values.mean(axis=1),
            width,
            yerr=values.std(axis=1, ddof=1),
            color=COLOURS[i % len(COLOURS)],
            label=activation,
            capsize=2,
            error_kw={"lw": 1},
        )
    ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    flags.define(NtkInitConfig)
    flags.run(main)
