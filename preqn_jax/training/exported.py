"""Policies and critics for use without this package: as a program that needs only jax, or as
arrays.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import agents, networks
from preqn_jax.options import UserError, choose
from preqn_jax.training import directory
from preqn_jax.training.trained import Trained

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WHAT = ("critic", "policy")
_LAYERS = re.compile(r"(params|batch_stats)\.mlp\.")  # names in this package's own networks


def program(
    trained: Trained,
    what: str = "policy",
    seed: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Any:
    """`Trained.policy` or `Trained.q`, of a batch of any size, as a `jax.export.Exported`.

    Its parameters are inside. `serialize()` makes bytes of it (which needs flatbuffers), and
    `jax.export.deserialize` a function again, in a process that has jax and not this package:
    `[B, obs] -> [B, act]`, or `([B, obs], [B, act]) -> [B]`, all float32, actions in the
    environment's own units. Where there are finitely many actions, these are integers, `[B]` int32.

    Args:
      trained: what `preqn_jax.load` returns.
      what: "policy" or "critic".
      seed: the seed whose policy or critic it is; the first if None.
      platforms: those it should run on, of `PLATFORMS`.

    Raises UserError for what, a seed or a platform that is not there.

    Example:
      >>> import numpy as np, preqn_jax
      >>> run = preqn_jax.load("runs/x")
      >>> policy = program(run, "policy", platforms=["cpu"])
      >>> policy.call(np.zeros((5, run.spec.obs_size), np.float32)).shape[0]
      5
    """
    if not platforms:
        raise UserError(f"platforms is empty; name some of {', '.join(PLATFORMS)}")
    for name in platforms:
        if name == "gpu":
            raise UserError("platform 'gpu' is of two kinds; name cuda for NVIDIA, rocm for AMD")
        choose("platform", name, PLATFORMS)
    critic = choose("thing to export", what, WHAT) == "critic"
    (batch,), spec = jax.export.symbolic_shape("B"), trained.spec
    action = jax.ShapeDtypeStruct((batch, spec.action_size), jnp.float32)
    if spec.num_actions is not None:
        action = jax.ShapeDtypeStruct((batch,), jnp.int32)
    obs = jax.ShapeDtypeStruct((batch, spec.obs_size), jnp.float32)
    inputs = (obs, action)[: 1 + critic]
    function = trained.q(seed) if critic else trained.policy(seed)
    with _no_paths():
        return jax.export.export(jax.jit(function), platforms=list(platforms))(*inputs)


@contextlib.contextmanager
def _no_paths() -> Iterator[None]:
    """A context in which exported programs do not hold the paths of source files."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)


def arrays(
    trained: Trained, what: str = "policy", seed: int | None = None
) -> dict[str, np.ndarray]:
    """The parameters of a policy or of the first critic by name, "Dense_0.kernel" `[in, out]` and
    "Dense_0.bias" `[out]`, and under "about" a JSON text with what is needed to rebuild the
    network.

    That is the "activation" of all layers but the last, the number of "layers", "action_low" and
    "action_high". A policy ends in a tanh; SAC's last layer gives means and log standard
    deviations, and the tanh is of the first half, the means. A critic takes [s, a], with a scaled
    to [-1, 1]. Where there are finitely many actions, "num_actions" from "action_low" on, policy
    and critic are the same network: from s to the values of all actions, of which the policy takes
    the largest. docs/after-training.md shows how to compute them in NumPy. Normalization of
    observations is folded into the first layer, which takes raw ones, and batch normalization into
    the layer after it.

    Raises UserError for what or a seed that is not there, networks that are not this package's, and
    critics with other layers than these (`critic_norm=layer`, `critic_features=fourier`).
    """
    state = trained.state(seed)
    critic = choose("thing to export", what, WHAT) == "critic"
    critic = critic or trained.spec.num_actions is not None
    params = trained.agent.critic(state) if critic else trained.agent.policy(state)
    units = params if isinstance(params, agents.Seen) else None
    params = params if units is None else units.params
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
    weights = {name.split("mlp.")[-1]: np.asarray(x) for name, x in named.items()}
    own = directory.own_parts(trained.config) or not all(map(_LAYERS.match, named))
    if own or not all(name.startswith(("Dense_", "BatchRenorm_")) for name in weights):
        why = "this agent has others" if own else "this critic has layers that are not dense"
        raise UserError(
            f"only dense layers of this package's networks can be exported as arrays, but {why}; "
            "export it as a program, --format=stablehlo"
        )
    weights = _without_norms(weights)
    about = {
        "what": what,
        **{name: trained.config[name] for name in ("algorithm", "env", "activation")},
        "network_dtype": trained.config.get("network_dtype", "float32"),
        "seed": trained.seeds[0] if seed is None else seed,
        "step": trained.step,
        "layers": len(weights) // 2,
        "obs_size": trained.spec.obs_size,
        "action_low": trained.spec.bounds[0].tolist(),
        "action_high": trained.spec.bounds[1].tolist(),
        "num_actions": trained.spec.num_actions,
    }
    if units is not None:
        _see(weights, units)
    return {**weights, "about": np.array(json.dumps(about))}


def _without_norms(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The dense layers, with the batch normalization of each layer's inputs folded in; in
    evaluation mode that is an affine map of each feature.
    """
    dense = {name: x for name, x in weights.items() if name.startswith("Dense_")}
    for i in range(len(dense) // 2 if "BatchRenorm_0.var" in weights else 0):
        gamma, beta, mean, var = (
            weights[f"BatchRenorm_{i}.{name}"].astype(np.float64)
            for name in ("scale", "bias", "mean", "var")
        )
        scale = gamma / np.sqrt(networks.BatchRenorm.epsilon + var)
        _fold(dense, i, scale, beta - mean * scale)
    return dense


def _see(weights: dict[str, np.ndarray], units: agents.Seen) -> None:
    """Folds (s - mean) / std into the first layer; inputs that are actions stay as they are."""
    size = len(weights["Dense_0.kernel"])
    scale, shift = np.ones(size), np.zeros(size)
    mean, std = (np.asarray(x, np.float64) for x in (units.mean, units.std))
    scale[: len(std)], shift[: len(std)] = 1 / std, -mean / std
    _fold(weights, 0, scale, shift)


def _fold(weights: dict[str, np.ndarray], i: int, scale: np.ndarray, shift: np.ndarray) -> None:
    """Folds the map scale x + shift of its inputs x into the i-th layer. The layer stays in
    float64: for a feature that hardly varies, scale and shift are large and nearly cancel.
    """
    names = [f"Dense_{i}.{name}" for name in ("kernel", "bias")]
    kernel, bias = (weights[name].astype(np.float64) for name in names)
    weights |= dict(zip(names, (scale[:, None] * kernel, bias + shift @ kernel), strict=True))
