"""Resolved configs: every choice is made, and options that do not fit together are refused."""

import dataclasses
import numbers
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from preqn_jax import networks, ntk, steps
from preqn_jax.agents.config import (
    ALGORITHMS,
    CHOICE,
    DAMPED,
    DISCRETE,
    FEATURES,
    PLAIN,
    SOLVERS,
    STEPS,
    TEMPERATURE_LEARNING_RATE,
    TEMPERATURE_LEARNING_RATES,
    AgentConfig,
)
from preqn_jax.agents.discrete import Epsilon
from preqn_jax.agents.policies import Smoothing
from preqn_jax.agents.target import Polyak
from preqn_jax.options import UserError, check, choose
from preqn_jax.types import Array


class Deterministic(NamedTuple):
    """A deterministic policy's settings."""

    noise: float | Array
    smoothing: Smoothing | None


class Gaussian(NamedTuple):
    """A Gaussian policy's settings."""

    temperature: float | Array
    tuning_rate: float | Array | None  # Adam's, where the temperature is tuned
    target_entropy: float | Array | None  # minus the dimension of actions if None


class Choice(NamedTuple):
    """How an agent with finitely many actions explores and bootstraps."""

    epsilon: Epsilon
    double: bool


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config with every choice made, from which the parts of an agent are built."""

    config: AgentConfig  # with the algorithm's value for every None that has one
    # arguments of the policy's network, and of the critic's: the same, and some of its own
    network: dict[str, Any] = dataclasses.field(hash=False)
    critic: dict[str, Any] = dataclasses.field(hash=False)
    critic_step: str
    critic_learning_rate: float | Array
    members: int
    target: Polyak
    policy: Deterministic | Gaussian | Choice
    delay: int
    huber: float | Array | None = None  # bound on TD errors in a gradient step


def resolve(config: AgentConfig) -> Resolved:
    """Make every choice that a config leaves open. Raises UserError if it makes no sense."""
    check(config)
    choose("algorithm", config.algorithm, ALGORITHMS)
    values = {**PLAIN, **ALGORITHMS[config.algorithm]}
    config = _fill(config, values)
    _check_choices(config)
    step = choose("critic_step", str(config.critic_step), STEPS)
    config = _fill(config, {"critic_learning_rate": STEPS[step].learning_rate})
    activation = choose("activation", str(config.activation), networks.ACTIVATIONS)
    initializer = choose("initializer", config.initializer, networks.INITIALIZERS)
    choose("kernel", config.kernel, ntk.METHODS)
    choose("solver", config.solver, SOLVERS)
    for name in ("hidden_sizes", "critic_hidden_sizes"):
        if getattr(config, name) == ():
            raise UserError(
                f"{name} is empty, but a network needs at least one hidden layer, "
                f"as in `{name}=(256, 256)`"
            )
    if config.automatic_temperature and config.temperature is not None:
        rate = TEMPERATURE_LEARNING_RATES.get(config.algorithm, TEMPERATURE_LEARNING_RATE)
        config = _fill(config, {"temperature_learning_rate": rate})
    _check_variants(config, step)
    given = cast(Any, config)  # what was None is filled by now
    network = {
        "hidden_sizes": config.hidden_sizes,
        "activation": activation,
        "initializer": initializer,
        "dtype": choose("network_dtype", config.network_dtype, networks.DTYPES),
    }
    return Resolved(
        config,
        network=network,
        critic=network | _critic(config),
        critic_step=step,
        critic_learning_rate=given.critic_learning_rate,
        members=given.num_critics,
        target=config.polyak if config.target_networks else None,
        policy=_policy(config),
        delay=given.policy_delay,
        huber=_huber(config, step),
    )


def unread(made: Resolved) -> set[str]:
    """The names of the settings that have no effect on this agent, whatever their values."""
    config, read = made.config, STEPS[made.critic_step].reads
    names = {name for step in STEPS.values() for name in step.reads - read}
    if "solver" in read and config.solver not in DAMPED:
        names.add("damping")
    if made.target is None:
        names.add("polyak")
    if not isinstance(made.policy, Deterministic):
        names |= {"exploration_noise", "target_noise_clip"}
    elif made.policy.smoothing is None:
        names.add("target_noise_clip")
    if config.critic_features != "fourier":
        names |= {"fourier_bandwidth", "fourier_ratio"}
    return names


def _fill(config: AgentConfig, values: dict[str, Any]) -> AgentConfig:
    missing = {name: value for name, value in values.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def _check_choices(config: AgentConfig) -> None:
    """Raises UserError for options that are set but would change nothing."""
    if config.measured_pessimism or config.num_critics == 1:
        usual = {**PLAIN, **ALGORITHMS[config.algorithm]}["pessimism"]
        if isinstance(config.pessimism, numbers.Real) and config.pessimism != usual:
            measured = "measured_pessimism sets it"
            why = measured if config.measured_pessimism else "there is only one critic"
            raise UserError(f"pessimism is {config.pessimism}, but {why}: leave it out")
    if config.rcond is not None and config.solver in DAMPED:
        raise UserError(
            f"rcond is {config.rcond}, but the solver {config.solver} cuts no eigenvalues off: "
            "use `solver=eigh`, or `damping` instead"
        )


def _check_variants(config: AgentConfig, step: str) -> None:
    """Raises UserError for an option of PreQN's variants that the rest of the config rules out."""
    if step == "preconditioned" and config.network_dtype == "bfloat16":
        raise UserError(
            "network_dtype is bfloat16, but its 8 bits are too few for the differences of Q that a "
            "preconditioned step compares: leave it out"
        )
    if step != "preconditioned":
        why = f"it is for preconditioned steps, and critic_step is {step}: leave it out, or use "
        why += "`critic_step=preconditioned`"
        _refuse(config, ("momentum", "adaptive_damping", "relative_eta"), why)
    if config.adaptive_damping and config.solver not in DAMPED:
        raise UserError(
            f"adaptive_damping is on, but the solver {config.solver} has no damping: use "
            "`solver=cholesky` or `solver=cg`"
        )
    damping, limits = config.damping, steps.Adaptive()
    known = config.adaptive_damping and isinstance(damping, numbers.Real)
    if known and not limits.minimum <= damping <= limits.maximum:  # pyright: ignore[reportOperatorIssue]
        raise UserError(
            f"damping is {damping}, but adaptive_damping keeps it between {limits.minimum} and "
            f"{limits.maximum}: give a value in between"
        )
    if not config.measured_pessimism:
        return
    if cast(int, config.num_critics) < 2:
        raise UserError(
            f"measured_pessimism is on, but num_critics is {config.num_critics}, and it compares "
            "two or more: use `num_critics=2`"
        )
    if config.temperature is not None or config.algorithm in DISCRETE:
        raise UserError(
            f"measured_pessimism is on, but the policy of {config.algorithm} maximizes the minimum "
            "of the critics, not the first critic: use a fixed pessimism, as in `pessimism=0.5`"
        )


