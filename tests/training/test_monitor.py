"""Diagnoses during training: the monitor, and the report on a run."""

import json
import shutil
from functools import partial
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import SMALL as SHORT
from commands import call, call_other, records
from fabricated import put

import preqn_jax
from experiments import diagnose
from experiments.kit import flags
from preqn_jax import agents, diagnostics, networks, solve, steps
from preqn_jax.options import UserError
from preqn_jax.training import directory, monitor
from preqn_jax.training import run as training
from preqn_jax.training.monitor import Look, measure
from preqn_jax.training.record import read
from preqn_jax.training.rollout import Evaluation
from preqn_jax.types import Spec, Transition

SMALL = ["--env=Pendulum-v1", *SHORT]
DIVERGING = [
    "--hidden_sizes=32,32",
    "--batch_size=32",
    "--algorithm=ddpg",
    "--notarget_networks",
    "--critic_learning_rate=0.1",
]


report = partial(call_other, diagnose, diagnose.DiagnoseConfig)


# --- the monitor ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "preqn"))
        for name in agents.ALGORITHMS
    ],
)
def test_what_is_inspected_is_what_an_update_does(algorithm):
    spec = Spec(3, 2, -np.ones(2), np.ones(2))
    if algorithm in agents.DISCRETE:
        spec = Spec(3, 1, np.zeros(1), np.full(1, 3.0), num_actions=4)
    agent = agents.make(agents.AgentConfig(algorithm, None, (8, 8), (8, 8)), spec)
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=(12, *shape)).astype(np.float32)
    action = np.tanh(normal(spec.action_size))
    data = Transition(normal(3), action, normal(), np.ones(12, np.float32), normal(3))
    inspect, update = jax.jit(agent.inspect), jax.jit(agent.update)
    state = jax.jit(agent.init)(jax.random.key(0))
    for i in range(3):  # by then optimisers have moments
        key = jax.random.key(i)
        seen = inspect(state, data, key)
        before = state
        state, metrics = update(state, data, key, jnp.int32(i))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)  # two programs round each
    jax.tree.map(close, seen.params, agent.critic(before))
    # What a batch does to CrossQ's running statistics is no part of the step.
    jax.tree.map(close, seen.moved, networks.stepped(seen.params, agent.critic(state)))
    close(np.mean(seen.targets), metrics["critic/target_mean"])
    q = jax.eval_shape(jax.vmap(agent.q, (None, 0, 0)), seen.params, data.obs, data.action)
    assert q.shape == (12,)
    act = jax.jit(agent.act)
    close(np.asarray(seen.next_action)[0], act(agent.policy(before), data.next_obs[0]))
    if algorithm in ("sac", "crossq", "preqn_soft"):
        close(np.mean(seen.bonus), metrics["actor/temperature"] * metrics["actor/entropy"])
    else:
        assert seen.bonus is None


