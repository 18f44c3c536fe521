"""All networks that the kernel is tested on, by name: `ZOO[name](dtype) -> (q, params, inputs)`."""

import zoo_flax  # noqa: F401  (they add their networks to ZOO)
import zoo_functions  # noqa: F401
import zoo_views  # noqa: F401
from zoo_base import ZOO

__all__ = ["TRAINED", "ZOO"]

# Unusual layouts are there to test the algebra, for which float64 is enough; float32 is tested on
# the networks that people train.
TRAINED = [name for name in ZOO if name.startswith("mlp") and not name.endswith("no_bias")]
TRAINED += [
    "critic",
    "critic_layer_norm",
    "critic_fourier",
    "critic_batch_norm",
    "layer_norm",
    "residual",
    "layer_used_twice",
    "set_of_2",
    "set_of_11",
    "attention",
    "ensemble_mean",
]
TRAINED += [
    "ensemble_min",
    "ensemble_each_its_input",
    "remat",
    "jitted",
    "convolutions",
    "tied_by_transpose",
]
TRAINED += [
    "product_and_penalty",
    "closes_over_arrays",
    "weights_on_the_left",
    "batched_einsum",
    "flax_scan",
    "lax_scan",
]
