"""Sweeps: which members they have, and that each learns what its own run would learn."""

import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from commands import records

from experiments.kit import flags
from preqn_jax import agents
from preqn_jax.options import UserError
from preqn_jax.training import directory, record, session, sweep
from preqn_jax.training import run as training
from preqn_jax.training import trained as trained_
from preqn_jax.training.config import LoopConfig, RunConfig

RUN = {"env": "probe/delay", "eval_every": 100, "eval_episodes": 2, "log_every": 50}
AGENT = {"algorithm": "ddpg", "hidden_sizes": (8, 8)}
LOOP = {"num_steps": 300, "start_steps": 50, "update_after": 50, "batch_size": 8}


def planned(logdir, words, seeds=(3, 5), agent=AGENT, **loop):
    configs = (
        RunConfig(**RUN, checkpoint_every=100, workers=0),
        agents.AgentConfig(**agent),
        LoopConfig(**{**LOOP, **loop}, seeds=seeds),
    )
    return sweep.make(logdir, *configs, sweep.axes(words))


def trained(swept, until=None):
    """Trains what is left of a sweep, up to step `until` if given. Returns members and first step
    of each session.
    """
    sweep.open_(swept)
    starts = []
    for program in swept.programs:
        for plan in sweep.plans(swept, program):
            with training.Session(plan) as session:
                session.begin()
                starts.append((len(plan.loop.seeds), session.start))
                for done in session.rounds():
                    if done.step == until:
                        return starts
    return starts


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep of three learning rates, the last of which explodes, and two seeds; never
    interrupted.
    """
    swept = planned(tmp_path_factory.mktemp("sweep") / "s", ["critic_learning_rate=.001,.01,1e38"])
    assert trained(swept) == [(6, 0)]
    return swept


def test_every_value_meets_every_other_and_every_seed():
    words = ["eta=.9,.97", "activation=sin,relu", "damping=1e-3"]
    swept = planned("s", words, agent={"algorithm": "preqn"})
    assert [program.name for program in swept.programs] == ["activation=sin", "activation=relu"]
    assert [program.agent.activation for program in swept.programs] == ["sin", "relu"]
    assert [program.axes for program in swept.programs] == 2 * [
        {"eta": (0.9, 0.97), "damping": (1e-3,)}
    ]
    wanted = [
        f"eta={eta},activation={name},damping=0.001,seed={seed}"
        for name, eta, seed in itertools.product(("sin", "relu"), ("0.9", "0.97"), (3, 5))
    ]
    assert [member.name for member in swept.members] == wanted


def test_what_shapes_a_program_may_be_swept_too():
    words = ["hidden_sizes=8x8,16", "env=probe/delay,probe/observation", "batch_size=8,16"]
    programs = planned("s", words).programs
    shapes = {(p.agent.hidden_sizes, p.run.env, p.loop.batch_size) for p in programs}
    assert len(programs) == len(shapes) == 8 and ((16,), "probe/observation", 16) in shapes
    assert "hidden_sizes=8x8,env=probe-delay,batch_size=8,seed=3" in [
        member.name for member in programs[0].members
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["eta"], "sweep is 'eta', but an axis is a name and its values"),
        (["etta=1,2"], "unknown axis 'etta' (did you mean 'eta'?)"),
        (["num_steps=1,2"], "unknown axis 'num_steps'"),
        (["eta="], "the axis eta has no values; give some"),
        (["eta=.9", "eta=.8"], "sweep names eta twice"),
        (["eta=.9,0.90"], "the axis eta has a value twice: .9,0.90"),
        (["eta=high"], "the axis eta has 'high', but it must be a number"),
        (["policy_delay=1.5"], "the axis policy_delay has '1.5', but it must be a whole number"),
        (["target_networks=maybe"], "it must be true or false"),
        (["hidden_sizes=8x"], "whole numbers with x between"),
        (["eta=.9,1.5"], "eta is 1.5, but it must be above -1 and below 1"),
        (["activation=sin,cos"], "unknown activation 'cos'"),
        (["temperature=.1,.2"], "temperature is 0.1, but the policy of ddpg is deterministic"),
        (["update_every=7"], "num_steps is 300, but it must be a multiple of update_every (7)"),
    ],
)
def test_bad_axes_are_refused_in_one_sentence(tmp_path, words, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        planned(tmp_path / "s", words)
    assert "\n" not in str(error.value) and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("env", "algorithm", "fits"),
    [("tabular/chain", "ddpg", "dqn"), ("probe/delay", "dqn", "preqn")],
)
def test_an_algorithm_for_other_actions_is_refused_before_there_is_a_folder(
    tmp_path, env, algorithm, fits
):
    configs = RunConfig(env=env), agents.AgentConfig(algorithm), LoopConfig()
    swept = sweep.make(tmp_path / "s", *configs, sweep.axes(["discount=.9,.99"]))
    with pytest.raises(UserError, match=fits):
        sweep.open_(swept)
    assert not (tmp_path / "s").exists()


def test_a_seed_twice_is_refused():
    with pytest.raises(UserError, match="each seed trains once"):
        planned("s", ["eta=.9"], seeds=(1, 1))


def test_all_numbers_of_an_algorithm_are_leaves_of_one_program():
    assert {"discount", "eta", "damping", "polyak", "critic_learning_rate"} <= set(sweep.NUMERIC)
    assert not {"hidden_sizes", "num_critics", "algorithm", "policy_delay"} & set(sweep.NUMERIC)


@pytest.mark.parametrize(
    ("axis", "agent"),
    [("huber=0,1", {"algorithm": "dqn"}), ("momentum=0,.5", {"algorithm": "preqn"})],
)
def test_where_nothing_means_another_update_each_value_has_its_own_program(axis, agent):
    programs = planned("s", [axis], agent=agent).programs
    assert len(programs) == 2 and not any(program.axes for program in programs)
    name = axis.partition("=")[0]
    zero, some = (getattr(agents.resolve(program.agent).config, name) for program in programs)
    assert not zero and some > 0


def test_what_an_environment_raises_is_kept_beside_the_runs_of_a_sweep(tmp_path, monkeypatch):
    given = []

    def collector(recipe, workers, log, *_):
        given.append(log)
        raise UserError("that is enough")

    monkeypatch.setattr(session.collect, "Collector", collector)
    swept = planned(tmp_path / "s", ["critic_learning_rate=.001,.01"])
    (plan,) = sweep.plans(swept, swept.programs[0])
    with pytest.raises(UserError, match="enough"), training.Session(plan) as begun:
        begun.begin()
    assert given == [tmp_path / "s" / "environment.log"]


@pytest.mark.slow
def test_the_trackers_of_all_runs_hear_of_the_end_before_one_is_waited_for(tmp_path, monkeypatch):
    seen = []
    for name in ("end", "close"):
        real = getattr(record.Recorder, name)
        monkeypatch.setattr(
            record.Recorder,
            name,
            lambda self, name=name, real=real: (seen.append(name), real(self)),
        )
    swept = planned(tmp_path / "s", ["critic_learning_rate=.001"])
    (plan,) = sweep.plans(swept, swept.programs[0])
    with training.Session(plan) as begun:
        begun.begin()
    assert seen == ["end", "end", "close", "close"]


@pytest.mark.parametrize(
    ("steps", "groups"),
    [
        ([[], []], [[0, 1]]),
        ([[10, 20], [10, 20], [10]], [[0, 1, 2]]),  # killed between two folders' checkpoints
        ([[20, 30], [20, 30], [10, 20]], [[0, 1, 2]]),
        ([[10], [], [10]], [[0, 1, 2]]),  # no member loses more than up to the first
        ([[30, 40], [10, 20], []], [[2], [1], [0]]),  # two processes, and one more seed
        ([[30, 40], [30, 40], []], [[2], [0, 1]]),
        ([], []),
    ],
)
def test_members_go_on_with_those_that_stand_at_their_step(steps, groups):
    assert sweep.groups(steps, [10] * len(steps)) == groups


def folder_of(path, steps, num_steps, done=True, every=10_000):
    """Makes a member's folder as training leaves it, with empty checkpoints."""
    for step in steps:
        (path / "checkpoints" / str(step)).mkdir(parents=True)
    said = {**BEGUN, "num_steps": num_steps, "checkpoint_every": every}
    (path / "config.json").write_text(json.dumps({"config": said}))
    if done:
        (path / "DONE").touch()


