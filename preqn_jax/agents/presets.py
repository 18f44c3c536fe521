"""The algorithms by name: each builds an agent from a config.

Only this module, `config` and `resolved` choose parts by their names. An agent made of your own
parts needs none of the three: see `actor_critic`.
"""

import dataclasses
import functools
from typing import Any, cast

import optax

from preqn_jax import actions, networks, ntk, steps
from preqn_jax.agents.actor_critic import actor_critic
from preqn_jax.agents.base import Agent
from preqn_jax.agents.config import DISCRETE, SOLVERS, AgentConfig
from preqn_jax.agents.critic import Critic, critic
from preqn_jax.agents.crossq import crossq as crossq_critic
from preqn_jax.agents.discrete import discrete
from preqn_jax.agents.normalized import normalized
from preqn_jax.agents.policies import Policy, Tuning, deterministic, gaussian
from preqn_jax.agents.resolved import Choice, Deterministic, Resolved, is_off, resolve
from preqn_jax.options import UserError
from preqn_jax.types import QFunction, Spec


def make(config: AgentConfig | Resolved, spec: Spec) -> Agent:
    """The agent that a config describes. Equal configs and specs give the same object, so that what
    was compiled for it is reused. Raises UserError if the config makes no sense or is for another
    kind of actions, or if the sizes or bounds of the spec are invalid.
    """
    actions.check(spec, "spec")
    made = resolve(config) if isinstance(config, AgentConfig) else config
    check_kind(made.config.algorithm, spec)
    try:
        hash(made)
    except TypeError:  # its numbers are traced
        return _assemble(made, spec)
    return _remembered(made, spec)


def check_kind(algorithm: str, spec: Spec) -> None:
    """Raises UserError if an algorithm is not for the kind of actions that `spec` has."""
    if (algorithm in DISCRETE) == (spec.num_actions is not None):
        return
    if algorithm in DISCRETE:
        words, fits, other = f"continuous actions of size {spec.action_size}", "preqn", "td3"
    else:
        words, fits, other = f"{spec.num_actions} discrete actions", "preqn_discrete", "dqn"
    raise UserError(
        f"algorithm {algorithm!r} does not fit the environment, which has {words}; use "
        f"`algorithm={fits}` (or {other})"
    )


def _assemble(made: Resolved, spec: Spec) -> Agent:
    numbers: dict[str, Any] = {"discount": made.config.discount, "delay": made.delay}
    values = _critic(made, spec)
    if isinstance(made.policy, Choice):
        agent = discrete(spec, values, **made.policy._asdict(), **numbers)
    else:
        agent = actor_critic(spec, make_policy(made, spec), values, **numbers)
    return normalized(agent, spec) if made.config.normalize_observations else agent


_remembered = functools.lru_cache(maxsize=64)(_assemble)


def _critic(made: Resolved, spec: Spec) -> Critic:
    if spec.num_actions is None:
        q = networks.Critic(**made.critic)
    else:
        q = networks.ActionValues(spec.num_actions, **made.critic)
    if q.norm == "batch":
        optimizer = _adam(made, made.critic_learning_rate)
        return crossq_critic(q, optimizer, members=made.members)
    return critic(
        q,
        critic_step(made, q.apply),
        members=made.members,
        target=made.target,
        pessimism=None if made.config.measured_pessimism else made.config.pessimism,
    )


def _adam(made: Resolved, rate: Any) -> optax.GradientTransformation:
    return optax.adam(rate, b1=cast(float, made.config.adam_b1))


def make_policy(made: Resolved, spec: Spec) -> Policy:
    """The policy of an agent for continuous actions."""
    optimizer = _adam(made, made.config.actor_learning_rate)
    if isinstance(made.policy, Deterministic):
        mu = networks.Actor(spec.action_size, **made.network)
        return deterministic(mu, optimizer, **made.policy._asdict(), target=made.target)
    assert not isinstance(made.policy, Choice)
    temperature, rate, entropy = made.policy
    tuning = None
    if rate is not None:
        tuning = Tuning(optax.adam(rate), -spec.action_size if entropy is None else entropy)
    norm = "batch" if made.critic["norm"] == "batch" else "none"
    pi = networks.GaussianActor(spec.action_size, **made.network, norm=norm)
    training = networks.training(pi) if norm == "batch" else None
    return gaussian(pi, optimizer, temperature=temperature, tuning=tuning, training=training)


