"""A disk that cannot hold what a command keeps there for the next one."""

import os

import pytest

from tests.commands.disk.conftest import FULL
from tests.commands.runs import outcome, start, train


def test_a_full_cache_is_named(disk, refused, images, monkeypatch):
    """Where the data themselves must go there."""
    monkeypatch.setenv("JXFER_CACHE", str(disk.place / "cache"))
    disk.leave(3)
    line = refused(*train(disk.place / "run", images, "--data.source", "digits"))
    assert FULL in line
    assert "point JXFER_CACHE to a folder" in line


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["full", "read-only"])
def test_features_that_cannot_be_kept_on_disk(harm, disk, run, refused, images, backbone, tmp_path):
    """Where a cache on disk was asked for it is an error; a sweep's goes on in memory, and says so.

    The bits are the same.
    """

    def probe(folder, mode):
        options = ("--strategy.name", "linear_probe", "--model.weights", backbone, "--epochs", "8")
        cell = ["--cache.mode", mode]
        kept = train(folder, images, *options, *cell)
        without = kept.index("--model.arch")
        return kept[:without] + kept[without + 4 :]

    assert run(*probe(tmp_path / "lone", "memory"))[0] == 0
    cache = disk.place / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JXFER_CACHE", str(cache))
        if harm == "full":
            disk.leave(3)
        else:
            disk.make_read_only()
        told = FULL if harm == "full" else "Read-only file system"
        line = refused(*probe(tmp_path / "kept", "disk"))
        assert told in line
        assert str(cache) in line
        code, _, err = run(*probe(tmp_path / "shared", "shared"))
        assert code == 0, err
        assert f"{told}; " in err
        assert "here they are kept in memory" in err
        if harm == "full":
            disk.make_room()
        else:
            disk.make_writable()
        assert run(*probe(tmp_path / "kept", "disk"))[0] == 0
        assert list((cache / "features").glob("*/features.bin"))
    for name in ("kept", "shared"):
        assert outcome(tmp_path / name)[1:3] == outcome(tmp_path / "lone")[1:3]


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["full", "read-only"])
def test_compiled_programs_that_cannot_be_kept(harm, disk, images, undisturbed, tmp_path):
    """Only speed is lost: one warning, the same bits."""
    folder = disk.place / "compiled" / f"{len(os.sched_getaffinity(0))}-cores"
    folder.mkdir(parents=True)
    (folder / ".lockfile").touch()
    if harm == "full":
        disk.leave(2)
    else:
        disk.make_read_only()
    process = start(*train(tmp_path / "run", images), JXFER_CACHE=disk.place, JXFER_COMPILED="on")
    _, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    (line,) = (line for line in err.splitlines() if str(disk.place) in line)
    assert (FULL if harm == "full" else "Read-only file system") in line
    assert "nothing that is compiled is kept" in line
    assert "Warning" not in err
    assert outcome(tmp_path / "run") == outcome(undisturbed)
