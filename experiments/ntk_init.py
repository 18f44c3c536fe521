"""Neural tangent kernels of critics at initialisation, by activation, width and depth (section 5.1;
Figures 1 and 4 to 9).

    python -m experiments.ntk_init --out=runs/ntk_init

For each environment, `--points` state-action pairs are collected once by a rails-random policy,
whose actions have only entries -1 and 1. For each critic and each of `--seeds` initialisations, the
kernel K of these pairs is computed, and its average row ratio and average diagonal are stored.
`--out` holds data.json with all the numbers, and the figures; if it already has some of the
numbers, the same command computes the rest. At the end a table says which of the paper's findings
the numbers bear out, by the rules printed below it.
"""

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.judge import section_5_1
from experiments.judge.section_5_1 import DEPTH, WIDTH
from experiments.kit import flags, output
from preqn_jax import diagnostics, envs, networks, ntk
from preqn_jax.options import UserError, check, check_same, choose, option
from preqn_jax.training import files, loop, provenance
from preqn_jax.types import Array, Key, Params, QFunction

_BLOCK = 500  # pairs whose gradients are held at a time


@dataclasses.dataclass(frozen=True)
class NtkInitConfig:
    """Which kernels to compute. The defaults are the paper's, on today's environments, and two
    initialisations that the paper does not have.
    """

    envs: tuple[str, ...] = option(
        ("HalfCheetah-v5", "Walker2d-v5", "Ant-v5"), "environments that the pairs come from"
    )
    activations: tuple[str, ...] = option(("tanh", "relu", "sin"), "activations of the critics")
    widths: tuple[int, ...] = option(
        (32, 64, 128, 256), f"widths of critics with {DEPTH} hidden layers", at_least=1
    )
    depths: tuple[int, ...] = option(
        (1, 2, 3, 4), f"hidden layers of critics with {WIDTH} units in each", at_least=1
    )
    initializers: tuple[str, ...] = option(
        ("glorot", "lecun", "pytorch"), "how weights are drawn: glorot, lecun, pytorch, siren"
    )
    points: int = option(1000, "N, state-action pairs from each environment", at_least=2)
    seeds: tuple[int, ...] = option(
        (0, 1, 2), "random seeds of the initialisations of each critic, at least two", at_least=0
    )
    data_seed: int = option(
        0, "the seed of the environments and the rails-random policy", at_least=0
    )
    out: str = option(
        "runs/ntk_init", "the folder of the figures and data.json; its missing numbers are computed"
    )
    json: str = option("", "also write the table of findings to this file")


class Pairs(NamedTuple):
    """State-action pairs (s, a) of one environment."""

    obs: np.ndarray  # `[N, obs]` float32
    action: np.ndarray  # `[N, act]` float32, each entry -1 or 1
    episodes: int  # episodes begun


def main(argv: list[str]) -> int:
    config = flags.parse(NtkInitConfig)
    output.check("json", config.json)
    data = run(config)
    for path in section_5_1.draw(data, Path(config.out)):
        print(path)
    found = section_5_1.findings(data)
    section_5_1.show(found)
    if config.json:
        findings = section_5_1.as_json(found)
        output.write_json(Path(config.json), {"rules": section_5_1.RULES, "findings": findings})
    return 0


# --- the numbers ----------------------------------------------------------------------------------


def run(config: NtkInitConfig) -> dict[str, Any]:
    """All the numbers of `config`. Those that are not in `config.out` yet are computed; afterwards
    it holds all of them, as data.json.

    Returns:
      {"config", "versions", "device", "data": {env: ...}, "cells": [{"env", "initializer",
      "activation", "hidden_sizes", "row_ratio" `[S]`, "diagonal" `[S]`}]}, the last two averages
      over the N pairs, for each of S initialisations.

    Raises:
      UserError: a field out of range or unknown, a folder that cannot be used, or numbers in it
        that belong to something else.
    """
    _validate(config)
    path = Path(config.out) / "data.json"
    data = _open(path, config)
    there = section_5_1.measured(data)
    missing = [cell for cell in _cells(config) if cell not in there]
    pairs = {
        env: collect(env, config.points, config.data_seed)
        for env in config.envs
        if any(env == c[0] for c in missing)
    }
    for env, found in pairs.items():
        _same_data(path, data, env, found)
    if missing:  # fails now if it cannot be written; a misspelt environment has left no file behind
        output.write_json(path, data, "out")
    for env, activation, hidden_sizes, initializer in tqdm(missing, desc="kernels"):
        keys = _keys(config.seeds, f"{env}/{activation}/{hidden_sizes}/{initializer}")
        row_ratio, diagonal = measure(pairs[env], hidden_sizes, activation, initializer, keys)
        cell = {
            "env": env,
            "initializer": initializer,
            "activation": activation,
            "hidden_sizes": list(hidden_sizes),
        }
        if not np.isfinite([row_ratio, diagonal]).all():
            raise UserError(
                f"the kernel of {cell} is not finite; look at the observations of {env}"
            )
        data["cells"].append({**cell, "row_ratio": row_ratio, "diagonal": diagonal})
        output.write_json(path, data, "out")
    return data


