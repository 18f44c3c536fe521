"""Files that are whole or as they were."""

from pathlib import Path

import pytest

from preqn_jax.training import files


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it():
    path = Path("x/config.json")
    path.parent.mkdir()
    path.write_bytes(b"before")
    with pytest.raises(ValueError), files.anew(path) as written:
        written.write_bytes(b"half of")
        raise ValueError
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == b"before"


def test_one_that_cannot_take_its_place_leaves_nothing_either():
    path = Path("x")
    path.mkdir()
    (path / "full").touch()
    with pytest.raises(OSError):
        files.replace(path, b"content")
    assert [entry.name for entry in Path().iterdir()] == ["x"] and (path / "full").exists()


def test_of_a_link_the_link_is_removed_and_not_what_it_points_to():
    folder, link = Path("folder"), Path("link")
    folder.mkdir()
    (folder / "file").touch()
    link.symlink_to(folder)
    files.remove(link)
    assert not link.is_symlink() and (folder / "file").exists()
    files.remove(folder)
    files.remove(folder)  # what is gone stays gone
    assert not folder.exists()
