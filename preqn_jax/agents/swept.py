"""A sweep as one agent: the same algorithm with other settings in each member, in one program."""

from collections.abc import Callable
from typing import Any

import flax.struct

from preqn_jax.agents.base import Agent, Inspection
from preqn_jax.types import Array, Key, Metrics, Params, Settings, Transition


@flax.struct.dataclass
class SweptState:
    """A member's state, and the settings that it learns with, which never change."""

    settings: Settings  # `[]` each
    inner: Any  # the state of the agent with these settings


def swept(make: Callable[[Settings], Agent], example: Settings) -> Agent:
    """An agent whose hyper-parameters are part of its state: a `vmap` over states is a sweep.

    Its `init` takes `(key, settings)`; its `policy` returns the pair (settings, parameters).

    Args:
      make: `settings -> agent`, for numbers that may be traced. Networks must not depend on them.
      example: settings of any member.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from preqn_jax import agents
      >>> from preqn_jax.types import Spec
      >>> spec = Spec(3, 1, -np.ones(1), np.ones(1))
      >>> small = {"hidden_sizes": (16, 16)}
      >>> agent = agents.swept(lambda s: agents.preqn(spec, **small, **s), {"eta": 0.9})
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> states = jax.vmap(agent.init)(keys, {"eta": jnp.array([0.9, 0.97])})
      >>> states.settings["eta"].shape
      (2,)
    """
    template = make(example)  # for the functions that do not depend on settings

    def init(key: Key, settings: Settings) -> SweptState:
        return SweptState(settings, make(settings).init(key))

    def policy(state: SweptState) -> tuple[Settings, Params]:
        return state.settings, make(state.settings).policy(state.inner)

    def act(params: tuple[Settings, Params], obs: Array) -> Array:
        return make(params[0]).act(params[1], obs)

    def explore(params: tuple[Settings, Params], obs: Array, key: Key) -> Array:
        return make(params[0]).explore(params[1], obs, key)

    def update(
        state: SweptState, batch: Transition, key: Key, count: Array
    ) -> tuple[SweptState, Metrics]:
        inner, metrics = make(state.settings).update(state.inner, batch, key, count)
        return SweptState(state.settings, inner), metrics

    def summary(state: SweptState) -> Metrics:
        return make(state.settings).summary(state.inner)

    def critic(state: SweptState) -> Params:
        return template.critic(state.inner)

    def inspect(state: SweptState, batch: Transition, key: Key) -> Inspection:
        return make(state.settings).inspect(state.inner, batch, key)

    def observe(state: SweptState, obs: Array) -> SweptState:
        assert template.observe is not None
        return SweptState(state.settings, template.observe(state.inner, obs))

    acts, looks = (policy, act, explore), (template.q, critic, inspect)
    return Agent(init, *acts, update, summary, *looks, template.observe and observe)
