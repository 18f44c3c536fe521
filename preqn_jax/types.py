"""The types every room shares.

Shapes in docstrings: B is a batch, N a data set, S seeds, E environments of one seed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
Key = jax.Array
"""A typed key of `jax.random.key`. A function that takes one consumes it."""

Number = Array | float
"""A scalar: a person's, which is checked, or one that may be traced, which is not."""

Params = Any
"""A pytree of parameters: theta for a critic, phi for an actor."""

Inputs = tuple[Any, ...]
"""Arguments of a Q-function after `params`, each a pytree whose arrays lead with `[B]`."""

Metrics = dict[str, Array]
"""Scalars by their name in `metrics.jsonl`, as `"critic/td_abs"`."""

QFunction = Callable[..., Any]
"""`q(params, *inputs) -> scalar`, pure, written for ONE example, as a Flax module's `apply`.
Batches are `jax.vmap`'s work.
"""


class Transition(NamedTuple):
    """One step of experience, `(s, a, r, d, s')`; arrays may carry leading axes, `[B]` in a
    minibatch.
    """

    obs: Array | np.ndarray  # `[obs]`, s
    action: (
        Array | np.ndarray
    )  # `[act]`, a in [-1, 1]; the environment's own units are the environment's business
    reward: Array | np.ndarray  # `[]`, r
    discount: (
        Array | np.ndarray
    )  # `[]`, 1 - terminated. A time limit is not a terminal: it leaves 1 here
    next_obs: Array | np.ndarray  # `[obs]`, the true successor s', also where an episode ends


class Spec(NamedTuple):
    """What an agent must know of an environment: sizes, and the physical range of actions."""

    obs_size: int
    action_size: int
    action_low: np.ndarray  # `[act]`, finite
    action_high: np.ndarray  # `[act]`, finite
