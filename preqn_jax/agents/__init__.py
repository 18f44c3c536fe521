"""Agents, built from parts (`actor_critic`, `discrete`, `critic`, `deterministic`, `gaussian`) or
by name (`preqn`, `td3`, ...).
"""

from preqn_jax.agents.actor_critic import actor_critic
from preqn_jax.agents.base import Agent, Inspection
from preqn_jax.agents.config import (
    ALGORITHMS,
    DISCRETE,
    AgentConfig,
)
from preqn_jax.agents.critic import (
    Critic,
    CriticState,
    Upcoming,
    Update,
    Values,
    bootstrapped,
    critic,
    exploitation,
    means,
)
from preqn_jax.agents.crossq import crossq as crossq_critic
from preqn_jax.agents.discrete import Epsilon, discrete
from preqn_jax.agents.normalized import Seen, normalized
from preqn_jax.agents.policies import (
    Policy,
    Smoothing,
    Tuning,
    deterministic,
    gaussian,
    tanh_gaussian,
)
from preqn_jax.agents.presets import (
    check_kind,
    crossq,
    ddpg,
    dqn,
    make,
    ngql,
    preqn,
    preqn_adaptive,
    preqn_averaged,
    preqn_delayed,
    preqn_discrete,
    preqn_measured,
    preqn_momentum,
    preqn_relative,
    preqn_soft,
    preqn_twin,
    sac,
    td3,
)
from preqn_jax.agents.resolved import Resolved, resolve
from preqn_jax.agents.swept import swept

__all__ = [
    "ALGORITHMS",
    "DISCRETE",
    "Agent",
    "AgentConfig",
    "Critic",
    "CriticState",
    "Epsilon",
    "Inspection",
    "Policy",
    "Resolved",
    "Seen",
    "Smoothing",
    "Tuning",
    "Upcoming",
    "Update",
    "Values",
    "actor_critic",
    "bootstrapped",
    "check_kind",
    "critic",
    "crossq",
    "crossq_critic",
    "ddpg",
    "deterministic",
    "discrete",
    "dqn",
    "exploitation",
    "gaussian",
    "make",
    "means",
    "ngql",
    "normalized",
    "preqn",
    "preqn_adaptive",
    "preqn_averaged",
    "preqn_delayed",
    "preqn_discrete",
    "preqn_measured",
    "preqn_momentum",
    "preqn_relative",
    "preqn_soft",
    "preqn_twin",
    "resolve",
    "sac",
    "swept",
    "tanh_gaussian",
    "td3",
]