BEGUN = {"env": "probe/delay", "seeds": [3], "algorithm": "ddpg"}


@pytest.mark.parametrize("done", [True, False])
def test_a_finished_member_never_begins_anew(tmp_path, done):
    """Neither when its sweep gets more seeds and steps, nor when a stop left that halfway."""
    swept = planned(tmp_path, ["eta=.5"], seeds=(3, 5), num_steps=2000)
    folder_of(tmp_path / "eta=0.5,seed=3", [1000], 1000 if done else 2000, done)
    groups = [plan.loop.seeds for plan in sweep.plans(swept, swept.programs[0])]
    assert groups == [(5,), (3,)]


def test_a_program_whose_members_all_diverged_has_nothing_left_to_do(tmp_path):
    swept = planned(tmp_path, ["eta=.5"], seeds=(3,))
    folder_of(tmp_path / "eta=0.5,seed=3", [100], swept.loop.num_steps, done=False)
    line = {"step": 131, "seed": 3, "run/diverged": 1.0}
    records = tmp_path / "eta=0.5,seed=3" / "metrics.jsonl"
    records.write_text(json.dumps({**line, "the environment's reward": None}) + "\n")
    assert not sweep.plans(swept, swept.programs[0])
    records.write_text(json.dumps(line) + "\n")  # a run that was to stop on divergence goes on
    assert len(sweep.plans(swept, swept.programs[0])) == 1


