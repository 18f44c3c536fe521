"""Agents: `make(config, spec)` builds any of them."""

from preqn_jax.agents import deterministic, stochastic
from preqn_jax.agents.base import ALGORITHMS, Agent, AgentConfig, Proposal, resolve
from preqn_jax.types import Spec

__all__ = ["ALGORITHMS", "Agent", "AgentConfig", "Proposal", "make", "resolve"]


def make(config: AgentConfig, spec: Spec) -> Agent:
    """The agent a config describes: one with a temperature has a stochastic policy. Raises
    UserError if it makes no sense.
    """
    config = resolve(config)
    return (deterministic if config.temperature is None else stochastic).make(config, spec)