def collect(env_id: str, points: int, seed: int) -> Pairs:
    """The first `points` pairs of a rails-random policy, a = sgn(u) with u uniform over the
    actions, across episodes.
    """
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
    """The average row ratio `[S]` and the average diagonal `[S]` of K on the pairs, for one critic
    initialised from each of `keys [S]`.
    """
    critic = networks.Critic(tuple(hidden_sizes), activation, initializer)
    obs, action = jnp.asarray(pairs.obs), jnp.asarray(pairs.action)
    params = jax.vmap(critic.init, (0, None, None))(keys, obs[0], action[0])
    row_ratio, diagonal = _statistics(tuple(hidden_sizes), activation)(params, obs, action)
    return np.asarray(row_ratio).tolist(), np.asarray(diagonal).tolist()


def _keys(seeds: Sequence[int], cell: str) -> Key:
    """A random key for each seed, `[S]`, different in every cell: critics of one shape must not
    share their draws, as the environments count as separate evidence.
    """
    return jax.vmap(jax.random.fold_in, (0, None))(loop.keys(seeds), zlib.crc32(cell.encode()))


@functools.lru_cache
def _statistics(
    hidden_sizes: tuple[int, ...], activation: str
) -> Callable[[Params, Array, Array], tuple[Array, Array]]:
    """A function that computes the two averages, compiled once for each shape of critic: it does
    not depend on the initialisation.
    """
    q: QFunction = networks.Critic(hidden_sizes, activation).apply

    def averages(params: Params, obs: Array, action: Array) -> tuple[Array, Array]:
        gram = ntk.kernel(q, params, (obs, action), block=_BLOCK)
        return jnp.mean(diagnostics.row_ratio(gram)), jnp.mean(jnp.diagonal(gram))

    return jax.jit(jax.vmap(averages, (0, None, None)))


def _cells(config: NtkInitConfig) -> list[tuple[str, str, tuple[int, ...], str]]:
    """(env, activation, hidden sizes, initializer) of each cell; cells that share a compiled
    function are next to each other.
    """
    sizes = dict.fromkeys(
        [(width,) * DEPTH for width in config.widths]
        + [(WIDTH,) * depth for depth in config.depths]
    )
    return [
        (e, a, s, i)
        for a in config.activations
        for s in sizes
        for e in config.envs
        for i in config.initializers
    ]


# --- files ----------------------------------------------------------------------------------------


def _validate(config: NtkInitConfig) -> None:
    check(config)
    for activation in config.activations:
        choose("activation", activation, networks.ACTIVATIONS)
    for initializer in config.initializers:
        choose("initializer", initializer, networks.INITIALIZERS)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise UserError(
                f"{field.name} is {','.join(map(str, value))!r}, but each entry may appear only "
                f"once"
            )
        if value == () and field.name not in ("widths", "depths"):
            raise UserError(
                f"{field.name} is empty; name at least one, or leave --{field.name} out for the "
                f"paper's"
            )
    if not config.widths and not config.depths:
        raise UserError(
            "widths and depths are both empty; name at least one width or depth, as in "
            "--widths=32,64"
        )
    if len(config.seeds) < 2:
        raise UserError(
            "seeds names one initialisation, but a spread needs at least two, as in --seeds=0,1,2"
        )


def _open(path: Path, config: NtkInitConfig) -> dict[str, Any]:
    """The numbers computed so far. Raises UserError for a folder with other files, or with numbers
    of another configuration.
    """
    wanted = dataclasses.asdict(config)
    wanted = json.loads(
        json.dumps({name: value for name, value in wanted.items() if name not in ("out", "json")})
    )
    if path.exists():
        data = section_5_1.load(path)
        check_same(f"{str(path)!r} says", data["config"], wanted, "out")
        return data
    if path.parent.is_dir() and any(
        not files.is_temporary(other.name, path.name) for other in path.parent.iterdir()
    ):
        raise UserError(
            f"out {str(path.parent)!r} holds other files and no data.json; give an empty or a new "
            f"folder"
        )
    packages = ("jax", "jaxlib", "flax", "gymnasium", "mujoco", "numpy")
    made_on = {"versions": provenance.versions(*packages), "device": provenance.device()}
    return {"config": wanted, **made_on, "data": {}, "cells": []}


def _same_data(path: Path, data: dict[str, Any], env: str, pairs: Pairs) -> None:
    """Notes in `data` which pairs the kernels of `env` are computed on. Raises UserError if the
    noted pairs differ from those that the environment gives now.
    """
    obs_size, action_size = pairs.obs.shape[1], pairs.action.shape[1]
    digest = hashlib.sha256(pairs.obs.tobytes() + pairs.action.tobytes()).hexdigest()
    note = {
        "obs_size": obs_size,
        "action_size": action_size,
        "episodes": pairs.episodes,
        "sha256": digest,
    }
    if data["data"].setdefault(env, note) != note:
        raise UserError(
            f"{str(path)!r} holds kernels of other pairs of {env} than this machine collects "
            f"(other versions of gymnasium or "
            "mujoco?); give another --out"
        )


if __name__ == "__main__":
    flags.define(NtkInitConfig)
    flags.run(main, keeps=True)
