"""Agents: from parts (`actor_critic`, `critic`, `deterministic`, `gaussian`), or by name."""

from preqn_jax.agents.actor_critic import actor_critic
from preqn_jax.agents.base import Agent, Inspection
from preqn_jax.agents.config import ALGORITHMS, AgentConfig, Resolved, resolve
from preqn_jax.agents.critic import Critic, Upcoming, Update, Values, critic
from preqn_jax.agents.crossq import crossq as crossq_critic
from preqn_jax.agents.normalized import NormalizedState, Seen, normalized
from preqn_jax.agents.policies import (
    Policy,
    Smoothing,
    Tuning,
    deterministic,
    gaussian,
    tanh_gaussian,
)
from preqn_jax.agents.presets import (
    crossq,
    ddpg,
    make,
    ngql,
    preqn,
    sac,
    td3,
)
from preqn_jax.agents.swept import SweptState, swept

__all__ = [
    "ALGORITHMS",
    "Agent",
    "AgentConfig",
    "Critic",
    "Inspection",
    "NormalizedState",
    "Policy",
    "Resolved",
    "Seen",
    "Smoothing",
    "SweptState",
    "Tuning",
    "Upcoming",
    "Update",
    "Values",
    "actor_critic",
    "critic",
    "crossq",
    "crossq_critic",
    "ddpg",
    "deterministic",
    "gaussian",
    "make",
    "ngql",
    "normalized",
    "preqn",
    "resolve",
    "sac",
    "swept",
    "tanh_gaussian",
    "td3",
]
