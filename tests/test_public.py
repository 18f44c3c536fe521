"""The public interface: what a notebook uses, the time of importing, and the README's example."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import after_cases
import preqn_jax
from preqn_jax import agents
from preqn_jax.envs import FunctionalEnv, Outcome
from preqn_jax.options import UserError
from preqn_jax.training import run as training
from preqn_jax.training.errors import Diverged
from preqn_jax.types import Spec

ROOT = Path(__file__).parent.parent
TINY = {"hidden_sizes": (8, 8), "start_steps": 50, "update_after": 50, "batch_size": 8}


def python(code, **environment):
    """Runs code in a new process that can import the package. Returns what it prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there_and_found_by_tab():
    assert set(preqn_jax.__all__) == set(dir(preqn_jax))
    for name in preqn_jax.__all__:
        assert getattr(preqn_jax, name) is not None
        assert name == "__version__" or getattr(preqn_jax, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'linearise'"):
        preqn_jax.linearise  # noqa: B018


def test_the_library_needs_nothing_of_training_until_it_trains():
    """Not even to train on a functional environment without a run directory."""
    heavy = "{'gymnasium', 'mujoco', 'orbax', 'tensorboardX', 'matplotlib', 'tqdm'}"
    options = ", ".join(f"{name}={value!r}" for name, value in TINY.items())
    code = f"""
import sys, preqn_jax
for name in preqn_jax.__all__:
    getattr(preqn_jax, name)
print(sorted({heavy} & set(sys.modules)))
list(preqn_jax.train("ddpg", "probe/delay", num_steps=100, {options}))
print(sorted({heavy} & set(sys.modules)))
"""
    assert python(code).split("\n")[:2] == ["[]", "[]"]


def test_the_readmes_example_runs_verbatim():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(code.splitlines()) <= 25
    (*_, last) = python(code).split("[")
    assert 0.97 <= float(last.strip("] \n")) <= 1  # an alignment


@pytest.mark.slow
def test_the_examples_of_the_python_page_run_verbatim():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    own, loop, sweep = blocks
    *evaluations, policy = python(own).splitlines()
    returns = [float(line.split()[1]) for line in evaluations]
    assert len(returns) == 3 and returns[-1] > -1 and policy.startswith("[-")
    assert 0.97 <= float(python(loop)) <= 1
    assert len(python(sweep).strip("[] \n").split()) == 3


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 110
    assert [line for line in lines if len(line) > 100] == []


def test_training_is_a_generator_that_returns_what_it_came_to():
    training = preqn_jax.train("ddpg", "probe/action", num_steps=200, eval_every=100, **TINY)
    steps, result = [], None
    while result is None:
        try:
            steps.append(next(training))
        except StopIteration as end:
            result = end.value
    assert [p.step for p in steps] == [50, 100, 150, 200]
    assert [bool(p.metrics) for p in steps] == [True] * 4 and result.step == 200
    assert [len(p.evaluations) for p in steps] == [0, 1, 0, 1]
    assert {i for i, _ in steps[0].episodes} == {0}
    one, many = result.policy()(np.zeros(1)), result.policy(0)(np.zeros((3, 1)))
    assert one.shape == (1,) and many.shape == (3, 1)
    with pytest.raises(UserError, match="there is no seed 4; this run has 0"):
        result.policy(4)
    with pytest.raises(ValueError, match=r"obs has the shape \(2,\), expected \(1,\) or \(B, 1\)"):
        result.policy()(np.zeros(2))


def asymmetric():
    """A user's environment, with actions in [0, 4], of which 3 is best."""
    spec = Spec(1, 1, np.zeros(1), np.full(1, 4.0))

    def step(state, action, key):
        return state, Outcome(-((action[0] - 3) ** 2), np.True_)

    return FunctionalEnv(spec, lambda key: jnp.zeros(()), step, lambda state: state[None])


@pytest.mark.slow
def test_a_policy_speaks_the_environments_own_units():
    *_, last = preqn_jax.train("preqn", asymmetric(), num_steps=600, discount=0.5, **TINY)
    assert abs(float(last.trained.policy()(np.zeros(1))[0]) - 3) < 0.3


@pytest.mark.slow
def test_a_gymnasium_factory_is_an_environment():
    gymnasium = pytest.importorskip("gymnasium")
    make = lambda: gymnasium.make("Pendulum-v1")
    *_, last = preqn_jax.train("ddpg", make, num_steps=100, eval_every=100, **TINY)
    assert last.evaluations[0].rewards.shape == (200, 10)


@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        (("prequel",), {}, "unknown algorithm 'prequel'.*did you mean 'preqn'"),
        (("preqn", "HalfCheeta-v5"), {}, "cannot make environment 'HalfCheeta-v5'"),
        (("preqn", "probe/delay"), {"etta": 0.9}, "unknown option 'etta'.*did you mean 'eta'"),
        (("preqn", "probe/delay"), {"eta": 1.5}, "eta is 1.5, but it must be above -1 and below 1"),
        (("preqn", "probe/delay"), {"hidden_sizes": []}, r"as in `hidden_sizes=\(256, 256\)`"),
        ((agents.preqn, "probe/delay"), {"eta": 0.9}, "unknown option 'eta'"),
        (("td3", "probe/delay"), {"actor_learning_rate": lambda step: 1e-3}, "is function, but an"),
        (("td3", "probe/delay"), {"discount": np.ones(2)}, "is ndarray, but an option must be a"),
        (("preqn", "probe/delay"), {"algorithm": "td3"}, "first argument, `agent`: train.'td3', "),
        (("preqn", "probe/delay"), {"seeds": "a"}, r"whole numbers, as in `\(0,\)`"),
        (("preqn", "probe/delay"), {"eta": np.inf}, "eta is inf, but it must be finite and above"),
    ],
)
def test_a_mistake_is_one_sentence_in_pythons_words(args, options, words):
    with pytest.raises(UserError, match=words) as error:
        next(preqn_jax.train(*args, **{**options}))
    assert "--" not in str(error.value)


