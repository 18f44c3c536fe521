"""Exported policies and critics run without the package, and equal what was trained."""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import ROOT

import after_cases
import preqn_jax
from experiments import export
from experiments.kit import flags
from preqn_jax import actions, agents
from preqn_jax.options import UserError
from preqn_jax.training import exported
from preqn_jax.training.trained import Trained
from preqn_jax.types import Spec

reacher = after_cases.reacher
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _draws_that_no_other_test_moves(monkeypatch):
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


SPEC = Spec(3, 2, np.array([0.0, -3.0]), np.array([4.0, -1.0]))


def options(*args):
    return flags.read(args, export.ExportConfig)[0]


def elsewhere(code):
    """Runs `code` in this folder, in a process that cannot import preqn_jax."""
    blocked = "import sys; sys.modules['preqn_jax'] = None\n"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_runs_with_jax_alone_for_any_batch(reacher):
    pytest.importorskip("flatbuffers")
    run = preqn_jax.load(reacher[0])
    obs, action = (RNG.normal(size=(7, n)).astype(np.float32) for n in (10, 2))
    np.savez("inputs.npz", obs=obs, action=action)
    export.export(reacher[0], options("--out=deep/p.stablehlo", "--seed=1"))
    export.export(reacher[0], options("--what=critic", "--seed=1"))
    elsewhere("""
import jax, numpy as np
inputs = np.load("inputs.npz")
policy = jax.export.deserialize(open("deep/p.stablehlo", "rb").read())
q = jax.export.deserialize(open("critic.stablehlo", "rb").read())
assert policy.platforms == q.platforms == ("cpu", "cuda", "tpu")
whole = policy.call(inputs["obs"])
one = policy.call(inputs["obs"][:1])
np.savez("outputs.npz", whole=whole, one=one, q=q.call(inputs["obs"], inputs["action"]))
assert not any(name.startswith("preqn_jax.") for name in sys.modules)
""")
    seen = np.load("outputs.npz")
    np.testing.assert_allclose(seen["whole"], run.policy(1)(obs), atol=1e-6)
    np.testing.assert_allclose(seen["one"], run.policy(1)(obs[:1]), atol=1e-6)
    np.testing.assert_allclose(seen["q"], run.q(1)(obs, action), atol=1e-6)
    assert not np.allclose(seen["q"], run.q(0)(obs, action))
    assert [seen[name].dtype for name in seen] == [np.float32] * 3


@pytest.mark.parametrize("what", exported.WHAT)
def test_a_program_has_no_float64_and_no_callbacks(reacher, what):
    program = exported.program(reacher[1], what, platforms=exported.PLATFORMS)
    assert program.platforms == exported.PLATFORMS
    text = program.mlir_module()
    assert ".py" not in text  # nor paths of the machine where it was made
    text = re.sub(r"loc\(.*", "", text)  # which name functions
    assert "f64" not in text and "callback" not in text and "tensor<?x10xf32>" in text


def test_the_example_runs_as_it_says(reacher):
    Path("runs").mkdir()
    Path("runs/x").symlink_to(reacher[0])
    names = {"np": np, "preqn_jax": preqn_jax}
    (test,) = doctest.DocTestFinder(exclude_empty=True).find(
        exported.program, "program", globs={**vars(exported), **names}
    )
    assert doctest.DocTestRunner().run(test).failed == 0


def spread(leaf):
    """Random parameters: none has its initial value, and positive ones stay positive, as variances
    are.
    """
    if leaf.dtype != np.float32:
        return leaf
    return leaf * np.exp(0.3 * RNG.normal(size=leaf.shape)).astype(np.float32) + 0.1


