"""`predict.py` of an export, in a process where jxfer cannot be imported, against jxfer's own."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from jxfer.commands import predict
from jxfer.data.transforms import Preprocessing
from jxfer.models import registry
from jxfer.zoo import export, store
from jxfer.zoo.card import Card

ALONE = """
import runpy, sys
sys.modules["jxfer"] = None  # whoever imports it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not [name for name in sys.modules if name.startswith("jxfer.")]
"""


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """A random ResNet-20 that resizes, crops and swaps channels; and its export."""
    folder = tmp_path_factory.mktemp("export")
    model = registry.create("resnet20", 3)
    preprocessing = Preprocessing(
        48, crop=0.8, interpolation="bicubic", mean=(0.1, 0.4, 0.7), channel_order="BGR"
    )
    card = Card("net", "resnet20", ("ä", "b", "c"), preprocessing)
    card = store.save(folder / "entry", card, model.init(0))
    export.to_stablehlo(card, store.load(folder / "entry")[1], folder / "net")
    return folder


def run_alone(entry, *args):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    result = subprocess.run(
        [sys.executable, "-c", ALONE, str(entry / "net" / "predict.py"), *map(str, args)],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def compare(entry, files, capsys):
    predict.main([str(entry / "entry"), *map(str, files), "--json"])
    ours = json.loads(capsys.readouterr().out)
    theirs = json.loads(run_alone(entry, *files, "--json"))
    assert [record["image"] for record in theirs] == [str(file) for file in files]
    for our, their in zip(ours, theirs, strict=True):
        assert our["class"] == their["class"]
        assert our["probabilities"] == pytest.approx(their["probabilities"], rel=1e-5)


@pytest.fixture
def files(tmp_path):
    """Wide, tall and square images; grey, with transparency, and of 16 bits."""
    rng = np.random.default_rng(0)
    kinds = {
        "wide.jpg": ((70, 101, 3), np.uint8),
        "tall.png": ((99, 60, 3), np.uint8),
        "square.bmp": ((60, 60, 3), np.uint8),
        "grey.png": ((80, 64), np.uint8),
        "transparent.png": ((64, 80, 4), np.uint8),
        "deep.png": ((64, 80), np.uint16),
    }
    for name, (shape, kind) in kinds.items():
        smooth = cv2.resize(rng.random((6, 6, *shape[2:])), shape[1::-1])
        image = (smooth * np.iinfo(kind).max).astype(kind)
        assert cv2.imwrite(str(tmp_path / name), image)
    return [tmp_path / name for name in kinds]


@pytest.mark.parametrize("n", [1, 5, 6])
def test_the_same_probabilities_as_jxfer(entry, files, capsys, n):
    compare(entry, files[-n:], capsys)


def test_the_table(entry, files):
    (line,) = run_alone(entry, files[0], "--top", "2").splitlines()
    name, *classes = line.split("\t")
    assert name == str(files[0])
    assert len(classes) == 2
    assert all(shown.endswith("%") for shown in classes)


@pytest.mark.slow
@pytest.mark.realdata
def test_photographs(entry, hymenoptera, capsys):
    compare(entry, sorted((hymenoptera / "val").rglob("*.jpg"))[:40], capsys)


def test_the_loader_is_short_and_stands_alone(entry):
    source = (entry / "net" / "predict.py").read_text()
    assert len(source.splitlines()) < 80
    assert "import jxfer" not in source
    assert "from jxfer" not in source
