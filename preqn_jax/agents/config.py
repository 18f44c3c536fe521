"""What a person says of an algorithm, and every choice made of it: config -> resolved config.

Defaults are the rows of Appendix B.
"""

import dataclasses
from typing import Any, NamedTuple, cast

from preqn_jax import networks, ntk, solve
from preqn_jax.agents.discrete import Epsilon
from preqn_jax.agents.policies import Smoothing
from preqn_jax.agents.target import Polyak
from preqn_jax.options import UserError, check, choose, option
from preqn_jax.types import Array


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """What a person says of an algorithm; None stands for the algorithm's own value.

    Numbers may be traced: `jax.vmap` over them is a sweep. The others are checked by `resolve`.
    """

    algorithm: str = option(
        "preqn",
        "the algorithm: preqn, one of its variants (preqn_twin, preqn_measured, preqn_delayed, "
        "preqn_momentum, preqn_adaptive, preqn_soft), ngql, ddpg, td3 or sac; of finitely many "
        "actions preqn_discrete or dqn",
    )
    activation: str | None = option(
        None,
        "hidden layers of actor and critic: sin, relu or tanh (sin for preqn, ngql and "
        "preqn_discrete, else relu)",
    )
    hidden_sizes: tuple[int, ...] = option(
        (256, 256), "widths of the hidden layers of actor and critic", at_least=1
    )
    initializer: str = option(
        "glorot", "initial weights: glorot (zero biases), lecun, pytorch or siren"
    )
    network_dtype: str = option(
        "float32",
        "what hidden layers compute in: float32, or bfloat16 (parameters, K and its solve stay in "
        "float32)",
    )
    normalize_observations: bool = option(
        False, "subtract the running mean of all observations collected, and divide by their spread"
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
        "how Q moves: preconditioned (preqn, preqn_discrete), natural_gradient (ngql), gradient "
        "(ddpg, td3, sac, dqn)",
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
    pessimism: float = option(
        1.0,
        "of several critics, what bootstraps: 0 for their mean, 1 for their least",
        at_least=0,
    )
    measured_pessimism: bool | None = option(
        None,
        "measure the pessimism in each minibatch, as how far the policy exploits the critic that "
        "it climbs (on for preqn_measured)",
    )
    momentum: float | None = option(
        None,
        "share of the last preconditioned move that the next one begins with (0.9 for "
        "preqn_momentum, else 0)",
        at_least=0,
        below=1,
    )
    adaptive_damping: bool | None = option(
        None,
        "let the damping, from there, follow how well the linearization foretells each step (on "
        "for preqn_adaptive)",
    )
    target_networks: bool | None = option(
        None, "bootstrap from slowly moving copies (on for ddpg, td3, sac and dqn)"
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
    huber: float | None = option(
        None,
        "TD errors count up to this in a gradient step, 0 for no bound (1 for dqn, else 0)",
        at_least=0,
    )
    epsilon_start: float | None = option(
        None,
        "share of random actions in data collection at the first update (1 for preqn_discrete and "
        "dqn; the others have none)",
        at_least=0,
    )
    epsilon_end: float | None = option(
        None, "and at the end (0.05 for preqn_discrete and dqn)", at_least=0
    )
    epsilon_decay: int | None = option(
        None, "updates from the first to the second (10000 for preqn_discrete and dqn)", at_least=1
    )
    double_q: bool | None = option(
        None,
        "of finitely many actions the critic chooses and its slow copy says what that is worth "
        "(off for preqn_discrete and dqn)",
    )
    temperature: float | None = option(
        None,
        "alpha, the weight of the policy's entropy (0.1 for sac; the other policies have none)",
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


_PREQN = {"activation": "sin", "critic_step": "preconditioned"}
_EPSILON = {"epsilon_start": 1.0, "epsilon_end": 0.05, "epsilon_decay": 10_000}
_CHOICE = {**_EPSILON, "double_q": False}  # of finitely many actions, and of no others
# What differs among the algorithms: the paper calls PreQN and TD3 "equivalent except for the
# Q-learning component".
ALGORITHMS: dict[str, dict[str, Any]] = {
    "preqn": _PREQN,
    "preqn_twin": {**_PREQN, "num_critics": 2, "target_noise": 0.2},
    "preqn_measured": {
        **_PREQN,
        "num_critics": 2,
        "target_noise": 0.2,
        "measured_pessimism": True,
    },
    "preqn_delayed": {**_PREQN, "policy_delay": 2},
    "preqn_momentum": {**_PREQN, "momentum": 0.9},
    "preqn_adaptive": {**_PREQN, "adaptive_damping": True},
    "preqn_soft": {**_PREQN, "temperature": 0.1},
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
    "preqn_discrete": {"activation": "sin", "critic_step": "preconditioned", **_CHOICE},
    "dqn": {
        "activation": "relu",
        "critic_step": "gradient",
        "target_networks": True,
        "huber": 1.0,
        **_CHOICE,
    },
}
DISCRETE = tuple(name for name, row in ALGORITHMS.items() if "epsilon_end" in row)
CONTINUOUS = tuple(name for name in ALGORITHMS if name not in DISCRETE)
_PLAIN = {
    "num_critics": 1,
    "target_networks": False,
    "target_noise": 0.0,
    "policy_delay": 1,
    "momentum": 0.0,
    "measured_pessimism": False,
    "adaptive_damping": False,
}
SOLVERS = {
    "cholesky": lambda config: solve.cholesky(config.damping),
    "eigh": lambda config: solve.eigh(config.rcond),
    "lstsq": lambda config: solve.lstsq(config.rcond),
    "cg": lambda config: solve.cg(damping=config.damping),
}
STEP_LEARNING_RATES = {"preconditioned": 0.1, "natural_gradient": 0.1, "gradient": 1e-3}
TEMPERATURE_LEARNING_RATE = 3e-4  # Haarnoja et al. 2018b, Appendix D; the paper's SAC does not tune


class Deterministic(NamedTuple):
    """A deterministic policy's settings."""

    noise: float | Array
    smoothing: Smoothing | None


class Gaussian(NamedTuple):
    """A Gaussian policy's settings."""

    temperature: float | Array
    tuning_rate: float | Array | None  # Adam's, where the temperature is tuned
    target_entropy: float | Array | None  # minus the number of actions if None


class Choice(NamedTuple):
    """How an agent with finitely many actions explores and bootstraps."""

    epsilon: Epsilon
    double: bool


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config with every choice made, of which the parts are built."""

    config: AgentConfig  # with the algorithm's value for every None that has one
    # the arguments that policy and critic share
    network: dict[str, Any] = dataclasses.field(hash=False)
    critic_step: str
    critic_learning_rate: float | Array
    members: int
    target: Polyak
    policy: Deterministic | Gaussian | Choice
    delay: int
    huber: float | Array | None = None  # of a gradient step


def resolve(config: AgentConfig) -> Resolved:
    """Every choice that a config leaves open, made. Raises UserError if it makes no sense."""
    choose("algorithm", config.algorithm, ALGORITHMS)
    values = {**_PLAIN, **ALGORITHMS[config.algorithm]}
    config = _fill(config, values)
    step = choose("critic_step", str(config.critic_step), STEP_LEARNING_RATES)
    config = _fill(config, {"critic_learning_rate": STEP_LEARNING_RATES[step]})
    activation = choose("activation", str(config.activation), networks.ACTIVATIONS)
    initializer = choose("initializer", config.initializer, networks.INITIALIZERS)
    choose("kernel", config.kernel, ntk.METHODS)
    choose("solver", config.solver, SOLVERS)
    check(config)
    if not config.hidden_sizes:
        raise UserError(
            "hidden_sizes is empty, but a network needs at least one hidden layer, "
            "as in `hidden_sizes=(256, 256)`"
        )
    if config.automatic_temperature and config.temperature is not None:
        config = _fill(config, {"temperature_learning_rate": TEMPERATURE_LEARNING_RATE})
    _check_variants(config, step)
    given = cast(Any, config)  # what was None is filled by now
    return Resolved(
        config,
        network={
            "hidden_sizes": config.hidden_sizes,
            "activation": activation,
            "initializer": initializer,
            "dtype": choose("network_dtype", config.network_dtype, networks.DTYPES),
        },
        critic_step=step,
        critic_learning_rate=given.critic_learning_rate,
        members=given.num_critics,
        target=config.polyak if config.target_networks else None,
        policy=_policy(config),
        delay=given.policy_delay,
        huber=_huber(config, step),
    )


def _fill(config: AgentConfig, values: dict[str, Any]) -> AgentConfig:
    missing = {name: value for name, value in values.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def _check_variants(config: AgentConfig, step: str) -> None:
    """Raises UserError where what PreQN's variants add has nothing to work on."""
    carries = not is_zero(config.momentum)
    for name, on in (("momentum", carries), ("adaptive_damping", config.adaptive_damping)):
        if on and step != "preconditioned":
            raise UserError(
                f"{name} is {getattr(config, name)}, but it is for preconditioned steps, and "
                f"critic_step is {step}: leave it out, or use `critic_step=preconditioned`"
            )
    if config.adaptive_damping and config.solver not in ("cholesky", "cg"):
        raise UserError(
            f"adaptive_damping is on, but the solver {config.solver} has no damping: use "
            "`solver=cholesky` or `solver=cg`"
        )
    if not config.measured_pessimism:
        return
    if cast(int, config.num_critics) < 2:
        raise UserError(
            f"measured_pessimism is on, but num_critics is {config.num_critics}, and it is "
            "measured between critics: use `num_critics=2`"
        )
    if config.temperature is not None:
        raise UserError(
            f"measured_pessimism is on, but the policy of {config.algorithm} climbs the least of "
            "the critics, not the first: use `pessimism=0.5` or the like"
        )


def _huber(config: AgentConfig, step: str) -> float | Array | None:
    if config.huber is None or is_zero(config.huber):
        return None
    if step != "gradient":
        if ALGORITHMS[config.algorithm].get("huber") == config.huber:
            return None  # its own value, with another step
        raise UserError(
            f"huber is {config.huber}, but it bounds the TD errors of gradient steps, and this one "
            f"is {step}: leave it out"
        )
    return config.huber


def _policy(config: AgentConfig) -> Deterministic | Gaussian | Choice:
    """A temperature makes a policy Gaussian, an epsilon greedy; what does not fit the kind is
    refused.
    """
    smooth = config.target_noise is not None and not is_zero(config.target_noise)
    for name in ("target_entropy", "temperature_learning_rate"):
        if getattr(config, name) is not None and not config.automatic_temperature:
            raise UserError(
                f"{name} is {getattr(config, name)}, but nothing tunes the temperature: "
                "add `automatic_temperature`"
            )
    if config.algorithm in DISCRETE:
        return _choice(config)
    for name in _CHOICE:
        if getattr(config, name) is not None and getattr(config, name) is not False:
            raise UserError(
                f"{name} is {getattr(config, name)}, but it is for finitely many actions "
                f"({', '.join(DISCRETE)}): leave it out"
            )
    if "temperature" not in ALGORITHMS[config.algorithm]:
        for name in ("temperature", "automatic_temperature"):
            if getattr(config, name) is not None and getattr(config, name) is not False:
                raise UserError(
                    f"{name} is {getattr(config, name)}, but the policy of {config.algorithm} is "
                    "deterministic: use `algorithm=sac`, whose critics may take other steps, as in "
                    "`critic_step=preconditioned`"
                )
        smoothing = Smoothing(cast(Any, config.target_noise), config.target_noise_clip)
        return Deterministic(config.exploration_noise, smoothing if smooth else None)
    if smooth:
        raise UserError(
            f"target_noise is {config.target_noise}, but smoothing is for deterministic policies, "
            f"and that of {config.algorithm} is stochastic: leave it out"
        )
    assert config.temperature is not None
    return Gaussian(config.temperature, config.temperature_learning_rate, config.target_entropy)


def _choice(config: AgentConfig) -> Choice:
    for name in ("temperature", "automatic_temperature", "target_noise"):
        value = getattr(config, name)
        if value is not None and value is not False and not is_zero(value):
            raise UserError(
                f"{name} is {value}, but {config.algorithm} acts greedily in Q: leave it out"
            )
    given = cast(Any, config)  # what was None is filled by now
    for name in ("epsilon_start", "epsilon_end"):
        value = getattr(given, name)
        if isinstance(value, int | float) and value > 1:
            raise UserError(f"{name} is {value}, but it is a share and must be at most 1")
    if config.double_q and not config.target_networks:
        raise UserError(
            "double_q is on, but there is no slow copy, and so the critic chooses and says what "
            "that is worth: add `target_networks=True`, or leave it out"
        )
    epsilon = Epsilon(given.epsilon_start, given.epsilon_end, given.epsilon_decay)
    return Choice(epsilon, bool(config.double_q))


def is_zero(value: Any) -> bool:
    """Of a number that is known; a traced one stands for any."""
    return isinstance(value, int | float) and value == 0