def _huber(config: AgentConfig, step: str) -> float | Array | None:
    if is_off(config.huber):
        return None
    if step != "gradient":
        if ALGORITHMS[config.algorithm].get("huber") == config.huber:
            return None  # the algorithm's default: no effect on another step
        raise UserError(
            f"huber is {config.huber}, but it bounds the TD errors of gradient steps, and "
            f"critic_step is {step}: leave it out"
        )
    return config.huber


def _critic(config: AgentConfig) -> dict[str, Any]:
    """The critic network's own arguments. Raises UserError for those its algorithm rules out."""
    norm = choose("critic_norm", str(config.critic_norm), networks.NORMS)
    fourier = choose("critic_features", config.critic_features, FEATURES) == "fourier"
    if config.algorithm == "crossq":
        _check_crossq(config)
    elif norm == "batch":
        raise UserError(
            "critic_norm is batch, but that needs one forward pass over (s, a) and (s', a') "
            f"together, which {config.algorithm} does not make: use `algorithm=crossq`, or "
            "`critic_norm=layer`"
        )
    features = networks.Fourier(config.fourier_ratio, config.fourier_bandwidth)
    return {
        "hidden_sizes": config.critic_hidden_sizes or config.hidden_sizes,
        "norm": norm,
        "fourier": features if fourier else None,
    }


