"""Diagnoses during training: `diagnostics.diagnose` of every seed's critic, on a minibatch of its
own.

A diagnosis draws from keys of its own and changes nothing: a run learns the same with and without
it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax import actions, diagnostics
from preqn_jax import replay as replays
from preqn_jax.agents import Agent, Inspection
from preqn_jax.agents.config import STEPS
from preqn_jax.problems import Problem
from preqn_jax.training import rows
from preqn_jax.training.config import LOOK, LoopConfig, stream
from preqn_jax.training.loop import Learner, keys, padded
from preqn_jax.training.rollout import Evaluation
from preqn_jax.types import Array, Key, Params, Transition

_EPS = float(np.finfo(np.float32).eps)  # the solvers' default rcond is eps * B, of a minibatch of B
_BIAS_PAIRS = 256  # state-action pairs of an evaluation that `bias` uses
_HUGE = 1e9  # TD errors beyond it: sums of their squares lose the networks' own numbers


class Look(NamedTuple):
    """The data of one seed that a diagnosis looks at."""

    batch: Transition  # `[B]`, drawn for the diagnosis alone
    step: Inspection
    reward_bound: float  # the largest |r| in the replay buffer


@functools.lru_cache(maxsize=16)
def make_looks(agent: Agent, config: LoopConfig) -> Callable[[Learner, int], list[Look]]:
    """`(learner [P], round) -> a look at each member`."""

    seeds = padded(config, np.array(config.seeds, np.uint32))

    @jax.jit
    def draw(
        replay: replays.Replay, seeds: Array, round_: Array
    ) -> tuple[Transition, Array, Array]:
        def one(replay: replays.Replay, key: Key) -> tuple[Transition, Array, Array]:
            sample_key, step_key = jax.random.split(stream(key, LOOK, round_))
            bound = jnp.max(jnp.abs(jnp.asarray(replay.data.reward)))  # rows not filled yet are 0
            return (
                replays.sample(replay, sample_key, (config.batch_size,)),
                jax.random.key_data(step_key),
                bound,
            )

        return jax.vmap(one)(replay, keys(seeds))

    @jax.jit
    def inspect(state: Any, batch: Transition, key_data: Array) -> Inspection:
        return agent.inspect(state, batch, jax.random.wrap_key_data(key_data))

    def looks(learner: Learner, round_: int) -> list[Look]:
        drawn = draw(learner.replay, seeds, jnp.uint32(round_))
        drawn, states = jax.device_get((drawn, learner.agent))
        found = []
        for i in range(len(config.seeds)):
            state, (batch, key_data, bound) = jax.tree.map(
                lambda leaf, i=i: leaf[i], (states, drawn)
            )
            found.append(Look(batch, inspect(state, batch, key_data), float(bound)))
        return found

    return looks


def measure(agent: Agent, look: Look, discount: float, discrete: bool = False) -> dict[str, float]:
    """What `diagnostics.diagnose` measures of a look: of the first critic, and of the step that
    `update` would take with it. It is empty where a number of `look.step` is not finite.
    """
    step = look.step
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(step))):
        return {}
    case = diagnostics.Case(
        step.params,
        look.batch,
        step.next_action,
        step.targets,
        step.moved,
        gamma=discount,
        reward_bound=look.reward_bound or None,
        bonus=step.bonus,
    )
    measured = diagnostics.diagnose(agent.q, case)
    if discrete:  # the order of such actions means nothing to the environment
        measured.pop("saturation", None)
    return measured


Exactly = Callable[[Learner, int, float, float | None], dict[str, float]]
"""`(learner [P], index of a member, alpha of Eq. 5, damping) -> {"exact/...": value}`, the results
of `diagnostics.exact`; damping is None unless it adapts.
"""


def make_exact(
    agent: Agent,
    problem: Problem | None,
    discounts: Sequence[float] | np.ndarray,
    described: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Exactly:
    """A function that measures the whole operator U of a run on a finite `problem`, where rho is
    the distribution of pairs in the replay buffer. It returns {} where `problem` is None.

    `described` is the content of config.json, `settings` `[M]` are the members' own. A
    preconditioned step is measured with its own learning rate and damping; a gradient step with the
    alpha of Eq. 5 whose update is most like it, as a diagnosis finds it.
    """
    if problem is None:
        return lambda learner, i, alpha, adapted: {}
    shape, step = problem.rho.shape, STEPS.get(described.get("critic_step", ""))

    @jax.jit
    def met(replay: replays.Replay) -> Array:
        state = jnp.argmax(replay.data.obs, axis=1)
        action = actions.index(replay.data.action[:, 0], shape[1])
        filled = jnp.arange(len(state)) < replay.size
        return jnp.zeros(shape).at[state, action].add(filled) / replay.size

    def of(i: int, name: str) -> Any:
        return settings[name][i] if name in settings else described.get(name)

    def look(learner: Learner, i: int, alpha: float, adapted: float | None) -> dict[str, float]:
        state, replay = rows.of_member(i, (learner.agent, learner.replay))
        damping = rcond = None
        if step is not None and step.solves:
            inverts = "solver" in step.reads and described["solver"]
            damping = float(of(i, "damping")) if adapted is None else adapted
            if inverts in ("eigh", "lstsq"):
                damping, rcond = 0.0, of(i, "rcond")
                rcond = _EPS * described["batch_size"] if rcond is None else float(rcond)
            alpha = float(of(i, "critic_learning_rate"))
        found = diagnostics.exact(
            agent.q,
            agent.critic(state),
            problem,
            alpha=alpha,
            damping=damping,
            rcond=rcond,
            gamma=float(discounts[i]),
            rho=met(replay),
        )
        return {f"exact/{name}": value for name, value in found.items()}

    return look


def stuck(means: dict[str, float], eta: float) -> str | None:
    """Why no update of an interval moved Q, and what to do, from the interval's mean metrics; None
    where some update did. `eta` is the alignment that Eq. 24 asks for.

    >>> from preqn_jax.training import monitor
    >>> means = {"critic/alignment": 0.0, "critic/td_abs": 1.0, "solve/finite": 0.0}
    >>> monitor.stuck(means, eta=0.97)
    'every solve failed, as when K is singular; use a `damping` above 0, or `solver=eigh`'
    """
    if means.get("critic/alignment") != 0 or not means.get("critic/td_abs", 0):
        return None
    if means["critic/td_abs"] > _HUGE:
        size = f"TD errors are of the size {means['critic/td_abs']:.2g}"
        return f"{size}, too large for sums of squares in float32; scale the rewards down"
    if means.get("solve/finite") == 0:
        return (
            "every solve failed, as when K is singular; use a `damping` above 0, or `solver=eigh`"
        )
    if "linesearch/accepted" in means:
        return _too_far(means, eta)
    return (
        "the steps are too small to change Q in float32; scale the environment's rewards, or raise "
        "`critic_learning_rate`"
    )


def rejecting(means: dict[str, float], eta: float) -> str | None:
    """Why most updates of an interval found no step, and what to do, from the interval's mean
    metrics; None where at least half of them did, or where none moved Q at all, which is the case
    of `stuck`.

    As a step gets shorter its alignment goes to that of K Z with Delta ("solve/alignment"): where
    that is below `eta`, no step is short enough (Eq. 24).

    >>> from preqn_jax.training import monitor
    >>> means = {"linesearch/accepted": 0.3, "solve/alignment": 0.95, "critic/alignment": 0.29}
    >>> monitor.rejecting(means, eta=0.97).partition(":")[0]
    'the solve itself has an alignment of 0.95 on average, below eta = 0.97'
    """
    return _too_far(means, eta) if 0 < means.get("linesearch/accepted", 1.0) < 0.5 else None


def _too_far(means: dict[str, float], eta: float) -> str:
    """Which of two causes keeps the linesearch from finding a step, and what to do."""
    reached = means.get("solve/alignment", 1.0)
    if reached < eta:
        words = (
            f"the solve itself has an alignment of {reached:.2g} on average, below eta = {eta:.2g}"
        )
        return f"{words}: use `relative_eta`, or lower `damping` or `eta`"
    return (
        f"the solve has an alignment of {reached:.3g}, but Q is too nonlinear for the shortest "
        "step tried: lower `critic_learning_rate`, raise `linesearch_max_steps`, or, where layers "
        "of Q compute in less than float32, let them compute in float32"
    )


def advice(means: dict[str, float], eta: float) -> tuple[str, str | None]:
    """The format string of a warning about an interval, to be filled with the member, the first
    step, the last step and the reason; and the reason, from `stuck` or `rejecting`, None where
    neither has one.
    """
    if why := stuck(means, eta):
        return "no update of %s moved Q from step %d to %d: %s", why
    return "most updates of %s from step %d to %d found no step: %s", rejecting(means, eta)


def bias(agent: Agent, params: Params, evaluation: Evaluation, discount: float) -> dict[str, float]:
    """The first critic's bias against the returns of an evaluation; empty where the time limit cuts
    all of them short.

    `params` are one seed's, of `agent.q`.
    """
    pairs = returns_to_go(evaluation, discount)
    if len(pairs[2]) == 0:
        return {}
    chosen = np.linspace(0, len(pairs[2]) - 1, _BIAS_PAIRS).astype(
        int
    )  # repeats some where there are fewer
    obs, action, returns = (leaf[chosen] for leaf in pairs)
    return diagnostics.bias(agent.q, params, (obs, action), returns)


def returns_to_go(
    evaluation: Evaluation, discount: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(obs `[N, obs]`, action `[N, act]`, discounted return from there `[N]`) of all steps whose
    return is known (`Evaluation.known`).
    """
    returns = evaluation.to_go(discount).astype(evaluation.rewards.dtype)
    known = evaluation.known(discount) & np.isfinite(returns)
    return evaluation.obs[known], evaluation.action[known], returns[known].astype(np.float32)
