"""Paths, links and files that would be lost, or that no run leaves."""

import os

import pytest

from experiments.kit import output
from preqn_jax.options import UserError
from preqn_jax.training import directory, files, note


@pytest.mark.parametrize("name", ["proj [v2]/run", "a\\b"])
def test_a_path_whose_checkpoints_could_not_be_read_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="checkpoints there could not be read again; give a path"):
        directory.open_(tmp_path / name, {})
    assert not list(tmp_path.iterdir())


def test_an_output_replaces_no_link_and_no_device(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("fifo", "link"):
        with pytest.raises(UserError, match=r"it is a link or a device, .*; give another --out$"):
            output.check("out", str(tmp_path / name))
    output.check("out", str(tmp_path / "file"))


def test_a_foreign_file_in_a_checkpoint_is_named(tmp_path):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/own").write_text("x")
    kept = {f"agent/{k}": v for k, v in files.digests(tmp_path / "agent").items()}
    note.verify(tmp_path, {"files": kept}, "agent")
    (tmp_path / "agent/.DS_Store").write_text("y")
    with pytest.raises(ValueError, match="agent/.DS_Store is no file of this checkpoint: remove"):
        note.verify(tmp_path, {"files": kept}, "agent")
