"""CrossQ's critic: batch normalization across (s, a) and (s', a'), and no target network."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from preqn_jax import measures, networks, steps
from preqn_jax.agents.critic import (
    Critic,
    CriticState,
    Upcoming,
    Update,
    bootstrapped,
    means,
    plain,
)
from preqn_jax.batching import precise
from preqn_jax.types import Array, Params, Transition, wide

Aux = tuple[Array, Array, Params]


def crossq(
    network: nn.Module, optimizer: optax.GradientTransformation, *, members: int = 2
) -> Critic:
    """`members` value functions with batch renormalization (Bhatt et al. 2024, CrossQ).

    One forward pass over (s, a) and (s', a'), joined into a batch of 2 B, gives Q of both, so that
    both are normalized by the statistics of the mixture. Then y = r + gamma (1 - d) min_i Q_i(s',
    a') is held constant, and the optimizer descends the mean of half the squared TD error, Eq. 5;
    gradients go through the batch's statistics. Running statistics are part of the parameters,
    under "batch_stats"; each update moves them once.

    `q` is the network in evaluation mode, which the policy's objective, diagnoses and exports use
    too. In this mode the running statistics are constants, and K (Eq. 9) is that of a network with
    a fixed normalization. In training mode Q of one example depends on all others and K has no
    meaning, which is why this critic takes no `steps.ValueStep`. The targets and the
    "critic/alignment" of an update are computed in training mode.

    Args:
      network: one with `norm="batch"`, such as `networks.Critic`.
      optimizer: of theta.
      members: M.

    Raises:
      ValueError: a network of another norm.

    Example:
      >>> import optax
      >>> from preqn_jax import agents, networks
      >>> net = networks.Critic((64, 64), "relu", norm="batch")
      >>> critic = agents.crossq_critic(net, optax.adam(1e-3, b1=0.5))
    """
    if getattr(network, "norm", "batch") != "batch":
        raise ValueError(f"network has the norm {network.norm!r}, expected 'batch'")  # pyright: ignore
    together = jax.vmap(precise(networks.training(network)), in_axes=(0, None, None))
    descend = jax.vmap(optimizer.update)

    def update(
        state: CriticState, batch: Transition, upcoming: Upcoming, discount: Any
    ) -> tuple[CriticState, Update]:
        obs = jnp.concatenate([batch.obs, batch.next_obs])
        action = jnp.concatenate([batch.action, upcoming.action])

        def loss(params: Params) -> tuple[Array, Aux]:
            both, statistics = together(params, obs, action)
            values, ahead = jnp.split(wide(both), 2, axis=1)  # `[M, B]` each
            y = bootstrapped(batch, upcoming, jnp.min(ahead, axis=0), discount)
            y = jax.lax.stop_gradient(y)
            half = 0.5 * jnp.sum(jnp.mean(jnp.square(y[None] - values), axis=1))
            return half, (values, y, statistics)

        grads, (values, y, statistics) = jax.grad(loss, has_aux=True)(state.params)
        updates, memory = descend(grads, state.step, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        change = together(params, obs, action)[0][:, : len(y)] - values
        delta = y[None] - values
        alignment = jnp.mean(jax.vmap(measures.alignment)(change, delta))
        metrics = {**means(values, delta, y), "critic/alignment": alignment}
        return replace(state, params=params | statistics, step=memory), Update(y, metrics)

    apply: Callable[..., Any] = network.apply
    return plain(network, steps.gradient(apply, optimizer), members)._replace(update=update)
