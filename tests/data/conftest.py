"""Small image folders."""

import pathlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from jxfer.data.readers import FolderSource


@pytest.fixture
def make_folder(tmp_path: pathlib.Path) -> Callable[[dict[str, int]], pathlib.Path]:
    """Writes `{class folder: number of images}`; every image is 10x12 noise of its own."""

    def make(counts: dict[str, int]) -> pathlib.Path:
        rng = np.random.default_rng(0)
        for folder, count in counts.items():
            (tmp_path / folder).mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
                cv2.imwrite(str(tmp_path / folder / f"{index:02}.png"), image)
        return tmp_path

    return make


@pytest.fixture
def source(make_folder) -> FolderSource:
    """33 images of 3 classes."""
    return FolderSource(make_folder({"a": 20, "b": 10, "c": 3}))


@pytest.fixture
def damaged(make_folder):
    """Two classes of 20 images, of which a/03 is truncated, b/05 empty and b/06 a text file."""
    root = make_folder({"a": 20, "b": 20})
    whole = (root / "a" / "03.png").read_bytes()
    (root / "a" / "03.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "05.png").write_bytes(b"")
    (root / "b" / "06.png").write_text("not found")
    return root