def critic_step(made: Resolved, q: QFunction) -> steps.ValueStep:
    """The update step of one critic."""
    rate, config = made.critic_learning_rate, made.config
    if made.critic_step == "gradient":
        return steps.gradient(q, _adam(made, rate), made.huber)
    if made.critic_step == "natural_gradient":
        return steps.natural_gradient(q, rate, config.damping)
    solve = SOLVERS[config.solver]
    damped = lambda damping: solve(dataclasses.replace(config, damping=damping))  # noqa: E731
    return steps.preconditioned(
        q,
        rate,
        config.eta,
        steps.Adaptive(damped, config.damping) if config.adaptive_damping else solve(config),
        method=cast(ntk.Method, config.kernel),
        decay=config.linesearch_decay,
        max_steps=config.linesearch_max_steps,
        momentum=None if is_off(config.momentum) else config.momentum,
        relative=bool(config.relative_eta),
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


def preqn_twin(spec: Spec, **options: Any) -> Agent:
    """PreQN with two critics, whose minimum is in the targets, and TD3's smoothed targets.

    The policy maximizes the first critic and so finds its errors: Q is too high where the policy
    goes. A second critic, which errs elsewhere, does not share them (Fujimoto et al. 2018b). There
    is no target network.
    """
    return make(AgentConfig(algorithm="preqn_twin", **options), spec)


def preqn_measured(spec: Spec, **options: Any) -> Agent:
    """`preqn_twin` with a pessimism that is measured (`agents.exploitation`).

    The minimum of two critics is too low where they differ by chance, as they do before a policy
    has learned to exploit either. So targets move from the mean to the minimum only as far as the
    first critic, which the policy maximizes, exceeds the second at the policy's actions more than
    at the data's.
    """
    return make(AgentConfig(algorithm="preqn_measured", **options), spec)


def preqn_averaged(spec: Spec, **options: Any) -> Agent:
    """PreQN with two critics, whose mean is in the targets.

    The mean of two critics with independent errors has half the squared error of one (Anschel,
    Baram and Shimkin 2017, Averaged-DQN). So there is less for a policy to exploit, without the
    downward bias of a minimum.
    """
    return make(AgentConfig(algorithm="preqn_averaged", **options), spec)


def preqn_delayed(spec: Spec, **options: Any) -> Agent:
    """PreQN whose policy is updated at every second update of the critic, as in TD3.

    A policy that changes more slowly follows fewer of Q's momentary errors, and updates cost less
    on average.
    """
    return make(AgentConfig(algorithm="preqn_delayed", **options), spec)


def preqn_momentum(spec: Spec, **options: Any) -> Agent:
    """PreQN that carries the last move over, as SPRING does (`steps.preconditioned`).

    Eq. 22 gives the shortest move that fits one minibatch, which does not move along directions
    that the minibatch does not see. Along these the last move continues: a memory of earlier
    minibatches, at the cost of one product with the Jacobian.
    """
    return make(AgentConfig(algorithm="preqn_momentum", **options), spec)


def preqn_adaptive(spec: Spec, **options: Any) -> Agent:
    """PreQN with Levenberg and Marquardt's damping (`steps.Adaptive`).

    A fixed damping is too large where Q is nearly linear, and too small where a step leaves the
    region of linearity. The effect of a step, compared with what the linearization predicted, tells
    which is the case.
    """
    return make(AgentConfig(algorithm="preqn_adaptive", **options), spec)


def preqn_relative(spec: Spec, **options: Any) -> Agent:
    """PreQN whose linesearch requires eta times the alignment that the solve itself reaches.

    Where observations and actions have few dimensions, K cannot tell the pairs of a minibatch
    apart, damping keeps K Z away from Delta, and no step, however short, passes Eq. 24: Q never
    moves. Compared with the alignment of the solve, a short enough step always passes.
    """
    return make(AgentConfig(algorithm="preqn_relative", **options), spec)


def preqn_soft(spec: Spec, **options: Any) -> Agent:
    """PreQN with SAC's policy and entropy bonus, at SAC's temperature.

    A policy that keeps some noise does not settle on a narrow peak of Q, and the minibatch's kernel
    sees actions from all around it.
    """
    return make(AgentConfig(algorithm="preqn_soft", **options), spec)


def ngql(spec: Spec, **options: Any) -> Agent:
    """Natural-gradient Q-learning in the style of DDPG (section 4.1), without target networks. By
    Lemma 4 it is PreQN without the linesearch. A step whose solve is not finite is not taken.
    """
    return make(AgentConfig(algorithm="ngql", **options), spec)


def ddpg(spec: Spec, **options: Any) -> Agent:
    """DDPG (Lillicrap et al. 2016) with sizes, rates and Gaussian noise of Appendix B's TD3: one
    critic, relu, no policy delay, and target networks of critic and policy.
    """
    return make(AgentConfig(algorithm="ddpg", **options), spec)


def td3(spec: Spec, **options: Any) -> Agent:
    """TD3 (Fujimoto et al. 2018b) with the settings of Appendix B: targets from the minimum of two
    critics at smoothed actions, target networks of critics and policy, relu, and a policy that is
    updated at every second update.
    """
    return make(AgentConfig(algorithm="td3", **options), spec)


def sac(spec: Spec, **options: Any) -> Agent:
    """SAC (Haarnoja et al. 2018b), with a fixed temperature as in the paper's benchmark.

    Appendix B gives the temperature 0.1, polyak 0.995, rates of 1e-3 and Adam for the policy. All
    else follows Haarnoja et al.: two critics, also trained by Adam, whose minimum is in the targets
    and in the policy's loss; no policy delay; next actions from the online policy; and, if the
    temperature is tuned, a target entropy of minus the dimension of actions.
    """
    return make(AgentConfig(algorithm="sac", **options), spec)


def preqn_discrete(spec: Spec, **options: Any) -> Agent:
    """PreQN (Algorithm 1) for finitely many actions: lines 9 to 13, with the maximum of T* (Eq. 2)
    in place of a policy's action, and no target network.

    Example:
      >>> import numpy as np
      >>> from preqn_jax import agents
      >>> from preqn_jax.types import Spec
      >>> spec = Spec(4, 1, np.zeros(1), np.ones(1), num_actions=2)  # CartPole's
      >>> agent = agents.preqn_discrete(spec, hidden_sizes=(64, 64))
    """
    return make(AgentConfig(algorithm="preqn_discrete", **options), spec)


def dqn(spec: Spec, **options: Any) -> Agent:
    """DQN (Mnih et al. 2015): Adam on Huber's loss, with a target network. With `double_q` it is
    the double DQN of van Hasselt et al. 2016.

    The target network is a moving average, changed at every update (`polyak`), as in DDPG and SAC
    here. `polyak=0.0, policy_delay=1000` copies the critic every 1,000 updates, as Mnih et al. do.
    """
    return make(AgentConfig(algorithm="dqn", **options), spec)


def crossq(spec: Spec, **options: Any) -> Agent:
    """CrossQ (Bhatt et al. 2024): SAC without target networks, whose networks are batch-normalized.

    As in Bhatt et al.: two critics of 2048 x 2048, batch renormalization of inputs and hidden
    layers of critics and actor, Adam at 1e-3 with b1 = 0.5, three updates of the critics for one of
    the actor, and a tuned temperature that starts at 1. They make one update per environment step:
    for this, set `update_every=1`. Initial weights are those of all agents here (`initializer`);
    theirs are lecun. All else is as in `sac`.
    """
    return make(AgentConfig(algorithm="crossq", **options), spec)
