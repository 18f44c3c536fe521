"""Agents: `make(config, spec)` builds any of them."""

from preqn_jax.agents.base import ALGORITHMS, Agent, AgentConfig, resolve
from preqn_jax.agents.deterministic import make

__all__ = ["ALGORITHMS", "Agent", "AgentConfig", "make", "resolve"]
