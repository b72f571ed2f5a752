"""What is read back from a folder of features, by jxfer and by NumPy alone."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from jxfer.data.readers import Subset
from jxfer.data.transforms import CIFAR
from jxfer.probe import feature_files, feature_writer
from jxfer.zoo.card import Card
from tests.train.test_devices import Noise

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "features.md"
CARD = Card("net", "resnet20", (), CIFAR, tensors_sha256="abc")
VALUES = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


def make_key(card=CARD, source=None, outputs=("pooled",)):
    return feature_files.make_key(card, "folder:x", None, source or Noise(10), outputs, "pooled")


@pytest.fixture
def folder(tmp_path):
    feature_writer.write(
        tmp_path / "features",
        make_key(),
        {"devices": 8},
        {"pooled": (4,)},
        Noise(10),
        lambda start: (block for block in [{"pooled": VALUES}]),
    )
    return tmp_path / "features"


def test_the_documented_lines_read_it_without_jxfer(folder):
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(snippet.strip().splitlines()) <= 8
    blocked = "import sys; sys.modules['jxfer'] = sys.modules['jax'] = None\n"
    check = (
        "assert features.shape == (10, 4) and features.dtype == 'float32' and classes[6] == 'g'\n"
        "print(features.sum(dtype='float64'), labels.tolist(), ids.tolist())\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", blocked + snippet + check],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    labels, ids = Noise(10).labels.tolist(), [str(i) for i in range(10)]
    assert shown.stdout.splitlines()[-1] == f"{VALUES.sum(dtype='float64')} {labels} {ids}"


def test_the_arrays_are_not_read_into_memory(folder):
    array = feature_files.load(folder).arrays["pooled"]
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable


def test_the_key_changes_with_all_that_decides_the_features():
    class Other(Noise):
        def name(self, index):
            return f"other {index}"

    changed = [
        make_key(dataclasses.replace(CARD, tensors_sha256="abd")),
        make_key(dataclasses.replace(CARD, through="stage1")),
        make_key(dataclasses.replace(CARD, preprocessing=dataclasses.replace(CIFAR, crop=0.9))),
        make_key(source=Subset(Noise(10), range(9, -1, -1))),
        make_key(source=Other(10)),
        make_key(outputs=("stage1",)),
    ]
    texts = {json.dumps(key, sort_keys=True) for key in (*changed, make_key())}
    assert len(texts) == 7
    assert make_key() == make_key()


def test_a_folder_without_features_is_told(tmp_path, one_line):
    with one_line(str(tmp_path), "holds no features"):
        feature_files.load(tmp_path)


@pytest.mark.parametrize("name", ["pooled.npy", "labels.npy", "ids.npy"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_damage_is_told(folder, name, harm, one_line):
    path = folder / name
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[140] ^= 1
        path.write_bytes(content)
    elif harm == "truncate":
        path.write_bytes(content[:140])
    else:
        path.unlink()
    with one_line(str(path), "damaged or missing"):
        feature_files.load(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("features.json", "damaged")),
        ("{}", ("features.json", "format is missing")),
        ('{"format": 2}', ("features.json", "rows is missing")),
    ],
)
def test_a_manifest_that_cannot_be_read_is_told(folder, text, words, one_line):
    (folder / "features.json").write_text(text)
    with one_line(*words):
        feature_files.load(folder)