def test_no_member_of_a_sweep_may_end_the_others(tmp_path):
    configs = flags.read(("--stop_on_divergence", "--diagnose_every=50"), *training.CONFIGS)
    with pytest.raises(UserError, match="stop_on_divergence is on, but it would end the other"):
        sweep.make(tmp_path, configs[0], configs[1], configs[2], {})


@pytest.mark.slow
def test_a_member_is_kept_as_the_run_of_it_alone(whole, tmp_path):
    """Its settings are traced, so that numbers are rounded otherwise: over 250 updates by 1e-3."""
    member = "critic_learning_rate=0.01,seed=5"
    there = whole.logdir / member
    list(
        training.train(
            "ddpg",
            logdir=tmp_path / "alone",
            seeds=(5,),
            checkpoint_every=100,
            **{**RUN, **LOOP, "hidden_sizes": (8, 8), "critic_learning_rate": 0.01},
        )
    )
    config, alone = (directory.read_config(x / "config.json") for x in (there, tmp_path / "alone"))
    assert config == alone and (there / "DONE").exists()
    mine, wanted = records(whole.logdir / member), records(tmp_path / "alone")
    assert [line.keys() for line in mine] == [line.keys() for line in wanted]
    for one, other in zip(mine, wanted, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), 1e-3, 1e-5)
    policies = [trained_.load(folder).policy() for folder in (there, tmp_path / "alone")]
    obs = np.ones((4, 1), np.float32)
    np.testing.assert_allclose(*(policy(obs) for policy in policies), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_member_that_explodes_changes_no_other(whole, tmp_path):
    lost = records(whole.logdir / "critic_learning_rate=1e+38,seed=3")
    assert lost[-1]["run/diverged"] == 1 and lost[-1]["step"] < 300
    without = planned(tmp_path / "s", ["critic_learning_rate=.001,.01"])
    trained(without)
    for member in without.members:
        assert records(whole.logdir / member.name) == records(without.logdir / member.name)
        assert len(records(whole.logdir / member.name)) > 8


@pytest.mark.slow
@pytest.mark.parametrize("cut", [50, 150, 250])
def test_a_sweep_goes_on_bit_for_bit(whole, tmp_path, cut):
    swept = planned(tmp_path / "s", ["critic_learning_rate=.001,.01,1e38"])
    trained(swept, until=cut)
    assert not any((swept.logdir / m.name / "DONE").exists() for m in swept.members)
    ((members, start),) = trained(swept)
    assert members == 6 and start > 0
    for member in swept.members:
        assert records(whole.logdir / member.name) == records(swept.logdir / member.name)
    assert trained(swept) == []


@pytest.mark.slow
def test_more_values_seeds_and_steps_train_what_is_missing(tmp_path):
    logdir = tmp_path / "s"
    assert trained(planned(logdir, ["critic_learning_rate=.001"])) == [(2, 0)]
    more = planned(logdir, ["critic_learning_rate=.001,.01"], seeds=(3, 5, 7))
    assert trained(more) == [(4, 0)]
    longer = planned(logdir, ["critic_learning_rate=.001,.01"], seeds=(3, 5, 7), num_steps=400)
    assert trained(longer) == [(6, 300)]
    assert {records(logdir / member.name)[-1]["step"] for member in longer.members} == {400}
    for words, seeds in ((["critic_learning_rate=.01"], (3, 5, 7)), ([], (3, 5, 7))):
        with pytest.raises(UserError, match=r"a sweep may get more values of an axis"):
            sweep.open_(planned(logdir, words, seeds=seeds, num_steps=400))
    with pytest.raises(UserError, match=r"the sweep in .* has batch_size=8, but this command"):
        words = ["critic_learning_rate=.001,.01"]
        sweep.open_(planned(logdir, words, seeds=(3, 5, 7), batch_size=16, num_steps=400))


def test_a_sweep_keeps_the_axes_that_it_has(tmp_path):
    logdir = tmp_path / "s"
    sweep.open_(planned(logdir, ["discount=0.9,0.97"]))
    with pytest.raises(
        UserError, match=r"has discount=0.9,0.97, but this command says one value; a"
    ):
        sweep.open_(planned(logdir, []))


def test_values_that_differ_in_the_last_digit_have_folders_of_their_own():
    swept = planned("s", ["critic_learning_rate=0.1234567,0.1234568,0.1,1e-05"])
    names = {member.name for program in swept.programs for member in program.members}
    given = ("0.1234567", "0.1234568", "0.1", "1e-05")
    assert names == {f"critic_learning_rate={x},seed={seed}" for x in given for seed in (3, 5)}


@pytest.mark.parametrize(
    ("algorithm", "word"),
    [
        ("ddpg", "eta=0.5,0.9"),
        ("td3", "solver=eigh,cholesky"),
        ("ngql", "linesearch_decay=.5,.6"),
        ("preqn", "polyak=.9,.99"),
        ("sac", "exploration_noise=.1,.2"),
        ("preqn", "target_noise_clip=.1,.2"),
        ("td3", "fourier_ratio=2,4"),
        ("td3", "damping=.1,.2"),
    ],
)
def test_an_axis_that_no_member_reads_is_refused(tmp_path, algorithm, word):
    name = word.partition("=")[0]
    with pytest.raises(UserError, match=f"sweep varies {name}, which has no effect on {algorithm}"):
        sweep.open_(planned(tmp_path / "s", [word], agent={"algorithm": algorithm}))
    assert not (tmp_path / "s").exists()
    other = {"eta": "preqn", "solver": "preqn", "linesearch_decay": "preqn", "damping": "ngql"}
    reader = {"algorithm": other.get(name, "td3")}
    if name == "fourier_ratio":
        reader["critic_features"] = "fourier"
    sweep.open_(planned(tmp_path / "s", [word], agent=reader))


def test_a_sweep_of_before_an_option_goes_on(tmp_path):
    sweep.open_(planned(tmp_path, ["eta=.9"], agent={"algorithm": "preqn"}))
    content = json.loads((tmp_path / "sweep.json").read_text())
    for name in ("wrappers", "env_kwargs", "pessimism"):
        del content["config"][name]
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    sweep.open_(planned(tmp_path, ["eta=.9"], agent={"algorithm": "preqn"}))
    assert "wrappers" in json.loads((tmp_path / "sweep.json").read_text())["config"]


def test_a_sweep_that_another_process_begins_meanwhile_is_gone_on_with(tmp_path, monkeypatch):
    eta = ["eta=.9"], (3, 5), {"algorithm": "preqn"}
    sweep.open_(planned(tmp_path / "other", *eta))

    def listed(path):
        (path / sweep.NAME).write_bytes((tmp_path / "other" / sweep.NAME).read_bytes())
        (path / "programs").mkdir()
        return map(path.joinpath, os.listdir(path))

    monkeypatch.setattr(Path, "iterdir", listed)
    sweep.open_(planned(tmp_path / "mine", *eta))


def test_axes_whose_names_and_values_are_too_long_for_a_folder_are_refused(tmp_path):
    words = lambda length: ["activation=sin", f"env=probe/{'e' * length}"]
    taken = planned(tmp_path, words(223))
    assert max(len(member.name) for member in taken.members) == 255
    with pytest.raises(UserError, match="sweep has 2 axes, .* name of 256 bytes, .* fewer at once"):
        planned(tmp_path, words(224))


def test_a_folder_of_other_things_is_left_as_it_is(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files and no sweep.json"):
        sweep.open_(planned(tmp_path, ["discount=.9"]))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "file").rename(tmp_path / "sweep.json.0123abcd.tmp")  # of a kill, or another
    sweep.open_(planned(tmp_path, ["eta=.9"], agent={"algorithm": "preqn"}))
    before = (tmp_path / "sweep.json").stat()
    sweep.open_(planned(tmp_path, ["eta=.9"], agent={"algorithm": "preqn"}))
    assert os.path.samestat(before, (tmp_path / "sweep.json").stat())  # others may be reading it
    assert len([*tmp_path.iterdir()]) == 2
    for damaged in ({"config": 3}, {"config": {}, "axes": {}, "seeds": None}):
        (tmp_path / "sweep.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"sweep.json' is not a sweep's file"):
            sweep.open_(planned(tmp_path, ["eta=.9"]))
