"""What an agent is, and the configuration they share. Defaults are the rows of Appendix B."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import optax

from preqn_jax import networks, ntk, solve, steps
from preqn_jax.options import UserError, check, choose, option
from preqn_jax.types import Array, Key, Metrics, Params, QFunction, Transition

AgentState = Any


class Agent(NamedTuple):
    """A reinforcement-learning algorithm as pure functions; `act` and `explore` are for one
    observation.

    init: `key -> state`.
    act: `(actor params, obs [obs]) -> action [act]` in [-1, 1], without noise.
    explore: `(actor params, obs [obs], key) -> action [act]` in [-1, 1], with the noise of data
      collection.
    update: `(state, batch of transitions [B], key, count) -> (state, metrics)`: one gradient step
      of everything. `count` is the number of updates before this one; it is an argument, not state,
      so that under a `vmap` over seeds it stays one number and a delayed policy update is skipped
      rather than computed and thrown away.
    q: `(params, obs [obs], action [act]) -> []`, one critic.
    propose: `(state, batch of transitions [B], key) -> Proposal`: what the critic's step of
      `update` would do, for a diagnosis.
    """

    init: Callable[[Key], AgentState]
    act: Callable[[Params, Array], Array]
    explore: Callable[[Params, Array, Key], Array]
    update: Callable[[AgentState, Transition, Key, Array], tuple[AgentState, Metrics]]
    q: QFunction
    propose: Callable[[AgentState, Transition, Key], "Proposal"]


class Proposal(NamedTuple):
    """The first critic before and after a step, and what the step was for."""

    params: Params  # theta
    moved: Params  # theta'
    targets: Array  # `[B]`, y
    next_action: Array  # `[B, act]`, the policy's at s', without noise


SOLVERS: dict[str, Callable[["AgentConfig"], solve.Solve]] = {
    "cholesky": lambda c: solve.cholesky(c.damping),
    "eigh": lambda c: solve.eigh(c.rcond),
    "lstsq": lambda c: solve.lstsq(c.rcond),
    "cg": lambda c: solve.cg(damping=c.damping),
}


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Everything about the algorithm. None stands for the algorithm's own value, filled in by
    `resolve`.
    """

    algorithm: str = option("preqn", "the algorithm: preqn, ngql, ddpg, td3 or sac")
    activation: str | None = option(
        None,
        "hidden layers of actor and critic: sin, relu or tanh (sin for preqn and ngql, else relu)",
    )
    hidden_sizes: tuple[int, ...] = option(
        (256, 256), "widths of the hidden layers of actor and critic", at_least=1
    )
    initializer: str = option(
        "glorot", "initial weights: glorot (zero biases), lecun, pytorch or siren"
    )
    discount: float = option(0.99, "gamma, the discount factor", at_least=0, below=1)
    actor_learning_rate: float = option(1e-3, "alpha_mu, Adam's step size for the policy", above=0)
    critic_learning_rate: float | None = option(
        None,
        "alpha_q: of Eq. 23 for preconditioned and natural steps (0.1), Adam's for gradient steps "
        "(0.001)",
        above=0,
    )
    critic_step: str | None = option(
        None,
        "how Q moves: preconditioned (preqn), natural_gradient (ngql), gradient (ddpg, td3, sac)",
    )
    kernel: str = option(
        "structured", "how K (Eq. 9) is computed: structured, or jacobian (the reference, slow)"
    )
    solver: str = option(
        "cholesky", "how K Z = Delta (Eq. 22) is solved: cholesky, eigh, lstsq or cg"
    )
    damping: float = option(
        1e-3,
        "added to K's diagonal, relative to its mean (cholesky, cg, natural_gradient)",
        at_least=0,
    )
    rcond: float | None = option(
        None,
        "eigenvalues of K up to this share of the largest count as zero (eigh, lstsq)",
        at_least=0,
    )
    eta: float = option(
        0.97, "eta, the alignment a preconditioned step must reach (Eq. 24)", above=-1, below=1
    )
    linesearch_decay: float = option(
        0.5, "factor between candidates of the linesearch", above=0, below=1
    )
    linesearch_max_steps: int = option(
        12, "candidates of the linesearch at most; if none passes, theta stays", at_least=1
    )
    num_critics: int | None = option(
        None, "critics; the least of them bootstraps (2 for td3 and sac, else 1)", at_least=1
    )
    target_networks: bool | None = option(
        None, "bootstrap from slowly moving copies (on for ddpg, td3 and sac)"
    )
    polyak: float = option(
        0.995, "share of a target network that an update keeps", at_least=0, below=1
    )
    exploration_noise: float = option(
        0.1,
        "standard deviation of the action noise, actions in [-1, 1] (sac samples instead)",
        at_least=0,
    )
    target_noise: float | None = option(
        None, "standard deviation of target policy smoothing (0.2 for td3, else 0)", at_least=0
    )
    target_noise_clip: float = option(0.5, "bound on the target policy smoothing noise", at_least=0)
    policy_delay: int | None = option(
        None, "critic updates for one update of policy and targets (2 for td3, else 1)", at_least=1
    )
    temperature: float | None = option(
        None,
        "alpha, the weight of the policy's entropy (0.1 for sac); a number makes any policy "
        "stochastic",
        above=0,
    )
    automatic_temperature: bool | None = option(
        None, "tune alpha, from there, towards the target entropy (off)"
    )
    target_entropy: float | None = option(
        None, "entropy that tuning alpha should reach (minus the number of actions, -|A|)"
    )
    temperature_learning_rate: float | None = option(
        None, "Adam's step size for log alpha, where it is tuned (0.0003)", above=0
    )


