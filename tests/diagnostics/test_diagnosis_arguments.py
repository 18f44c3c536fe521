"""Wrong arguments for a diagnosis, and the messages they get."""

import jax.numpy as jnp
import numpy as np
import pytest

from diagnosis_cases import CASES, draw_case, look, some_returns
from diagnosis_critics import ACT, BATCH, MAKES, OBS
from preqn_jax import diagnostics
from preqn_jax.diagnostics import diagnose
from preqn_jax.types import Transition

VECTOR, FEWER = np.zeros(BATCH), np.zeros(BATCH - 1)
WRONG = {
    "gamma of 1": ("gamma", {"gamma": 1.0}),
    "gamma below 0": ("gamma", {"gamma": -0.1}),
    "gamma no number": ("gamma", {"gamma": float("nan")}),
    "gamma for each row": ("gamma", {"gamma": VECTOR}),
    "alpha of 0": ("alpha", {"alpha": 0.0}),
    "alpha below 0": ("alpha", {"alpha": -1.0}),
    "alpha no number": ("alpha", {"alpha": float("nan")}),
    "alpha infinite": ("alpha", {"alpha": float("inf")}),
    "alpha for each row": ("alpha", {"alpha": VECTOR + 1}),
    "reward_bound of 0": ("reward_bound", {"reward_bound": 0.0}),
    "reward_bound infinite": ("reward_bound", {"reward_bound": float("inf")}),
    "next_action too wide": ("next_action", {"next_action": np.zeros((BATCH, ACT + 1))}),
    "next_action too short": ("next_action", {"next_action": np.zeros((BATCH - 1, ACT))}),
    "next_action flat": ("next_action", {"next_action": VECTOR}),
    "targets too short": ("targets", {"targets": FEWER}),
    "targets as a column": ("targets", {"targets": VECTOR[:, None]}),
    "bonus too short": ("bonus", {"bonus": FEWER}),
    "bonus a number": ("bonus", {"bonus": np.asarray(1.0)}),
    "discount too short": ("batch.discount", {"discount": FEWER}),
    "discount a number": ("batch.discount", {"discount": np.asarray(1.0)}),
    "next_obs too wide": ("batch.next_obs", {"next_obs": np.zeros((BATCH, OBS + 1))}),
    "next_obs too short": ("batch.next_obs", {"next_obs": np.zeros((BATCH - 1, OBS))}),
    "reward as a column": ("batch.reward", {"reward": VECTOR[:, None]}),
    "reward a number": ("batch.reward", {"reward": np.asarray(1.0)}),
    "obs too short": (
        "batch.obs",
        {"obs": np.zeros((BATCH - 1, OBS)), "next_obs": np.zeros((BATCH - 1, OBS))},
    ),
    "action too short": (
        "batch.action",
        {"action": np.zeros((BATCH - 1, ACT)), "next_action": np.zeros((BATCH - 1, ACT))},
    ),
    "too few returns": ("returns", {"returns": (some_returns(0)[0], np.zeros(4))}),
    "returns a number": ("returns", {"returns": (some_returns(0)[0], np.asarray(1.0))}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named(wrong):
    name, change = WRONG[wrong]
    case = CASES["own step"]().replace(**change)
    with pytest.raises(ValueError, match=rf"^{name} .*expected"):
        look(case)


def test_a_batch_of_one_is_refused():
    case = draw_case(MAKES["linear"], 0, 8)
    one = Transition(*(leaf[:1] for leaf in case.batch))
    with pytest.raises(
        ValueError, match=r"^batch.reward has the shape \(1,\), expected \[B\] with B of at least 2"
    ):
        look(case.replace(batch=one, next_action=case.next_action[:1]))


def test_moved_must_fit_the_parameters():
    case = CASES["linear"]()
    params = case.make.params(case.theta, "float32")
    for moved in (
        {"v": params["w"]},
        {**params, "v": params["w"]},
        {"w": params["w"][:-1]},
        params["w"],
    ):
        with pytest.raises(ValueError, match="^moved has another structure than params"):
            diagnose(
                case.make.q,
                diagnostics.Case(params, case.batch, case.next_action, moved=moved),
            )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["params", "batch", "next_action", "targets", "moved", "bonus"])
def test_what_is_no_number_is_named(name, bad):
    case = CASES["moved" if name == "moved" else "own step"]()

    def spoiled(array):
        array = np.array(array)
        array.flat[array.size // 2] = bad
        return array

    change = {
        "params": lambda: {"theta": spoiled(case.theta)},
        "batch": lambda: {"reward": spoiled(case.batch.reward)},
        "next_action": lambda: {"next_action": spoiled(case.next_action)},
        "targets": lambda: {"targets": spoiled(case.options["targets"])},
        "moved": lambda: {"moved": spoiled(case.options["moved"])},
        "bonus": lambda: {"bonus": spoiled(VECTOR)},
    }[name]()
    with pytest.raises(ValueError, match=f"^{name} holds a NaN or an infinity"):
        look(case.replace(**change))


@pytest.mark.parametrize("part", Transition._fields)
def test_every_part_of_the_batch_has_to_be_finite(part):
    case = CASES["own step"]()
    array = np.array(getattr(case.batch, part))
    array.flat[-1] = np.nan
    with pytest.raises(ValueError, match="^batch holds a NaN"):
        look(case.replace(**{part: array}))


@pytest.mark.parametrize("which", ["obs", "G"])
def test_returns_that_are_no_numbers_are_named(which):
    case = CASES["own step"]()
    (obs, action), returns = case.options["returns"]
    (obs if which == "obs" else returns)[1] = np.nan
    with pytest.raises(ValueError, match="^returns"):
        look(case.replace(returns=((obs, action), returns)))


def test_observations_may_be_of_several_parts_by_name():
    """Like any input of q; the numbers are those of a single array that holds both parts."""
    case = draw_case(MAKES["relu"], 0)
    params, batch = case.make.params(case.theta, "float32"), case.batch

    def parts(obs):
        return {"position": obs[:, :1], "velocity": obs[:, 1:]}

    def q(params, obs, action):
        obs = jnp.concatenate([obs["position"], obs["velocity"]])
        return case.make.q(params, obs, action)

    named = batch._replace(obs=parts(batch.obs), next_obs=parts(batch.next_obs))
    found = diagnose(q, diagnostics.Case(params, named, case.next_action))
    plain = diagnose(case.make.q, diagnostics.Case(params, batch, case.next_action))
    assert found["alignment"] == pytest.approx(plain["alignment"], rel=1e-4)
    assert found["td_error"] == pytest.approx(plain["td_error"], rel=1e-4)
    for wrong in (batch.next_obs, {**named.next_obs, "velocity": batch.next_obs[:-1, 1:]}):
        with pytest.raises(ValueError, match="^batch.next_obs has the shape .*expected {'posit"):
            diagnose(q, diagnostics.Case(params, named._replace(next_obs=wrong), case.next_action))
