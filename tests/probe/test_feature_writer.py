"""A folder of features: whole or visibly not, taken up after a kill, never of two keys."""

import errno
import json
import os
import stat
import tracemalloc

import filelock
import numpy as np
import pytest

from jxfer import disk
from jxfer.data.readers import Subset
from jxfer.probe import feature_files, feature_writer
from tests.noise import Noise

ROWS = 10
SHAPES = {"stage1": (2, 3), "pooled": (4,)}
VALUES = {
    name: np.random.default_rng(i).normal(size=(ROWS, *shape)).astype(np.float32)
    for i, (name, shape) in enumerate(SHAPES.items())
}
KEY = {
    "weights": {"name": "net", "tensors_sha256": "abc"},
    "network": {},
    "preprocessing": {},
    "data": {"source": "folder:x", "images_sha256": "def"},
    "outputs": ["stage1", "pooled"],
    "form": "pooled",
}
PROGRAM = {"devices": 8, "code": {"jax": "1"}}


class Computes:
    """Blocks of 4 rows; remembers where it was asked to start, and dies when told."""

    def __init__(self, dies_at=None):
        self.dies_at, self.starts = dies_at, []

    def __call__(self, start):
        self.starts.append(start)
        for row in range(start, ROWS, 4):
            if row == self.dies_at:
                raise KeyboardInterrupt
            yield {name: values[row : row + 4] for name, values in VALUES.items()}


def write(folder, computes, key=KEY, program=PROGRAM):
    return feature_writer.write(folder, key, program, SHAPES, Noise(ROWS), computes)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "features"


def leave_killed(folder, dies_at=8):
    with pytest.raises(KeyboardInterrupt):
        write(folder, Computes(dies_at))


def assert_whole(folder):
    found = feature_files.load(folder)
    assert set(found.arrays) == set(SHAPES)
    for name, values in VALUES.items():
        assert found.arrays[name].dtype == np.float32
        np.testing.assert_array_equal(found.arrays[name], values)
    np.testing.assert_array_equal(found.labels, Noise(ROWS).labels)
    assert found.ids.tolist() == [str(i) for i in range(ROWS)]
    assert found.class_names == tuple("abcdefg")
    assert found.key == KEY
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {"features.json", "stage1.npy", "pooled.npy", "labels.npy", "ids.npy"}


def test_rows_come_back_as_they_were_computed(folder):
    assert write(folder, Computes())
    assert_whole(folder)


def test_a_whole_folder_is_not_computed_again(folder):
    write(folder, Computes())
    again = Computes()
    # Nor where another program would round otherwise.
    assert not write(folder, again, program={"devices": 1})
    assert again.starts == []
    assert_whole(folder)


@pytest.mark.parametrize("dies_at", [0, 4, 8])
def test_a_kill_costs_no_whole_block(folder, dies_at, one_line):
    leave_killed(folder, dies_at)
    assert not list(folder.glob("*.npy"))
    with one_line(str(folder), "not complete"):
        feature_files.load(folder)
    again = Computes()
    assert write(folder, again)
    assert again.starts == [dies_at]
    assert_whole(folder)


def test_numpy_refuses_a_part(folder):
    leave_killed(folder)
    with pytest.raises(ValueError, match="mmap length"):
        np.load(folder / "pooled.npy.part", mmap_mode="r")


def test_a_block_that_was_not_counted_is_written_once(folder):
    """Killed between the rows and progress.json."""
    leave_killed(folder)
    with (folder / "pooled.npy.part").open("ab") as file:
        file.write(b"\0" * 24)
    again = Computes()
    write(folder, again)
    assert again.starts == [8]
    assert_whole(folder)


def test_a_kill_between_the_last_renames_costs_no_row(folder, monkeypatch):
    def kill(path, values):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        real = disk.write_json
        patch.setattr(
            disk,
            "write_json",
            lambda path, values: (kill if path.name == "features.json" else real)(path, values),
        )
        with pytest.raises(KeyboardInterrupt):
            write(folder, Computes())
    (folder / "pooled.npy").rename(folder / "pooled.npy.part")
    again = Computes()
    assert write(folder, again)
    assert again.starts == []
    assert_whole(folder)


def test_what_a_kill_at_the_very_end_leaves_goes_with_the_next_call(folder):
    write(folder, Computes())
    (folder / "progress.json").write_text("{}")
    assert not write(folder, Computes())
    assert_whole(folder)


