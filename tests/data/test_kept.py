import itertools

import cv2
import numpy as np
import pytest

from jxfer.data import kept, loader, transforms
from jxfer.data.kept import KeptImages, Room, keep_images
from jxfer.data.readers import FolderSource
from jxfer.data.sources import Splits
from jxfer.data.transforms import AugmentConfig, Preprocessing

SMALL = Preprocessing(size=16, crop=0.8)
CROP = AugmentConfig(random_resized_crop=True, flip=True)
PLAIN = AugmentConfig(pad_crop=2, flip=True)


@pytest.fixture
def photographs(tmp_path) -> FolderSource:
    """12 JPEGs, large enough to be reduced, and 4 PNGs."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(8):
            noise = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            image = cv2.resize(noise, (90 + 20 * index, 80))
            extension = "png" if index > 5 else "jpg"
            cv2.imwrite(str(tmp_path / name / f"{index}.{extension}"), image)
    return FolderSource(tmp_path)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of what was decoded, from here on."""
    names, decode = [], transforms.decode

    def count(data, name, reduction=1):
        names.append(name)
        return decode(data, name, reduction)

    monkeypatch.setattr(transforms, "decode", count)
    return names


def batches(source, augment, steps=6):
    found = loader.train_batches(source, SMALL, augment, batch_size=8, seed=0)
    return list(itertools.islice(found, steps))


@pytest.mark.parametrize("augment", [CROP, PLAIN, AugmentConfig(random_resized_crop=True, views=2)])
@pytest.mark.parametrize("room", [0, 100_000, 1e9])
def test_pixels_are_the_same_however_much_is_kept(photographs, augment, room):
    """Room for none, for some, for all; over three passes."""
    source = KeptImages(photographs, Room(room))
    for batch, other in zip(batches(photographs, augment), batches(source, augment), strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name], other[name])


def test_evaluation_is_the_same_and_decodes_once(photographs, decoded):
    source = KeptImages(photographs, Room(1e9))
    for _ in range(3):
        pairs = zip(
            loader.eval_batches(photographs, SMALL, batch_size=6),
            loader.eval_batches(source, SMALL, batch_size=6),
            strict=True,
        )
        for batch, other in pairs:
            for name in ("image", "label", "mask", "index"):
                np.testing.assert_array_equal(batch[name], other[name])
    assert len(decoded) == (3 + 1) * 16


@pytest.mark.parametrize(("augment", "each"), [(PLAIN, 1), (CROP, 4)])
def test_an_image_is_decoded_once_at_each_resolution(photographs, decoded, augment, each):
    source = KeptImages(photographs, Room(1e9))
    stream = loader.train_batches(source, SMALL, augment, batch_size=8, seed=0, threads=1)
    list(itertools.islice(stream, 20))
    counts = [decoded.count(photographs.name(index)) for index in range(16)]
    assert 1 <= max(counts) <= each
    list(itertools.islice(stream, 4))
    assert len(decoded) <= 16 * each


def test_no_more_is_kept_than_there_is_room(photographs):
    room = Room(3 * 16 * 16 * 3)
    source = KeptImages(photographs, room)
    batches(source, PLAIN)
    assert len(source._kept) == 3
    assert room._left == 0


@pytest.mark.parametrize("augment", [CROP, PLAIN])
def test_the_rule(photographs, monkeypatch, augment):
    splits = Splits(photographs, photographs, None)
    monkeypatch.setattr(kept.machine, "available_bytes", lambda: 10**9)
    found, line = keep_images(splits, SMALL, augment, 4.0)
    assert isinstance(found.train, KeptImages)
    assert isinstance(found.val, KeptImages)
    assert line.endswith("GB and stay in memory after the first pass")
    assert ("about" in line) == augment.random_resized_crop
    found, line = keep_images(splits, SMALL, augment, 1e-6)
    assert found is splits
    assert line.endswith("GB, more than --cache.images-gb 1e-06: each is decoded every time")
    monkeypatch.setattr(kept.machine, "available_bytes", lambda: 1000)
    found, line = keep_images(splits, SMALL, augment, 4.0)
    assert found is splits
    assert "more than 25% of the 1e-06 GB of memory that are available" in line
