"""Files that are written whole, their checksums, and the folder of what can be made again."""

import json
import os
import pathlib
import zlib

import pytest

from jxfer import disk
from jxfer.errors import DiskError


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("JXFER_CACHE", "/somewhere")
    assert disk.cache_dir() == pathlib.Path("/somewhere")
    monkeypatch.delenv("JXFER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert disk.cache_dir() == pathlib.Path("/xdg/jxfer")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert disk.cache_dir() == pathlib.Path.home() / ".cache" / "jxfer"


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    disk.write_json(path, {"old": 1})

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskError, match="disk full"):
        disk.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


@pytest.mark.parametrize("size", [None, 0, 1, 16, 17, 99, 100])
def test_a_checksum_is_that_of_all_bytes_or_of_the_first(size, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_PIECE", 16)
    content = bytes(range(100))
    (tmp_path / "file").write_bytes(content)
    assert disk.crc32(tmp_path / "file", size) == zlib.crc32(content[:size])


def test_a_file_that_is_too_short_has_no_checksum(tmp_path):
    (tmp_path / "file").write_bytes(b"short")
    assert disk.crc32(tmp_path / "file", 6) == -1