# What differs among the algorithms: the paper calls PreQN and TD3 "equivalent except for the
# Q-learning component".
ALGORITHMS: dict[str, dict[str, Any]] = {
    "preqn": {"activation": "sin", "critic_step": "preconditioned"},
    "ngql": {"activation": "sin", "critic_step": "natural_gradient"},
    "ddpg": {"activation": "relu", "critic_step": "gradient", "target_networks": True},
    "td3": {
        "activation": "relu",
        "critic_step": "gradient",
        "target_networks": True,
        "num_critics": 2,
        "target_noise": 0.2,
        "policy_delay": 2,
    },
    "sac": {
        "activation": "relu",
        "critic_step": "gradient",
        "target_networks": True,
        "num_critics": 2,
        "temperature": 0.1,
    },
}
_PLAIN = {"num_critics": 1, "target_networks": False, "target_noise": 0.0, "policy_delay": 1}
STEP_LEARNING_RATES = {"preconditioned": 0.1, "natural_gradient": 0.1, "gradient": 1e-3}
TEMPERATURE_LEARNING_RATE = 3e-4  # Haarnoja et al. 2018b, Appendix D; the paper's SAC does not tune


def resolve(config: AgentConfig) -> AgentConfig:
    """The config with its algorithm's value for every None that has one. Raises UserError if it
    makes no sense.
    """
    choose("algorithm", config.algorithm, ALGORITHMS)
    values = {**_PLAIN, **ALGORITHMS[config.algorithm]}
    config = dataclasses.replace(
        config, **{k: v for k, v in values.items() if getattr(config, k) is None}
    )
    choose("critic_step", str(config.critic_step), STEP_LEARNING_RATES)
    if config.critic_learning_rate is None:
        config = dataclasses.replace(
            config, critic_learning_rate=STEP_LEARNING_RATES[str(config.critic_step)]
        )
    choose("activation", str(config.activation), networks.ACTIVATIONS)
    choose("initializer", config.initializer, networks.INITIALIZERS)
    choose("kernel", config.kernel, ntk.METHODS)
    choose("solver", config.solver, SOLVERS)
    check(config)
    if not config.hidden_sizes:
        raise UserError(
            "hidden_sizes is empty, but a network needs at least one hidden layer, as in "
            "--hidden_sizes=256,256"
        )
    return _resolve_temperature(config)


def _resolve_temperature(config: AgentConfig) -> AgentConfig:
    """A deterministic policy has no temperature, a stochastic one no noise but its own."""
    if config.temperature is not None and config.target_noise:
        raise UserError(
            f"target_noise is {config.target_noise}, but smoothing is for deterministic policies "
            f"and temperature "
            f"{config.temperature} makes this one stochastic: use --target_noise=0, or leave the "
            f"temperature out"
        )
    if config.automatic_temperature and config.temperature is None:
        raise UserError(
            f"automatic_temperature is on, but the policy of {config.algorithm} is deterministic: "
            "use --algorithm=sac, or give a --temperature to start from"
        )
    if config.automatic_temperature and config.temperature_learning_rate is None:
        config = dataclasses.replace(config, temperature_learning_rate=TEMPERATURE_LEARNING_RATE)
    for name in ("target_entropy", "temperature_learning_rate"):
        if getattr(config, name) is not None and not config.automatic_temperature:
            raise UserError(
                f"{name} is {getattr(config, name)}, but nothing tunes the temperature: add "
                f"--automatic_temperature"
            )
    return config


def critic_step(config: AgentConfig, q: QFunction) -> steps.ValueStep:
    """The step that a resolved config asks for, for one critic."""
    rate = config.critic_learning_rate
    assert rate is not None
    if config.critic_step == "gradient":
        return steps.gradient(q, optax.adam(rate))
    if config.critic_step == "natural_gradient":
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
