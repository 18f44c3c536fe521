"""The settings of an agent, and the values that each algorithm sets by itself.

Defaults are the values of Appendix B.
"""

import dataclasses
from typing import Any, NamedTuple

from preqn_jax import solve
from preqn_jax.options import option

_PREQN = {"activation": "sin", "critic_step": "preconditioned"}
_GRADIENT = {"activation": "relu", "critic_step": "gradient"}
_DDPG = {**_GRADIENT, "target_networks": True}
_TWIN = {**_PREQN, "num_critics": 2, "target_noise": 0.2}
_EPSILON = {"epsilon_start": 1.0, "epsilon_end": 0.05, "epsilon_decay": 10_000}
CHOICE = {**_EPSILON, "double_q": False}  # only for finitely many actions
# The settings in which the algorithms differ; the paper calls PreQN and TD3 "equivalent except for
# the Q-learning component".
ALGORITHMS: dict[str, dict[str, Any]] = {
    "preqn": _PREQN,
    "preqn_twin": _TWIN,
    "preqn_measured": {**_TWIN, "measured_pessimism": True},
    "preqn_averaged": {**_PREQN, "num_critics": 2, "pessimism": 0.0},
    "preqn_delayed": {**_PREQN, "policy_delay": 2},
    "preqn_momentum": {**_PREQN, "momentum": 0.9},
    "preqn_adaptive": {**_PREQN, "adaptive_damping": True},
    "preqn_relative": {**_PREQN, "relative_eta": True},
    "preqn_soft": {**_PREQN, "temperature": 0.1},
    "ngql": {"activation": "sin", "critic_step": "natural_gradient"},
    "ddpg": _DDPG,
    "td3": {**_DDPG, "num_critics": 2, "target_noise": 0.2, "policy_delay": 2},
    "sac": {**_DDPG, "num_critics": 2, "temperature": 0.1},
    # Bhatt et al. 2024, with the numbers of the authors' code.
    "crossq": {
        **_GRADIENT,
        "critic_hidden_sizes": (2048, 2048),
        "critic_norm": "batch",
        "num_critics": 2,
        "policy_delay": 3,
        "adam_b1": 0.5,
        "temperature": 1.0,
        "automatic_temperature": True,
    },
    "preqn_discrete": {**_PREQN, **CHOICE},
    "dqn": {**_DDPG, "huber": 1.0, **CHOICE},
}
DISCRETE = tuple(name for name, row in ALGORITHMS.items() if "epsilon_end" in row)
PLAIN = {
    "num_critics": 1,
    "target_networks": False,
    "target_noise": 0.0,
    "policy_delay": 1,
    "momentum": 0.0,
    "pessimism": 1.0,
    "measured_pessimism": False,
    "adaptive_damping": False,
    "relative_eta": False,
    "critic_norm": "none",
    "adam_b1": 0.9,
}