def test_numbers_of_any_library_are_options():
    given = {"seeds": jnp.arange(2), "num_steps": jnp.int32(100), "discount": jnp.float32(0.5)}
    *_, last = preqn_jax.train("ddpg", "probe/delay", **{**TINY, **given})
    assert last.trained.seeds == (0, 1) and last.trained.config["discount"] == 0.5
    assert type(last.trained.config["num_steps"]) is int


def test_one_number_of_any_library_is_a_list_of_one():
    for one in (3, np.int64(3), np.array(3), jnp.int32(3)):
        given = training.configs("ddpg", "probe/delay", "", {"seeds": one, "hidden_sizes": one})
        assert given[2].seeds == (3,) == given[1].hidden_sizes and type(given[2].seeds[0]) is int


def test_a_run_of_own_parts_is_loaded_by_who_has_its_function(tmp_path, monkeypatch):
    """Here from the home directory, which is written `~` in Python too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    own = lambda spec: agents.make(agents.AgentConfig(algorithm="ddpg", hidden_sizes=(8, 8)), spec)
    small = {k: v for k, v in TINY.items() if k != "hidden_sizes"}
    list(preqn_jax.train(own, "probe/delay", num_steps=100, logdir="~/x", **small))
    assert preqn_jax.load("~/x", agent=own).step == 100 and (tmp_path / "x" / "DONE").exists()
    assert preqn_jax.records("~/x")["step"].max() == 100
    with pytest.raises(UserError, match="can be read .*; give the `agent` and `env` that `train`"):
        preqn_jax.load(tmp_path / "x", agent=own, env="Pendulum-v1")
    with pytest.raises(UserError, match=r"made by a function, .* call preqn_jax\.load\(.*, agent="):
        preqn_jax.load(tmp_path / "x")


def test_a_run_without_a_directory_that_diverges_says_so():
    with pytest.raises(Diverged, match="the environment's reward is not finite at step 131"):
        list(preqn_jax.train("ddpg", "probe/nan", num_steps=200, **TINY))


@pytest.mark.slow
def test_a_run_is_loaded_while_it_is_going_on_and_after(tmp_path):
    options = {**TINY, "logdir": tmp_path / "x", "seeds": (3, 1), "checkpoint_every": 100}
    loaded = []
    for progress in preqn_jax.train("ddpg", "probe/action", num_steps=200, **options):
        if progress.step == 150:
            loaded.append(preqn_jax.load(tmp_path / "x"))
    loaded.append(preqn_jax.load(str(tmp_path / "x")))
    assert [one.step for one in loaded] == [100, 200] and loaded[1].seeds == (3, 1)
    assert (tmp_path / "x" / "DONE").exists()
    jax.tree.map(np.testing.assert_array_equal, loaded[1].states, progress.trained.states)
    action = loaded[1].policy(1)(np.zeros(1))
    np.testing.assert_array_equal(action, progress.trained.policy(1)(np.zeros(1)))
    critic = loaded[1].agent.critic(loaded[1].state(1))
    assert np.isfinite(jax.jit(loaded[1].agent.q)(critic, np.zeros(1), action))


def test_what_is_no_run_or_not_to_be_trusted_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run directory: it has no config.json"):
        preqn_jax.load(tmp_path)
    after_cases.write_run(tmp_path / "x", "probe/action", seeds=(0,))
    path = tmp_path / "x" / "config.json"
    path.write_text(path.read_text().replace("probe/action", "evil_module:E-v0"))
    path.write_text(path.read_text().replace("evil_module:E-v0", "own.<locals>.<lambda>"))
    with pytest.raises(UserError, match=r"cannot make .* in Python call preqn_jax.load\(.*, env="):
        preqn_jax.load(tmp_path / "x")
    path.write_text(path.read_text().replace("own.<locals>.<lambda>", "evil_module:E-v0"))
    with pytest.raises(UserError, match="whose module would be imported and run; if you trust it"):
        preqn_jax.load(tmp_path / "x")


def build_wheel(folder):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_a_wheel_holds_the_library_alone_and_works_in_an_empty_environment(tmp_path):
    wheel = build_wheel(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"preqn_jax"}
    assert "preqn_jax/py.typed" in names and "preqn_jax/ntk/__init__.py" in names
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    fresh = tmp_path / "venv" / "bin" / "python"

    def install(what):
        command = [fresh, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what]
        subprocess.run(command, check=True, capture_output=True)

    def run(code):
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [fresh, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    install(str(wheel))
    train = f"list(preqn_jax.train('preqn', %r, num_steps=100, **{TINY!r}, logdir=%r))"
    code = "import importlib.util, preqn_jax; assert not importlib.util.find_spec('gymnasium');"
    run(code + train % ("probe/delay", ""))
    install(f"{wheel}[training]")
    run("import preqn_jax;" + train % ("Pendulum-v1", "x"))
    assert (tmp_path / "x" / "metrics.jsonl").read_text()
