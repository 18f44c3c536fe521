"""Plans of runs: how their settings are found, and what the command does with real runs."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from commands import SMALL, finished, records, start
from fabricated import begin, frozen
from waiting import children, until

import experiments
from experiments.kit import flags, launch, plan
from experiments.kit import runs as kit
from experiments.kit.signals import STOPPED
from preqn_jax.options import UserError
from preqn_jax.training import collect, directory

KIND = plan.Kind("benchmark", plan.by_activation("preqn-sin", "td3-relu"), (0, 1, 2))


def config(*args):
    return flags.read(["--root=r", *args], plan.PlanConfig)[0]


def settle(*args, extra=(), kind=KIND):
    return plan.settle(kind, config(*args), extra)


# --- what is settled ------------------------------------------------------------------------------


def test_a_new_plan_has_the_papers_settings_and_is_written_down():
    runs = settle()
    assert (
        len(runs) == 10
        and {run.num_steps for run in runs} == {1_000_000}
        and runs[0].seeds == (0, 1, 2)
    )
    assert runs[3].name == "Walker2d-v5/td3-relu" and runs[3].folder == Path(
        "r/Walker2d-v5/td3-relu"
    )
    assert runs[3].flags[:4] == (
        "--algorithm=td3",
        "--activation=relu",
        "--env=Walker2d-v5",
        "--seeds=0,1,2",
    )
    assert "--eval_every=5000" in runs[3].flags and "--checkpoint_every=25000" in runs[3].flags
    written = json.loads(Path("r/benchmark.json").read_text())
    assert written["num_steps"] == 1_000_000 and written["runs"]["Walker2d-v5/td3-relu"] == list(
        runs[3].flags
    )


def test_a_plan_is_remembered_and_may_get_more_environments():
    first = settle("--seeds=0,4", "--num_steps=100000", "--envs=probe/delay", extra=["--eta=0.9"])
    assert settle() == first and "--eta=0.9" in first[0].flags
    assert [run.name for run in settle("--envs=probe/delay,probe/nan")][2:] == [
        "probe/nan/preqn-sin",
        "probe/nan/td3-relu",
    ]
    assert len(settle("--seeds=0,4")) == 4


@pytest.mark.parametrize(
    ("args", "extra", "words"),
    [
        (
            ["--seeds=0,1"],
            [],
            r"says seeds=\[0, 4\], but this command says \[0, 1\]; use the same seeds",
        ),
        (["--num_steps=50000"], [], "says num_steps=100000, but this command says 50000"),
        (["--envs=probe/nan"], [], "has probe/delay among its envs, but --envs leaves it out"),
        ([], ["--eta=0.5"], r"says extra=\[\], but this command says \['--eta=0.5'\]"),
    ],
)
def test_a_plan_that_says_otherwise_is_left_as_it_is(args, extra, words):
    settle("--seeds=0,4", "--num_steps=100000", "--envs=probe/delay")
    before = Path("r/benchmark.json").read_bytes()
    with pytest.raises(UserError, match=words):
        settle(*args, extra=extra)
    assert Path("r/benchmark.json").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "extra", "words"),
    [
        (["--envs=HalfCheeta-v5"], [], "cannot make environment 'HalfCheeta-v5'"),
        (["--num_steps=5001"], ["--eval_every=5001"], "num_steps is 5001"),
        (["--seeds=1,1"], [], "each seed trains once"),
        ([], ["--eta=7"], "eta is 7.0"),
        ([], ["--no_such=7"], "no_such"),
        ([], ["--seeds=3"], "sets seeds, which the plan sets for each run"),
        ([], ["--workers=3"], "sets logdir or workers"),
        ([], ["--on_device"], "'HalfCheetah-v5' cannot be stepped on the device"),
        (["--seeds=a"], [], "seeds is 'a'"),
        (["--until=2000000"], [], "until is 2000000, beyond the num_steps of the plan"),
        (["--until=12000"], [], "runs end at step 12000, but are evaluated every 5000"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_written(args, extra, words):
    with pytest.raises(UserError, match=words):
        settle(*args, extra=extra)
    assert not Path("r").exists()


def test_a_file_that_is_no_plan_is_refused():
    Path("r").mkdir()
    Path("r/benchmark.json").write_text("[1]")
    with pytest.raises(UserError, match="is not a plan of runs"):
        settle()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("envs", 5),
        ("envs", [["probe/delay"]]),
        ("envs", ["../../elsewhere"]),
        ("seeds", ["0"]),
        ("num_steps", "100"),
        ("extra", None),
        ("runs", []),
    ],
)
def test_a_plan_of_other_types_is_refused(name, value):
    settle("--envs=probe/delay")
    plan_file = Path("r/benchmark.json")
    plan_file.write_text(json.dumps({**json.loads(plan_file.read_text()), name: value}))
    for reader in (settle, lambda: plan.remembered(KIND, Path("r"))):
        with pytest.raises(UserError, match="is not a plan of runs"):
            reader()


def test_a_module_that_only_a_plan_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_plan.py").write_text("open('executed', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    settle("--envs=probe/delay", "--seeds=0")
    plan_file, name = Path("r/benchmark.json"), "evil_plan:E-v0"
    written = {**json.loads(plan_file.read_text()), "envs": ["probe/delay", name]}
    plan_file.write_text(json.dumps(written))
    with pytest.raises(UserError, match="names the environment 'evil_plan:E-v0', whose module"):
        settle()
    assert not Path("executed").exists() and plan.remembered(KIND, Path("r"))[0][1] == name
    for trusting in (["--trust"], [f"--envs=probe/delay,{name}"]):
        Path("executed").unlink(missing_ok=True)
        sys.modules.pop("evil_plan", None)
        with pytest.raises(UserError, match="cannot make environment"):
            settle(*trusting)
        assert Path("executed").exists()


def test_a_wrapper_that_only_a_plan_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_wrapper.py").write_text("open('executed', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    settle("--envs=Pendulum-v1", "--seeds=0")
    plan_file = Path("r/benchmark.json")
    extra = ["--wrappers=evil_wrapper:W"]
    plan_file.write_text(json.dumps({**json.loads(plan_file.read_text()), "extra": extra}))
    with pytest.raises(UserError, match="names the wrapper 'evil_wrapper:W', whose module would"):
        settle()
    assert not Path("executed").exists()


@pytest.mark.parametrize("word", ["--flagfile=x", "--undefok=profile_file", "-undefok=a"])
def test_flags_of_a_plan_are_those_of_a_run_alone(word):
    """Other flags, such as --profile_file, could make a run write where it should not."""
    with pytest.raises(UserError, match="unexpected argument"):
        settle("--envs=probe/delay", extra=[word, "--profile_file=/tmp/x"])


def test_two_plans_share_the_runs_of_more_seeds_and_refuse_those_of_others():
    small = ["--envs=probe/delay", "--num_steps=100000"]
    (run, _) = settle(*small, "--seeds=0,1,2,3")
    begin(run)
    other = KIND._replace(name="alignment")
    assert settle(*small, "--seeds=1,2", kind=other)[0] == run
    with pytest.raises(
        UserError, match=r"with seeds=\[0, 1, 2, 3\], but this command says \[4, 5\]"
    ):
        settle(*small, "--seeds=4,5", kind=other._replace(name="third"))
    with pytest.raises(
        UserError, match="with num_steps=100000, but this command says 50000; .* or another `root`"
    ):
        settle(small[0], "--seeds=1,2", "--num_steps=50000", kind=other._replace(name="fourth"))


def test_until_makes_every_run_to_a_step_and_a_later_call_goes_on():
    small = ["--envs=probe/delay", "--num_steps=100000", "--seeds=0,1"]
    part, whole = settle(*small, "--until=50000"), settle()
    assert [run.num_steps for run in part] == [50_000] * 2 and [run.num_steps for run in whole] == [
        100_000
    ] * 2
    assert [run.flags for run in part] == [run.flags for run in whole]
    assert "--num_steps=50000" in kit.command(part[0], 1) and "--num_steps=100000" in kit.command(
        whole[0], 1
    )
    begin(part[0])
    (part[0].folder / "checkpoints").mkdir()
    (part[0].folder / "metrics.jsonl").write_text('{"step": 50000, "seed": 1}\n')
    assert [kit.state(run) for run in part] == [
        "begun",
        "new",
    ]  # no DONE yet: its last checkpoint is not written
    (part[0].folder / "DONE").touch()
    assert [kit.state(run) for run in part] == ["done", "new"] and kit.state(whole[0]) == "begun"
    assert kit.progress(whole[0]) == 100_000


def test_a_run_that_is_past_until_is_over_and_one_begun_for_more_is_refused():
    small = ["--envs=probe/delay", "--num_steps=100000", "--seeds=0,1"]
    run, _ = settle(*small)
    begin(run)
    (run.folder / "checkpoints").mkdir()
    (run.folder / "metrics.jsonl").write_text('{"step": 45000, "seed": 1}\n')
    with pytest.raises(
        UserError,
        match="with num_steps=100000, but this command says 50000; a run can be made longer",
    ):
        settle("--until=50000")
    (run.folder / "metrics.jsonl").write_text('{"step": 60000, "seed": 1}\n')
    past, _ = settle("--until=50000")
    assert kit.state(past) == "done" and kit.state(run) == "begun"


def test_a_run_has_diverged_where_no_seed_is_left_or_one_was_to_end_it():
    """After one seed has diverged, a kill may come before the others have written another line."""
    run, _ = settle("--envs=probe/delay", "--num_steps=100000", "--seeds=0,1")
    begin(run)
    (run.folder / "checkpoints").mkdir()
    lines = [{"step": 5000, "seed": seed} for seed in (0, 1)]

    def state(*more):
        text = "".join(json.dumps(line) + "\n" for line in [*lines, *more])
        (run.folder / "metrics.jsonl").write_text(text)
        return kit.state(run)

    assert state(frozen(6100, 0)) == "begun" and not kit.is_over(run)
    assert state(frozen(6100, 0), {"step": 10_000, "seed": 1}, frozen(12_050, 1)) == "diverged"
    assert state({"step": 6100, "seed": 0, "run/diverged": 1.0}) == "diverged"


def test_only_names_runs_by_patterns():
    runs = settle("--envs=probe/delay,probe/nan")
    assert [run.name for run in plan.choose(runs, ["probe/nan/*", "*/td3-relu"])] == [
        "probe/delay/td3-relu",
        "probe/nan/preqn-sin",
        "probe/nan/td3-relu",
    ]
    assert plan.choose(runs, []) == runs
    with pytest.raises(
        UserError,
        match=r"only is 'Ant\*', which matches none of the runs of this plan: probe/delay/preqn",
    ):
        plan.choose(runs, ["probe/nan/*", "Ant*"])


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(2, 1, 2), (2, 2, 0), (8, 1, 3), (8, 2, 3), (8, 4, 2), (1, 1, 0)],
)
def test_workers_share_the_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(collect, "cores", lambda: cores)
    run = kit.Run("e/v", Path("r/e/v"), ("--env=e",), (0, 1, 2), 400)
    assert kit.job(run, processes).command[-4:] == [
        "--env=e",
        "--num_steps=400",
        "--logdir=r/e/v",
        f"--workers={workers}",
    ]


@pytest.mark.parametrize(
    "more", [["--env=native/pendulum"], ["--env=probe/delay", "--on_device"]], ids=lambda x: x[0]
)
def test_a_run_on_the_device_gets_no_workers(monkeypatch, more):
    """There they would be refused."""
    monkeypatch.setattr(collect, "cores", lambda: 8)
    run = kit.Run("e/v", Path("r/e/v"), tuple(more), (0, 1, 2), 400)
    assert kit.job(run, 1).command[-1] == "--logdir=r/e/v"


def test_devices_share_the_cores_unless_the_environment_says_so(monkeypatch):
    monkeypatch.setattr(collect, "cores", lambda: 8)
    monkeypatch.setattr(experiments, "XLA_FLAGS_GIVEN", "--xla_x=1")
    monkeypatch.setattr(experiments, "NPROC_GIVEN", "")
    assert kit.variables_here(1) == dict(os.environ)
    assert (
        kit.variables_here(3)["XLA_FLAGS"] == "--xla_x=1 --xla_force_host_platform_device_count=2"
    )
    assert [kit.variables_here(n)["NPROC"] for n in (3, 5)] == ["4", "1"]
    monkeypatch.setattr(experiments, "NPROC_GIVEN", "7")
    assert kit.variables_here(5)["NPROC"] == "7"
    monkeypatch.setattr(experiments, "XLA_FLAGS_GIVEN", "--xla_force_host_platform_device_count=5")
    assert kit.variables_here(3)["XLA_FLAGS"] == "--xla_force_host_platform_device_count=5"
    assert kit.variables_here(3)["NPROC"] == os.environ["NPROC"]


def test_a_root_that_cannot_be_written_to_is_a_sentence():
    with pytest.raises(UserError, match="cannot write .* another --root"):
        plan.settle(KIND, config("--root=/dev/null/x", "--envs=probe/delay"), [])


# --- with experiments.train itself ----------------------------------------------------------------


@pytest.mark.slow
def test_a_plan_makes_real_runs_and_says_which_diverged(monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(experiments.__file__).parent.parent))
    seen = []
    args = [
        "--envs=probe/delay,probe/nan",
        "--seeds=0,1",
        "--num_steps=600",
        "--only=probe/nan/preqn-sin",
    ]
    assert (
        plan.main(
            KIND,
            (config(*args), launch.LaunchConfig()),
            [a for a in SMALL if "workers" not in a and "num_steps" not in a],
            lambda *a: seen.append(a),
        )
        == 1
    )
    out = capsys.readouterr().out
    assert (
        "1 runs: 1 diverged" in out
        and "probe/nan/preqn-sin: diverged: the environment's reward is not finite at step 131"
        in out
    )
    assert seen == [(Path("r"), ["probe/delay", "probe/nan"], [0, 1], Path("r/benchmark"))] or seen[
        0
    ][1] == (
        "probe/delay",
        "probe/nan",
    )
    assert sorted(path.name for path in Path("r/probe/nan").iterdir()) == [
        "preqn-sin",
        "preqn-sin.log",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_stopped_anywhere_goes_on_and_ends_as_if_it_had_not(tmp_path, how):
    small = [a for a in SMALL if "workers" not in a and "num_steps" not in a]
    args = [
        "--envs=Pendulum-v1",
        "--seeds=0,1",
        "--num_steps=600",
        "--processes=2",
        "--only=*/preqn-sin,*/td3-relu",
        "--",
        *small,
    ]
    broken, straight = (f"--root={tmp_path / name}" for name in ("broken", "straight"))
    process = start(broken, *args, module="experiments.benchmark")
    folders = [
        tmp_path / "broken" / "Pendulum-v1" / variant for variant in ("preqn-sin", "td3-relu")
    ]
    until(lambda: any(directory.steps(one / "checkpoints") for one in folders), process=process)
    if how == signal.SIGKILL:  # the runs too, as when a machine dies
        for pid in children(process):
            os.kill(pid, signal.SIGKILL)
    process.send_signal(how)
    code, out, err = finished(process)
    assert (code, "stopped; the same command goes on from there" in out) == (
        (STOPPED, True) if how == signal.SIGTERM else (-9, False)
    )
    for root in (broken, straight):
        code, out, err = finished(start(root, *args, module="experiments.benchmark"))
        assert code == 0 and "2 runs: 2 done" in out and "figure_2.png" in out, err
    for folder in folders:
        assert records(folder) == records(tmp_path / "straight" / "Pendulum-v1" / folder.name)


@pytest.mark.parametrize("args", [["stray"], ["--processes=0"], ["--only=Reacher*"], ["--report"]])
@pytest.mark.slow
def test_the_command_itself_fails_without_a_traceback(args, tmp_path):
    code, _, err = finished(
        start(f"--root={tmp_path / 'r'}", *args, module="experiments.alignment")
    )
    assert (
        code == 1
        and err.startswith("error: ")
        and "Traceback" not in err
        and len(err.strip().splitlines()) == 1
    )


@pytest.mark.parametrize("flag", ["--report", "--noreport"])
def test_an_environment_counts_once(flag):
    given = config("--root=new", "--envs=probe/delay,probe/nan,probe/delay", flag)
    with pytest.raises(UserError, match="envs names probe/delay more than once"):
        plan.main(KIND, (given, launch.LaunchConfig()), [], lambda *_: None)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "given",
    ["--until=50000", "--num_steps=50000", "--only=*/td3-*", "--processes=2", "--eta=.9"],
)
def test_a_report_makes_no_run_and_says_so(given):
    args, extra = ([], [given]) if "eta" in given else ([given], [])
    read = flags.read(["--report", *args], plan.PlanConfig, launch.LaunchConfig)
    name = given if extra else given.split("=")[0]
    with pytest.raises(UserError, match=f"--report trains nothing, .*; leave out {name}$"):
        plan.main(KIND, (read[0], read[1]), extra, lambda *_: None)


def test_a_plan_asks_for_the_environment_with_its_wrappers(monkeypatch):
    """Without them it may be an environment that no agent supports."""
    monkeypatch.setattr(sys, "path", [*sys.path, "."])
    Path("named_parts.py").write_text(
        "import gymnasium\nfrom gymnasium import spaces\n\n\n"
        "class Env(gymnasium.Env):\n"
        "    observation_space = spaces.Dict({'x': spaces.Box(-1, 1, (2,))})\n"
        "    action_space = spaces.Box(-1, 1, (1,))\n\n\n"
        "gymnasium.register('NamedParts-v0', Env)\n"
    )
    given = ("--root=new", "--envs=named_parts:NamedParts-v0")
    with pytest.raises(UserError, match="wrappers=.*FlattenObservation"):
        settle(*given)
    settle(*given, extra=["--wrappers=gymnasium.wrappers:FlattenObservation"])
    assert Path("new").exists()


@pytest.mark.parametrize(
    ("args", "words"), [(["--only=foo"], "only"), (["--envs="], "envs is empty")]
)
def test_what_is_refused_writes_no_plan(args, words):
    with pytest.raises(UserError, match=words):
        settle("--root=new", *args)
    assert not Path("new").exists()
