"""What an agent is: the only names by which loop, monitor and checkpoints know one."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax

from preqn_jax.types import Array, Key, Metrics, Params, QFunction, Spec, Transition

AgentState = Any


class Inspection(NamedTuple):
    """The first critic before and after the step that `update` would take, and what it is for."""

    params: Params  # theta
    moved: Params  # theta', with the running statistics that theta has
    targets: Array  # `[B]`, y
    next_action: Array  # `[B, act]`, the policy's at s', without noise
    bonus: Array | None = None  # `[B]`, what the targets add to the value at s'; None for none


class Agent(NamedTuple):
    """A reinforcement-learning algorithm as pure functions of a state that nobody else opens.

    init: `key -> state`; of `swept` alone `(key, settings) -> state`.
    policy: `state -> params to act with`, what `act` and `explore` take.
    act: `(params, obs [obs]) -> action [act]` in [-1, 1], without noise.
    explore: `(params, obs [obs], key) -> action [act]` in [-1, 1], with that of data collection.
    update: `(state, batch of transitions [B], key, count) -> (state, metrics)`: one gradient step
      of everything. `count` is the number of updates before this one; it is an argument, not
      state, so that under a `vmap` over seeds it stays one number and a delayed policy update is
      skipped rather than computed and thrown away.
    summary: `state -> metrics`, of what is looked at once a round: "critic/norm", "actor/norm".
    q: `(params, obs [obs], action [act]) -> []`, one critic.
    critic: `state -> params of q`, the first critic's.
    inspect: `(state, batch of transitions [B], key) -> Inspection`, for a diagnosis.
    observe: `(state, obs [n, obs]) -> state`, once a round, with what was collected in it; None of
      an agent that learns from minibatches alone.
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
    """Raises AssertionError, as it is traced, where a batch `[B]` is of other sizes."""
    size = batch.reward.shape[0]
    chex.assert_shape([batch.obs, batch.next_obs], (size, spec.obs_size))
    chex.assert_shape(batch.action, (size, spec.action_size))
    chex.assert_shape([batch.reward, batch.discount], (size,))


def every(delay: Any, count: Array, turn: Callable[..., Any], state: Any, *given: Any) -> Any:
    """`turn(state, *given)` at every `delay`-th update, at the others `state`."""
    if isinstance(delay, numbers.Integral) and delay == 1:  # it may be traced
        return turn(state, *given)
    mine = (count + 1) % delay == 0
    return jax.lax.cond(mine, turn, lambda state, *_: state, state, *given)
