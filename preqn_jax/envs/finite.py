"""The finite problems of `examples` as environments: `tabular/baird`, `tabular/chain`, ...

An observation is the state, one-hot `[S]`. The action is one number in [-1, 1], which stands for
the nearest of A actions at the centres of A equal parts: uniform numbers are uniform actions.
Episodes start in a state drawn from the data's distribution; they end in the example's terminal
state, if it has one, and are cut off after 50 steps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import examples
from preqn_jax.envs.functional import FunctionalEnv, Outcome
from preqn_jax.examples import Example
from preqn_jax.types import Array, Key, Spec

TIME_LIMIT = 50


def functional(example: Example) -> FunctionalEnv:
    """The environment of one example."""
    mdp = example.mdp
    states, actions = mdp.transition.shape[:2]
    log_transition = jnp.log(mdp.transition)  # of 0: minus infinity, never drawn
    log_start = jnp.log(jnp.where(example.terminal, 0, jnp.sum(example.rho, axis=1)))
    reward = jnp.broadcast_to(
        mdp.reward if mdp.reward.ndim == 3 else mdp.reward[:, :, None], mdp.transition.shape
    )

    def reset(key: Key) -> Array:
        return jax.random.categorical(key, log_start)

    def step(state: Array, action: Array, key: Key) -> tuple[Array, Outcome]:
        index = jnp.clip(jnp.floor((action[0] + 1) / 2 * actions), 0, actions - 1).astype(jnp.int32)
        after = jax.random.categorical(key, log_transition[state, index])
        return after, Outcome(reward[state, index, after], example.terminal[after])

    def observe(state: Array) -> Array:
        return jax.nn.one_hot(state, states, dtype=jnp.float32)

    return FunctionalEnv(
        Spec(states, 1, np.full(1, -1.0), np.full(1, 1.0)), reset, step, observe, TIME_LIMIT
    )


FINITE = {
    f"tabular/{name}": lambda make=make: functional(make())
    for name, make in examples.EXAMPLES.items()
}