def _check_crossq(config: AgentConfig) -> None:
    if config.critic_step != "gradient":
        raise UserError(
            f"critic_step is {config.critic_step}, but crossq normalizes by the statistics of each "
            "minibatch, so that Q of one example depends on the others and has no kernel: use "
            "`critic_step=gradient`, or `algorithm=sac` with `critic_norm=layer`"
        )
    fixed = {"critic_norm": "batch", "critic_features": "none", "pessimism": 1}
    for name, value in fixed.items():
        given = getattr(config, name)
        if not isinstance(given, Array) and given != value:
            raise UserError(
                f"{name} is {given}, but crossq's is {value}: leave it out, or use "
                "`algorithm=sac` without `target_networks`"
            )
    why = "crossq has none: leave it out, or use `algorithm=sac`"
    _refuse(config, ("target_networks", "huber"), why)


def _policy(config: AgentConfig) -> Deterministic | Gaussian | Choice:
    """The policy's settings: Gaussian if the algorithm has a temperature, epsilon-greedy if its
    actions are finitely many, else deterministic. Raises UserError for options of another kind.
    """
    smooth = not is_off(config.target_noise)
    for name in ("target_entropy", "temperature_learning_rate"):
        if getattr(config, name) is not None and not config.automatic_temperature:
            raise UserError(
                f"{name} is {getattr(config, name)}, but the temperature is not tuned: "
                "add `automatic_temperature=True`"
            )
    if config.algorithm in DISCRETE:
        return _choice(config)
    why = f"it is for discrete actions ({', '.join(DISCRETE)}): leave it out"
    _refuse(config, CHOICE, why)
    if "temperature" not in ALGORITHMS[config.algorithm]:
        why = f"the policy of {config.algorithm} is deterministic: use `algorithm=sac`, with "
        why += "`critic_step=preconditioned` for PreQN's step"
        _refuse(config, ("temperature", "automatic_temperature"), why)
        smoothing = Smoothing(cast(Any, config.target_noise), config.target_noise_clip)
        return Deterministic(config.exploration_noise, smoothing if smooth else None)
    if smooth:
        raise UserError(
            f"target_noise is {config.target_noise}, but target policy smoothing is for "
            f"deterministic policies, and {config.algorithm}'s is stochastic: leave it out"
        )
    assert config.temperature is not None
    return Gaussian(config.temperature, config.temperature_learning_rate, config.target_entropy)


def _choice(config: AgentConfig) -> Choice:
    why = f"{config.algorithm} acts greedily in Q: leave it out"
    _refuse(config, ("temperature", "automatic_temperature", "target_noise"), why)
    given = cast(Any, config)  # what was None is filled by now
    for name in ("epsilon_start", "epsilon_end"):
        value = getattr(given, name)
        if isinstance(value, int | float) and value > 1:
            raise UserError(f"{name} is {value}, but it is a share and must be at most 1")
    if config.double_q and not config.target_networks:
        raise UserError(
            "double_q is on, but there is no target network to evaluate the chosen action: add "
            "`target_networks=True`, or leave it out"
        )
    epsilon = Epsilon(given.epsilon_start, given.epsilon_end, given.epsilon_decay)
    return Choice(epsilon, bool(config.double_q))


def _refuse(config: AgentConfig, names: Iterable[str], why: str) -> None:
    """Raises UserError for the first of these options that is on."""
    for name in names:
        if not is_off(value := getattr(config, name)):
            raise UserError(f"{name} is {value}, but {why}")


def is_off(value: Any) -> bool:
    """Whether an option is None, 0 or False. An array, traced or not, counts as on."""
    return value is None or (isinstance(value, numbers.Number) and not value)
