import os
import pathlib
import platform
import subprocess
import sys

import pytest

from jxfer.errors import UserError
from jxfer.zoo.whole import replacing


def write(target, text, overwrite=False, fail=False):
    """Writes a folder with one file through `replacing`."""
    with replacing(
        target, overwrite=overwrite, kind="shelf", is_one=lambda path: (path / "book").is_file()
    ) as new:
        new.mkdir()
        (new / "book").write_text(text)
        if fail:
            raise RuntimeError("killed here")


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left(folder, role, process, text=""):
    """What a process that was killed left in `folder`, which held the target `shelf`."""
    path = folder / f".shelf.{role}-{platform.node()}-{process}"
    path.mkdir()
    (path / "book").write_text(text)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_target_appears_at_the_end(tmp_path):
    target = tmp_path / "a" / "shelf"
    with replacing(target, overwrite=False, kind="shelf", is_one=lambda path: True) as new:
        new.mkdir()
        assert not target.exists()
    assert names(tmp_path / "a") == ["shelf"]


def test_what_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "shelf"
    with pytest.raises(RuntimeError):
        write(target, "first", fail=True)
    assert names(tmp_path) == []
    write(target, "first")
    with pytest.raises(RuntimeError):
        write(target, "second", overwrite=True, fail=True)
    assert names(tmp_path) == ["shelf"]
    assert (target / "book").read_text() == "first"
    write(target, "second", overwrite=True)
    assert (target / "book").read_text() == "second"


def test_if_the_last_rename_fails_the_old_one_comes_back(tmp_path):
    target = tmp_path / "shelf"
    write(target, "first")
    with (
        pytest.raises(UserError, match="cannot be written"),
        replacing(target, overwrite=True, kind="shelf", is_one=lambda path: True),
    ):
        pass  # nothing was written, so there is nothing to rename
    assert (target / "book").read_text() == "first"
    assert names(tmp_path) == ["shelf"]


def test_leftovers_of_dead_processes_are_removed(tmp_path, dead):
    write(tmp_path / "shelf", "first")
    left(tmp_path, "new", dead)
    left(tmp_path, "old", dead)
    alive = left(tmp_path, "new", os.getppid())
    elsewhere = tmp_path / ".shelf.new-other-machine-1"
    elsewhere.mkdir()
    write(tmp_path / "shelf", "second", overwrite=True)
    assert names(tmp_path) == sorted([elsewhere.name, alive.name, "shelf"])


def test_what_vanished_between_two_renames_comes_back(one_line, tmp_path, dead):
    left(tmp_path, "new", dead, "second")
    left(tmp_path, "old", dead, "first")
    with one_line("shelf exists"):
        write(tmp_path / "shelf", "third")
    assert (tmp_path / "shelf" / "book").read_text() == "first"
    assert names(tmp_path) == ["shelf"]


def test_a_file_in_the_way(one_line, tmp_path):
    (tmp_path / "file").touch()
    for parent in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with one_line(f"{parent}: no folder can be made"):
            write(parent / "shelf", "first")
    assert names(tmp_path) == ["file"]


def test_of_a_link_what_it_points_to_is_replaced(tmp_path):
    write(tmp_path / "real", "first")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "second", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "book").read_text() == "second"
    assert names(tmp_path) == ["link", "real"]


def test_places_that_cannot_be_written_are_one_line(one_line):
    with one_line("/ cannot be replaced"):
        write(pathlib.Path("/"), "x")
    with one_line("/proc/shelf", "cannot be written"):
        write(pathlib.Path("/proc/shelf"), "x")
