"""How the runs of a plan are made: side by side, stopped, shared between commands, continued."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import children, free, gone, until

import experiments
from experiments.kit import launch
from experiments.kit import runs as kit
from preqn_jax.training import lock

# A stand-in for experiments.train, which writes four lines of records, and checkpoints at SIGTERM.
# Its environment's name says what happens to it: "bad" fails, "nan" diverges, "meet" goes on once
# three of them run, "wait" once it was stopped.
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
if step < 4:
    sys.exit(75)
(folder / "DONE").touch()
"""


def fake_runs(*envs, root=Path("r")):
    return [kit.Run(f"{env}/x", root / env / "x", (), (0, 1), 400) for env in envs]


@pytest.fixture
def child(monkeypatch):
    monkeypatch.setattr(
        kit,
        "command",
        lambda run, cores: [sys.executable, "-I", "-S", "-c", CHILD, str(run.folder)],
    )


def states(outcomes):
    return [outcome.state for outcome in outcomes]


def test_a_run_that_fails_or_diverges_stops_no_other_and_what_is_over_is_not_made_again(child):
    runs = fake_runs("good", "bad", "nan", "fine")
    outcomes = kit.execute(runs, 2)
    assert states(outcomes) == ["done", "failed", "diverged", "done"]
    assert outcomes[1].words == "the disk is full" and outcomes[2].words == "Q is not finite"
    assert [kit.progress(run) for run in runs] == [800, 200, 800, 800]
    assert states(kit.execute(runs, 1)) == ["done", "failed", "diverged", "done"]
    starts = [len((run.folder / "starts").read_text().split()) for run in runs]
    assert starts == [1, 2, 1, 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_no_more_run_at_once_than_asked_for(child, processes):
    runs = fake_runs(*"abcd")
    kit.execute(runs, processes)
    spans = [
        tuple(float((run.folder / name).read_text()) for name in ("starts", "ends")) for run in runs
    ]
    assert max(sum(a <= t <= b for a, b in spans) for t, _ in spans) <= processes


def test_as_many_run_at_once_as_asked_for(child):
    assert states(kit.execute(fake_runs("meet1", "meet2", "meet3"), 3)) == ["done"] * 3


def test_a_run_that_another_process_makes_is_left_to_it(child):
    runs = fake_runs("a", "b")
    runs[0].folder.mkdir(parents=True)
    held = lock.Lock(runs[0].folder)
    assert states(kit.execute(runs, 1)) == ["elsewhere", "done"]
    assert [path.name for path in runs[0].folder.iterdir()] == ["lock"]
    held.release()
    assert states(kit.execute(runs, 1)) == ["done", "done"]


def test_a_run_that_another_process_has_ended_meanwhile_is_done(child):
    runs = fake_runs("a", "b")
    runs[0].folder.mkdir(parents=True)
    held, here = lock.Lock(runs[0].folder), launch.Local()

    def end(job, handle):
        if (ended := launch.Local.end(here, job, handle)) is not None:
            subprocess.run(kit.job(runs[0], 1).command, check=True)  # the other process
            held.release()
        return ended

    here.end = end
    assert states(kit.execute(runs, 1, here)) == ["done", "done"]


def test_a_run_that_another_process_ends_before_we_hold_the_lock_is_not_made_again(
    child, monkeypatch
):
    (run,) = fake_runs("a")

    def lock_after_it_ended(lock, how):
        (run.folder / "checkpoints").mkdir(parents=True)
        (run.folder / "metrics.jsonl").write_text('{"step": 400, "seed": 0}\n')
        (run.folder / "DONE").touch()

    monkeypatch.setattr(fcntl, "flock", lock_after_it_ended)
    assert states(kit.execute([run], 1)) == ["done"] and not (run.folder / "starts").exists()


def test_the_lock_is_the_runs_own_and_ends_with_it_even_if_we_are_killed(child):
    """kill -9 of the plan leaves the run, with its lock; kill -9 of the run frees the lock."""
    (run,) = fake_runs("wait")
    run.folder.mkdir(parents=True)
    job = kit.job(run, 1)
    ours = f"""
from pathlib import Path
from experiments.kit import launch
log, folder = Path({str(job.log)!r}), Path({str(job.folder)!r})
job = launch.Job("x", {job.command!r}, {{}}, log, folder, lambda: True, lambda: 0)
launch.run(launch.Local(), [job], 1, print)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(experiments.__file__).parent.parent)}
    parent = subprocess.Popen([sys.executable, "-c", ours], env=env)
    until(lambda: (run.folder / "metrics.jsonl").exists())
    (pid,) = children(parent)
    parent.kill(), parent.wait()
    with pytest.raises(lock.Busy):
        lock.Lock(run.folder)
    os.kill(pid, signal.SIGKILL)
    until(lambda: free(run.folder))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_same_call_goes_on(child, number):
    runs = fake_runs("wait1", "wait2", "c")
    before = signal.getsignal(number)

    def strike():
        files = [run.folder / "metrics.jsonl" for run in runs[:2]]
        # Before its first record a run has nothing to keep.
        until(lambda: all(file.exists() and file.stat().st_size for file in files))
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    assert states(kit.execute(runs, 2)) == ["stopped"] * 3
    thread.join()
    assert signal.getsignal(number) is before
    assert [len(list(run.folder.glob("checkpoints/*"))) > 0 for run in runs] == [True, True, False]
    assert states(kit.execute(runs, 2)) == ["done"] * 3
    lines = [
        json.loads(line)["step"]
        for line in (runs[0].folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == [100, 200, 300, 400]  # no line twice: it went on from its checkpoint


def test_records_without_checkpoints_are_never_overwritten(child):
    whole, part = fake_runs("whole", "part")
    for run, last in ((whole, 400), (part, 300)):
        run.folder.mkdir(parents=True)
        (run.folder / "metrics.jsonl").write_text(json.dumps({"step": last, "seed": 0}) + "\n")
    outcomes = kit.execute([whole, part], 1)
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
    assert kit.progress(run) == 0 and kit.state(run) == "new"
    (run.folder / "checkpoints").mkdir(parents=True)
    long = {f"x/{i}": 1.5 for i in range(300)}
    lines = "".join(json.dumps({"step": s, "seed": 0, **long}) + "\n" for s in (100, 200))
    (run.folder / "metrics.jsonl").write_text(lines + '{"step": 300, "seed": 0}')
    assert kit.progress(run) == 400 and kit.state(run) == "begun"  # two seeds


def test_a_run_that_ended_where_it_ran_is_over_also_where_that_does_not_show_yet(
    child, monkeypatch
):
    """As over a network, where new files may not show until a folder is listed again."""
    looked, finished = [], kit.directory.finished
    monkeypatch.setattr(kit.os, "listdir", looked.append)
    monkeypatch.setattr(kit.directory, "finished", lambda folder: False)
    runs = fake_runs("good", "more")
    assert states(kit.execute(runs, 2)) == ["done", "done"]
    assert [*map(kit.is_over, runs)] == [False, False] and all(finished(one.folder) for one in runs)
    assert all(looked.count(one.folder) == 2 for one in runs)  # when it ends, and for the report


def test_a_run_that_is_over_though_with_an_error_is_told_by_where_it_ran(child):
    """As when some of its seeds diverged."""
    (run,) = fake_runs("nan")
    job, here = kit.job(run, 1), launch.Local()
    run.folder.mkdir(parents=True)
    for over, end in ((True, "ended"), (False, "failed")):
        one = job._replace(wanted=lambda over=over: not (over and (run.folder / "ends").exists()))
        failing = "import pathlib, sys; pathlib.Path(sys.argv[1], 'ends').touch(); sys.exit(1)"
        one = one._replace(command=[sys.executable, "-S", "-c", failing, str(run.folder)])
        (run.folder / "ends").unlink(missing_ok=True)
        handle = here.start(one)
        assert not isinstance(handle, str)
        handle.wait()
        assert here.end(one, handle) == end


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "it was killed (SIGKILL), as the system does where memory is full; lower"),
        (signal.SIGSEGV, "it crashed (SIGSEGV); the lines above may say why"),
    ],
)
def test_a_run_that_the_system_kills_says_so_and_not_how_far_its_bar_was(
    number, words, monkeypatch
):
    dies = f"import os, signal; os.write(2, b'\\rE: 10%|# |'); os.kill(os.getpid(), {number:d})"
    monkeypatch.setattr(kit, "command", lambda *_: [sys.executable, "-I", "-S", "-c", dies])
    (outcome,) = kit.execute(fake_runs("a"), 1)
    assert outcome.state == "failed" and outcome.words.startswith(words)


HEARS = """
import os, pathlib, signal, sys, time
def hear(*_):
    if os.path.exists("asked"):
        sys.exit(128 + signal.SIGTERM)
    pathlib.Path("asked").touch()
signal.signal(signal.SIGTERM, hear)
assert os.getpgrp() == os.getpid()
pathlib.Path("ready").touch()
deadline = time.time() + 30
while not os.path.exists("enough") and time.time() < deadline:
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("bound", "signals", "end"), [(False, 1, "ended"), (False, 2, "stopped"), (True, 2, "ended")]
)
def test_what_asks_us_to_end_is_passed_on_at_once_and_a_terminal_reaches_us_alone(
    bound, signals, end, monkeypatch
):
    """Else a run that gets both, with a long look in between, would take ours for a second signal.
    A second signal from a terminal is passed on; on a node, which may get many, it is not.
    """
    monkeypatch.setattr(launch.signals, "ECHO", -1.0)
    Path("a").mkdir()
    command, ends = [sys.executable, "-I", "-S", "-c", HEARS], []
    job = launch.Job(
        "a", command, dict(os.environ), Path("a.log"), Path("a"), lambda: True, lambda: 0
    )

    def look(running, ended):
        ends.extend(ended)
        if running and not Path("enough").exists():
            until(Path("ready").exists)
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)
                until(Path("asked").exists, 20)
            if end == "ended":
                Path("enough").touch()

    launch.run(launch.Local(bound), [job], 1, look)
    assert ends == [("a", end)]