def documented(number):
    """A Python block of the page on export."""
    page = (ROOT / "docs/after-training.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.S)[number]


@pytest.mark.parametrize(
    ("algorithm", "normalize"),
    [
        ("preqn", False),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("sac", "td3", "crossq")),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("sac", "preqn", "crossq")),
    ],
)
def test_the_pages_lines_of_numpy_are_the_policy(algorithm, normalize):
    """For each activation, and for bounds with another centre and width."""
    activation = {"preqn": "sin", "sac": "tanh"}.get(algorithm, "relu")
    sizes = (activation, (16, 8), (16, 8))
    config = agents.AgentConfig(algorithm, *sizes, normalize_observations=normalize)
    agent, spec = agents.make(config, SPEC), SPEC
    states = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), 2))
    seen = RNG.normal([5, -3, 0], [2, 0.5, 1], size=(50, 3)).astype(np.float32)
    if agent.observe is not None:
        states = jax.jit(jax.vmap(agent.observe, in_axes=(0, None)))(states, seen)
    states = jax.tree.map(spread, states)
    described = {"activation": activation, "algorithm": algorithm, "env": "E-v1"}
    run = Trained(agent, states, spec, (3, 5), 70, {**described, "hidden_sizes": [16, 8]})
    np.savez("policy.npz", **exported.arrays(run, "policy", 5))
    lines = documented(-1)
    assert len(lines.strip().splitlines()) <= 16
    names = {}
    exec(lines, names)
    obs = RNG.normal(size=(9, 3))
    np.testing.assert_allclose(names["policy"](obs), run.policy(5)(obs), atol=1e-5)
    about = names["about"]
    assert (about["seed"], about["step"], about["obs_size"]) == (5, 70, 3)
    q, action = exported.arrays(run, "critic", 5), RNG.uniform([0, -3], [4, -1], size=(9, 2))
    x = np.concatenate([obs, (action - [2, -2]) / [2, 1]], 1)
    for i in range(3):
        x = x @ q[f"Dense_{i}.kernel"] + q[f"Dense_{i}.bias"]
        x = names["functions"][activation](x) if i < 2 else x
    np.testing.assert_allclose(x[:, 0], run.q(5)(obs, action), atol=1e-4)


def test_a_feature_that_hardly_changes_costs_the_arrays_no_digits():
    """Its deviation is 1e-4, so that (s - mean) / std in the first layer is a difference of numbers
    near 1e7.
    """
    config = agents.AgentConfig("td3", "relu", (16, 8), normalize_observations=True)
    agent = agents.make(config, SPEC)
    seen = RNG.normal([5, -3, 1000], [2, 0.5, 0], size=(50, 3)).astype(np.float32)
    state = jax.jit(agent.observe)(jax.jit(agent.init)(jax.random.key(0)), seen)
    described = {"activation": "relu", "algorithm": "td3", "env": "E-v1"}
    run = Trained(agent, jax.tree.map(lambda leaf: leaf[None], state), SPEC, (3,), 70, described)
    np.savez("policy.npz", **exported.arrays(run, "policy"))
    names = {}
    exec(documented(-1), names)
    np.testing.assert_allclose(names["policy"](seen), run.policy()(seen), atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.slow
def test_of_finitely_many_actions_integers_are_exported(normalize):
    """The program returns and takes integers; the arrays give the values of all actions."""
    config = agents.AgentConfig("dqn", "relu", (16, 8), normalize_observations=normalize)
    spec = actions.spec(3, 4, first=-1)
    agent = agents.make(config, spec)
    states = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), 1))
    if agent.observe is not None:
        observe = jax.jit(jax.vmap(agent.observe, (0, None)))
        states = observe(states, RNG.normal([5, -3, 0], size=(50, 3)))
    described = {"activation": "relu", "algorithm": "dqn", "env": "E-v1", "hidden_sizes": [16, 8]}
    run = Trained(agent, states, spec, (3,), 70, described)
    obs = RNG.normal([5, -3, 0], size=(30, 3)).astype(np.float32)
    chosen = run.policy()(obs)
    policy, q = (exported.program(run, what, platforms=["cpu"]) for what in ("policy", "critic"))
    np.testing.assert_array_equal(policy.call(obs), chosen)
    np.testing.assert_allclose(q.call(obs, chosen), run.q()(obs, chosen), rtol=1e-5)
    saved = exported.arrays(run, "policy")
    about, x = json.loads(str(saved["about"])), np.float64(obs)
    for i in range(about["layers"]):
        x = x @ saved[f"Dense_{i}.kernel"] + saved[f"Dense_{i}.bias"]
        x = np.maximum(x, 0) if i + 1 < about["layers"] else x
    assert (about["num_actions"], x.shape) == (4, (30, 4))
    np.testing.assert_array_equal(x.argmax(1) + int(about["action_low"][0]), chosen)
    np.testing.assert_allclose(x.max(1), run.q()(obs, chosen), atol=1e-4)


