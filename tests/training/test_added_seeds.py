"""Seeds added to a finished run: the result is that of a run of all the seeds."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import call, records

import preqn_jax
from experiments import train
from experiments.kit import signals
from experiments.kit.running import Running
from preqn_jax.options import UserError
from preqn_jax.training import added, lock, run

FIELDS = {
    "hidden_sizes": (8, 8),
    "num_steps": 200,
    "start_steps": 50,
    "update_after": 100,
    "batch_size": 8,
    "eval_every": 100,
    "eval_episodes": 2,
    "log_every": 150,  # the last line is there only because it is the last
    "checkpoint_every": 100,
}


def trained(logdir, seeds, **changes):
    for _ in rounds(logdir, seeds, **changes):
        pass


def rounds(logdir, seeds, **changes):
    options = {"env": "probe/delay", **FIELDS, **changes}
    return preqn_jax.train("ddpg", logdir=logdir, seeds=seeds, **options)


def states(logdir):
    made = preqn_jax.load(logdir)
    return {seed: jax.tree.map(np.asarray, made.state(seed)) for seed in made.seeds}


def assert_same_run(logdir, other):
    """Asserts equal records, in order, and equal agents in the newest checkpoints, bit for bit."""
    assert records(logdir) == records(other)
    mine, wanted = states(logdir), states(other)
    assert list(mine) == list(wanted)
    for seed, state in wanted.items():
        jax.tree.map(np.testing.assert_array_equal, mine[seed], state)
    assert config(logdir) == config(other)


def of(logdir, *seeds):
    return [line for line in records(logdir) if line["seed"] in seeds]


def config(logdir):
    return json.loads((Path(logdir) / "config.json").read_text())["config"]


def plan_of(logdir, seeds=(0, 1, 4, 2, 3)):
    given = {"algorithm": "ddpg", "env": "probe/delay", "logdir": str(logdir), **FIELDS}
    configs = (
        cls(**{f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given})
        for cls in run.CONFIGS
    )
    planned = run.plan(*configs)
    return planned._replace(
        loop=dataclasses.replace(planned.loop, seeds=seeds),
        described={**planned.described, "seeds": list(seeds)},
    )


def run_through(plan):
    with run.Session(plan) as session:
        for _ in session.rounds():
            pass


def names(logdir):
    return {path.name for path in Path(logdir).iterdir()}


def contents(logdir):
    return {p: p.read_bytes() for p in Path(logdir).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """The folder of a finished run of two seeds, which was never interrupted."""
    root = tmp_path_factory.mktemp("made")
    trained(root / "two", (0, 1))
    return root


@pytest.fixture(scope="module")
def made(of_two):
    """The same folder, with a run of five seeds beside it."""
    trained(of_two / "five", (0, 1, 4, 2, 3))
    return of_two


@pytest.fixture
def two(of_two):
    shutil.copytree(of_two / "two", "x")
    return Path("x")


# --- what comes of it -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_seeds_added_is_that_of_all_seeds(made, two):
    """In any order, and with another log_every in the call: that of the finished run counts."""
    trained(two, (4, 1, 2, 0, 3), log_every=50)
    assert_same_run(two, made / "five")
    assert names(two) == names(made / "five")
    assert {path.name for path in (two / "tensorboard").iterdir()} == {
        f"seed_{i}" for i in range(5)
    }
    before = records(two)
    trained(two, (0, 1, 2, 3, 4))  # the same run, in any order
    assert records(two) == before


@pytest.mark.slow
def test_while_seeds_are_trained_the_run_is_the_finished_one_and_the_same_call_goes_on(made, two):
    training = rounds(two, (0, 1, 4, 2, 3))
    for done in training:
        assert done.trained.seeds == (4, 2, 3)
        assert preqn_jax.load(two).seeds == (0, 1) and records(two) == records(made / "two")
        if done.step == 150:
            break
    training.close()
    trained(two, (0, 1))  # the finished run's own command finds it as it was
    assert_same_run(two, made / "two")
    training = rounds(two, (3, 1, 0, 2, 4))
    assert next(training).step == 200
    training.close()
    trained(two, (0, 1, 2, 3, 4))
    assert_same_run(two, made / "five")


@pytest.mark.slow
def test_one_seed_is_compiled_as_those_it_joins(made, two):
    """With several devices, a single seed still trains on one of them."""
    trained(two, (0, 1, 4))
    mine, wanted = states(two), states(made / "five")
    for seed, state in mine.items():
        jax.tree.map(np.testing.assert_array_equal, state, wanted[seed])
    assert records(two) == of(made / "five", 0, 1, 4) and config(two)["seeds"] == [0, 1, 4]
    assert names(two) == names(made / "five")


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_what_is_killed_as_runs_become_one_goes_on_with_the_same_call(made, two, monkeypatch):
    """Killed before each replacement or removal of a file or folder."""
    run_through(next(added.stages(plan_of(two))))
    shutil.copytree(two, "before")
    real, left = {}, 0
    for module, name in ((os, "replace"), (shutil, "rmtree")):
        real[name] = getattr(module, name)

    def or_killed(name):
        def act(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real[name](*args, **kwargs)

        return act

    for kills in range(100):
        real["rmtree"](two)
        shutil.copytree("before", two)
        left = kills
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", or_killed("replace"))
            patch.setattr(shutil, "rmtree", or_killed("rmtree"))
            try:
                for stage in added.stages(plan_of(two)):
                    run_through(stage)
                break
            except Killed:
                pass
        for stage in added.stages(plan_of(two)):
            run_through(stage)
        assert records(two) == records(made / "five"), kills
        assert names(two) | {"curve.png"} == names(made / "five") | {"curve.png"}, kills
        assert_same_run(two, made / "five")
    assert kills > 8


@pytest.mark.slow
def test_a_kill_once_config_json_names_all_seeds_leaves_the_rest_to_the_same_call(
    made, two, monkeypatch
):
    def killed(home):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(added, "_move", killed)
        with pytest.raises(Killed):
            trained(two, (0, 1, 4, 2, 3))
    assert config(two)["seeds"] == [0, 1, 4, 2, 3] and (two / "added").exists()
    trained(two, (0, 1, 4, 2, 3))
    assert_same_run(two, made / "five")
    assert names(two) == names(made / "five")


def test_what_else_the_new_seeds_left_comes_with_them_and_again_after_a_kill(monkeypatch):
    x = Path("x")
    texts = {
        "tracker.json": '{"wandb": {"0": {"id": "a", "step": 9}}}',
        "environment.log": "first\n",
        "added/tracker.json": '{"wandb": {"1": {"id": "b", "step": 9}}, "mlflow": {"1": {}}}',
        "added/environment.log": "second\n",
        "added/tracker.log": "said\n",
        "added/wandb/run-b/log": "",
        "tensorboard/seed_0/events": "",
        "added/tensorboard/seed_1/events": "",
    }
    for name, text in texts.items():
        (x / name).parent.mkdir(parents=True, exist_ok=True)
        (x / name).write_text(text)

    def killed(path, content):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(added.files, "replace", killed)
        with pytest.raises(Killed):
            added._move(x)
    added._move(x)
    added._move(x)
    assert json.loads((x / "tracker.json").read_text()) == {
        "wandb": {"0": {"id": "a", "step": 9}, "1": {"id": "b", "step": 9}},
        "mlflow": {"1": {}},
    }
    assert (x / "environment.log").read_text() == "first\nsecond\n"
    assert (x / "tracker.log").read_text() == "said\n"
    for name in ("wandb/run-b/log", "tensorboard/seed_0/events", "tensorboard/seed_1/events"):
        assert (x / name).is_file()
    assert not list(x.glob("added*"))


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_a_run_with_seeds_added_is_made_longer_as_any(together):
    """Also by the same call that adds the seeds."""
    more = {"diagnose_every": 50}
    trained("x", (0, 1), **more)
    if not together:
        trained("x", (0, 1, 2), **more)
    trained("x", (0, 1, 2), num_steps=350, **more)
    trained("y", (0, 1, 2), num_steps=350, **more)
    assert_same_run("x", "y")


@pytest.mark.slow
def test_a_run_made_longer_while_seeds_are_trained_gets_them_at_its_length(two):
    training = rounds(two, (0, 1, 2, 3))
    while next(training).step < 150:
        pass
    training.close()
    trained(two, (0, 1), num_steps=300)
    trained(two, (0, 1, 2, 3), num_steps=300)
    trained("y", (0, 1, 2, 3), num_steps=300)
    assert_same_run(two, "y")


@pytest.mark.slow
def test_a_damaged_checkpoint_leads_to_the_one_before_of_all_seeds(made, two, caplog):
    (two / "checkpoints/200/note").write_bytes(b"")
    trained(two, (0, 1, 4, 2, 3))
    assert "the checkpoint of step 200 cannot be read" in caplog.text
    assert_same_run(two, made / "five")


@pytest.mark.slow
def test_a_seed_that_diverged_joins_as_it_stands():
    unlucky = {"env": "tests.faulty:Unlucky-v0", "eval_max_steps": 20, "num_steps": 350}
    trained("x", (0, 2), **unlucky)
    before = of("x", 0, 2)
    trained("x", (0, 2, 1, 3), **unlucky)  # seed 1 diverges at step 260
    trained("y", (0, 2, 1, 3), **unlucky)
    assert of("x", 1, 3) == of("y", 1, 3) and of("x", 0, 2) == before
    assert [line["seed"] for line in records("x") if "run/diverged" in line] == [1]
    trained("x", (0, 2, 1, 3, 4), **unlucky)
    assert config("x")["seeds"] == [0, 2, 1, 3, 4] and not Path("x/added").exists()


# --- what is refused ------------------------------------------------------------------------------


def lost(*paths):
    def damage(folder):
        for path in paths:
            whole = folder / path
            shutil.rmtree(whole) if whole.is_dir() else whole.unlink()

    return damage


def begun(folder):
    training = rounds(folder, (0, 1, 5, 6))
    next(training)
    training.close()


def all_diverged(folder):
    (folder / "DONE").unlink()
    lines = [{"step": 150, "seed": seed, "run/diverged": 1.0, "x": None} for seed in (0, 1)]
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


REFUSED = {
    "all diverged": (
        all_diverged,
        {"seeds": (0, 1, 2)},
        "a run in which every seed diverged, so seed 2 cannot be added; give another `logdir`",
    ),
    "unfinished": (
        lost("DONE"),
        {"seeds": (0, 1, 2, 3)},
        r"an unfinished run, .*; finish it first, with `seeds=\(0, 1\)`, then add seeds 2, 3",
    ),
    "fewer": (lost(), {"seeds": (1,)}, r"holds a run with seeds=\[0, 1\], .* says \[1\]; use the"),
    "others": (lost(), {"seeds": (1, 2)}, r"a run with seeds=\[0, 1\], .* says \[1, 2\]"),
    "another setting": (
        lost(),
        {"seeds": (0, 1, 2), "batch_size": 16},
        "holds a run with batch_size=8, but this command says 16",
    ),
    "shorter": (lost(), {"seeds": (0, 1, 2), "num_steps": 150}, "made longer, not shorter"),
    "no checkpoint": (
        lost("checkpoints"),
        {"seeds": (0, 1, 2)},
        "a run of 200 steps without its last checkpoint, so seed 2 cannot be added",
    ),
    "no records": (lost("metrics.jsonl"), {"seeds": (0, 1, 2)}, "run without its records"),
    "others on their way": (
        begun,
        {"seeds": (0, 1, 2)},
        r"an earlier command adds seeds 5, 6, but this command adds seed 2; finish that first, "
        r"with `seeds=\(0, 1, 5, 6\)`, or remove 'x/added' to give it up",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_seeds_that_cannot_join_are_refused_in_a_sentence_and_nothing_is_touched(two, name):
    damage, changes, words = REFUSED[name]
    damage(two)
    before = contents(two)
    with pytest.raises(UserError, match=words) as caught:
        trained(two, **changes)
    assert "\n" not in str(caught.value) and contents(two) == before


def test_seeds_whose_training_did_not_reach_the_end_do_not_join(two):
    """As when all of the new seeds have diverged."""
    stages = added.stages(plan_of(two, (0, 1, 2)))
    next(stages)
    before = contents(two)
    with pytest.raises(UserError, match="seed 2 did not reach step 200 and cannot be added"):
        next(stages)
    assert contents(two) == before


def test_a_run_in_other_hands_is_left_alone(two):
    held = lock.Lock(two).sign()
    with pytest.raises(lock.Busy):
        trained(two, (0, 1, 2))
    held.release()
    assert not (two / "added").exists()


# --- the command ----------------------------------------------------------------------------------


def flags_of(fields):
    for name, value in fields.items():
        yield f"--{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


ARGS = ["--algorithm=ddpg", "--env=probe/delay", "--logdir=x", "--workers=0", *flags_of(FIELDS)]


@pytest.mark.slow
def test_the_command_says_what_it_adds_sums_up_all_seeds_and_stops_when_asked(
    two, capsys, monkeypatch
):
    (two / "curve.png").touch()
    assert call(*ARGS, "--seeds=4,0,1,2,3") == 0
    out, err = capsys.readouterr()
    assert "adding seeds 2, 3, 4 to the finished run of 2 seeds, trained in x/added" in err
    assert re.findall(r"^ +(\d) ", out, re.M) == ["0", "1", "4", "2", "3"]
    assert "nothing to do" not in out and (two / "curve.png").stat().st_size
    assert list(states(two)) == [0, 1, 4, 2, 3] and not (two / "added").exists()
    assert call(*ARGS, "--seeds=0,1,2,3,4") == 0
    assert "nothing to do" in capsys.readouterr().out

    class Asked(Running):
        def follow(self, *args):
            self.stop()
            return super().follow(*args)

    before = contents("x")
    with monkeypatch.context() as patch:
        patch.setattr(train, "Running", Asked)
        assert call(*ARGS, "--seeds=5,6,0,1,2,3,4") == signals.STOPPED
    assert "stopped at step 0; the same command goes on" in capsys.readouterr().err
    assert before.items() <= contents("x").items()
    assert call(*ARGS, "--seeds=0,1,2,3,4,5") == 1
    assert "finish that first, with --seeds=0,1,4,2,3,5,6, or remove" in capsys.readouterr().err
