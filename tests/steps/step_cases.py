"""Every step, a case for it, and what NumPy says the step should do."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import oracles
from preqn_jax import solve, steps
from preqn_jax.networks import Critic

jit = partial(jax.jit, compiler_options=oracles.QUICK)
HIDDEN, OBS, ACT, BATCH = (9,), 4, 3, 8
LAX = -0.999  # an alignment threshold that refuses almost nothing

# name -> function from q to the step. Together they use every function that makes a step.
STEPS = {
    "sgd": lambda q: steps.gradient(q, optax.sgd(0.05)),
    "adam": lambda q: steps.gradient(q, optax.adam(0.01)),
    "preqn": lambda q: steps.preconditioned(q),
    "preqn_eigh": lambda q: steps.preconditioned(q, 0.25, solve=solve.eigh()),
    "preqn_jacobian": lambda q: steps.preconditioned(q, 0.25, method="jacobian"),
    "preqn_momentum": lambda q: steps.preconditioned(q, momentum=0.9),
    "preqn_adaptive": lambda q: steps.preconditioned(q, solve=steps.Adaptive()),
    "ngql": lambda q: steps.natural_gradient(q),
}
PREQN = ["preqn", "preqn_eigh", "preqn_jacobian", "preqn_momentum", "preqn_adaptive"]


def critic(activation="sin") -> Any:
    return Critic(HIDDEN, activation).apply


def case(seed=0, dtype="float64", batch=BATCH):
    """Parameters, inputs and targets about 1 away from Q; and the joined inputs, for the oracle."""
    rng = np.random.default_rng(seed)
    layers = oracles.random_layers(seed, (OBS + ACT, *HIDDEN, 1))
    x = rng.normal(size=(batch, OBS + ACT))
    targets = oracles.mlp(layers, "sin", x)[0] + rng.normal(size=batch)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), oracles.critic_params(layers))
    inputs = (jnp.asarray(x[:, :OBS], dtype), jnp.asarray(x[:, OBS:], dtype))
    return params, inputs, jnp.asarray(targets, dtype), x


def flat(params):
    return oracles.theta(jax.tree.leaves(params))


def unflat(theta, params):
    leaves, treedef = jax.tree.flatten(params)
    parts = np.split(theta, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return treedef.unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def oracle(params, x, targets, activation="sin"):
    """theta, Phi and Delta, computed in NumPy."""
    values, phi = oracles.mlp(oracles.layers_of(params), activation, x)
    return flat(params), phi, np.asarray(targets, np.float64) - values


def move_error(new, old, expected):
    """The error of the move from `old` to `new`, relative to the expected move."""
    return oracles.relative_error(flat(new) - flat(old), expected - flat(old))


def take(step, params, inputs, targets):
    return jit(step.update)(params, jit(step.init)(params), inputs, targets)


def unchanged(new, old):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    )


def duplicated(inputs, x):
    """The same batch, with its second half replaced by its first."""
    return jax.tree.map(lambda leaf: leaf.at[4:].set(leaf[:4]), inputs), np.concatenate(
        [x[:4], x[:4]]
    )


SOLVERS = {
    "eigh": solve.eigh(),
    "lstsq": solve.lstsq(),
    "cholesky": solve.cholesky(),
    "cholesky_undamped": solve.cholesky(0.0),
    "cg": solve.cg(),
    "cg_damped": solve.cg(damping=1e-3),
}


def check_members(new, state, info, each_alone):
    """Checks the results of each member of a stack against those of the same member alone."""
    for m, (alone, alone_state, alone_info) in enumerate(each_alone):
        pick = partial(jax.tree.map, lambda leaf, m=m: np.asarray(leaf)[m])
        assert oracles.relative_error(flat(pick(new)), flat(alone)) < 1e-10
        pairs = zip(
            jax.tree.leaves(pick((state, info))),
            jax.tree.leaves((alone_state, alone_info)),
            strict=True,
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
