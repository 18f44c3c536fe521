"""Measures peak memory, in multiples of the replay buffer's size: in training, and at a checkpoint.

    PYTHONPATH=. python tests/peak.py --megabytes=440 --seeds=1

Each is measured in a process of its own. It needs Linux (/proc).
"""

import dataclasses
import gc
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import flags
from preqn_jax import agents
from preqn_jax import replay as replays
from preqn_jax.options import check, option
from preqn_jax.training import loop
from preqn_jax.training.checkpoint import Checkpointer
from preqn_jax.training.config import LoopConfig
from preqn_jax.training.loop import Counters, Learner
from preqn_jax.types import Spec

SPEC = Spec(100, 18, -np.ones(18), np.ones(18))
CHUNK = 100  # rows that are filled at once


@dataclasses.dataclass(frozen=True)
class PeakConfig:
    """The replay buffer."""

    megabytes: int = option(440, "size of the replay buffer of all seeds, in MB", at_least=1)
    seeds: int = option(1, "number of seeds that share the replay buffer", at_least=1)


def memory(name: str) -> int:
    """Bytes of memory of this process: now for "VmRSS", or its peak since `forget` for "VmHWM"."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def forget() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


@partial(jax.jit, donate_argnums=0)
def _random(ring: jax.Array, i: int) -> jax.Array:
    new = jax.random.normal(jax.random.key(i), (ring.shape[0], CHUNK, *ring.shape[2:]))
    return jax.lax.dynamic_update_slice_in_dim(ring, new, i * CHUNK, axis=1)


def learner(seeds: int, rows: int, full: bool) -> Learner:
    """A learner whose replay buffer is empty, or full of random numbers, which do not compress."""

    def ring(form: jax.ShapeDtypeStruct) -> jax.Array:
        made = jnp.zeros((seeds, *form.shape), form.dtype)
        for i in range(rows // CHUNK if full else 0):
            made = _random(made, i)
        return jax.block_until_ready(made)

    data = jax.tree.map(ring, jax.eval_shape(lambda: replays.init(SPEC, rows)).data)
    added = jnp.full(seeds, rows if full else 0, jnp.int32)
    return Learner({"w": jnp.ones((seeds, 3))}, replays.Replay(data, added))


def writing(folder: str, seeds: int, rows: int) -> float:
    """Peak memory while a checkpoint is written, beyond that without a replay buffer, over its
    size.
    """
    before = memory("VmRSS")
    there = learner(seeds, rows, full=True)
    forget()
    Checkpointer(folder).save(50, there, Counters(1, 50, ()), [], {})
    return (memory("VmHWM") - before) / nbytes(there)


def reading(folder: str, seeds: int, rows: int) -> float:
    """As `writing`, while a checkpoint is read."""
    before = memory("VmRSS")
    like = learner(seeds, rows, full=False)
    forget()
    restored = Checkpointer(folder).restore(like)
    assert restored is not None and int(restored[1].replay.added[0]) == rows
    return (memory("VmHWM") - before) / nbytes(restored[1])


def nbytes(there: Learner) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(there.replay))


def training(folder: str, seeds: int, rows: int) -> float:
    """As `writing`, from an empty replay buffer being made to the third round of training."""
    before, starts = memory("VmRSS"), {"start_steps": 50, "update_after": 50}
    config = LoopConfig(seeds=tuple(range(seeds)), num_steps=rows, **starts)
    agent = agents.make(agents.AgentConfig(algorithm="td3", hidden_sizes=(8, 8)), SPEC)
    forget()
    there, _ = loop.init(agent, SPEC, config)
    learn, size, frozen = loop.make_learn(agent, config), nbytes(there), np.zeros(seeds, bool)
    new = jax.tree.map(lambda ring: np.ones((seeds, 50, *ring.shape[2:])), there.replay.data)
    for i in range(3):
        there, _ = learn(there, np.arange(seeds), new, frozen, jnp.uint32(i), jnp.int32(50 * i), 50)
    jax.block_until_ready(there)
    return (memory("VmHWM") - before) / size


STAGES = {
    "training": training,
    "writing a checkpoint": writing,
    "resuming from it": reading,
}


def measured(stage: str, seeds: int, rows: int, folder: str) -> float:
    with tempfile.TemporaryDirectory() as other:  # a first time, to load and compile
        for name in STAGES if stage == "resuming from it" else (stage,):
            STAGES[name](other, seeds, CHUNK)
    return STAGES[stage](folder, seeds, rows)


def main(argv: list[str]) -> None:
    config = flags.parse(PeakConfig)
    check(config)
    row = 4 * config.seeds * (2 * SPEC.obs_size + SPEC.action_size + 2)
    rows = config.megabytes * 1_000_000 // row // CHUNK * CHUNK
    print(f"peak memory, in multiples of the replay buffer's {rows * row / 1e6:.0f} MB")
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as alone,
    ):
        for name in STAGES:
            peak = alone.submit(measured, name, config.seeds, rows, folder).result()
            print(f"{name:<24}{peak:.2f}", flush=True)


if __name__ == "__main__":
    flags.define(PeakConfig)
    flags.run(main)
