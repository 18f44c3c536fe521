"""The interface of an agent: all that the training loop, monitor and checkpoints use of one."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax

from preqn_jax.types import Array, Key, Metrics, Params, QFunction, Spec, Transition

AgentState = Any


class Inspection(NamedTuple):
    """The first critic before and after the step that `update` would take, and that step's data."""

    params: Params  # theta
    moved: Params  # theta', with the running statistics that theta has
    targets: Array  # `[B]`, y
    next_action: Array  # `[B, act]`, the policy's action at s', without noise
    bonus: Array | None = None  # `[B]`, added to the value at s' in the targets; None for none


class Agent(NamedTuple):
    """A reinforcement-learning algorithm as pure functions; no other code looks inside its state.

    init: `key -> state`; for an agent of `swept`, `(key, settings) -> state`.
    policy: `state -> params`, those that `act` and `explore` take.
    act: `(params, obs [obs]) -> action [act]` in [-1, 1], without noise.
    explore: `(params, obs [obs], key) -> action [act]` in [-1, 1], with exploration noise.
    update: `(state, batch of transitions [B], key, count) -> (state, metrics)`: one update of the
      whole agent. `count` is the number of updates before this one; it is an argument, not state,
      so that under a `vmap` over seeds it stays one number and a delayed policy update is skipped
      rather than computed and thrown away.
    summary: `state -> metrics` that are logged once a round, such as "critic/norm".
    q: `(params, obs [obs], action [act]) -> []`, the value function of one critic.
    critic: `state -> params` of the first critic, for `q`.
    inspect: `(state, batch of transitions [B], key) -> Inspection`, for a diagnosis.
    observe: `(state, obs [n, obs]) -> state`, called once a round with the observations collected
      in it; None for an agent that learns from minibatches alone.
    """

    init: Callable[..., AgentState]
    policy: Callable[[AgentState], Params]
    act: Callable[[Params, Array], Array]
    explore: Callable[[Params, Array, Key], Array]
    update: Callable[[AgentState, Transition, Key, Array], tuple[AgentState, Metrics]]
    summary: Callable[[AgentState], Metrics]
    q: QFunction
    critic: Callable[[AgentState], Params]
    inspect: Callable[[AgentState, Transition, Key], Inspection]
    observe: Callable[[AgentState, Array], AgentState] | None = None


def check_batch(batch: Transition, spec: Spec) -> None:
    """Raises AssertionError, at trace time, if a batch `[B]` does not have the sizes of `spec`."""
    size = batch.reward.shape[0]
    chex.assert_shape([batch.obs, batch.next_obs], (size, spec.obs_size))
    chex.assert_shape(batch.action, (size, spec.action_size))
    chex.assert_shape([batch.reward, batch.discount], (size,))


def delayed(delay: Any, count: Array, turn: Callable[..., Any], state: Any, *given: Any) -> Any:
    """`turn(state, *given)` at every `delay`-th update, and the unchanged `state` at all others."""
    if isinstance(delay, numbers.Integral) and delay == 1:  # delay may be traced
        return turn(state, *given)
    mine = (count + 1) % delay == 0
    return jax.lax.cond(mine, turn, lambda state, *_: state, state, *given)
