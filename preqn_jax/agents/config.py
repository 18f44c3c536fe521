"""What a person says of an algorithm, and every choice made of it: config -> resolved config.

Defaults are the rows of Appendix B.
"""

import dataclasses
from typing import Any, NamedTuple, cast

from preqn_jax import networks, ntk, solve
from preqn_jax.agents.policies import Smoothing
from preqn_jax.agents.target import Polyak
from preqn_jax.options import UserError, check, choose, option
from preqn_jax.types import Array


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """What a person says of an algorithm; None stands for the algorithm's own value.

    Numbers may be traced: `jax.vmap` over them is a sweep. The others are checked by `resolve`.
    """

    algorithm: str = option("preqn", "the algorithm: preqn, ngql, ddpg, td3, sac or crossq")
    activation: str | None = option(
        None,
        "hidden layers of actor and critic: sin, relu or tanh (sin for preqn and ngql, else relu)",
    )
    hidden_sizes: tuple[int, ...] = option(
        (256, 256), "widths of the hidden layers of actor and critic", at_least=1
    )
    critic_hidden_sizes: tuple[int, ...] | None = option(
        None, "widths of the critic's alone (2048,2048 for crossq, else hidden_sizes)", at_least=1
    )
    critic_norm: str | None = option(
        None,
        "of the critic's hidden layers: none, layer (LayerNorm before each activation), or batch "
        "(batch renormalization: crossq, and only there)",
    )
    critic_features: str = option(
        "none", "the critic's first layer: none of its own, or fourier (learned Fourier features)"
    )
    fourier_bandwidth: float = option(
        1e-3, "scale of the initial frequencies of critic_features=fourier", above=0
    )
    fourier_ratio: int = option(
        40, "features for each number in (s, a), of critic_features=fourier", at_least=1
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
    adam_b1: float | None = option(
        None,
        "decay of Adam's mean of gradients, of policy and critic (0.5 for crossq, else 0.9)",
        at_least=0,
        below=1,
    )
    critic_learning_rate: float | None = option(
        None,
        "alpha_q: of Eq. 23 for preconditioned and natural steps (0.1), Adam's for gradient steps "
        "(0.001)",
        above=0,
    )
    critic_step: str | None = option(
        None,
        "how Q moves: preconditioned (preqn), natural_gradient (ngql), gradient (ddpg, td3, sac, "
        "crossq)",
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
        None, "critics; the least of them bootstraps (2 for td3, sac, crossq, else 1)", at_least=1
    )
    target_networks: bool | None = option(
        None, "bootstrap from slowly moving copies (on for ddpg, td3 and sac)"
    )
    polyak: float = option(
        0.995, "share of a target network that an update keeps", at_least=0, below=1
    )
    exploration_noise: float = option(
        0.1,
        "standard deviation of the action noise, actions in [-1, 1] (sac and crossq sample "
        "instead)",
        at_least=0,
    )
    target_noise: float | None = option(
        None, "standard deviation of target policy smoothing (0.2 for td3, else 0)", at_least=0
    )
    target_noise_clip: float = option(0.5, "bound on the target policy smoothing noise", at_least=0)
    policy_delay: int | None = option(
        None,
        "critic updates for one update of policy and targets (2 for td3, 3 for crossq, else 1)",
        at_least=1,
    )
    temperature: float | None = option(
        None,
        "alpha, the weight of the policy's entropy (0.1 for sac, 1 for crossq; the other policies "
        "have none)",
        above=0,
    )
    automatic_temperature: bool | None = option(
        None, "tune alpha, from there, towards the target entropy (on for crossq)"
    )
    target_entropy: float | None = option(
        None, "entropy that tuning alpha should reach (minus the number of actions, -|A|)"
    )
    temperature_learning_rate: float | None = option(
        None,
        "Adam's step size for log alpha, where it is tuned (0.001 for crossq, else 0.0003)",
        above=0,
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
    # Bhatt et al. 2024, their table of hyper-parameters and their code.
    "crossq": {
        "activation": "relu",
        "critic_step": "gradient",
        "critic_hidden_sizes": (2048, 2048),
        "critic_norm": "batch",
        "num_critics": 2,
        "policy_delay": 3,
        "adam_b1": 0.5,
        "temperature": 1.0,
        "automatic_temperature": True,
    },
}
_PLAIN = {
    "num_critics": 1,
    "target_networks": False,
    "target_noise": 0.0,
    "policy_delay": 1,
    "critic_norm": "none",
    "adam_b1": 0.9,
}
SOLVERS = {
    "cholesky": lambda config: solve.cholesky(config.damping),
    "eigh": lambda config: solve.eigh(config.rcond),
    "lstsq": lambda config: solve.lstsq(config.rcond),
    "cg": lambda config: solve.cg(damping=config.damping),
}
STEP_LEARNING_RATES = {"preconditioned": 0.1, "natural_gradient": 0.1, "gradient": 1e-3}
# Haarnoja et al. 2018b, Appendix D; the paper's SAC does not tune. CrossQ has one rate for all.
TEMPERATURE_LEARNING_RATES = {"sac": 3e-4, "crossq": 1e-3}
FEATURES = ("none", "fourier")


class Deterministic(NamedTuple):
    """A deterministic policy's settings."""

    noise: float | Array
    smoothing: Smoothing | None


class Gaussian(NamedTuple):
    """A Gaussian policy's settings."""

    temperature: float | Array
    tuning_rate: float | Array | None  # Adam's, where the temperature is tuned
    target_entropy: float | Array | None  # minus the number of actions if None


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config with every choice made, of which the parts are built."""

    config: AgentConfig  # with the algorithm's value for every None that has one
    # the arguments that policy and critic share, and the critic's, with its own
    network: dict[str, Any] = dataclasses.field(hash=False)
    critic: dict[str, Any] = dataclasses.field(hash=False)
    critic_step: str
    critic_learning_rate: float | Array
    members: int
    target: Polyak
    policy: Deterministic | Gaussian
    delay: int


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
    for name in ("hidden_sizes", "critic_hidden_sizes"):
        if getattr(config, name) == ():
            raise UserError(
                f"{name} is empty, but a network needs at least one hidden layer, "
                f"as in `{name}=(256, 256)`"
            )
    if config.automatic_temperature and config.temperature is not None:
        rate = TEMPERATURE_LEARNING_RATES.get(config.algorithm)
        config = _fill(config, {"temperature_learning_rate": rate})
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
    )


def _fill(config: AgentConfig, values: dict[str, Any]) -> AgentConfig:
    missing = {name: value for name, value in values.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def _critic(config: AgentConfig) -> dict[str, Any]:
    """What the critic's network has of its own; what CrossQ's cannot have is refused."""
    norm = choose("critic_norm", str(config.critic_norm), networks.NORMS)
    fourier = choose("critic_features", config.critic_features, FEATURES) == "fourier"
    if config.algorithm == "crossq":
        _check_crossq(config)
    elif norm == "batch":
        raise UserError(
            f"critic_norm is batch, but the critic of {config.algorithm} has no pass over (s, a) "
            "and (s', a') together, which that needs: use `algorithm=crossq`, or "
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
            f"critic_step is {config.critic_step}, but crossq trains its critic with the "
            "statistics of each batch, where Q of one example depends on the others and has no "
            "kernel: use `critic_step=gradient`, or `algorithm=sac` with `critic_norm=layer`"
        )
    for name, value in (("critic_norm", "batch"), ("critic_features", "none")):
        if getattr(config, name) != value:
            raise UserError(
                f"{name} is {getattr(config, name)}, but crossq's is {value}: leave it out, or use "
                "`algorithm=sac` without `target_networks`"
            )
    if config.target_networks:
        raise UserError(
            "target_networks is on, but crossq has none: leave it out, or use `algorithm=sac`"
        )


def _policy(config: AgentConfig) -> Deterministic | Gaussian:
    """A temperature makes a policy Gaussian; what does not fit the kind is refused."""
    smooth = config.target_noise is not None and not _is_zero(config.target_noise)
    for name in ("target_entropy", "temperature_learning_rate"):
        if getattr(config, name) is not None and not config.automatic_temperature:
            raise UserError(
                f"{name} is {getattr(config, name)}, but nothing tunes the temperature: "
                "add `automatic_temperature`"
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


def _is_zero(value: Any) -> bool:
    """Of a number that is known; a traced one stands for any."""
    return isinstance(value, int | float) and value == 0
