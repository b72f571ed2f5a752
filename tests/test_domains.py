"""The pairs of domains: the same classes, images that stay apart, digits on photographs."""

import csv
import importlib
import itertools
import pathlib
import zipfile

import cv2
import numpy as np
import pytest

from jxfer.data.readers import FolderSource
from jxfer.data.sources import DataConfig, open_splits
from jxfer.data.transforms import decode

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"
DIGITS, PHOTOGRAPHS = {"train": 4, "test": 2}, {"train": 3, "test": 2}
FIRST_PHOTOGRAPH = 72
"""Its number: those before it are 36 digits of MNIST and 36 of USPS."""
ZIPS = ("mnist_20k.zip", "usps.zip", "cifar10_test.zip", "cifar10_jpeg_test.zip")
TABLE = "cifar10_jpeg_pairs.csv"


@pytest.fixture
def domains(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("domains")


def noise(number, side):
    """A picture that no other number has, uint8 [side, side, 3]."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(pixels):
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def write_folder(folder, numbers, side):
    """Images by their number: {path: number}."""
    for path, number in numbers.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(png(noise(number, side)))


def write_zip(file, numbers, side):
    with zipfile.ZipFile(file, "w") as archive:
        for path, number in numbers.items():
            archive.writestr(path, png(noise(number, side)))


@pytest.fixture
def zips(tmp_path):
    """The folder of the files that the sets are made of, of two classes each."""
    folder = tmp_path / "zips"
    folder.mkdir()
    number = itertools.count()
    for name, root in (("mnist_20k", "mnist"), ("usps", "usps")):
        paths = itertools.product(("train", "test"), "01", range(9))
        digits = {f"{root}/{split}/{c}/{i}.png": next(number) for split, c, i in paths}
        write_zip(folder / f"{name}.zip", digits, side=5)
    clean = {f"cifar10/test/{c}/{i}.png": next(number) for c in "ab" for i in range(11)}
    # The same pictures under other names and in another order, as in the real set.
    lossy = {
        f"cifar10_jpeg/test/{path[13]}/x{i:04}.png": clean[path]
        for i, path in enumerate(reversed(clean))
    }
    write_zip(folder / "cifar10_test.zip", clean, side=7)
    write_zip(folder / "cifar10_jpeg_test.zip", lossy, side=7)
    with (folder / TABLE).open("w") as file:
        csv.writer(file).writerows([("jpeg", "png"), *zip(lossy, reversed(clean), strict=True)])
    return folder


@pytest.fixture
def made(domains, zips, monkeypatch, tmp_path):
    """The folder of all sets."""
    monkeypatch.setattr(domains, "DIGITS", DIGITS)
    monkeypatch.setattr(domains, "PHOTOGRAPHS", PHOTOGRAPHS)
    monkeypatch.chdir(tmp_path)
    domains.prepare(zips)
    return tmp_path / "runs/images/domains"


def pictures(folder, split):
    """{name: bytes of the decoded pixels} of a part of a set."""
    source = FolderSource(folder, split)
    examples = (source[index] for index in range(len(source)))
    return {e.name: decode(e.image, e.name).tobytes() for e in examples}


def test_a_pair_shares_its_classes_and_no_image(domains, made):
    sizes = {"mnist": DIGITS, "usps": DIGITS, "cifar10": PHOTOGRAPHS, "jpeg": PHOTOGRAPHS}
    for names in (("mnist", "usps"), ("cifar10", "jpeg")):
        seen = []
        for name, split in itertools.product(names, ("train", "test")):
            source = FolderSource(made / name, split)
            assert source.class_names == (("0", "1") if name in ("mnist", "usps") else ("a", "b"))
            np.testing.assert_array_equal(np.bincount(source.labels), [sizes[name][split]] * 2)
            seen += pictures(made / name, split).values()
        assert len(set(seen)) == len(seen) == 2 * 2 * sum(sizes[names[0]].values())


def test_an_image_keeps_its_class_as_jpeg(made):
    for split in ("train", "test"):
        found = FolderSource(made / "jpeg", split)
        for index in range(len(found)):
            label = found[index].label
            originals = (noise(FIRST_PHOTOGRAPH + 11 * label + i, 7).tobytes() for i in range(11))
            assert decode(found[index].image, "").tobytes() in originals


def blends(digit, photographs):
    """{|crop - digit|: number} over all crops of the photographs {number: pixels}."""
    side = len(digit)
    return {
        np.abs(crop.astype(int) - digit).astype(np.uint8).tobytes(): number
        for number, photograph in photographs.items()
        for crop in (
            photograph[top : top + side, left : left + side]
            for top, left in itertools.product(range(len(photograph) - side + 1), repeat=2)
        )
    }


def test_textured_digits_are_others_than_the_plain_ones_on_photographs_of_their_split(made):
    photographs = {FIRST_PHOTOGRAPH + i: noise(FIRST_PHOTOGRAPH + i, 7) for i in range(22)}
    used = {}
    for k, split in enumerate(("train", "test")):
        labels = FolderSource(made / "textured", split).labels
        np.testing.assert_array_equal(np.bincount(labels), [DIGITS[split]] * 2)
        plain, blended = (pictures(made / name, split) for name in ("mnist", "textured"))
        assert not plain.keys() & blended.keys()
        used[split] = set()
        for name, pixels in blended.items():
            _, label, file = name.split("/")
            number = 18 * k + 9 * int(label) + int(file.removesuffix(".png"))
            digit = noise(number, 5)
            assert digit.tobytes() not in plain.values()
            used[split].add(blends(digit, photographs)[pixels])
    assert not used["train"] & used["test"]
    assert len(used["train"]) > 1


def test_a_blend_depends_on_the_digits_name_alone(domains, tmp_path):
    write_folder(tmp_path, {f"digits/{c}/{i}.png": 0 for c in "01" for i in range(5)}, side=5)
    write_folder(tmp_path, {f"photographs/{c}/{i}.png": i for c in "ab" for i in range(5)}, side=7)
    digits, photographs = (FolderSource(tmp_path / name) for name in ("digits", "photographs"))
    blended = domains.textured(digits, photographs)
    forwards = [blended[index] for index in range(10)]
    again = domains.textured(digits, photographs)
    assert [again[index] for index in reversed(range(10))] == forwards[::-1]
    assert len({example.image for example in forwards}) > 5
    assert [example.label for example in forwards] == list(digits.labels)
    other = domains.textured(FolderSource(tmp_path, "digits"), photographs)
    assert [other[index].image for index in range(10)] != [example.image for example in forwards]


def test_sets_are_always_the_same(domains, made, zips, monkeypatch, tmp_path):
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    domains.prepare(zips)
    again = tmp_path / "again/runs/images/domains"
    for name, split in itertools.product(("mnist", "usps", "textured", "cifar10", "jpeg"), DIGITS):
        assert pictures(again / name, split) == pictures(made / name, split)


@pytest.mark.slow
def test_every_pair_opens_with_the_same_class_names(domains, made):
    for pair in domains.PAIRS:
        source, target = (open_splits(DataConfig(spec)) for spec in domains.specs(pair))
        assert source.train.class_names == target.train.class_names
        assert source.test is not None
        assert target.test is not None


@pytest.mark.parametrize("missing", [*ZIPS, TABLE])
def test_a_missing_file_is_one_line_and_no_set_is_made(
    domains, zips, monkeypatch, tmp_path, one_line, missing
):
    monkeypatch.chdir(tmp_path)
    (zips / missing).unlink()
    with one_line("does not exist", f"ZIPS must hold {missing}"):
        domains.prepare(zips)
    assert not (tmp_path / "runs/images/domains").exists()


def test_a_domain_that_is_not_there_is_one_line_with_the_command(
    domains, monkeypatch, tmp_path, one_line
):
    monkeypatch.chdir(tmp_path)
    assert domains.specs("rendered -> digits") == ("rendered_digits", "digits")
    with one_line("domains/mnist does not exist", "make it: python experiments/domains.py ZIPS"):
        domains.specs("MNIST -> USPS")


@pytest.mark.realdata
def test_the_real_files_have_enough_of_every_class(domains, test_data):
    needed = {
        "mnist_20k": {
            f"mnist/{s}/{c}": 2 * domains.DIGITS[s] for s in domains.DIGITS for c in range(10)
        },
        "usps": {f"usps/{s}/{c}": domains.DIGITS[s] for s in domains.DIGITS for c in range(10)},
    }
    for name, classes in needed.items():
        with zipfile.ZipFile(test_data / f"{name}.zip") as archive:
            files = [str(pathlib.PurePosixPath(file).parent) for file in archive.namelist()]
        assert {file for file in files if file.count("/") == 2} == set(classes)
        for folder, count in classes.items():
            assert files.count(folder) >= count
