"""Signals and broken streams, from the first moment of a run to its last."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import CHEAP, ROOT, SMALL, call, finished, records, start
from waiting import children, gone, until

from experiments.kit import signals, streams
from preqn_jax.training.record import read

ENV = "--env=tests.faulty:{}-v0"
proc = pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")


@pytest.fixture
def ended(monkeypatch):
    """Exit statuses with which `heard` would have ended this process, recorded instead of that."""
    statuses, done = [], threading.Event()

    def end(status, last):
        statuses.append(status), last(), done.set()

    monkeypatch.setattr(signals, "end", end)
    return statuses, done


@pytest.mark.parametrize("number", ["TERM", "INT", "HUP", "USR1", "USR2"])
def test_the_first_signal_asks_and_the_next_ends(number, ended, monkeypatch):
    monkeypatch.setattr(signals, "ECHO", 0.0)
    number = signal.Signals[f"SIG{number}"]
    before, (statuses, done) = signal.SIG_DFL, ended
    ours = signal.signal(number, before)  # it may be ignored, as under nohup
    first, calls = threading.Event(), []
    try:
        with signals.heard(first.set, lambda: calls.append("last")):
            os.kill(os.getpid(), number)
            assert first.wait(60) and statuses == [] and calls == []
            os.kill(os.getpid(), number)
            assert done.wait(60)
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, ours)
    assert statuses == [128 + number] and calls == ["last"]


def test_an_echo_of_a_signal_is_the_same_one(ended, monkeypatch):
    """A closing terminal sends two SIGHUPs, and `timeout` two SIGTERMs."""
    monkeypatch.setattr(signals, "ECHO", 1e6)
    calls = []
    with signals.heard(lambda: calls.append(1), lambda: None):
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
    assert calls == [1] and ended[0] == []


def test_a_signal_that_is_ignored_stays_so():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.heard(lambda: pytest.fail("asked"), lambda: None):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with signals.handled(lambda *_: pytest.fail("asked")):  # for a plan, and what it starts
            os.kill(os.getpid(), signal.SIGHUP)
            said = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
            assert subprocess.check_output([sys.executable, "-c", said]) == b"True\n"
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_stream_whose_reader_has_gone_is_written_to_in_vain(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    broken = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", broken)
    monkeypatch.setattr(sys, "stderr", None)
    streams.forgive()
    print("lost")
    sys.stdout.flush()
    print("lost too", file=sys.stderr)
    broken.close()  # would raise BrokenPipeError for what it still holds


def test_what_a_reader_is_there_for_arrives(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        streams.forgive()
        print("kept", end="", flush=True)
        assert not sys.stdout.isatty()
    assert (tmp_path / "out").read_text() == "kept"


def test_what_a_stream_has_no_letters_for_is_written_in_others(monkeypatch, tmp_path):
    """A line must not be lost for a single letter."""
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        streams.forgive()
        print("3.0 \u00b1 0.5", end="", flush=True)
    assert (tmp_path / "out").read_text() == "3.0 \\xb1 0.5"


def test_debug_shows_the_environments_own_traceback(capsys):
    args = ["--env=tests.faulty:ResetRaise-v0", "--logdir=x", *SMALL]
    assert call(*args) == 1
    plain = capsys.readouterr().err
    assert plain.startswith("error: environment 'tests.faulty:ResetRaise-v0', in reset, raised Key")
    assert plain.count("\n") == 1 and "there was no checkpoint yet" in plain
    assert call(*args, "--debug") == 1
    shown = capsys.readouterr().err
    assert shown.endswith(plain) and "KeyError: 'joint'" in shown and "in throw" in shown


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--diagnose_every=300"]])
def test_a_nan_that_only_an_evaluation_meets_leaves_a_whole_run(extra, capsys, caplog):
    args = [ENV.format("EvalNan"), "--logdir=x", *CHEAP, *extra]
    assert call(*args) == 0
    out, _ = capsys.readouterr()
    evals = [
        line["eval/return_mean"] for line in read("x/metrics.jsonl") if "eval/episodes" in line
    ]
    assert evals == [5.0, None] and Path("x/DONE").exists()
    assert "     0        nan         nan        5.0\n" in out
    assert "seed 0: 1 of 2 evaluations were not finite" in out
    assert "at step 600: their seeds' returns are recorded as null" in caplog.text
    assert call(*args) == 0 and "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_cut_evaluation_is_recorded_and_in_the_summary(capsys):
    args = [ENV.format("Endless"), "--logdir=x", *CHEAP]
    assert call(*args, "--eval_max_steps=9") == 0
    cut = [line["eval/cut"] for line in read("x/metrics.jsonl") if "eval/episodes" in line]
    assert cut == [2, 2]
    assert "seed 0: 4 evaluation episodes were cut off after 9 steps" in capsys.readouterr().out
    assert call(*args, "--eval_max_steps=10") == 1
    assert "with eval_max_steps=9, but this command says 10" in capsys.readouterr().err
    assert call(*args, "--eval_max_steps=9", "--env_timeout=5") == 0
    config = json.loads(Path("x/config.json").read_text())
    del config["config"]["eval_max_steps"]  # as in a run directory from before there was one
    Path("x/config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert call(*args) == 0 and "nothing to do" in capsys.readouterr().out


def kill_until_it_ends(process, number):
    """Sends the signal until the process ends: the first asks, and a later one ends it, however
    fast this machine is.
    """

    def ended():
        process.send_signal(number)
        time.sleep(0.5)
        return process.poll() is not None

    until(ended)


@pytest.mark.slow
@proc
@pytest.mark.parametrize(
    ("fault", "workers", "number"),
    [("Spin", 0, signal.SIGTERM), ("Hang", 2, signal.SIGINT)],
)
def test_a_second_signal_ends_a_run_whose_environment_hangs(
    tmp_path, monkeypatch, fault, workers, number
):
    monkeypatch.setenv("FAULTY_MARK", str(tmp_path / "hangs"))
    logdir = tmp_path / "x"
    args = [ENV.format(fault), f"--logdir={logdir}", "--seeds=0,1", *SMALL]
    process = start(*args, f"--workers={workers}", "--eval_max_steps=9", "--eval_every=600")
    until((tmp_path / "hangs").exists, process=process)
    born = children(process)
    kill_until_it_ends(process, number)
    code, _, err = finished(process)
    assert code == 128 + number and "Traceback" not in err, err
    assert (
        f"ended at once, at a second signal; the checkpoint of step 200 is kept in {logdir}" in err
    )
    assert (logdir / "checkpoints" / "200").exists() and not (logdir / "DONE").exists()
    until(lambda: gone(born))


@pytest.mark.slow
def test_a_hung_environment_ends_the_command_with_its_name(tmp_path):
    logdir = tmp_path / "x"
    args = [ENV.format("Spin"), f"--logdir={logdir}", *SMALL, "--eval_every=600"]
    code, _, err = finished(start(*args, "--env_timeout=20"))
    assert code == 1 and "Traceback" not in err
    assert "error: environment 'tests.faulty:Spin-v0' has not returned from step for 20 s" in err
    assert "--env_timeout=40; its traceback is in" in err and "the checkpoint of step 200" in err
    assert "in spin" in (logdir / "environment.log").read_text()


@pytest.mark.slow
@proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("delay", [0.3, 2, 5, 9])
def test_a_signal_as_a_run_starts_leaves_nothing_behind(tmp_path, number, delay):
    logdir = tmp_path / "x"
    args = ["--env=Hopper-v5", "--seeds=0,1", "--workers=2", *SMALL, "--num_steps=20000"]
    process = start(*args, f"--logdir={logdir}")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(delay)
    born = children(process)
    process.send_signal(number)
    code, _, err = finished(process)
    assert "Traceback" not in err, err
    assert code == -number or (code == 75 and "stopped at step" in err)
    until(lambda: gone(born))


@pytest.mark.slow
@proc
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_write_a_checkpoint_and_the_run_goes_on_bit_for_bit(number, tmp_path):
    """Batch systems send theirs to every process."""
    args = ["--env=Hopper-v5", "--algorithm=td3", *SMALL, "--num_steps=4000", "--workers=1"]
    process = start(f"--logdir={tmp_path / 'x'}", *args)
    until((tmp_path / "x" / "checkpoints" / "200").exists, process=process)
    for pid in (process.pid, *children(process)):
        os.kill(pid, number)
    code, _, err = finished(process)
    assert code == 75 and "stopped at step" in err
    for name in ("x", "y"):
        code, _, err = finished(start(f"--logdir={tmp_path / name}", *args))
        assert code == 0, err
    assert records(tmp_path / "x") == records(tmp_path / "y")


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["2>&-", ">&-", ">&- 2>&- <&-", "2>&1 | true", "| true"])
def test_a_run_does_not_need_a_reader(tmp_path, redirect):
    logdir = tmp_path / "x"
    args = " ".join(["--env=probe/delay", f"--logdir={logdir}", *SMALL])
    line = f"set -o pipefail; {sys.executable} -m experiments.train {args} {redirect}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Errno" not in done.stderr
    assert (logdir / "DONE").exists() and (logdir / "curve.png").exists()
    assert len(records(logdir)) == 8
