"""Disks that are full, read-only or gone, for real: small tmpfs mounts.

`Disk.leave` fills one up but for some room, so that a command meets the end of the disk in turn at
each of its writes. Each time it says so in one line, loses nothing that was there, and the same
command then goes on to the bits of an undisturbed one.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from jxfer.commands.main import main
from jxfer.disk import replace, write_json
from jxfer.zoo import store
from tests.commands.runs import files, outcome, start, train
from tests.train.conftest import ROOT

PAGE = 4096
FULL = "No space left on device"


class Disk:
    """A tmpfs of 4 MB."""

    def __init__(self, place):
        self.place, self._filler = place, place / "filler"
        place.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=4m", "tmpfs")

    def _mount(self, *options):
        done = subprocess.run(
            ["mount", *options, str(self.place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    def leave(self, pages):
        """Fills all but some pages of 4 KiB."""
        free = os.statvfs(self.place)
        blocks = free.f_bavail * free.f_frsize // PAGE - pages
        assert blocks >= 0
        with self._filler.open("wb") as file:
            file.write(bytes(blocks * PAGE))

    def make_room(self):
        self._filler.unlink()

    def make_read_only(self):
        self._mount("-o", "remount,ro")

    def make_writable(self):
        self._mount("-o", "remount,rw")

    def unmount(self):
        """Even while files in it are open."""
        subprocess.run(["umount", "-l", str(self.place)], capture_output=True, check=False)


@pytest.fixture
def disk(tmp_path):
    try:
        made = Disk(tmp_path / "disk")
    except FileNotFoundError:
        pytest.skip("a small disk cannot be mounted here: there is no mount")
    yield made
    made.unmount()


@pytest.fixture
def run(capfd):
    """Runs a command that must not hang; returns (exit code, stdout, stderr)."""

    def hang(*_):
        raise TimeoutError("it hangs")

    def call(*args):
        capfd.readouterr()
        before = signal.signal(signal.SIGALRM, hang)
        signal.alarm(1200)  # far more than any takes
        try:
            code = main([str(arg) for arg in args])
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(run):
    """Runs a command that the disk must refuse; returns the last line of stderr, the only error."""

    def call(*args):
        code, out, err = run(*args)
        assert (code, out) == (2, ""), err
        assert "Traceback" not in err
        lines = err.splitlines()
        assert [line for line in lines if "error" in line.lower()] == [lines[-1]], err
        assert lines[-1].startswith("jxfer: error: ")
        return lines[-1]

    return call


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([str(word) for word in train(folder, images)]) == 0
    return folder


def steps(folder):
    """The checkpoints that are there whole."""
    names = (path.name for path in (folder / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pages", "what"),
    [
        (0, "config.json: "),
        (1, "events.out."),
        (2, "metrics.jsonl: "),
        (3, "no checkpoint was saved before"),
        (30, "no checkpoint was saved before"),
        (110, "the last good checkpoint is"),
        (140, "the last good checkpoint is"),
    ],
)
def test_a_disk_that_fills_up_at_each_write_of_a_run(
    pages, what, disk, run, refused, images, undisturbed
):
    folder = disk.place / "run"
    disk.leave(pages)
    line = refused(*train(folder, images))
    assert FULL in line
    assert str(folder) in line
    assert what in line
    saved = steps(folder)
    good = f"checkpoint is {folder}/checkpoints/{saved[-1]}; make room" if saved else ""
    assert good in line
    disk.make_room()
    code, _, err = run(*train(folder, images))
    assert code == 0, err
    assert "damaged" not in err
    assert not saved or f"resumes from step {saved[-1]} of 9" in err
    found, wanted = outcome(folder), outcome(undisturbed)
    assert found == wanted


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_last_step_is_done(disk, run, refused, images, undisturbed):
    met = []
    for pages in (0, 20, 24, 25, 26, 27, 28):
        folder = disk.place / str(pages)
        shutil.copytree(undisturbed, folder)
        shutil.rmtree(folder / "model")
        for name in ("summary.json", "timing.json"):
            (folder / name).unlink()
        before = files(folder)
        disk.leave(pages)
        code, _, err = run(*train(folder, images))
        if code == 0:
            break
        met.append(err.splitlines()[-1])
        assert FULL in met[-1]
        assert "Traceback" not in err
        assert before.items() <= files(folder).items()
        disk.make_room()
        assert run(*train(folder, images))[0] == 0
        assert outcome(folder) == outcome(undisturbed)
        shutil.rmtree(folder)
    # What the model takes differs by a page or two: not each time is the summary met.
    assert any("/model: cannot" in line for line in met), met


@pytest.mark.parametrize("write", [write_json, lambda path, value: replace(path, value.encode())])
def test_a_file_on_a_full_disk_stays_what_it_was(write, disk, one_line):
    file = disk.place / "summary.json"
    write(file, "old")
    before = file.read_bytes()
    disk.leave(0)
    with one_line(f"{file}: cannot be written: {FULL}"):
        write(file, "new")
    assert file.read_bytes() == before


@pytest.mark.slow
def test_a_disk_that_fills_up_while_features_are_written(
    disk, run, refused, images, backbone, tmp_path
):
    def features(out):
        return [
            *("features", backbone, "--out", out, "--split", "train"),
            *("--data.source", f"folder:{images}", "--batch-size", "16"),
            *("--outputs", "stage1", "pooled", "--form", "spatial"),
        ]

    assert run(*features(tmp_path / "whole"))[0] == 0
    wanted = files(tmp_path / "whole")
    for pages in (0, 577, 578, 580):  # the maps take 577
        out = disk.place / str(pages)
        disk.leave(pages)
        line = refused(*features(out))
        assert str(out) in line
        assert FULL in line or "are free" in line
        disk.make_room()
        assert run(*features(out))[0] == 0
        assert files(out) == wanted
        shutil.rmtree(out)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_an_entry_is_imported(disk, run, refused, weights, no_zoos):
    zoo = disk.place / "zoo"

    def entry(*more):
        return ["zoo", "import", weights, "--arch", "resnet20", "--class-names", "a,b,c", *more]

    assert run(*entry("--name", "first", "--zoo", zoo))[0] == 0
    wanted, digest = files(zoo), store.read_card(zoo / "first").tensors_sha256
    for pages in (0, 50, 250):
        for more in (("--name", "second"), ("--name", "first", "--overwrite")):
            disk.leave(pages)
            line = refused(*entry("--zoo", zoo, *more))
            assert FULL in line
            assert str(zoo / more[1]) in line
            assert files(zoo) == wanted
            disk.make_room()
    assert run(*entry("--name", "second", "--zoo", zoo))[0] == 0
    assert store.verify(zoo / "second").tensors_sha256 == digest


@pytest.mark.slow
def test_a_disk_that_fills_up_in_a_sweep(disk, run, refused, declare, tmp_path):
    file = declare("seeds=(0,)")
    assert run("ablate", file, "--out", tmp_path / "lone")[0] == 0

    def cells(folder):
        found = json.loads((folder / "results.json").read_text())
        assert not any(cell["error"] for cell in found["cells"])
        names = ("key", "status", "measures", "test_correct")
        return [{name: cell[name] for name in names if name in cell} for cell in found["cells"]]

    for pages in (0, 3, 60, 220):
        out = disk.place / str(pages)
        disk.leave(pages)
        for _ in range(3 if pages == 60 else 1):  # however often: not held against a cell
            assert FULL in refused("ablate", file, "--out", out)
        disk.make_room()
        code, _, err = run("ablate", file, "--out", out)
        assert code == 0, err
        assert cells(out) == cells(tmp_path / "lone")
        shutil.rmtree(out)


@pytest.mark.slow
def test_a_disk_that_fills_up_under_a_report(disk, run, refused, images, undisturbed):
    """The same run gives the same bytes: no file of an earlier report is cut off."""
    folder = disk.place / "run"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("checkpoints"))
    assert run("report", folder)[0] == 0
    wanted = files(folder / "report")
    shutil.rmtree(folder / "report")
    for pages in (0, 1, 3, 8, 60):
        disk.leave(pages)
        assert FULL in refused("report", folder)
        assert files(folder / "report").items() <= wanted.items()
        disk.make_room()
    assert run("report", folder)[0] == 0
    disk.leave(0)
    assert FULL in refused("report", folder)
    assert files(folder / "report") == wanted


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


@pytest.mark.slow
def test_standard_output_that_is_full(tmp_path):
    with pathlib.Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jxfer", "zoo", "list"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JXFER_COMPILED": "off"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("jxfer: error: standard output")
    assert FULL in line


@pytest.mark.slow
def test_a_read_only_disk(disk, run, refused, images, undisturbed, weights, backbone, no_zoos):
    unfinished = disk.place / "unfinished"
    shutil.copytree(undisturbed, unfinished)
    (unfinished / "summary.json").unlink()
    shutil.copytree(undisturbed, disk.place / "finished")
    disk.make_read_only()
    before = files(disk.place)
    image = next((images / "test").rglob("*.png"))
    new, data = disk.place / "new", ("--data.source", f"folder:{images}")
    entry = ("zoo", "import", weights, "--arch", "resnet20", "--class-names", "a,b,c")
    for command in (
        train(new, images),
        train(unfinished, images),
        (*entry, "--name", "new", "--zoo", disk.place),
        ("features", backbone, *data, "--out", new),
        ("report", disk.place / "finished"),
        ("zoo", "export", backbone, "--format", "torch", "--out", new.with_suffix(".safetensors")),
    ):
        line = refused(*command)
        assert str(disk.place) in line
        assert "ead-only" in line or "no folder that can be written" in line
    for command in (
        ("evaluate", disk.place / "finished", *data),
        ("predict", disk.place / "finished", image),
        ("zoo", "verify", disk.place / "finished"),
    ):
        code, _, err = run(*command)
        assert code == 0, err
    disk.make_writable()
    assert files(disk.place) == before
    assert run(*train(unfinished, images))[0] == 0
    assert outcome(unfinished) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["moved", "removed", "replaced", "unmounted"])
def test_a_run_folder_that_vanishes(harm, disk, refused, images):
    """While steps are taken; nothing takes its place in silence."""
    folder, aside = disk.place / "run", disk.place / "aside"

    def vanish():
        lines = folder / "metrics.jsonl"
        while not lines.exists() or lines.read_text().count("\n") < 10:
            time.sleep(0.005)
        if harm == "unmounted":
            disk.unmount()
        elif harm == "removed":
            with contextlib.suppress(FileNotFoundError):  # a file that comes and goes
                shutil.rmtree(folder)
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(aside)
            if harm == "replaced":
                folder.mkdir()
                (folder / ".lock").touch()

    thread = threading.Thread(target=vanish)
    thread.start()
    more = ("--epochs", "2000", "--eval-every", "20", "--checkpoint-every", "9")
    line = refused(*train(folder, images, *more))
    thread.join()
    assert str(folder) in line
    assert "was moved, removed or unmounted" in line or "No such file or directory" in line
    left = {path.name for path in folder.glob("*")} if folder.exists() else set()
    assert left <= {".lock"}
    if harm in ("moved", "replaced"):
        assert steps(aside)
