"""Writing files so that they are whole, or as they were before."""

import os
import time
from pathlib import Path

import pytest

from preqn_jax.options import UserError
from preqn_jax.training import directory, files


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it():
    path = Path("x/config.json")
    path.parent.mkdir()
    path.write_bytes(b"before")
    with pytest.raises(ValueError), files.anew(path) as file:
        file.write(b"half of")
        raise ValueError
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == b"before"


def test_one_that_cannot_take_its_place_leaves_nothing_either():
    path = Path("x")
    path.mkdir()
    (path / "full").touch()
    with pytest.raises(OSError):
        files.replace(path, b"content")
    assert [entry.name for entry in Path().iterdir()] == ["x"] and (path / "full").exists()


def test_several_may_write_one_file_at_once():
    """The last to finish wins, and its file is whole; no writer meets another's temporary file."""
    path = Path("x.json")
    with files.anew(path) as mine:
        mine.write(b"one")
        with files.anew(path) as other:
            other.write(b"another")
        assert path.read_bytes() == b"another"
    assert path.read_bytes() == b"one" and list(Path().iterdir()) == [path]


def test_what_kills_leave_goes_once_it_is_nobodys_and_nothing_else_does():
    path, day = Path("x.json"), 24 * 3600
    old = ["x.json.01234567.tmp", "x.json.tmp"]
    others = ["y.json.01234567.tmp", "x.json.0123456.tmp", "x.jsonl.tmp", "x.tmp"]
    for name in [*old, *others]:
        Path(name).touch()
        os.utime(name, (0, time.time() - day - 60))
    Path("x.json.fedcba98.tmp").touch()  # somebody is writing it
    files.replace(path, b"{}")
    left = {entry.name for entry in Path().iterdir()}
    assert left == {"x.json", "x.json.fedcba98.tmp", *others}
    taken = {name for name in left if files.is_temporary(name, "x.json")}
    assert taken == {"x.json.fedcba98.tmp"}


def test_a_link_that_lies_where_one_would_be_written_is_not_followed(monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    Path("mine").write_text("years of work")
    Path("x.json.00000000.tmp").symlink_to("mine")
    with pytest.raises(FileExistsError):
        files.replace(Path("x.json"), b"{}")
    assert Path("mine").read_text() == "years of work"


def test_of_a_link_the_link_is_removed_and_not_what_it_points_to():
    folder, link = Path("folder"), Path("link")
    folder.mkdir()
    (folder / "file").touch()
    link.symlink_to(folder)
    files.remove(link)
    assert not link.is_symlink() and (folder / "file").exists()
    files.remove(folder)
    files.remove(folder)  # a deleted one stays deleted
    assert not folder.exists()


def test_a_config_that_could_not_be_read_is_told_from_one_that_is_none():
    for name, cause in (("folder", IsADirectoryError), ("file", type(None))):
        path = Path(name) / "config.json"
        path.parent.mkdir()
        path.mkdir() if name == "folder" else path.touch()
        with pytest.raises(UserError, match="is not a run's config.json") as found:
            directory.read_config(path)
        assert isinstance(found.value.__cause__, cause)
