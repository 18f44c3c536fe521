"""The lock of a run directory: one process at a time has it in hand."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, SMALL, call

import preqn_jax
from directory_cases import begun, contents, open_
from preqn_jax.training import lock

PROBE = ["--env=probe/delay", "--logdir=x", *SMALL]


def test_a_second_process_is_told_who_has_the_run_in_hand_and_touches_nothing(capsys):
    folder = begun()
    holder = f"""
import sys, time
from pathlib import Path
from preqn_jax.training.lock import Lock
held = Lock(Path({str(folder.absolute())!r})).sign()
print("held", flush=True)
time.sleep(60)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        before = contents(folder)
        assert call(*PROBE) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: logdir 'x' is in use by process {process.pid} on ")
        assert " since 20" in err and err.count("\n") == 1
        assert contents(folder) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
    open_()  # nothing is left of the lock but a file
    assert not (folder / "lock").exists()


def test_a_process_that_holds_it_itself_is_told_so_and_train_takes_it_too():
    held = lock.Lock(begun(lines=[])).sign()
    with pytest.raises(lock.Busy, match=r"which is this process: close its earlier `train` first"):
        next(preqn_jax.train("preqn", "probe/delay", logdir="x"))
    held.release()


def test_a_lock_that_was_passed_on_is_not_passed_on_again(monkeypatch):
    folder = Path("x")
    folder.mkdir()
    first = lock.Lock(folder)
    os.set_inheritable(first.fd, True)
    monkeypatch.setenv(lock.INHERITED, str(first.fd))
    second = lock.Lock(folder)
    assert second.fd == first.fd and lock.INHERITED not in os.environ
    assert not os.get_inheritable(second.fd)
    second.release()


def test_a_lock_that_was_removed_meanwhile_is_none(monkeypatch):
    """A process that waits while the holder removes the lock file must not get the removed file."""
    folder = begun()
    first, flock = lock.Lock(folder), lock._flock

    def release_first(fd):
        monkeypatch.setattr(lock, "_flock", flock)
        first.release()
        flock(fd)

    monkeypatch.setattr(lock, "_flock", release_first)
    second = lock.Lock(folder)
    with pytest.raises(lock.Busy):
        lock.Lock(folder)
    second.release()


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(monkeypatch, caplog):
    def none(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    open_()
    assert "cannot lock the run directory (No locks available)" in caplog.text
