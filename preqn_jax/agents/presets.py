"""The algorithms by name: resolved config -> parts.

With `config` the only room that knows strings. An agent of your own parts needs none of it: see
`actor_critic`.
"""

import functools
from typing import Any, cast

import optax

from preqn_jax import networks, ntk, steps
from preqn_jax.agents.actor_critic import actor_critic
from preqn_jax.agents.base import Agent
from preqn_jax.agents.config import SOLVERS, AgentConfig, Deterministic, Resolved, resolve
from preqn_jax.agents.critic import Critic, critic
from preqn_jax.agents.crossq import crossq as crossq_critic
from preqn_jax.agents.normalized import normalized
from preqn_jax.agents.policies import Policy, Tuning, deterministic, gaussian
from preqn_jax.types import QFunction, Spec


def make(config: AgentConfig | Resolved, spec: Spec) -> Agent:
    """The agent that a config describes: of equal ones the same, so that what was compiled for it
    serves again. Raises UserError if it makes no sense.
    """
    made = resolve(config) if isinstance(config, AgentConfig) else config
    try:
        hash(made)
    except TypeError:  # its numbers are traced
        return _assemble(made, spec)
    return _remembered(made, spec)


def _assemble(made: Resolved, spec: Spec) -> Agent:
    agent = actor_critic(
        spec,
        make_policy(made, spec),
        _critic(made),
        discount=made.config.discount,
        delay=made.delay,
    )
    return normalized(agent, spec) if made.config.normalize_observations else agent


_remembered = functools.lru_cache(maxsize=64)(_assemble)


def _critic(made: Resolved) -> Critic:
    q = networks.Critic(**made.critic)
    if q.norm == "batch":
        optimizer = _adam(made, made.critic_learning_rate)
        return crossq_critic(q, optimizer, members=made.members)
    return critic(q, critic_step(made, q.apply), members=made.members, target=made.target)


def _adam(made: Resolved, rate: Any) -> optax.GradientTransformation:
    return optax.adam(rate, b1=cast(float, made.config.adam_b1))


def make_policy(made: Resolved, spec: Spec) -> Policy:
    """The policy of an agent."""
    optimizer = _adam(made, made.config.actor_learning_rate)
    if isinstance(made.policy, Deterministic):
        mu = networks.Actor(spec.action_size, **made.network)
        return deterministic(mu, optimizer, **made.policy._asdict(), target=made.target)
    temperature, rate, entropy = made.policy
    tuning = None
    if rate is not None:
        tuning = Tuning(optax.adam(rate), -spec.action_size if entropy is None else entropy)
    norm = "batch" if made.critic["norm"] == "batch" else "none"
    pi = networks.GaussianActor(spec.action_size, **made.network, norm=norm)
    training = networks.training(pi) if norm == "batch" else None
    return gaussian(pi, optimizer, temperature=temperature, tuning=tuning, training=training)


def critic_step(made: Resolved, q: QFunction) -> steps.ValueStep:
    """The step of one critic."""
    rate, config = made.critic_learning_rate, made.config
    if made.critic_step == "gradient":
        return steps.gradient(q, _adam(made, rate))
    if made.critic_step == "natural_gradient":
        return steps.natural_gradient(q, rate, config.damping)
    return steps.preconditioned(
        q,
        rate,
        config.eta,
        SOLVERS[config.solver](config),
        method=cast(ntk.Method, config.kernel),
        decay=config.linesearch_decay,
        max_steps=config.linesearch_max_steps,
    )


def preqn(spec: Spec, **options: Any) -> Agent:
    """PreQN, Algorithm 1. `options` are fields of `AgentConfig`, as for all presets.

    Example:
      >>> import numpy as np
      >>> from preqn_jax import agents
      >>> from preqn_jax.types import Spec
      >>> spec = Spec(obs_size=3, action_size=1, action_low=-np.ones(1), action_high=np.ones(1))
      >>> agent = agents.preqn(spec, hidden_sizes=(64, 64), eta=0.9)
    """
    return make(AgentConfig(algorithm="preqn", **options), spec)


def ngql(spec: Spec, **options: Any) -> Agent:
    """Natural-gradient Q-learning in style of DDPG (section 4.1)."""
    return make(AgentConfig(algorithm="ngql", **options), spec)


def ddpg(spec: Spec, **options: Any) -> Agent:
    """DDPG (Lillicrap et al. 2016)."""
    return make(AgentConfig(algorithm="ddpg", **options), spec)


def td3(spec: Spec, **options: Any) -> Agent:
    """TD3 (Fujimoto et al. 2018b): PreQN's rival, equal but for the Q-learning component."""
    return make(AgentConfig(algorithm="td3", **options), spec)


def sac(spec: Spec, **options: Any) -> Agent:
    """SAC (Haarnoja et al. 2018b), with a fixed temperature as in the paper's benchmark.

    Appendix B gives the temperature 0.1, polyak 0.995 and Adam at 1e-3 for policy and critics.
    Where it is silent, Haarnoja et al. are followed: two critics, whose least is in the targets and
    in the policy's loss; no delay of the policy; the next action is the online policy's; the
    entropy to reach, where the temperature is tuned, is minus the number of actions.
    """
    return make(AgentConfig(algorithm="sac", **options), spec)


def crossq(spec: Spec, **options: Any) -> Agent:
    """CrossQ (Bhatt et al. 2024): SAC without target networks, whose networks are batch-normalized.

    As in the paper: two critics of 2048 x 2048, batch renormalization of inputs and hidden layers
    of critics and actor, Adam at 1e-3 with b1 = 0.5, three updates of the critics for one of the
    actor, and a tuned temperature that starts at 1. The paper has an update a step and no more:
    `update_every=1`. Initial weights are those of all agents here, `initializer`; the paper's are
    lecun. Where it is silent, this is `sac`.
    """
    return make(AgentConfig(algorithm="crossq", **options), spec)
