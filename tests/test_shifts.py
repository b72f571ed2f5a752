"""The shifted sets of the experiments: classes, corruptions, and images that stay apart."""

import csv
import importlib
import pathlib
import zipfile

import cv2
import numpy as np
import pytest

from jxfer.data.sources import DataConfig, FolderSource, open_splits
from jxfer.zoo import store

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def load(monkeypatch):
    """Imports a module of the experiments."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module


def test_superclasses_hold_every_class_of_cifar_100_once(load):
    shifts = load("shifts")
    names = [name for some in shifts.SUPERCLASSES.values() for name in some]
    card = store.read_card(ROOT / "checkpoints/resnet20-cifar100")
    assert sorted(names) == sorted(card.class_names)
    assert {len(some) for some in shifts.SUPERCLASSES.values()} == {5}
    assert set(shifts.MAN_MADE) <= set(shifts.SUPERCLASSES)


@pytest.mark.parametrize("kind", ["random", "natural"])
def test_halves_share_no_class_and_depend_on_the_seed_alone(load, kind):
    shifts = load("shifts")
    drawn = [shifts.halves(kind, seed) for seed in (0, 1)]
    assert drawn == [shifts.halves(kind, seed) for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    man_made = {name for superclass in shifts.MAN_MADE for name in shifts.SUPERCLASSES[superclass]}
    for halves in drawn:
        assert len(set(halves["A"])) == len(set(halves["B"])) == 30
        assert not set(halves["A"]) & set(halves["B"])
        if kind == "natural":
            assert set(halves["B"]) == man_made
            assert not set(halves["A"]) & man_made


def test_noise_has_its_standard_deviation(load):
    pixels = np.full((100, 100, 3), 0.5)
    noise = load("corruptions").gaussian_noise(pixels, np.random.default_rng(0)) - pixels
    assert abs(noise.mean()) < 0.002  # 3.5 standard errors
    assert noise.std() == pytest.approx(0.10, rel=0.015)


def test_blur_is_that_of_opencv(load):
    rng = np.random.default_rng(0)
    pixels = rng.random((32, 32, 3))
    expected = cv2.GaussianBlur(pixels, (9, 9), 1.0, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(load("corruptions").gaussian_blur(pixels, rng), expected, atol=1e-6)


def test_contrast_keeps_each_channels_mean_and_scales_its_deviation(load):
    rng = np.random.default_rng(0)
    pixels = rng.random((32, 32, 3)) * [1.0, 0.5, 0.2]
    changed = load("corruptions").contrast(pixels, rng)
    np.testing.assert_allclose(changed.mean((0, 1)), pixels.mean((0, 1)))
    np.testing.assert_allclose(changed.std((0, 1)), 0.15 * pixels.std((0, 1)))


def test_corrupted_images_do_not_depend_on_the_order_they_are_read_in(load):
    corruptions = load("corruptions")
    clean = open_splits(DataConfig("digits")).val
    noisy = corruptions.corrupted(clean, "gaussian_noise")
    forwards = [noisy[i] for i in range(3)]
    again = corruptions.corrupted(clean, "gaussian_noise")
    assert [again[i] for i in (2, 1, 0)] == forwards[::-1]
    assert len({example.image for example in forwards}) == 3
    assert [example.label for example in forwards] == list(clean.labels[:3])


def test_training_and_test_images_share_no_noise(load, tmp_path):
    grey = cv2.imencode(".png", np.full((8, 8, 3), 128, np.uint8))[1].tobytes()
    noisy = []
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").write_bytes(grey)
        clean = FolderSource(tmp_path, split)
        noisy.append(load("corruptions").corrupted(clean, "gaussian_noise")[0].image)
    assert noisy[0] != noisy[1]


def write_zip(folder, name, files):
    """Images of one colour each, by their number: {path: number}."""
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for path, number in files.items():
            image = np.full((2, 2, 3), (number // 256, number % 256, 0), np.uint8)
            archive.writestr(path, cv2.imencode(".png", image)[1].tobytes())


@pytest.fixture
def sets(load, monkeypatch, tmp_path):
    """The folder of all sets, made of images that are each a colour of its own."""
    shifts = load("shifts")
    png = {f"cifar10/test/{c}/{i}.png": 200 * k + i for k, c in enumerate("ab") for i in range(104)}
    # The same pictures under other names, as in the real set.
    jpeg = {f"cifar10_jpeg/test/{path[13]}/x{n:04}.png": n for path, n in png.items()}
    names = [name for some in shifts.SUPERCLASSES.values() for name in some]
    fine = {f"cifar100/{c}/{i}.png": 40 * k + i for k, c in enumerate(names) for i in range(32)}
    write_zip(tmp_path, "cifar10_test", png)
    write_zip(tmp_path, "cifar10_jpeg_test", jpeg)
    write_zip(tmp_path, "cifar100_30k", fine)
    with (tmp_path / "cifar10_jpeg_pairs.csv").open("w") as file:
        csv.writer(file).writerows([("jpeg", "png"), *zip(jpeg, png, strict=True)])
    monkeypatch.chdir(tmp_path)
    shifts.prepare(tmp_path)
    return tmp_path / "runs/images/shifts"


def colours(folder, split):
    """{class: colours of its images}."""
    source = FolderSource(folder, split)
    found = {name: set() for name in source.class_names}
    for index in range(len(source)):
        example = source[index]
        image = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_COLOR)
        found[source.class_names[example.label]].add(tuple(map(int, image[0, 0])))
    return found


@pytest.mark.slow
def test_no_image_is_trained_on_and_tested_on_under_any_shift(sets):
    train, test = (colours(sets / "cifar10", split) for split in ("train", "test"))
    assert {name: len(some) for name, some in test.items()} == {"a": 100, "b": 100}
    for name in "ab":
        assert len(train[name]) == 4
        assert not train[name] & test[name]
    for split, clean in (("train", train), ("test", test)):
        assert colours(sets / "jpeg", split) == clean
        assert colours(sets / "flipped", split) == {"a": clean["b"], "b": clean["a"]}
        noisy = FolderSource(sets / "gaussian_noise", split)
        plain = FolderSource(sets / "cifar10", split)
        assert [noisy.name(i) for i in range(len(noisy))] == [
            plain.name(i) for i in range(len(plain))
        ]
    for role in ("source", "target"):
        parts = [colours(sets / "superclasses" / role, split) for split in ("train", "test")]
        assert len(parts[0]) == 20
        assert not set().union(*parts[0].values()) & set().union(*parts[1].values())
    ours, theirs = (colours(sets / "superclasses" / role, "train") for role in ("source", "target"))
    assert [(len(ours[name]), len(theirs[name])) for name in ours] == [(6, 4)] * 20
    assert not any(ours[name] & theirs[name] for name in ours)