def _own(name: str, otherwise: str = "") -> str:
    """The default of a setting in each algorithm, as text: "2 for td3 and sac; else 1"."""
    by_value: dict[str, list[str]] = {}
    for algorithm, row in ALGORITHMS.items():
        if name in row:
            by_value.setdefault(_word(row[name]), []).append(algorithm)
    if name in PLAIN:
        otherwise = _word(PLAIN[name])
    said = [f"{value} for {_listed(names)}" for value, names in by_value.items()]
    return "; ".join(said) + (f"; else {otherwise}" if otherwise else "")


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _listed(names: list[str], link: str = "and") -> str:
    *most, last = names
    return f"{', '.join(most)} {link} {last}" if most else last


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """The settings of an agent; None stands for the algorithm's own value.

    Numbers may be traced, so `jax.vmap` over them is a sweep. `resolve` checks all but arrays and
    schedules.
    """

    algorithm: str = option(
        "preqn",
        f"the algorithm: {_listed([name for name in ALGORITHMS if name not in DISCRETE], 'or')}; "
        f"for discrete actions {_listed(list(DISCRETE), 'or')}",
    )
    activation: str | None = option(
        None,
        f"activation function of actor and critic: sin, relu or tanh ({_own('activation')})",
    )
    hidden_sizes: tuple[int, ...] = option(
        (256, 256), "widths of the hidden layers of actor and critic", at_least=1
    )
    critic_hidden_sizes: tuple[int, ...] | None = option(
        None,
        f"widths of the critic's hidden layers ({_own('critic_hidden_sizes', 'hidden_sizes')})",
        at_least=1,
    )
    critic_norm: str | None = option(
        None,
        "normalization of the critic's hidden layers: none, layer (LayerNorm before each "
        "activation), or batch (batch renormalization: for crossq, and only there)",
    )
    critic_features: str = option(
        "none",
        "features of the critic's inputs, before its hidden layers: none, or fourier (learned "
        "Fourier features)",
    )
    fourier_bandwidth: float = option(
        1e-3, "scale of the initial frequencies, with critic_features=fourier", above=0
    )
    fourier_ratio: int = option(
        40, "Fourier features for each number in (s, a), with critic_features=fourier", at_least=1
    )
    initializer: str = option(
        "glorot", "initial weights: glorot (zero biases), lecun, pytorch or siren"
    )
    network_dtype: str = option(
        "float32",
        "data type in hidden layers: float32, or bfloat16, which preconditioned steps do not allow "
        "(parameters, K and its solve stay in float32)",
    )
    normalize_observations: bool = option(
        False,
        "subtract the running mean of all collected observations, and divide by their standard "
        "deviation",
    )
    discount: float = option(0.99, "gamma, the discount factor", at_least=0, below=1)
    actor_learning_rate: float = option(
        1e-3, "alpha_mu, Adam's step size for the policy", above=0, schedule=True
    )
    adam_b1: float | None = option(
        None,
        f"decay of Adam's mean of gradients, of policy and critic ({_own('adam_b1')})",
        at_least=0,
        below=1,
    )
    critic_learning_rate: float | None = option(
        None,
        "alpha_q: the step size of preconditioned and natural_gradient steps (0.1), or Adam's for "
        "gradient steps (0.001)",
        above=0,
        schedule=True,
    )
    critic_step: str | None = option(
        None,
        f"update of Q: preconditioned, natural_gradient or gradient ({_own('critic_step')})",
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
        below=1,
    )
    eta: float = option(
        0.97, "eta, the alignment a preconditioned step must reach (Eq. 24)", above=-1, below=1
    )
    linesearch_decay: float = option(
        0.5, "factor between candidates of the linesearch", above=0, below=1
    )
    linesearch_max_steps: int = option(
        12, "maximal number of linesearch candidates; if none passes, Q is not updated", at_least=1
    )
    num_critics: int | None = option(
        None,
        f"number of critics; targets use their minimum, or see pessimism ({_own('num_critics')})",
        at_least=1,
    )
    pessimism: float | None = option(
        None,
        "with several critics, targets use their mean (0), their minimum (1) or a value between "
        f"({_own('pessimism')})",
        at_least=0,
    )
    measured_pessimism: bool | None = option(
        None,
        "set pessimism in each minibatch to how far the policy exploits errors of the critic that "
        f"it maximizes ({_own('measured_pessimism')})",
    )
    momentum: float | None = option(
        None,
        f"share of the last preconditioned step carried over to the next ({_own('momentum')})",
        at_least=0,
        below=1,
    )
    adaptive_damping: bool | None = option(
        None,
        "adapt the damping to how well the linearization predicts each step; the option damping "
        f"is its first value ({_own('adaptive_damping')})",
    )
    relative_eta: bool | None = option(
        None,
        "require eta times the alignment of the solve itself, instead of eta "
        f"({_own('relative_eta')})",
    )
    target_networks: bool | None = option(
        None, f"compute targets with target networks ({_own('target_networks')})"
    )
    polyak: float = option(
        0.995, "share of a target network that an update keeps", at_least=0, below=1
    )
    exploration_noise: float = option(
        0.1,
        "standard deviation of the action noise in data collection, for actions in [-1, 1]; "
        "policies with a temperature sample instead",
        at_least=0,
    )
    target_noise: float | None = option(
        None,
        f"standard deviation of the target policy smoothing noise ({_own('target_noise')})",
        at_least=0,
    )
    target_noise_clip: float = option(0.5, "bound on the target policy smoothing noise", at_least=0)
    policy_delay: int | None = option(
        None,
        "critic updates for each update of the policy and the target networks "
        f"({_own('policy_delay')})",
        at_least=1,
    )
    huber: float | None = option(
        None,
        "bound to which a gradient step clips TD errors (Huber's loss), 0 for none "
        f"({_own('huber', '0')})",
        at_least=0,
    )
    epsilon_start: float | None = option(
        None,
        "share of random actions in data collection at the first update "
        f"({_own('epsilon_start', 'none')})",
        at_least=0,
    )
    epsilon_end: float | None = option(
        None,
        f"share of random actions after epsilon_decay updates ({_own('epsilon_end', 'none')})",
        at_least=0,
    )
    epsilon_decay: int | None = option(
        None,
        f"updates over which the share of random actions falls ({_own('epsilon_decay', 'none')})",
        at_least=1,
    )
    double_q: bool | None = option(
        None,
        "in targets, the critic chooses the action and the target network evaluates it "
        f"({_own('double_q')})",
    )
    temperature: float | None = option(
        None,
        f"alpha, the weight of the policy's entropy ({_own('temperature', 'none')})",
        above=0,
    )
    automatic_temperature: bool | None = option(
        None,
        "tune alpha, which starts at temperature, towards the target entropy "
        f"({_own('automatic_temperature')})",
    )
    target_entropy: float | None = option(
        None, "entropy towards which alpha is tuned (minus the dimension of actions)"
    )
    temperature_learning_rate: float | None = option(
        None,
        "Adam's step size for log alpha, where it is tuned (0.001 for crossq, else 0.0003)",
        above=0,
        schedule=True,
    )


SOLVERS = {
    "cholesky": lambda config: solve.cholesky(config.damping),
    "eigh": lambda config: solve.eigh(config.rcond),
    "lstsq": lambda config: solve.lstsq(config.rcond),
    "cg": lambda config: solve.cg(damping=config.damping),
}


class StepKind(NamedTuple):
    """The properties of one kind of critic step."""

    learning_rate: float  # the default
    solves: bool  # whether it solves a system with the K of a minibatch
    reads: frozenset[str] = frozenset()  # settings it reads that not every kind reads


DAMPED = ("cholesky", "cg")  # solvers; the others cut eigenvalues off (rcond)
STEPS = {
    "preconditioned": StepKind(
        0.1,
        True,
        frozenset(
            ("eta", "linesearch_decay", "linesearch_max_steps", "kernel", "solver", "damping")
        ),
    ),
    "natural_gradient": StepKind(0.1, True, frozenset(("damping",))),
    "gradient": StepKind(1e-3, False),
}
# Haarnoja et al. 2018b, Appendix D; the SAC of the PreQN paper does not tune. CrossQ has one rate
# for policy, critics and temperature.
TEMPERATURE_LEARNING_RATE, TEMPERATURE_LEARNING_RATES = 3e-4, {"crossq": 1e-3}
FEATURES = ("none", "fourier")
