"""The target of domain adaptation: whose labels training cannot see, under the source's classes."""

import pathlib
import shutil

import cv2
import numpy as np
import pytest

from jxfer.data import embedded
from jxfer.data.sources import DataConfig
from jxfer.data.targets import open_target

SOURCE = DataConfig("folder:somewhere", per_class=3, balanced_sampling=True)


@pytest.fixture
def write(tmp_path):
    """A data folder; an image's value is the number of its class in the order that is given."""

    def write(name, classes, splits=("train", "test"), per_class=10):
        for split in splits:
            for number, class_name in enumerate(classes):
                folder = tmp_path / name / split / class_name
                folder.mkdir(parents=True)
                for i in range(per_class):
                    image = np.full((4, 4, 3), number, np.uint8)
                    cv2.imwrite(str(folder / f"{i}.png"), image)
        return f"folder:{tmp_path / name}"

    return write


def value(example):
    return int(cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_COLOR)[0, 0, 0])


def test_training_images_have_no_label_and_the_others_that_of_the_sources_classes(write):
    """The head's order is that of the source, which a kept head need not have sorted."""
    spec = write("target", ("ants", "bees", "cats"))
    target = open_target(SOURCE, spec, ("cats", "ants", "bees"), partial=False)
    assert len(target.train) == 27  # per_class is of the source alone
    for source in (target.train, target.unlabelled_val):
        assert set(source.labels) == {source[0].label} == {-1}
    assert len(target.unlabelled_val) == len(target.val) == 3
    for source in (target.val, target.test):
        assert source.class_names == ("cats", "ants", "bees")
        for i in range(len(source)):
            example = source[i]
            assert source.class_names[example.label] == source.name(i).split("/")[1]
            assert example.label == source.labels[i] == (value(example) + 1) % 3


def test_a_single_split_is_adapted_to_and_tested_on(write, tmp_path):
    write("target", ("ants", "bees"), splits=("train",))
    spec = f"folder:{tmp_path / 'target' / 'train'}"
    target = open_target(SOURCE, spec, ("ants", "bees"), partial=False)
    assert (len(target.train), len(target.val), len(target.test)) == (18, 2, 20)


def test_other_classes_are_listed(write, one_line):
    spec = write("target", ("ants", "bees", "dogs"))
    with one_line("--adapt.target", "cats only in the source", "dogs only in the target"):
        open_target(SOURCE, spec, ("ants", "bees", "cats"), partial=False)
    with one_line("eels only in the source;", "--adapt.partial"):
        open_target(SOURCE, spec, ("ants", "bees", "dogs", "eels"), partial=False)


def test_partial_overlap_trains_on_all_images_and_tests_on_the_shared_classes(write):
    spec = write("target", ("bees", "cats", "dogs"))
    target = open_target(SOURCE, spec, ("ants", "bees", "cats"), partial=True)
    assert len(target.train) == 27
    assert len(target.test) == 20
    assert sorted(set(target.test.labels)) == [1, 2]
    assert {value(target.test[i]) for i in range(20)} == {0, 1}


def test_a_target_with_validation_and_no_test_split_is_not_tested(write):
    spec = write("target", ("ants", "bees"), splits=("train", "val"))
    target = open_target(SOURCE, spec, ("ants", "bees"), partial=False)
    assert (len(target.train), len(target.val), target.test) == (20, 20, None)


def test_no_label_says_which_images_are_held_out(write):
    """The same images under other classes are held out at the same places."""
    names = []
    for classes in (("ants", "bees", "cats"), ("cats", "bees", "ants")):
        target = open_target(SOURCE, write("-".join(classes), classes), sorted(classes), False)
        names.append([target.train.name(i) for i in range(27)])
    assert names[0] == names[1]


@pytest.fixture
def prepared(tmp_path):
    """Writes the digits' files under another name, as a TFDS dataset of these two splits."""
    digits = pathlib.Path(embedded.open_embedded("digits").data_dir)

    def prepare(name, other="test"):
        folder = tmp_path / name / "1.0.0"
        shutil.copytree(digits, folder, ignore=lambda *_: ["checksums.json"])
        (folder / "digits-test.array_record-00000-of-00001").rename(
            folder / f"digits-{other}.array_record-00000-of-00001"
        )
        card = folder / "dataset_info.json"
        card.write_text(card.read_text().replace('"test"', f'"{other}"'))
        return tuple(str(label) for label in range(10))

    return prepare


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("folder:{0}/target", "folder:{0}/target"),
        ("folder:{0}/target", "folder:{0}/target/"),
        ("folder:{0}/target", "folder:{0}/./other/../target"),
        ("folder:{0}/target", "folder:{0}/link"),
        ("folder:target", "folder:{0}/target"),
        ("folder:{0}/target", "folder:~/target"),
        ("digits", "digits"),
    ],
)
def test_the_source_is_no_target_however_it_is_written(
    write, tmp_path, monkeypatch, one_line, source, target
):
    classes = ("ants", "bees")
    write("target", classes)
    write("other", classes)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = DataConfig(source.format(tmp_path))
    spec = target.format(tmp_path)
    with one_line(f"--adapt.target {spec}: it is the source"):
        open_target(config, spec, classes, partial=False)
    assert open_target(config, "folder:other", classes, partial=False).train


def test_a_prepared_source_is_no_target_under_its_version(prepared, tmp_path, one_line):
    for name in ("ours", "others"):
        classes = prepared(name)
    config = DataConfig("tfds:ours", data_dir=str(tmp_path))
    for spec in ("tfds:ours", "tfds:ours:1.0.0"):
        with one_line(f"--adapt.target {spec}: it is the source"):
            open_target(config, spec, classes, partial=False)
    target = open_target(config, "tfds:others:1.0.0", classes, partial=False)
    assert (len(target.train), len(target.val), len(target.test)) == (1167, 130, 500)


def test_a_prepared_target_whose_other_split_is_no_test_split_is_not_tested(prepared, tmp_path):
    classes = prepared("target", "extra")
    config = DataConfig("digits", data_dir=str(tmp_path))
    target = open_target(config, "tfds:target", classes, partial=False)
    assert (len(target.train), len(target.val), target.test) == (1167, 130, None)


def test_too_few_images_of_the_shared_classes_are_told(write, one_line, tmp_path):
    """Two shared classes of which the validation split has one image."""
    spec = write("target", ("ants", "bees", "cats"), splits=("train", "val"), per_class=1)
    for name in ("ants", "bees"):
        (tmp_path / "target" / "train" / name / "1.png").write_bytes(
            (tmp_path / "target" / "train" / name / "0.png").read_bytes()
        )
    config = DataConfig("folder:somewhere", on_bad_image="skip")
    (tmp_path / "target" / "val" / "bees" / "0.png").write_bytes(b"no image")
    with one_line("validation split has 1 images"):
        open_target(config, spec, ("ants", "bees"), partial=True)


def test_one_shared_class_is_too_few(write, one_line):
    spec = write("target", ("cats", "dogs"))
    with one_line("fewer than two classes"):
        open_target(SOURCE, spec, ("ants", "bees", "cats"), partial=True)
