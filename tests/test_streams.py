"""Commands do their work whether or not anybody reads what they print."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, SMALL, defined, records

from experiments import train
from experiments.kit import flags, streams
from preqn_jax.training.record import read

TALK = """
import os, sys
from experiments.kit import streams
streams.forgive()
for _ in range(3000):
    print("words" * 10)
    print("words" * 10, file=sys.stderr, flush=True)
with open("made", "w") as file:
    file.write(str(file.fileno() > 2))
"""


@pytest.mark.parametrize(
    "how", ["<&- >&- 2>&-", pytest.param("2>&1 | head -1", marks=pytest.mark.slow)]
)
def test_a_command_does_not_depend_on_a_reader(how, tmp_path):
    script = f"set -o pipefail; '{sys.executable}' -c '{TALK}' {how}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert (ended.returncode, Path("made").read_text()) == (0, "True"), ended.stderr
    assert "Error" not in ended.stdout + ended.stderr


def test_a_stream_on_a_full_disk_drops_what_it_cannot_hold():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    stream = streams.Forgiving(Full())
    print("words", file=stream, flush=True)
    assert stream.isatty() is False and stream.lost is not None
    assert stream.lost.strerror == "No space left on device"


@pytest.mark.parametrize("keeps", [False, True])
def test_a_command_whose_result_is_what_it_prints_fails_where_that_is_lost(keeps, capfd):
    """As `table runs/* > table.md` on a full disk; a run is whole without what it prints."""
    script = (
        "from experiments.kit import flags\n"
        f"flags.run(lambda argv: print('a table') or 0, keeps={keeps})"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", script], env=env, stdout=full)
    words = "error: cannot write to the standard output: No space left on device\n"
    assert (ended.returncode, capfd.readouterr().err) == ((0, "") if keeps else (1, words))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["<&- >&- 2>&-", "2>&1 | head -1", ">/dev/full 2>&1"])
def test_training_does_not_depend_on_a_reader(tmp_path, how):
    args = ["--env=probe/delay", f"--logdir={tmp_path / 'run'}", *SMALL]
    words = " ".join([sys.executable, "-m", "experiments.train", *args, how])
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {words}"], env=env, cwd=tmp_path)
    assert ended.returncode == 0
    assert (tmp_path / "run/DONE").exists() and (tmp_path / "run/curve.png").exists()
    assert len(read(tmp_path / "run/metrics.jsonl")) == len(records(tmp_path / "run")) == 8


def test_help_that_nobody_reads_to_its_end_is_no_fault(monkeypatch):
    """As in `--help | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, open(writer, "w", buffering=1) as nobody:
        patch.setattr(sys, "argv", ["train", "--help"])
        patch.setattr(sys, "stdout", nobody)
        patch.setattr(sys, "stderr", sys.stderr)  # which a command replaces
        defined()
        flags.run(train.main)
