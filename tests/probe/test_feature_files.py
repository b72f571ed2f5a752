"""What is read back from a folder of features, by jxfer and by NumPy alone."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from jxfer import sealed
from jxfer.data.readers import Subset
from jxfer.data.transforms import CIFAR
from jxfer.probe import feature_files, feature_writer
from jxfer.zoo.card import Card
from tests.noise import Noise

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "features.md"
CARD = Card("net", "resnet20", (), CIFAR, tensors_sha256="abc")
VALUES = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


def make_key(**changed):
    arguments = {
        "card": CARD,
        "data": "folder:x",
        "split": None,
        "source": Noise(10),
        "outputs": ("pooled",),
        "form": "pooled",
    }
    return feature_files.make_key(**(arguments | changed))


def write(folder, source=None, **changed):
    source = source or Noise(10)
    feature_writer.write(
        folder,
        make_key(source=source, **changed),
        {"devices": 8},
        {"pooled": (4,)},
        source,
        lambda start: (block for block in [{"pooled": VALUES[: len(source)]}]),
    )
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "features")


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


class OtherNames(Noise):
    def name(self, index):
        return f"other {index}"


class OtherPixels(Noise):
    def __init__(self, n):
        super().__init__(n)
        self.pixels = 255 - self.pixels


class OtherLabels(Noise):
    @property
    def labels(self):
        return 6 - super().labels


class OtherClasses(Noise):
    def __init__(self, n):
        super().__init__(n)
        self.class_names = tuple("hijklmn")


@pytest.mark.parametrize(
    "changed",
    [
        {"card": dataclasses.replace(CARD, tensors_sha256="abd")},
        {"card": dataclasses.replace(CARD, arch="resnet32")},
        {"card": dataclasses.replace(CARD, through="stage1")},
        {"card": dataclasses.replace(CARD, preprocessing=dataclasses.replace(CIFAR, crop=0.9))},
        {"source": Subset(Noise(10), range(9, -1, -1))},
        {"source": OtherNames(10)},
        {"source": OtherPixels(10)},
        {"source": OtherLabels(10)},
        {"source": OtherClasses(10)},
        {"data": "folder:y"},
        {"split": "val"},
        {"outputs": ("stage1",)},
        {"form": "flat"},
    ],
    ids=lambda changed: "-".join(
        getattr(type(value), "__name__", "") if name == "source" else name
        for name, value in changed.items()
    ),
)
def test_the_key_changes_with_all_that_decides_the_features(changed):
    assert make_key(**changed) != make_key()
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


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["crc32"].pop("ids.npy"),
        lambda manifest: manifest["crc32"].pop("labels.npy"),
        lambda manifest: manifest["crc32"].pop("pooled.npy"),
        lambda manifest: manifest["key"].pop("form"),
        lambda manifest: manifest["key"].update(outputs=None),
        lambda manifest: manifest["key"]["weights"].pop("tensors_sha256"),
        lambda manifest: manifest["key"].update(data="folder:x"),
        lambda manifest: (
            manifest["key"].update(outputs=["../x"]),
            manifest["crc32"].update({"../x.npy": manifest["crc32"].pop("pooled.npy")}),
        ),
    ],
)
def test_a_manifest_that_lacks_something_is_damaged(folder, change, one_line):
    path = folder / "features.json"
    manifest = sealed.bare(json.loads(path.read_text()))
    change(manifest)
    path.write_text(json.dumps(manifest))
    with one_line(str(path), "damaged"):
        feature_files.load(folder)


def test_files_of_another_number_of_rows_are_damaged(folder, one_line):
    path = folder / "features.json"
    manifest = sealed.bare(json.loads(path.read_text()))
    path.write_text(json.dumps(manifest | {"rows": 9}))
    with one_line("damaged"):
        feature_files.load(folder)


def test_a_manifest_with_a_flipped_figure_is_damaged(folder, one_line):
    path = folder / "features.json"
    manifest = json.loads(path.read_text())
    manifest["key"]["data"]["split"] = "tesu"
    path.write_text(json.dumps(manifest))
    with one_line(str(path), "damaged", "checksum"):
        feature_files.load(folder)


def test_splits_share_no_example(folder, tmp_path, one_line):
    first, last = (Subset(Noise(10), rows) for rows in (range(6), range(6, 10)))
    train, val = write(tmp_path / "train", first), write(tmp_path / "val", last)
    assert len(feature_files.load_splits([train, val])) == 2
    with one_line(str(folder), "6 of the images", str(train), "the first 0"):
        feature_files.load_splits([train, folder])
    overlapping = write(tmp_path / "test", Subset(Noise(10), range(5, 9)))
    with one_line(str(overlapping), "3 of the images", str(val), "the first 6"):
        feature_files.load_splits(
            [write(tmp_path / "few", Subset(Noise(10), range(5))), val, overlapping]
        )
    elsewhere = write(tmp_path / "elsewhere", data="folder:y")
    assert len(feature_files.load_splits([train, elsewhere])) == 2
    with one_line(str(elsewhere), "the same images"):
        feature_files.load_splits([folder, elsewhere])


def test_a_renamed_entry_is_the_same_network(tmp_path, one_line):
    def split(below, rows, **changed):
        source = Subset(Noise(10), rows)
        return write(tmp_path / below, source, card=dataclasses.replace(CARD, **changed))

    train, renamed = split("train", range(6)), split("renamed", range(6, 10), name="other")
    assert len(feature_files.load_splits([train, renamed])) == 2
    with one_line("its weights differ"):
        feature_files.load_splits([train, split("other", range(6, 10), tensors_sha256="abd")])
