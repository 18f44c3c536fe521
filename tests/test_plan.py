"""Plans of runs: what they settle, and how their runs are made, stopped, shared and gone on
with.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from test_train import SMALL, finished, records, start

import experiments
from experiments.kit import flags, plan
from preqn_jax.options import UserError
from preqn_jax.training import collect

KIND = plan.Kind("benchmark", ("preqn-sin", "td3-relu"), (0, 1, 2))
# A stand-in for experiments.train, which writes four lines of records, and checkpoints at SIGTERM.
# What it is to run into is in
# the name of its environment: "bad" fails, "nan" diverges, "meet" goes on once three of them run,
# "wait" once it was stopped.
CHILD = """
import json, os, pathlib, signal, sys, time
folder, stopped = pathlib.Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file:
    file.write(f"{time.time()} ")
step, env = len(list((folder / "checkpoints").iterdir())), folder.parent.name
deadline = time.time() + 60
def waiting(kind):
    return env.startswith(kind) and time.time() < deadline
with (folder / "metrics.jsonl").open("a", buffering=1) as file:
    while step < 4 and not stopped:
        step += 1
        file.write(json.dumps({"step": 100 * step, "seed": 0}) + "\\n")
        if env == "bad":
            sys.exit("error: the disk is full")
        if env == "nan" and step == 2:
            file.write(json.dumps({"step": 230, "seed": 0, "run/diverged": 1.0}) + "\\n")
            sys.exit("error: Q is not finite")
        while waiting("meet") and len(list(folder.parent.parent.glob("meet*/x/starts"))) < 3:
            time.sleep(0.01)
        while waiting("wait") and not stopped and not list((folder / "checkpoints").iterdir()):
            time.sleep(0.01)
    if time.time() > deadline:
        sys.exit("error: nobody came")
    for i in range(step):
        (folder / "checkpoints" / str(i)).touch()
(folder / "ends").write_text(str(time.time()))
if step == 4:
    (folder / "DONE").touch()