def test_arrays_of_a_critic_are_all_that_it_has(reacher):
    export.export(reacher[0], options("--what=critic", "--out=q.npz"))
    saved = np.load("q.npz")
    about, run = json.loads(str(saved["about"])), preqn_jax.load(reacher[0])
    obs, action = RNG.normal(size=(4, 10)), RNG.uniform(-1, 1, size=(4, 2))
    x = np.concatenate([obs, action], 1)  # Reacher's actions are in [-1, 1] already
    for i in range(about["layers"]):
        x = x @ saved[f"Dense_{i}.kernel"] + saved[f"Dense_{i}.bias"]
        x = x if i + 1 == about["layers"] else np.sin(x)
    np.testing.assert_allclose(x[:, 0], run.q()(obs, action), atol=1e-5)
    assert len(saved.files) == 1 + 2 * about["layers"] and about["activation"] == "sin"


@pytest.mark.parametrize(
    "fields",
    [
        {"critic_norm": "layer"},
        pytest.param({"critic_features": "fourier"}, marks=pytest.mark.slow),
    ],
)
def test_critics_of_other_layers_have_programs_alone(fields):
    agent = agents.make(agents.AgentConfig("td3", None, (4, 4), **fields), SPEC)
    states = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), 1))
    about = {"activation": "relu", "algorithm": "td3", "env": "E-v1"}
    run = Trained(agent, states, SPEC, (0,), 0, about)
    assert "Dense_2.bias" in exported.arrays(run, "policy")
    with pytest.raises(UserError, match="this critic has layers that are not dense; export it as"):
        exported.arrays(run, "critic")
    obs, action = np.ones((5, 3), np.float32), np.ones((5, 2), np.float32)
    program = exported.program(run, "critic", platforms=["cpu"])
    np.testing.assert_allclose(program.call(obs, action), run.q()(obs, action), rtol=1e-5)


def test_networks_of_somebodys_own_have_no_arrays(reacher):
    own = reacher[1]._replace(config={"algorithm": "own", "env": "E-v1"})
    with pytest.raises(UserError, match="this agent has others; export it as a program"):
        exported.arrays(own)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--format=onnx"], "unknown format 'onnx'; choose one of npz, stablehlo"),
        (["--platforms=cpu,gpu"], "'gpu' is of two kinds; name cuda for NVIDIA, rocm for AMD"),
        (["--platforms=cpi"], "unknown platform 'cpi'.*; choose one of cpu, cuda, rocm, tpu"),
        (["--platforms="], "platforms is empty; name some of cpu, cuda, rocm, tpu"),
        (["--what=actor"], "unknown thing to export 'actor'.*; choose one of critic, policy"),
        (["--seed=7"], "there is no seed 7; this run has 0, 1"),
        (["--seed=-1"], "seed is -1, but it must be at least 0"),
        (["--out=folder"], "cannot write 'folder': it is a folder; give another --out"),
        (["--out=/dev/null/x.npz"], "'/dev/null' is not a folder to write to; give another --out"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(reacher, args, words):
    Path("folder").mkdir()
    Path("folder/kept").touch()
    with pytest.raises(UserError, match=words):
        export.export(reacher[0], options(*args))
    assert sorted(str(path) for path in Path().rglob("*")) == ["folder", "folder/kept"]


def test_a_program_without_its_writer_is_one_sentence(reacher, monkeypatch):
    def serialize(self):
        raise ImportError("no flatbuffers")

    monkeypatch.setattr(jax.export.Exported, "serialize", serialize)
    with pytest.raises(UserError, match="flatbuffers, or export arrays with --format=npz"):
        export.export(reacher[0], options())


def test_the_command_takes_one_run(reacher):
    with pytest.raises(UserError, match="'nowhere' is not a run directory"):
        export.export(Path("nowhere"), export.ExportConfig())
    with pytest.raises(UserError, match="give one run directory, as in: python -m experiments.ex"):
        export.main(["export"])
