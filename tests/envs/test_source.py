"""Arguments and wrappers of environments, and spaces that need a wrapper."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import odd_spaces
import pytest

import preqn_jax
from preqn_jax import envs
from preqn_jax.envs import Wrapper
from preqn_jax.envs.gym import BoundAction, FlattenAction
from preqn_jax.options import UserError
from preqn_jax.training import directory
from tests.faulty import sentence

SMALL = {
    "hidden_sizes": (8, 8),
    "start_steps": 50,
    "update_after": 50,
    "batch_size": 8,
    "eval_every": 50,
    "eval_episodes": 1,
    "checkpoint_every": 50,
}


# --- spaces that do not fit, and what helps -------------------------------------------------------


@pytest.mark.parametrize("name", [*odd_spaces.OBSERVATIONS, *odd_spaces.ACTIONS])
def test_the_wrapper_that_a_refusal_names_helps(name):
    env_id, wrappers, sentences = f"odd_spaces:{name}-v0", [], []
    for _ in range(3):
        try:
            env = envs.make(envs.described(env_id, None, wrappers), 2)
            break
        except UserError as error:
            assert "\n" not in str(error) and env_id in str(error)
            sentences.append(str(error))
            wrappers += ast.literal_eval(re.search(r"`wrappers=(\[.*?\])`", str(error))[1])
    assert sentences
    obs = env.reset([0, 1])
    assert obs.shape == (2, env.spec.obs_size) and np.isfinite(obs).all()
    rng = np.random.default_rng(0)
    for _ in range(12):  # the environment refuses what is not an action
        action = rng.uniform(-1, 1, (2, env.spec.action_size)).astype(np.float32)
        out = env.step(action)
    assert (out.reward == 1).all() and (obs != out.obs).any()


def test_flat_observations_are_those_of_gymnasium():
    space = odd_spaces.OBSERVATIONS["Dict"]
    flat = ("gymnasium.wrappers:FlattenObservation",)
    env = envs.make(envs.described("odd_spaces:Dict-v0", None, flat), 1)
    first, _ = gymnasium.make("odd_spaces:Dict-v0").reset(seed=3)
    flat = np.asarray(gymnasium.spaces.flatten(space, first), np.float32)
    np.testing.assert_array_equal(env.reset([3])[0], flat)
    grey = envs.make(envs.described("odd_spaces:Image-v0", None, _advice("Image")), 1)
    assert grey.spec.obs_size == 8 * 6 and grey.reset([0]).max() > 1


def _advice(name):
    with pytest.raises(UserError) as caught:
        envs.make(f"odd_spaces:{name}-v0", 1)
    return ast.literal_eval(re.search(r"`wrappers=(\[.*?\])`", sentence(caught))[1])


def test_integers_are_observations_as_they_are():
    env = envs.make("odd_spaces:Counts-v0", 1)
    obs = env.reset([0])
    first, _ = gymnasium.make("odd_spaces:Counts-v0").reset(seed=0)
    assert obs.dtype == np.float32 and (obs[0] == first).all() and np.abs(obs).max() > 1


def test_actions_of_other_kinds_are_refused_with_what_fits():
    make = odd_spaces.make(actions=gymnasium.spaces.MultiDiscrete([3, 2]))
    words = r"MultiDiscrete\(\[3 2\]\), but these algorithms need a Box of floats, or Discrete"
    with pytest.raises(UserError, match=words) as caught:
        envs.make(make, 1)
    fits = re.findall(r"\w+-v\d", sentence(caught).split("as in")[1])
    assert len(fits) == 2
    for env_id in fits:
        assert envs.spec(env_id).action_size > 0


class Told(odd_spaces.Odd):
    """Remembers what it was told to do."""

    def step(self, action):
        self.told = action
        return super().step(action)


def test_discrete_actions_are_the_environments_own_integers():
    """Numbers at the centres of five intervals, and others within these, become integers from
    `start` on.
    """
    space = gymnasium.spaces.Discrete(5, start=-1)
    env = envs.make(lambda: Told(actions=space), 3)
    assert env.spec.num_actions == 5 and env.spec.action_size == 1
    assert (env.spec.action_low, env.spec.action_high) == ([-1], [3])
    env.reset([0, 1, 2])
    host: Any = env
    for numbers, own in (
        ([-0.8, -0.4, 0.0], [-1, 0, 1]),
        ([0.4, 0.8, 1.0], [2, 3, 3]),
        ([-1.0, -0.61, -0.59], [-1, -1, 0]),
    ):
        env.step(np.array(numbers, np.float32)[:, None])
        told = [one.told for one in host._envs]
        assert told == own and {type(one) for one in told} == {int}


def test_a_spec_knows_how_many_actions_there_are():
    four, five = (
        envs.make(lambda n=n: Told(actions=gymnasium.spaces.Discrete(n)), 1).spec for n in (4, 5)
    )
    assert four != five and hash(four) != hash(five) and four == four._replace()
    box = four._replace(num_actions=None)
    assert box != four and hash(box) != hash(four)


def test_bounds_of_actions_are_the_narrower_ones():
    inner = odd_spaces.Odd(actions=odd_spaces.ACTIONS["HalfBounded"])
    space: Any = BoundAction(inner, low=-1, high=[5, 9]).action_space
    assert space.low.tolist() == [0, -1] and space.high.tolist() == [5, 3]


def test_a_flat_action_is_taken_apart_in_order():
    class Told(odd_spaces.Odd):
        def step(self, action):
            self.told = action
            return super().step(action)

    inner = Told(actions=odd_spaces.ACTIONS["DictAction"])
    env: Any = FlattenAction(inner)
    env.reset(seed=0)
    env.step(np.float32([0.1, 0.2, 1.5]))
    assert inner.told["arm"].tolist() == np.float32([0.1, 0.2]).tolist()
    assert inner.told["leg"].tolist() == [1.5]
    assert env.action_space.high.tolist() == [1, 1, 2]


# --- arguments and wrappers -----------------------------------------------------------------------


def reward(source):
    env = envs.make(source, 1)
    env.reset([0])
    return float(env.step(np.zeros((1, env.spec.action_size), np.float32)).reward[0])


def test_arguments_reach_the_environment_and_wrappers_go_round_it_in_order():
    add, double = "odd_spaces:Add(what=3)", "odd_spaces:Double"
    assert reward(envs.described("odd_spaces:Odd-v0", {"pay": 5})) == 5
    assert reward(envs.described("odd_spaces:Odd-v0", {"pay": 5}, (add, double))) == (5 + 3) * 2
    assert reward(envs.described("odd_spaces:Odd-v0", {"pay": 5}, (double, add))) == 5 * 2 + 3
    once = envs.described(odd_spaces.make(), {"pay": 5}, (add,))
    assert reward(envs.described(once, {"pay": 7}, (double,))) == (7 + 3) * 2
    assert envs.described("odd_spaces:Odd-v0", {}, ()) == "odd_spaces:Odd-v0"
    long = envs.make(envs.described("Pendulum-v1", {"max_episode_steps": 3}), 1)
    long.reset([0])
    cut = [bool(long.step(np.zeros((1, 1), np.float32)).truncated[0]) for _ in range(4)]
    assert cut == [False, False, True, False]


def test_a_saved_state_holds_that_of_wrappers():
    """Stacked frames and a delay are deques; after loading they are as they were saved."""
    wrappers = (
        "gymnasium.wrappers:DelayObservation(delay=2)",
        "gymnasium.wrappers:FrameStackObservation(stack_size=3)",
        "gymnasium.wrappers:TimeAwareObservation",
    )
    source = envs.described("Pendulum-v1", None, wrappers[:2])
    rng = np.random.default_rng(0)
    script = rng.uniform(-1, 1, (260, 1, 1)).astype(np.float32)
    env, other = envs.make(source, 1), envs.make(source, 1)
    env.reset([3])
    other.reset([8])
    assert env.spec.obs_size == 9
    for action in script[:87]:
        obs = env.step(action).obs
    assert (other.load(json.loads(json.dumps(env.save())))[0] == obs).all()
    for action in script[87:]:
        for mine, theirs in zip(env.step(action), other.step(action), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("kwargs", "wrappers", "words"),
    [
        ({"gravity": 9.8}, (), "'odd_spaces:Odd-v0' has no argument 'gravity', which env_kwargs"),
        ([1], (), "env_kwargs is [1], but it must be a dict of arguments"),
        ({3: 1}, (), "env_kwargs is {3: 1}, but it must be a dict of arguments"),
        ({"pay": np.ones(2)}, (), "env_kwargs has pay=array([1., 1.]), which JSON cannot hold"),
        ({"pay": float("nan")}, (), "env_kwargs has pay=nan, which JSON cannot hold"),
        (None, ("RescaleAction",), "has 'RescaleAction', but a wrapper is given as module:Class"),
        (None, ("a:B(1)",), "has 'a:B(1)', but a wrapper is given as module"),
        (None, ("a:B(x=y)",), "has 'a:B(x=y)', but a wrapper is given as module"),
        (None, ("a:B(x=1",), "has 'a:B(x=1', but a wrapper is given as module"),
        (None, ("a:B(**{'x': 1})",), "but a wrapper is given as module"),
        (None, ("a:B.c()",), "but a wrapper is given as module"),
        (None, ("a b:C",), "but a wrapper is given as module"),
        (None, "a:B", "wrappers is the string 'a:B', but it must be a list"),
        (None, ("no_such:B",), "'no_such:B' cannot be imported (No module named 'no_such'); modul"),
        (None, ("odd_spaces:Duble",), "has no wrapper 'Duble'; did you mean 'Double'?"),
        (None, ("odd_spaces:Add(when=1)",), "Add.__init__() got an unexpected keyword argument"),
        (None, ("odd_spaces:Nothing",), "wrapper 'odd_spaces:Nothing' returned NoneType, expected"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(kwargs, wrappers, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        envs.make(envs.described("odd_spaces:Odd-v0", kwargs, wrappers), 1)
    sentence(caught)


@pytest.mark.parametrize("env", ["probe/delay", "native/pendulum", envs.PROBES["probe/delay"]()])
def test_functional_ones_take_none(env):
    for given in ({"kwargs": {"x": 1}}, {"wrappers": ("odd_spaces:Double",)}):
        with pytest.raises(UserError, match="is for Gymnasium environments, and .* functional"):
            envs.described(env, **given)


def test_a_module_that_cannot_be_imported_is_said(monkeypatch):
    with pytest.raises(UserError, match="'no_such:X-v0' needs a package that is not installed: No"):
        envs.make("no_such:X-v0", 1)
    Path("broken_wrapper.py").write_text("1 / 0")
    import sys

    sys.path.insert(0, "")
    try:
        with pytest.raises(
            UserError, match="its module raised ZeroDivisionError: division by zero"
        ):
            envs.make(envs.described("Pendulum-v1", None, ("broken_wrapper:X",)), 1)
    finally:
        sys.path.remove("")


# --- in a run -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_has_its_arguments_wherever_its_environment_is_made(tmp_path):
    stack = ["gymnasium.wrappers:FrameStackObservation(stack_size=2)"]
    mine = {"env_kwargs": {"max_episode_steps": 20}, "wrappers": stack}
    for progress in preqn_jax.train(
        "ddpg", "Pendulum-v1", num_steps=50, logdir="x", **mine, **SMALL
    ):
        (evaluation,) = progress.evaluations
    assert evaluation.lengths.tolist() == [20] and progress.trained.spec.obs_size == 6
    config = json.loads(Path("x/config.json").read_text())["config"]
    assert {name: config[name] for name in mine} == mine
    assert preqn_jax.load("x").policy()(np.zeros(6)).shape == (1,)
    for name, value in (("env_kwargs", {"max_episode_steps": 30}), ("wrappers", ())):
        with pytest.raises(UserError, match=f"holds a run with {name}=.*; use the same {name}"):
            given = {**mine, name: value}
            next(preqn_jax.train("ddpg", "Pendulum-v1", num_steps=50, logdir="x", **given, **SMALL))


@pytest.mark.slow
def test_a_function_that_makes_one_takes_arguments():
    run = {"env_kwargs": {"pay": 3, "limit": 7}, "num_steps": 50, **SMALL}
    (done,) = preqn_jax.train("ddpg", odd_spaces.Odd, **run)
    assert done.evaluations[0].rewards.sum() == 21


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"env": "evil_source:E-v0"}, "names the environment 'evil_source:E-v0', whose module"),
        ({"wrappers": ["evil_source:W"]}, "names the wrapper 'evil_source:W', whose module would"),
        (
            {"wrappers": ["gymnasium.wrappers:RecordVideo(video_folder='x')"]},
            'names the wrapper "gymnasium.wrappers:RecordVideo(',
        ),
        ({"env_kwargs": {"xml_file": "evil.xml"}}, "gives its environment xml_file='evil.xml', a"),
        ({"env_kwargs": {"deep": [[{"x": 1}]]}}, "a string, which may name a file or a module"),
    ],
)
def test_what_only_a_run_names_is_neither_imported_nor_handed_on(changed, words, monkeypatch):
    Path("evil_source.py").write_text("open('executed', 'w')")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    config = {"env": "Pendulum-v1", "env_kwargs": {"g": 3.0}, **changed}
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        directory.source(config, "the run 'x'", False)
    assert sentence(caught).endswith("if you trust it, say `trust=True`")
    assert not Path("executed").exists()
    assert directory.source(config, "the run 'x'", True)  # makes nothing yet


def test_what_can_do_no_harm_needs_no_trust():
    flat = ["gymnasium.wrappers:TimeLimit(max_episode_steps=3)", "preqn_jax.envs.gym:FlattenAction"]
    config = {"env": "Pendulum-v1", "env_kwargs": {"g": 3.0, "more": [1, None]}, "wrappers": flat}
    made: Any = directory.source(config, "the run 'x'", False)
    assert made.wrappers == tuple(flat)
    assert directory.source({"env": "Pendulum-v1"}, "of before", False) == "Pendulum-v1"
    for name in {**vars(gymnasium.wrappers)}:
        harmless = Wrapper("gymnasium.wrappers", name, {}).harmless
        assert not (harmless and re.search("Record|Render|Human", name))
