import os
import pathlib
import pickle
import types

import numpy as np
import pytest

from jxfer.data import embedded, remote, screen
from jxfer.data.folders import BucketFolder
from jxfer.data.readers import FolderSource, Subset, TfdsSource
from jxfer.errors import UserError


def test_folder_is_sorted_by_class_and_path(make_folder):
    root = make_folder({"b": 2, "a": 1, "a/deep": 2})
    source = FolderSource(root)
    assert source.class_names == ("a", "b")
    names = [source.name(index) for index in range(len(source))]
    assert names == ["a/00.png", "a/deep/00.png", "a/deep/01.png", "b/00.png", "b/01.png"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.labels.dtype == np.int32
    example = source[3]
    assert (example.label, example.name) == (1, "b/00.png")
    assert example.image == (root / "b" / "00.png").read_bytes()


def test_folder_takes_what_imagefolder_takes(make_folder):
    root = make_folder({"a": 1, "b": 1})
    for name in ("x.JPG", "x.jpeg", "x.ppm", "x.bmp", "x.pgm", "x.tif", "x.TIFF", "x.webp"):
        (root / "a" / name).touch()
    for name in ("x.gif", "notes.txt", ".hidden.png", "jpg"):
        (root / "a" / name).touch()
    (root / "a" / ".cache").mkdir()
    (root / "a" / ".cache" / "thumb.png").touch()
    (root / ".git").mkdir()
    (root / "README").touch()
    source = FolderSource(root)
    assert len(source) == 10
    assert source.left_out == ["README", "a/jpg", "a/notes.txt", "a/x.gif"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, r"two class folders and holds none"),
        ({"ants": 3}, r"two class folders and holds only the class folder ants"),
        ({"ants": 3, "bees": 0}, r"class folder .*/bees holds no image"),
        ({"ants": 0, "bees": 0}, r"holds no image: its class folders .*\.jpg"),
    ],
)
def test_unusable_folders_are_named(make_folder, tmp_path, counts, message):
    make_folder(counts)
    with pytest.raises(UserError, match=message) as error:
        FolderSource(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_whose_name_is_no_utf_8_is_refused(make_folder, one_line):
    root = make_folder({"a": 1, "b": 1, "猫": 1})
    assert FolderSource(root).class_names == ("a", "b", "猫")
    (root / "b").rename(root / os.fsdecode(b"b\xff"))
    with one_line("class folder", "no UTF-8", "rename it"):
        FolderSource(root)


def test_a_file_that_vanished_is_named(make_folder):
    root = make_folder({"a": 1, "b": 1})
    source = FolderSource(root)
    (root / "b" / "00.png").unlink()
    with pytest.raises(UserError, match=r"image b/00\.png in .* cannot be read: No such file"):
        source[1]


def test_tfds_examples_are_raw_bytes_with_names():
    source = TfdsSource(embedded.open_embedded("digits"), "train")
    example = source[17]
    assert example.name == source.name(17) == "train:17"
    assert example.label == source.labels[17]
    assert example.image.startswith(b"\x89PNG")


def test_tfds_labels_that_are_read_together_are_those_of_the_examples():
    source = TfdsSource(embedded.open_embedded("digits"), "train")
    assert len(source) > 600
    some = [0, 255, 256, 511, 512, len(source) - 1]
    assert source.labels[some].tolist() == [source[index].label for index in some]
    assert len(source.labels) == len(source)


def test_files_come_in_the_order_of_their_folders_and_names(tmp_path):
    names = ["a/b/2.png", "a/b.png", "a/b/c/1.png", "a/b-c/1.png", "b/B.png", "b/a.png", "a/a.png"]
    for name in names:
        file = tmp_path / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    expected = sorted(pathlib.PurePath("train", name) for name in names)
    for root, split in ((tmp_path, "train"), (tmp_path / "train", "")):
        source = FolderSource(root, split)
        found = [source.name(index) for index in range(len(source))]
        assert found == [path.relative_to("" if split else "train").as_posix() for path in expected]


def test_tfds_without_an_image_is_refused():
    builder = types.SimpleNamespace(info=types.SimpleNamespace(full_name="text/1.0.0", features={}))
    with pytest.raises(UserError, match=r"text/1.0.0 has 0 features of type Image"):
        TfdsSource(builder, "train")


def test_unlabelled_records_are_refused():
    source = TfdsSource(embedded.open_embedded("digits"), "test")

    class Records(list):
        def __getitems__(self, rows):
            return [self[row] for row in rows]

    source._records = Records([{"image": b"", "label": -1}])
    with pytest.raises(UserError, match=r"split test of digits/1.0.0 has no labels"):
        source[0]
    with pytest.raises(UserError, match=r"split test of digits/1.0.0 has no labels"):
        _ = source.labels


def test_subsets_compose(source):
    subset = Subset(Subset(source, [30, 5, 31]), [2, 1])
    assert len(subset) == 2
    assert subset.class_names == source.class_names
    assert [subset[0], subset[1]] == [source[31], source[5]]
    assert [subset.name(0), subset.name(1)] == [source.name(31), source.name(5)]
    assert subset.labels.tolist() == [2, 0]


def test_sources_are_picklable(source):
    digits = TfdsSource(embedded.open_embedded("digits"), "test")
    for original in (source, digits, Subset(digits, [3, 1])):
        copy = pickle.loads(pickle.dumps(original))
        assert copy[1] == original[1]
        np.testing.assert_array_equal(copy.labels, original.labels)


@pytest.mark.realdata
def test_hymenoptera_leaves_the_gif_out(hymenoptera):
    train = FolderSource(hymenoptera, "train")
    assert (len(train), train.class_names) == (244, ("ants", "bees"))
    assert np.bincount(train.labels).tolist() == [123, 121]
    assert train.left_out == ["train/ants/imageNotFound.gif"]
    assert len(FolderSource(hymenoptera, "val")) == 153


def test_a_folder_in_a_bucket_is_that_of_a_disk(make_folder, bucket):
    root = make_folder({"train/b/deep": 2, "train/a": 3, "train/a-": 2, "train/.hidden": 1})
    (root / "train" / "a" / "notes.txt").write_text("no image")
    (root / "train" / "top.png").write_bytes(b"in no class")
    where = bucket.upload(root, "images")
    local = FolderSource(root, "train")
    there = FolderSource(BucketFolder(where), "train")
    assert there.class_names == local.class_names == ("a", "a-", "b")
    assert there.left_out == local.left_out == ["train/top.png", "train/a/notes.txt"]
    assert there.labels.tolist() == local.labels.tolist()
    there = pickle.loads(pickle.dumps(there))
    assert list(there) == list(local)


def test_a_bucket_that_fails_is_no_bad_image(make_folder, bucket):
    source = FolderSource(BucketFolder(bucket.upload(make_folder({"a": 1, "b": 1}), "images")))
    bucket.status = 403
    with pytest.raises(remote.StorageError, match="access is denied"):
        screen.drop_unreadable(source)