@pytest.mark.slow
def test_what_the_targets_add_counts_as_a_reward():
    """A bonus of 4 beside rewards of 1, with the sign of Q, multiplies the bound by 1 + 0.9 * 4."""
    spec = Spec(3, 2, -np.ones(2), np.ones(2))
    agent = agents.make(agents.AgentConfig(algorithm="sac", hidden_sizes=(8, 8)), spec)
    ones = lambda *shape: np.ones(shape, np.float32)
    obs, one = ones(4, 3), ones(4)
    data = Transition(obs, ones(4, 2), one, one, obs)
    start = jax.jit(agent.init)(jax.random.key(0))
    seen = jax.jit(agent.inspect)(start, data, jax.random.key(1))
    side = np.sign(jax.jit(agent.q)(seen.params, obs[0], data.action[0]))
    with_it, without = (
        measure(agent, Look(data, seen._replace(bonus=bonus), 1.0), 0.9)["soft_divergence"]
        for bonus in (4 * side * one, None)
    )
    assert without > 0
    np.testing.assert_allclose(without / with_it, 1 + 0.9 * 4, rtol=1e-5)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A diagnosed run of two seeds: its folder, and its other arguments."""
    folder = tmp_path_factory.mktemp("healthy") / "run"
    args = ["--algorithm=ddpg", "--seeds=0,5", "--diagnose_every=100", "--discount=0.9", *SMALL]
    assert call(f"--logdir={folder}", *args) == 0
    return folder, args


@pytest.mark.slow
def test_a_monitor_changes_nothing_and_says_all_there_is_of_every_seed(healthy):
    folder, args = healthy
    assert call("--logdir=plain", *args, "--diagnose_every=0") == 0
    watched = records(folder)
    assert not any(name.startswith("exact/") for line in watched for name in line)  # no table
    without = [{k: v for k, v in line.items() if not k.startswith("diagnose/")} for line in watched]
    looks = [line for line in watched if "diagnose/q_mean" in line]
    assert [
        line for line, full in zip(without, watched, strict=True) if full not in looks
    ] == records("plain")
    assert [(line["step"], line["seed"]) for line in looks] == [
        (step, seed) for step in range(200, 601, 100) for seed in (0, 5)
    ]
    names = {name.removeprefix("diagnose/") for name in looks[0]} - {"step", "seed", "failure"}
    evals = [line for line in watched if "eval/return_mean" in line]
    assert names | {"bias", "bias_relative"} == set(diagnostics.GLOSSARY)
    assert len(evals) == 4 and all(line["diagnose/bias"] is not None for line in evals)
    assert looks[0]["diagnose/td_error"] != looks[1]["diagnose/td_error"]


@pytest.mark.slow
def test_an_interrupted_run_repeats_its_diagnoses_bit_for_bit(healthy):
    folder, args = healthy
    shutil.copytree(folder, "x")
    Path("x/DONE").unlink()
    shutil.rmtree("x/checkpoints/600")
    assert call("--logdir=x", *args) == 0
    assert records("x") == records(folder)


def test_a_run_of_a_version_without_a_monitor_goes_on():
    run, agent, loop_config = flags.read(SMALL, *training.CONFIGS)
    config = training.plan(run, agent, loop_config).described
    old = {name: value for name, value in config.items() if name != "diagnose_every"}
    path = Path("config.json")
    path.write_text(json.dumps({"config": old}))
    for every in (0, 100):
        said = directory.compare(path, {**config, "diagnose_every": every})
        assert said == {**config, "diagnose_every": 0}
        with pytest.raises(UserError, match=r"holds a run with eta=0\.97, but .* says 0\.5"):
            directory.compare(path, {**config, "diagnose_every": every, "eta": 0.5})


@pytest.fixture(scope="module")
def diverging(tmp_path_factory):
    """A run whose Q diverges, and which stops there: its folder, its exit status, and its other
    arguments.
    """
    folder = tmp_path_factory.mktemp("diverging") / "run"
    args = [*SMALL, *DIVERGING, "--diagnose_every=50"]
    return folder, call(f"--logdir={folder}", "--stop_on_divergence", *args), args


@pytest.mark.slow
def test_divergence_ends_the_run_if_wanted_with_the_checkpoint_before_it_kept(diverging, capsys):
    folder, status, args = diverging
    assert status == 1 and not (folder / "DONE").exists()
    last = read(folder / "metrics.jsonl")[-1]
    assert last == {"step": last["step"], "seed": 0, "run/diverged": 1.0}
    # Measurements up to there are recorded, and no step is recorded twice.
    means = [line["step"] for line in read(folder / "metrics.jsonl") if "critic/td_abs" in line]
    assert means == sorted(set(means)) and means[-1] == last["step"]
    kept = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    looks = [line for line in read(folder / "metrics.jsonl") if "diagnose/failure" in line]
    assert kept < looks[-1]["step"] == last["step"] < 600
    assert [line["diagnose/failure"] > 0 for line in looks] == [False] * (len(looks) - 1) + [True]
    mode = diagnostics.FAILURES[int(looks[-1]["diagnose/failure"]) - 1]
    shutil.copytree(folder, "x")
    assert call("--logdir=x", *args, "--stop_on_divergence") == 1
    err = capsys.readouterr().err
    assert (
        f"error: Q of seed 0 diverges at step {last['step']}, by {mode}: |Q| is" in err
        and "Traceback" not in err
    )
    assert f"the checkpoint of step {kept} is kept in x" in err
    assert read("x/metrics.jsonl")[-1] == last
    assert call("--logdir=x", *args) == 0  # a diagnosis is possible all the same
    err = capsys.readouterr().err
    assert err.count(f"step {last['step']}, seed 0: {mode}: |Q| is") == 1 and "error:" not in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--stop_on_divergence"],
            "stop_on_divergence is on, but nothing looks for divergence: add --diagnose_every=1000",
        ),
        (
            ["--diagnose_every=70"],
            "diagnose_every is 70, but it must be a multiple of update_every (50)",
        ),
        (["--diagnose_every=-50"], "diagnose_every is -50, but it must be at least 0"),
    ],
)
def test_a_mistake_is_one_sentence(args, words, capsys, tmp_path):
    assert call("--logdir=x", *SMALL, *args) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err and not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["preqn", "td3"])
def test_a_run_in_which_nothing_moves_q_says_so_once_with_the_cause(agent, caplog):
    def env():
        return gymnasium.wrappers.TransformReward(
            gymnasium.make("Pendulum-v1"), lambda reward: 1e30 * float(reward)
        )

    small = {"hidden_sizes": (16, 16), "start_steps": 50, "update_after": 50, "batch_size": 16}
    for _ in preqn_jax.train(agent, env, num_steps=400, log_every=100, eval_every=400, **small):
        pass
    (said,) = [record.message for record in caplog.records if "moved Q" in record.message]
    assert said.startswith("no update of seed 0 moved Q from step 0 to 100: TD errors are of the")
    assert said.endswith("scale the rewards down")


@pytest.mark.parametrize(
    ("damped", "words"),
    [
        ({"damping": 1.0, "eta": 0.96}, "below eta = 0.96: use `relative_eta`, or lower"),
        (
            {"critic_learning_rate": 0.5, "linesearch_max_steps": 1},
            "lower `critic_learning_rate`",
        ),
    ],
)
@pytest.mark.slow
def test_a_run_that_rejects_most_updates_says_so_once_with_the_cause(damped, words, caplog):
    small = {"hidden_sizes": (16, 16), "start_steps": 50, "update_after": 50, "batch_size": 16}
    steps = {"num_steps": 300, "log_every": 100, "eval_every": 300}
    for _ in preqn_jax.train("preqn", "Pendulum-v1", **steps, **small, **damped):
        pass
    (said,) = [record.message for record in caplog.records if "found no step" in record.message]
    assert said.startswith("most updates of seed 0 from step ") and words in said


STILL = {"critic/alignment": 0.0, "critic/td_abs": 1.0}


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ({"critic/alignment": 0.1, "critic/td_abs": 1e30}, None),
        ({"critic/alignment": 0.0, "critic/td_abs": 0.0}, None),
        ({}, None),
        ({"critic/alignment": 0.0, "critic/td_abs": 1e30, "solve/finite": 1.0}, "scale the"),
        ({"critic/alignment": 0.0, "critic/td_abs": 1.0, "solve/finite": 0.0}, "damping"),
        (
            {**STILL, "linesearch/accepted": 0.0, "solve/finite": 0.5},
            "lower `critic_learning_rate`",
        ),
        ({**STILL, "linesearch/accepted": 0.0, "solve/alignment": 0.9}, "`relative_eta`"),
        (
            STILL,
            "too small to change Q in float32; scale the environment's rewards, or raise `cr",
        ),
    ],
)
def test_what_holds_q_in_its_place_is_named(means, words):
    found = monitor.stuck(means, 0.97)
    assert found is None if words is None else words in found


@pytest.mark.parametrize(
    ("accepted", "reached", "words"),
    [
        (0.6, 0.9, None),
        (0.0, 0.9, None),  # said by `stuck`
        (0.49, 0.95, "alignment of 0.95 on average, below eta = 0.97: use `relative_eta`, or"),
        (
            0.3,
            0.999,
            "lower `critic_learning_rate`, raise `linesearch_max_steps`, or, where layers",
        ),
    ],
)
def test_what_rejects_most_updates_is_named_with_the_argument_that_helps(accepted, reached, words):
    means = {"linesearch/accepted": accepted, "solve/alignment": reached, "critic/td_abs": 1.0}
    found = monitor.rejecting(means, 0.97)
    assert found is None if words is None else words in found


def test_a_step_without_a_linesearch_rejects_nothing():
    assert monitor.rejecting({"critic/alignment": 0.3}, 0.97) is None


def test_the_cause_that_is_named_is_the_one_there_is():
    """A damping that leaves K Z far from Delta, or a long step with a single candidate."""
    q = lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"]
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"w": normal(3, 32), "v": normal(32)}
    inputs, targets = (normal(16, 3),), 5 * normal(16)

    def seen(alpha, damping, eta):
        options = {"solve": solve.cholesky(damping), "eta": eta, "max_steps": 1}
        step = steps.preconditioned(q, alpha, **options)
        metrics = jax.jit(lambda *args: step.update(*args)[2].metrics)(params, (), inputs, targets)
        assert metrics["linesearch/accepted"] == 0
        return monitor.rejecting({**metrics, "linesearch/accepted": 0.4}, eta) or ""

    assert "lower `damping`" in seen(1e-3, 10.0, 0.97)
    assert "lower `critic_learning_rate`" in seen(10.0, 1e-6, 0.9)


def test_returns_to_go_are_those_that_the_time_limit_does_not_hide():
    rewards = np.array(
        [[1.0, 1.0], [2.0, 1.0], [4.0, 1.0], [0.0, 1.0]]
    )  # the first episode ends after three steps
    obs = np.arange(8.0).reshape(4, 2, 1)
    evaluation = Evaluation(rewards, obs, -obs, np.array([3, 4]), np.array([True, False]))
    seen, action, returns = monitor.returns_to_go(evaluation, 0.2)
    # 0.2^2 is below 5 %: of the second episode, cut off after four steps, the last is left out.
    np.testing.assert_allclose(seen[:, 0], [0, 1, 2, 3, 4, 5])
    np.testing.assert_allclose(action, -seen)
    np.testing.assert_allclose(
        returns, [1 + 0.4 + 0.16, 1 + 0.2 + 0.04 + 0.008, 2 + 0.8, 1.24, 4, 1.2], rtol=1e-6
    )


# --- the report -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_says_when_a_run_went_wrong_and_who_moved_q(diverging, capsys):
    folder, _, _ = diverging
    assert report(str(folder), "--out=there") == 0
    out = capsys.readouterr().out
    content = json.loads(Path("there/diagnosis.json").read_text())
    assert Path("there/diagnosis.png").stat().st_size > 10_000 and "there/diagnosis.png" in out
    looks = [line for line in read(folder / "metrics.jsonl") if "diagnose/failure" in line]
    (one,) = content["seeds"]
    mode = diagnostics.FAILURES[int(looks[-1]["diagnose/failure"]) - 1]
    assert (one["failed"], one["mode"], one["diverged"]) == (
        looks[-1]["step"],
        mode,
        looks[-1]["step"],
    )
    assert one["failing"] == {mode: 1} and one["diagnoses"] == len(looks)
    assert f"seed 0: went wrong at step {one['failed']:,}, by {mode}: {one['evidence']}" in out
    (moved,) = content["attribution"]
    shares = [abs(member["share"]) for member in moved["members"]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6
    assert "how a plain step (Eq. 5) would move Q where |Q| is largest" in out


@pytest.mark.slow
def test_a_healthy_run_is_called_so_and_needs_no_checkpoint(healthy, capsys):
    shutil.copytree(healthy[0], "x", ignore=lambda *_: ["checkpoints"])
    assert report("x") == 0
    out = capsys.readouterr().out
    assert "seed 0: healthy in all of 5 diagnoses" in out and "seed 5: healthy in all of 5" in out
    assert (
        Path("x/diagnosis.png").exists()
        and json.loads(Path("x/diagnosis.json").read_text())["attribution"] == []
    )
    assert report("x", "--out=/dev/null/x") == 1
    assert "error: cannot write '/dev/null/x/diagnosis.json'" in capsys.readouterr().err


@pytest.mark.parametrize(("algorithm", "env"), [("ddpg", "probe/delay"), ("dqn", "CartPole-v1")])
def test_a_run_that_was_not_diagnosed_is_so_at_its_last_checkpoint(algorithm, env, capsys):
    """Without saturation if actions have no bounds."""
    tiny = {"hidden_sizes": (8, 8), "batch_size": 8, "start_steps": 50, "update_after": 50}
    options = {**tiny, "logdir": "x", "seeds": (0, 1), "num_steps": 100}
    for _ in preqn_jax.train(algorithm, env, **options):
        pass
    assert report("x", "--out=there") == 0
    out = capsys.readouterr().out
    assert "2 seeds" in out and "x': its last checkpoint alone" in out
    content = json.loads(Path("there/diagnosis.json").read_text())
    for one, moved in zip(content["seeds"], content["attribution"], strict=True):
        (look,) = one["looks"]
        assert look["step"] == moved["step"] == 100 and look["q_largest"] >= abs(moved["q"]) - 1e-3
        assert {"alignment", "self_excitation", "row_ratio"} <= set(look)
        assert ("saturation" in look) == (algorithm == "ddpg")


def test_an_agent_of_own_parts_is_diagnosed_without_an_attribution(capsys):
    """And the report says why a seed was never diagnosed, as it may be the one in question."""
    config = {
        "algorithm": "mine",
        "discount": 0.9,
        "env": "probe/delay",
        "seeds": [0, 1],
        "num_steps": 200,
    }
    names = ("q_mean", "q_largest", "soft_divergence", "td_error")
    look = {f"diagnose/{name}": 0.5 for name in names}
    lines = [{"step": step, "seed": 0, **look} for step in (100, 200)]
    lines.append({"step": 51, "seed": 1, "critic/q_mean": None, "run/diverged": 1.0})
    (put(Path("x"), config, lines) / "checkpoints").mkdir()
    assert report("x") == 0
    assert "seed 1: diverged at step 51, before its first diagnosis" in capsys.readouterr().out
    written = json.loads(Path("x/diagnosis.json").read_text())
    assert written["attribution"] == [] and written["diverged_before"] == {"1": 51}
    assert Path("x/diagnosis.png").exists()


def test_what_is_no_diagnosed_run_is_one_sentence(capsys):
    Path("empty").mkdir()
    Path("x").mkdir()
    config = training.plan(*flags.read(SMALL, *training.CONFIGS)).described
    Path("x/config.json").write_text(json.dumps({"config": config}))
    Path("x/metrics.jsonl").write_text('{"step": 100, "seed": 0, "critic/q_mean": 1.0}\n')
    Path("early").mkdir()
    lost = json.dumps({"config": {**config, "diagnose_every": 800}})
    Path("early/config.json").write_text(lost)
    Path("early/metrics.jsonl").write_text('{"step": 300, "seed": 0, "run/diverged": 1.0}\n')
    for args, words in (
        ([], "give one run directory"),
        (["x", "y"], "give one run directory"),
        (["missing"], "'missing' is not a run directory"),
        (["empty"], "'empty' is not a run directory"),
        (
            ["x"],
            "the run 'x' was not diagnosed, and it has no checkpoint; train it further by the same "
            "command with --diagnose_every=1000, and a larger --num_steps if it has ended",
        ),
        (
            ["early"],
            "is diagnosed every 800 steps, and diverged at step 300; train it again with "
            "--diagnose_every=400 and another --logdir",
        ),
    ):
        assert report(*args) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and words in err and err.count("\n") == 1
    assert {path.name for path in Path("x").iterdir()} == {"config.json", "metrics.jsonl"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("discount", [0, 0.0, 0.5, np.float32(0.5)])
def test_returns_to_go_of_episodes_of_any_length_warn_of_nothing(discount):
    rewards, seen = np.ones((2000, 2), np.float32), np.zeros((2000, 2, 1))
    ends = np.array([1, 2000]), np.array([True, False])
    *_, returns = monitor.returns_to_go(Evaluation(rewards, seen, seen, *ends), discount)
    assert len(returns) > 1900 and returns.max() == pytest.approx(1 / (1 - float(discount)))