"""


def config(*args):
    return flags.read(["--root=r", *args], plan.PlanConfig)[0]


def settle(*args, extra=(), kind=KIND):
    return plan.settle(kind, config(*args), extra)


def fake_runs(*envs, root=Path("r")):
    return [plan.Run(f"{env}/x", root / env / "x", (), (0, 1), 400) for env in envs]


@pytest.fixture
def child(monkeypatch):
    monkeypatch.setattr(plan, "_POLL", 0.01)
    monkeypatch.setattr(
        plan,
        "_command",
        lambda run, processes: [sys.executable, "-I", "-S", "-c", CHILD, str(run.folder)],
    )


def states(outcomes):
    return [outcome.state for outcome in outcomes]


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
        (["--num_steps=200000"], [], "says num_steps=100000, but this command says 200000"),
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


def begin(run, **fields):
    """Its config.json, as experiments.train writes it."""
    from experiments import train
    from preqn_jax import agents

    settings, agent, loop_config = flags.read(
        (f"--num_steps={run.num_steps}", *run.flags), *train.CONFIGS
    )
    run.folder.mkdir(parents=True)
    described = {**train.configuration(settings, agents.resolve(agent), loop_config), **fields}
    (run.folder / "config.json").write_text(json.dumps({"config": described}))


def test_two_plans_share_the_runs_of_more_seeds_and_refuse_those_of_fewer():
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
        UserError, match="with num_steps=100000, but this command says 50000; .* or another --root"
    ):
        settle(small[0], "--seeds=1,2", "--num_steps=50000", kind=other._replace(name="fourth"))


def test_until_makes_every_run_to_a_step_and_a_later_call_goes_on():
    small = ["--envs=probe/delay", "--num_steps=100000", "--seeds=0,1"]
    part, whole = settle(*small, "--until=50000"), settle()
    assert [run.num_steps for run in part] == [50_000] * 2 and [run.num_steps for run in whole] == [
        100_000
    ] * 2
    assert [run.flags for run in part] == [run.flags for run in whole]
    assert "--num_steps=50000" in plan._command(
        part[0], 1
    ) and "--num_steps=100000" in plan._command(whole[0], 1)
    begin(part[0])
    (part[0].folder / "checkpoints").mkdir()
    (part[0].folder / "metrics.jsonl").write_text('{"step": 50000, "seed": 1}\n')
    assert [plan.state(run) for run in part] == [
        "begun",
        "new",
    ]  # no DONE yet: its last checkpoint is not written
    (part[0].folder / "DONE").touch()
    assert [plan.state(run) for run in part] == ["done", "new"] and plan.state(whole[0]) == "begun"
    assert plan.progress(whole[0]) == 100_000


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
    assert plan.state(past) == "done" and plan.state(run) == "begun"


def test_only_names_runs_by_patterns():
    runs = settle("--envs=probe/delay,probe/nan")
    assert [run.name for run in plan.choose(runs, ["probe/nan/*", "*/td3-relu"])] == [
        "probe/delay/td3-relu",
        "probe/nan/preqn-sin",
        "probe/nan/td3-relu",
    ]
    assert plan.choose(runs, []) == runs
    with pytest.raises(
        UserError, match=r"only names 'Ant\*', but the runs of this plan are probe/delay/preqn-sin"
    ):
        plan.choose(runs, ["probe/nan/*", "Ant*"])


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(2, 1, 2), (2, 2, 0), (8, 1, 3), (8, 2, 3), (8, 4, 2), (1, 1, 0)],
)
def test_workers_share_the_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(
        collect, "default_workers", lambda seeds: min(cores, seeds) if min(cores, seeds) > 1 else 0
    )
    run = plan.Run("e/v", Path("r/e/v"), ("--env=e",), (0, 1, 2), 400)
    assert plan._command(run, processes)[-4:] == [
        "--env=e",
        "--num_steps=400",
        "--logdir=r/e/v",
        f"--workers={workers}",
    ]


def test_devices_share_the_cores_unless_the_environment_says_so(monkeypatch):
    monkeypatch.setattr(collect, "default_workers", lambda seeds: 8)
    monkeypatch.setattr(experiments, "XLA_FLAGS_GIVEN", "--xla_x=1")
    monkeypatch.setattr(experiments, "NPROC_GIVEN", "")
    assert plan._environment(1) == dict(os.environ)
    assert plan._environment(3)["XLA_FLAGS"] == "--xla_x=1 --xla_force_host_platform_device_count=2"
    assert plan._environment(3)["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert [plan._environment(n)["NPROC"] for n in (3, 5)] == ["4", "1"]
    monkeypatch.setattr(experiments, "NPROC_GIVEN", "7")
    assert plan._environment(5)["NPROC"] == "7"
    monkeypatch.setattr(experiments, "XLA_FLAGS_GIVEN", "--xla_force_host_platform_device_count=5")
    assert plan._environment(3)["XLA_FLAGS"] == "--xla_force_host_platform_device_count=5"
    assert plan._environment(3)["NPROC"] == os.environ["NPROC"]


# --- how runs are made ----------------------------------------------------------------------------


def test_a_run_that_fails_or_diverges_stops_no_other_and_what_is_over_is_not_made_again(child):
    runs = fake_runs("good", "bad", "nan", "fine")
    outcomes = plan.execute(runs, 2)
    assert states(outcomes) == ["done", "failed", "diverged", "done"]
    assert outcomes[1].words == "the disk is full" and outcomes[2].words == "Q is not finite"
    assert [plan.progress(run) for run in runs] == [800, 200, 800, 800]
    assert states(plan.execute(runs, 1)) == ["done", "failed", "diverged", "done"]
    starts = [len((run.folder / "starts").read_text().split()) for run in runs]
    assert starts == [1, 2, 1, 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_no_more_run_at_once_than_asked_for(child, processes):
    runs = fake_runs(*"abcd")
    plan.execute(runs, processes)
    spans = [
        tuple(float((run.folder / name).read_text()) for name in ("starts", "ends")) for run in runs
    ]
    assert max(sum(a <= t <= b for a, b in spans) for t, _ in spans) <= processes


def test_as_many_run_at_once_as_asked_for(child):
    assert states(plan.execute(fake_runs("meet1", "meet2", "meet3"), 3)) == ["done"] * 3


def test_a_run_that_another_process_makes_is_left_to_it(child):
    runs = fake_runs("a", "b")
    runs[0].folder.parent.mkdir(parents=True)
    with runs[0].lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert states(plan.execute(runs, 1)) == ["elsewhere", "done"]
        assert not runs[0].folder.exists()
    assert states(plan.execute(runs, 1)) == ["done", "done"]


def test_a_run_that_another_process_ends_before_we_hold_the_lock_is_not_made_again(
    child, monkeypatch
):
    (run,) = fake_runs("a")

    def lock_after_it_ended(lock, how):
        (run.folder / "checkpoints").mkdir(parents=True)
        (run.folder / "metrics.jsonl").write_text('{"step": 400, "seed": 0}\n')
        (run.folder / "DONE").touch()

    monkeypatch.setattr(fcntl, "flock", lock_after_it_ended)
    assert states(plan.execute([run], 1)) == ["done"] and not (run.folder / "starts").exists()


def test_the_lock_is_the_runs_own_and_ends_with_it(child):
    (run,) = fake_runs("wait")
    job = plan._start(run, 1)
    assert isinstance(job, plan._Job)
    with run.lock.open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        job.process.kill(), job.process.wait()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_same_call_goes_on(child, number):
    runs = fake_runs("wait1", "wait2", "c")
    before = signal.getsignal(number)

    def strike():
        files = [run.folder / "metrics.jsonl" for run in runs[:2]]
        while not all(
            file.exists() and file.stat().st_size for file in files
        ):  # before its first line a run has nothing to keep
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    assert states(plan.execute(runs, 2)) == ["stopped"] * 3
    thread.join()
    assert signal.getsignal(number) is before
    assert [len(list(run.folder.glob("checkpoints/*"))) > 0 for run in runs] == [True, True, False]
    assert states(plan.execute(runs, 2)) == ["done"] * 3
    lines = [
        json.loads(line)["step"]
        for line in (runs[0].folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == [100, 200, 300, 400]  # none twice: it went on from its checkpoint


def test_records_without_checkpoints_are_never_overwritten(child):
    whole, part = fake_runs("whole", "part")
    for run, last in ((whole, 400), (part, 300)):
        run.folder.mkdir(parents=True)
        (run.folder / "metrics.jsonl").write_text(json.dumps({"step": last, "seed": 0}) + "\n")
    outcomes = plan.execute([whole, part], 1)
    assert (
        states(outcomes) == ["done", "failed"]
        and "holds records without checkpoints" in outcomes[1].words
    )
    assert sorted(path.name for path in Path("r").rglob("*") if path.is_file()) == [
        "metrics.jsonl",
        "metrics.jsonl",
    ]


def test_progress_is_read_off_the_last_whole_line():
    (run,) = fake_runs("a")
    assert plan.progress(run) == 0 and plan.state(run) == "new"
    (run.folder / "checkpoints").mkdir(parents=True)
    lines = "".join(json.dumps({"step": s, "seed": 0, "x": "y" * 3000}) + "\n" for s in (100, 200))
    (run.folder / "metrics.jsonl").write_text(lines + '{"step": 300, "seed": 0}')
    assert plan.progress(run) == 400 and plan.state(run) == "begun"  # two seeds


def test_a_root_that_cannot_be_written_to_is_a_sentence():
    with pytest.raises(UserError, match="cannot write .* another --root"):
        plan.settle(KIND, config("--root=/dev/null/x", "--envs=probe/delay"), [])


# --- with experiments.train itself ----------------------------------------------------------------


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
            config(*args),
            [a for a in SMALL if "workers" not in a and "num_steps" not in a],
            lambda *a: seen.append(a),
        )
        == 0
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
        "preqn-sin.lock",
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
    deadline = time.monotonic() + 240
    while not any(
        path.name.isdigit() for folder in folders for path in folder.glob("checkpoints/*")
    ):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    if how == signal.SIGKILL:  # of the runs too, as when a machine dies
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    process.send_signal(how)
    code, out, err = finished(process)
    assert (code, "stopped; the same command goes on from there" in out) == (
        (0, True) if how == signal.SIGTERM else (-9, False)
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
