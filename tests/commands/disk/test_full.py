"""A disk that fills up at each write of a command."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from jxfer.disk import replace, write_json
from jxfer.zoo import store
from tests.commands.disk.conftest import FULL
from tests.commands.runs import files, outcome, train
from tests.runs import checkpoints
from tests.train.conftest import ROOT


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
    saved = checkpoints(folder)
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
