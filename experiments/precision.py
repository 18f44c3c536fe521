"""How exact K and an update of PreQN are on this device, for each precision of matrix products.

    python -m experiments.precision --json=precision.json

By default recent GPUs multiply float32 matrices in TF32, and TPUs in bfloat16; the setting is
`jax_default_matmul_precision`. A critic's products never depend on this setting, those of a
policy's network do. The table has a row for each precision: the largest error of a network whose
products follow the setting ("left to it"), that of Q and that of K, each relative to the largest
entry, against float64 on the CPU; and the alignment of the update, as the step reports it and as
float64 finds it from the parameters before and after. Rows should differ in the first error alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing
from experiments.kit import flags, output
from preqn_jax import linearize, linesearch, networks, steps
from preqn_jax.options import check, option
from preqn_jax.training import provenance
from preqn_jax.training.local import cpu
from preqn_jax.types import Array

PRECISIONS = ("default", "tensorfloat32", "highest")


@dataclasses.dataclass(frozen=True)
class PrecisionConfig(timing.SizesConfig):
    """The update that is measured."""

    activation: str = option("sin", "activation of the critic")
    json: str = option("", "also write the table to this file")


def main(argv: list[str]) -> int:
    return run(flags.parse(PrecisionConfig))


def run(config: PrecisionConfig) -> int:
    """Measure, print, and write what is asked for. Returns the exit status; raises UserError."""
    check(config)
    output.check("json", config.json)
    rows = measure(config)
    print(f"B={config.batch_size}, {config.activation}; {provenance.machine()}")
    print("precision      left to it  error of Q  error of K  alignment  in float64")
    for row in rows:
        errors = " ".join(f"{row[name]:11.2g}" for name in ("left_error", "q_error", "k_error"))
        print(
            f"{row['precision']:14} {errors} {row['alignment']:10.5f} {row['alignment_64']:11.5f}"
        )
    timing.write(config, rows=rows)
    return 0


def measure(config: PrecisionConfig) -> list[dict[str, Any]]:
    """A row for each of `PRECISIONS`."""
    critic = networks.Critic(hidden_sizes=config.hidden_sizes, activation=config.activation)
    data = timing.transitions(config, config.batch_size)
    inputs, targets = (data.obs, data.action), data.reward
    params = critic.init(jax.random.key(0), data.obs[0], data.action[0])
    step = steps.preconditioned(critic.apply)
    values, gram = _in_float64(critic, params, inputs)
    rows = []
    for precision in PRECISIONS:
        with jax.default_matmul_precision(precision):
            left = jax.jit(jax.vmap(critic.apply, in_axes=(None, 0, 0)))(params, *inputs)
            lin = jax.jit(lambda p: linearize(critic.apply, p, inputs)[:2])(params)
            update = jax.jit(step.update)
            moved, _, info = update(params, step.init(params), inputs, jnp.asarray(targets))
        after, _ = _in_float64(critic, moved, inputs)
        rows.append(
            {
                "precision": precision,
                "left_error": _error(left, values),
                "q_error": _error(lin[0], values),
                "k_error": _error(lin[1], gram),
                "alignment": float(info.metrics["critic/alignment"]),
                "alignment_64": _cosine(after - values, targets - values),
            }
        )
    return rows


def _in_float64(critic: networks.Critic, params: Any, inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Q and K in float64, from float32 parameters and inputs, on the CPU where JAX has it."""
    with jax.enable_x64(True), jax.default_device(cpu()):
        params, inputs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, inputs))
        lin = linearize(critic.apply, params, inputs)
        return np.asarray(lin.values), np.asarray(lin.gram)


def _error(found: Array, exact: np.ndarray) -> float:
    return float(np.abs(np.asarray(found, np.float64) - exact).max() / np.abs(exact).max())


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    with jax.enable_x64(True), jax.default_device(cpu()):
        return float(linesearch.cosine(jnp.asarray(a), jnp.asarray(b)))


if __name__ == "__main__":
    flags.define(PrecisionConfig)
    flags.run(main)
