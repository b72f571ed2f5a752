"""Datasets of any number of equal tiny records, for `bench_scaling`: in memory, a folder, TFDS."""

import functools
import io
import os
import pathlib
import subprocess
import sys
from typing import Any

import cv2
import numpy as np

from jxfer.data.readers import Example, Source
from jxfer.data.sources import DataConfig, open_splits

KINDS = ("memory", "folder", "tfds")
CLASSES = 10
SHARD = 1_000
"""records of an array_record file, as of ImageNet in TFDS"""
LINKS = 50_000
"""names of one file; ext4 allows 65,000"""


@functools.cache
def _image() -> bytes:
    """Few bytes: TFDS sorts what it writes in a gigabyte of memory, and needs TensorFlow above."""
    return cv2.imencode(".png", np.full((32, 32, 3), 128, np.uint8))[1].tobytes()


class InMemory(Source):
    """`number` times the same image, in memory."""

    def __init__(self, number: int) -> None:
        self.class_names = tuple(f"class{label}" for label in range(CLASSES))
        self._labels = np.arange(number, dtype=np.int32) % CLASSES

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def name(self, index: int) -> str:
        return str(index)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return Example(_image(), int(self._labels[index]), self.name(index))


def read(kind: str, number: int, path: str) -> Source:
    """The training split, after the labels of all splits were read, as a run does."""
    if kind == "memory":
        return InMemory(number)
    spec = f"folder:{path}" if kind == "folder" else "tfds:records"
    splits = open_splits(DataConfig(spec, data_dir=path))
    for split in (splits.train, splits.val):
        assert len(split.labels) == len(split)
    return splits.train


def write(kind: str, number: int, path: pathlib.Path) -> None:
    """Puts a dataset on disk, in the folder `path`."""
    if kind == "folder":
        path.mkdir()
        for label in range(CLASSES):
            (path / f"class{label}").mkdir()
        for index in range(number):
            if index % LINKS == 0:
                file = path / f"image{index}.png"  # beside the class folders: left out
                file.write_bytes(_image())
            os.link(file, path / f"class{index % CLASSES}" / f"{index:07}.png")
    elif kind == "tfds":
        code = f"from scripts import equal_records as r; r.write_tfds({number}, {str(path)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def write_tfds(number: int, data_dir: str) -> None:
    """A dataset `records` in array_record files."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = "records"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=CLASSES),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, download_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for index in range(number):
                yield index, {"image": io.BytesIO(_image()), "label": index % CLASSES}

    tfds.disable_progress_bar()
    # TFDS would put tiny records into one or two files, of which every read costs in proportion to
    # the records of its file.
    shards = tfds.download.DownloadConfig(num_shards=-(-number // SHARD))
    Builder(data_dir=data_dir).download_and_prepare(
        download_config=shards, file_format="array_record"
    )