def test_records_that_cannot_be_read_for_a_moment_end_no_plan(child, monkeypatch):
    """Over NFS a file that a run replaces is stale for a moment."""
    (run,) = fake_runs("nan")
    kit.execute([run], 1)
    assert kit.state(run) == "diverged"

    def stale(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(kit.record, "read", stale)
    monkeypatch.setattr(kit.curves, "wanted_end", lambda line: False)
    assert kit.state(run) == "begun"


PLAN = """
import os, pathlib, signal, sys
from experiments.kit import launch
for number in (signal.SIGTSTP, signal.SIGQUIT):  # which a shell in the background ignores
    signal.signal(number, signal.SIG_DFL)
command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(120)"]
here = pathlib.Path
job = launch.Job("a", command, dict(os.environ), here("a.log"), here("a"), lambda: True, lambda: 0)
launch.run(launch.Local(), [job], 1, lambda running, ended: here("on").touch())
"""


def states_of(*pids):
    """The states of processes, as in /proc: T for one that is paused."""
    each = (Path(f"/proc/{pid}/stat").read_text() for pid in pids)
    return {text.rpartition(") ")[2][0] for text in each}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells states")
@pytest.mark.parametrize("last", [signal.SIGQUIT, signal.SIGTERM])
def test_a_terminal_pauses_ends_and_goes_on_with_runs_too(last):
    """SIGTERM also ends a run that somebody paused."""
    Path("a").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", PLAN], env=environment, process_group=0)
    until(lambda: children(process) and Path("on").exists(), process=process)
    (run,) = children(process)
    try:
        process.send_signal(signal.SIGTSTP)
        until(lambda: states_of(process.pid, run) == {"T"})
        process.send_signal(signal.SIGCONT)
        until(lambda: "T" not in states_of(process.pid, run))
        if last == signal.SIGTERM:
            os.kill(run, signal.SIGSTOP)
            until(lambda: states_of(run) == {"T"})
        process.send_signal(last)
        process.wait(60)
        until(lambda: gone([run]))
    finally:
        for pid in (process.pid, run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