def test_the_names_are_on_the_disk_before_and_after_the_manifest(folder, monkeypatch):
    seen, real = [], os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            seen.append({path.name for path in folder.iterdir()} - {".lock"})
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(folder, Computes())
    arrays = {"stage1.npy", "pooled.npy", "labels.npy", "ids.npy", "progress.json"}
    assert seen == [arrays, arrays | {"features.json"}]


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "cut progress"])
def test_a_damaged_part_is_computed_again(folder, harm, caplog):
    leave_killed(folder)
    part = folder / "stage1.npy.part"
    if harm == "remove":
        part.unlink()
    elif harm == "cut progress":
        (folder / "progress.json").write_text('{"rows": 8')
    else:
        content = bytearray(part.read_bytes())
        content[200] ^= 1
        part.write_bytes(content if harm == "flip" else content[:200])
    again = Computes()
    write(folder, again)
    assert again.starts == [0]
    assert "damaged; starting at the first row" in caplog.text
    assert_whole(folder)


def test_rows_of_another_program_are_computed_again(folder, caplog):
    leave_killed(folder)
    again = Computes()
    write(folder, again, program=PROGRAM | {"devices": 1})
    assert again.starts == [0]
    assert "devices 8 -> 1" in caplog.text
    assert_whole(folder)


@pytest.mark.parametrize("whole", [True, False])
def test_another_key_is_refused_and_named(folder, whole, one_line):
    if whole:
        write(folder, Computes())
    else:
        leave_killed(folder)
    other = Computes()
    with one_line(str(folder), "weights.tensors_sha256 'abc' -> 'abd'", "new folder"):
        write(folder, other, key=KEY | {"weights": {"name": "net", "tensors_sha256": "abd"}})
    assert other.starts == []


def test_a_damaged_whole_folder_is_not_called_finished(folder, one_line):
    write(folder, Computes())
    content = bytearray((folder / "ids.npy").read_bytes())
    content[-1] ^= 1
    (folder / "ids.npy").write_bytes(content)
    with one_line("ids.npy", "damaged"):
        write(folder, Computes())


def test_a_live_folder_is_refused(folder, one_line):
    folder.mkdir()
    with filelock.FileLock(folder / ".lock"), one_line(str(folder), "another process"):
        write(folder, Computes())


def test_a_folder_of_other_things_is_left_alone(folder, one_line):
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with one_line("thesis.tex", "--out"):
        write(folder, Computes())
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_folder_is_listed_under_its_lock(folder, monkeypatch):
    """Another process may finish between a listing and the lock."""
    leave_killed(folder)
    held, real = [], feature_writer._other_files

    def listed(path):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(path / ".lock").acquire(timeout=0)
        held.append(path)
        return real(path)

    monkeypatch.setattr(feature_writer, "_other_files", listed)
    write(folder, Computes())
    assert held == [folder]


def test_a_name_that_is_too_long_is_one_line(tmp_path, one_line):
    for refuses in (feature_writer.check_folder, lambda folder: write(folder, Computes())):
        with one_line("--out", "File name too long"):
            refuses(tmp_path / ("x" * 300))


def test_a_file_in_the_way_is_one_line(tmp_path, one_line):
    (tmp_path / "file").write_text("")
    with one_line("file", "--out"):
        write(tmp_path / "file", Computes())
    with one_line("file", "Not a directory"):
        write(tmp_path / "file" / "features", Computes())


def test_too_little_room_is_known_before_the_first_row(folder, monkeypatch, one_line):
    usage = type("usage", (), {"free": 399})
    monkeypatch.setattr(feature_writer.shutil, "disk_usage", lambda path: usage)
    computes = Computes()
    with one_line("4e-07 GB", "3.99e-07 GB are free"):
        write(folder, computes)
    assert computes.starts == []
    usage.free = 400
    assert write(folder, computes)


def test_a_disk_that_fills_up_is_one_line_and_resumes(folder, monkeypatch, one_line):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with one_line(str(folder), "No space left on device"):
            write(folder, Computes())
    done = json.loads((folder / "progress.json").read_text())["rows"]
    assert done == 4
    again = Computes()
    write(folder, again)
    assert again.starts == [4]
    assert_whole(folder)


def test_memory_holds_a_block_however_many_there_are(folder):
    block, blocks = {"pooled": np.ones((64, 4096), np.float32)}, 40  # 1 MiB each
    rows = 64 * blocks
    tracemalloc.start()
    try:
        feature_writer.write(
            folder,
            KEY | {"outputs": ["pooled"]},
            PROGRAM,
            {"pooled": (4096,)},
            Subset(Noise(1), [0] * rows),
            lambda start: (block for _ in range(start // 64, blocks)),
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert feature_files.load(folder).arrays["pooled"].nbytes == blocks * 2**20
    assert peak < 8 * 2**20
