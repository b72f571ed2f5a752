"""`jxfer features` as a person meets it: rows, resuming, and what bad input gets."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jxfer.commands.main import main
from jxfer.probe import feature_files

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def arguments(backbone, images, tmp_path):
    """Of the command, with more options; the last of an option counts."""

    def make(*more):
        out = ("--out", str(tmp_path / "out"), "--data.source", f"folder:{images}")
        return ["features", str(backbone), *out, "--batch-size", "16", *more]

    return make


def test_the_rows_of_every_stage_in_the_order_of_the_folder(arguments, images, tmp_path, capsys):
    assert main(arguments("--split", "train", "--outputs", "stages", "pooled", "--json")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # no terminal, so no bar
    printed = json.loads(captured.out)
    assert printed["outputs"] == {"stem": [36, 16], "stage1": [36, 16], "pooled": [36, 16]}
    found = feature_files.load(tmp_path / "out")
    names = sorted(path.relative_to(images) for path in (images / "train").rglob("*.png"))
    assert found.ids.tolist() == [name.as_posix() for name in names]
    classes = [found.class_names[label] for label in found.labels]
    assert classes == [name.parent.name for name in names]
    assert {name: array.shape for name, array in found.arrays.items()} == {
        name: tuple(shape) for name, shape in printed["outputs"].items()
    }
    assert found.key["data"]["source"] == f"folder:{images}"
    assert found.key["weights"]["name"] == "backbone"

    assert main(arguments("--split", "train", "--outputs", "stages", "pooled")) == 0
    captured = capsys.readouterr()
    assert "has finished" in captured.err
    assert captured.out.splitlines()[2].split() == ["stem.npy", "36", "x", "16"]
    assert main(arguments("--split", "train")) == 2
    assert "outputs ['stem', 'stage1', 'pooled'] -> ['pooled']" in capsys.readouterr().err


def test_bad_input_is_one_line_and_leaves_no_folder(arguments, fails, backbone, tmp_path):
    unknown = fails(arguments("--outputs", "stage3"))
    assert "'stage3'" in unknown
    assert "stem, stage1, pooled" in unknown
    assert "logits" not in unknown
    assert "no split extra" in fails(arguments("--split", "extra"))
    assert "nothing" in fails(arguments("--data.source", "folder:nothing"))
    (tmp_path / "one" / "ants").mkdir(parents=True)
    assert "two class folders" in fails(arguments("--data.source", f"folder:{tmp_path / 'one'}"))
    without_data = fails(["features", str(backbone), "--out", str(tmp_path / "out")])
    assert "--data.source" in without_data
    assert not (tmp_path / "out").exists()


def test_bad_options_are_refused_before_an_image_is_read(arguments, fails, tmp_path, monkeypatch):
    monkeypatch.setattr("jxfer.commands.features.open_data", pytest.fail)
    assert "--batch-size 0" in fails(arguments("--batch-size", "0"))
    assert "File name too long" in fails(arguments("--out", "x" * 300))
    (tmp_path / "file").write_text("")
    assert "takes a folder" in fails(arguments("--out", str(tmp_path / "file")))
    below = str(tmp_path / "file" / "features")
    assert "no folder that can be written" in fails(arguments("--out", below))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    assert "thesis.tex" in fails(arguments("--out", str(tmp_path / "other")))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "other"}


@pytest.mark.slow
def test_eight_devices_give_the_rows_of_one(arguments, tmp_path):
    for devices in (1, 8):
        flag = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, "-m", "jxfer", *arguments("--out", str(tmp_path / str(devices)))],
            env=os.environ | {"XLA_FLAGS": flag, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    one, eight = (feature_files.load(tmp_path / name) for name in ("1", "8"))
    assert one.ids.tolist() == eight.ids.tolist()
    assert one.key == eight.key
    np.testing.assert_allclose(one.arrays["pooled"], eight.arrays["pooled"], rtol=1e-5, atol=1e-6)
