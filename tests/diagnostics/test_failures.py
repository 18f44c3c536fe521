"""The verdict of `failure`: small problems whose failure mode is known, and its thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import diagnostics, ntk, solve, steps
from preqn_jax.batching import batched
from preqn_jax.types import Transition


def linear(params, obs, action):
    return jnp.dot(params, obs)


def curved(params, obs, action):
    """A critic with second-order terms that matter unless steps are short."""
    return jnp.dot(params**3, obs)


def batch(obs, next_obs, reward, discount=1.0):
    obs, next_obs = jnp.asarray(obs, jnp.float32), jnp.asarray(next_obs, jnp.float32)
    action, discount = jnp.zeros((len(obs), 1)), jnp.full(len(obs), discount)
    return Transition(obs, action, jnp.asarray(reward, jnp.float32), discount, next_obs)


E, W, TWO = np.eye(4), [1.0], [2.0]
PROBLEMS = {  # failure mode: (q, first params, transitions, gamma, alpha of Eq. 5)
    "linearization breaks": (
        curved,
        [0.5, 0.5],
        batch([[1, 0], [0, 1]] * 2, [[1, 0], [0, 1]] * 2, [1] * 4),
        0.9,
        4.0,
    ),
    # One pair's K_ii alpha / B is 3, the others' a half.
    "overshooting": (
        linear,
        [0.0] * 4,
        batch(E * np.sqrt([6, 1, 1, 1]), E, [1] * 4, 0.0),
        0.9,
        2.0,
    ),
    # w -> 2w with data on both states; the second returns to the first one time in ten.
    "over-generalization": (
        linear,
        [1.0],
        batch([W] * 10 + [TWO] * 10, [TWO] * 19 + [W], [0.1] * 20),
        0.95,
        0.1,
    ),
    "extrapolation error": (
        linear,
        [1.0],
        batch([W, W, W, [1.1]], [TWO] * 4, [0.1] * 4),
        0.95,
        0.1,
    ),
}


def first_failure(q, params, data, gamma, step, most=400):
    """The first finding while `step` is repeated, and the numbers it is based on; `step` is
    `(params, targets) -> params`.
    """
    params = jnp.asarray(params, jnp.float32)
    for _ in range(most):
        ahead = batched(q)(params, (data.next_obs, data.action))
        targets = data.reward + gamma * data.discount * ahead
        moved = step(params, targets)
        case = diagnostics.Case(params, data, data.action, moved=moved, gamma=gamma)
        measured = diagnostics.diagnose(q, case)
        finding = diagnostics.failure(measured)
        if finding:
            return finding, measured
        params = moved
    return None, measured


@pytest.mark.parametrize("mode", PROBLEMS)
def test_each_of_the_papers_failures_is_named_where_it_is_the_only_one(mode):
    q, params, data, gamma, alpha = PROBLEMS[mode]
    inputs = (data.obs, data.action)

    @jax.jit
    def step(params, targets):
        lin = ntk.linearize(q, params, inputs)
        return params + alpha * lin.pullback((targets - lin.values) / len(targets))

    finding, measured = first_failure(q, params, data, gamma, step)
    assert finding.mode == mode and finding.mode in diagnostics.FAILURES
    assert finding.remedy and (
        f"{measured['soft_divergence']:.3g} times the most that the rewards seen allow"
        in finding.evidence
    )


@pytest.mark.parametrize("mode", ["linearization breaks", "overshooting"])
def test_preqn_mends_what_it_can_and_is_not_flagged(mode):
    q, params, data, gamma, _ = PROBLEMS[mode]
    preqn = steps.preconditioned(q, 0.1, solve=solve.eigh())

    @jax.jit
    def step(params, targets):
        return preqn.update(params, (), (data.obs, data.action), targets)[0]

    finding, _ = first_failure(q, params, data, gamma, step, most=60)
    assert finding is None


# Each number alone is beyond its threshold, while |Q| is 3 times what rewards can add up to.
BEYOND = {"soft_divergence": 3.0, "q_largest": 30.0, "td_error": 2.0}
CALM = {
    "linearization_error": 0.1,
    "gain": 0.1,
    "extrapolation": 0.1,
    "row_ratio": 0.1,
    "alignment": 0.1,  # no signs, whatever their values
    "self_excitation": 9.0,
}
SIGNS = {
    "linearization_error": "linearization breaks",
    "gain": "overshooting",
    "extrapolation": "extrapolation error",
    "row_ratio": "over-generalization",
}
WILD = dict.fromkeys(CALM, 5.0)


def test_within_a_margin_of_what_rewards_add_up_to_nothing_is_said():
    """The margin is a half: |Q| may be 1.5 times what rewards can add up to."""
    within = {"soft_divergence": 1.5, "q_largest": 15.0, "td_error": 2.0}
    assert diagnostics.failure({**WILD, **within}) is None
    assert diagnostics.failure({**WILD, **within, "soft_divergence": 1.501}) is not None


def test_a_critic_without_errors_is_not_called_diverging():
    """The errors of a correct critic are rounding, and so are its alignment and gain. Rewards add
    up to 10 here, of which 5 % are 0.5.
    """
    settled = {**WILD, "soft_divergence": 2.0, "q_largest": 20.0}
    for error, said in ((0.0, False), (0.5, False), (0.501, True)):
        assert (diagnostics.failure({**settled, "td_error": error}) is not None) == said


@pytest.mark.parametrize("number", SIGNS)
def test_a_sign_names_its_failure_beyond_its_line_alone(number):
    line = 2.0 if number == "extrapolation" else 1.0
    assert diagnostics.failure({**CALM, **BEYOND, number: line}).mode == "an unnamed cause"
    finding = diagnostics.failure({**CALM, **BEYOND, number: 1.1 * line})
    assert finding.mode == SIGNS[number] and f"{1.1 * line:.2g}" in finding.evidence
    own = diagnostics.GLOSSARY[number].remedy
    assert finding.remedy.startswith(own)
    # Q feeds on itself here, and a shorter step may only put off what comes of it.
    more = number in ("gain", "linearization_error")
    assert (diagnostics.GLOSSARY["self_excitation"].remedy in finding.remedy) == more
    calm = diagnostics.failure({**CALM, **BEYOND, number: 1.1 * line, "self_excitation": -0.1})
    assert calm.remedy == own
    for overflow in (np.inf, np.nan):
        assert diagnostics.failure({**CALM, **BEYOND, number: overflow}).mode == "an unnamed cause"


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_q_that_is_not_finite_diverges(value):
    """NaN comes of two infinities within the network."""
    lost = dict.fromkeys(("q_largest", "soft_divergence", "td_error"), value)
    assert diagnostics.failure({**CALM, **lost}).evidence == "Q is no longer finite"


def test_the_first_sign_that_is_there_names_the_failure():
    names = list(SIGNS)
    for i, first in enumerate(names):
        seen = dict.fromkeys(names[i:], 2.5)
        assert diagnostics.failure({**CALM, **BEYOND, **seen}).mode == SIGNS[first]


def test_the_evidence_says_how_far_q_is_and_how_large_its_errors_are():
    finding = diagnostics.failure({**CALM, **BEYOND})
    assert finding.evidence == (
        "|Q| is 3 times the most that the rewards seen allow, r_max / (1 - gamma), and its TD "
        "errors are 0.2 times that"
    )
    assert finding.remedy == diagnostics.GLOSSARY["soft_divergence"].remedy
    assert finding.mode == diagnostics.FAILURES[-1]


def test_where_no_reward_was_seen_there_is_no_verdict():
    assert diagnostics.failure({**WILD, **BEYOND, "soft_divergence": np.inf}) is None


@pytest.mark.parametrize("side", [1, -1])
def test_a_right_soft_value_is_within_its_bound(side):
    """One state with reward 1 and uniform actions on [-1, 1]: Q = (1 + gamma alpha log 2) / (1 -
    gamma) solves SAC's Bellman equation, and so does its negative with all signs turned.
    """
    gamma, bonus = 0.9, 0.1 * np.log(2) * np.ones(4)
    right = (1 + gamma * bonus[0]) / (1 - gamma)
    assert right == pytest.approx(10.62, abs=0.005)
    data = batch([W] * 4, [W] * 4, side * np.ones(4))
    case = diagnostics.Case(jnp.asarray([side * right]), data, data.action, gamma=gamma)
    soft = diagnostics.diagnose(linear, case._replace(bonus=side * bonus))
    assert soft["soft_divergence"] == pytest.approx(1, abs=1e-5)
    assert soft["td_error"] == pytest.approx(0, abs=1e-5)
    hard = diagnostics.diagnose(linear, case)["soft_divergence"]
    turned = diagnostics.diagnose(linear, case._replace(bonus=-side * bonus))["soft_divergence"]
    assert hard == pytest.approx(1.062, abs=0.001) == turned
