"""The finite problems as environments: `tabular/baird`, `tabular/chain`, ...

An observation is the state, one-hot `[S]`; the action is one of A (`preqn_jax.actions`). Episodes
start in a state drawn from the data's distribution; they end in the problem's terminal state, if it
has one, and are cut off after 50 steps.
"""

import jax
import jax.numpy as jnp

from preqn_jax import actions as choices
from preqn_jax import problems
from preqn_jax.envs.functional import FunctionalEnv, Outcome
from preqn_jax.problems import Problem
from preqn_jax.types import Array, Key

TIME_LIMIT = 50
PREFIX = "tabular/"


def functional(problem: Problem) -> FunctionalEnv:
    """The environment of one problem."""
    mdp = problem.mdp
    states, actions = mdp.transition.shape[:2]
    log_transition = jnp.log(mdp.transition)  # where 0, minus infinity: never drawn
    log_start = jnp.log(jnp.where(problem.terminal, 0, jnp.sum(problem.rho, axis=1)))
    reward = jnp.broadcast_to(
        mdp.reward if mdp.reward.ndim == 3 else mdp.reward[:, :, None], mdp.transition.shape
    )

    def reset(key: Key) -> Array:
        return jax.random.categorical(key, log_start)

    def step(state: Array, action: Array, key: Key) -> tuple[Array, Outcome]:
        index = action[0]
        after = jax.random.categorical(key, log_transition[state, index])
        return after, Outcome(reward[state, index, after], problem.terminal[after])

    def observe(state: Array) -> Array:
        return jax.nn.one_hot(state, states, dtype=jnp.float32)

    spec = choices.spec(states, actions)
    return FunctionalEnv(spec, reset, step, observe, TIME_LIMIT)


FINITE = {
    f"{PREFIX}{name}": lambda make=make: functional(make())
    for name, make in problems.PROBLEMS.items()
}
