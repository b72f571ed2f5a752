import logging
import pathlib
import shutil

import numpy as np
import pytest

from jxfer.data.sources import DataConfig, open_for_evaluation, open_splits, place
from jxfer.errors import UserError


def names(source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_digits_have_a_carved_val_and_a_test():
    splits = open_splits(DataConfig("digits"))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1167, 130, 500)
    assert not set(names(splits.train)) & set(names(splits.val))
    shares = np.bincount(splits.val.labels) / np.bincount(
        open_for_evaluation(DataConfig("digits"), "train").labels
    )
    np.testing.assert_allclose(shares, 1 / 9, atol=0.01)
    assert (splits.skipped, splits.left_out) == ((), 0)


def test_a_prepared_dataset_is_read_without_its_builder(monkeypatch, tmp_path):
    from jxfer.data import embedded

    shutil.copytree(embedded.open_embedded("digits").data_dir, tmp_path / "ours/1.0.0")
    splits = open_splits(DataConfig("tfds:ours", data_dir=str(tmp_path)))
    assert names(splits.val) == names(open_splits(DataConfig("digits")).val)


def test_one_folder_of_class_folders_is_carved(make_folder):
    root = make_folder({"a": 20, "b": 10})
    splits = open_splits(DataConfig(f"folder:{root}", val_fraction=0.3))
    assert np.bincount(splits.train.labels).tolist() == [14, 7]
    assert np.bincount(splits.val.labels).tolist() == [6, 3]
    assert splits.test is None
    assert sorted(names(splits.train) + names(splits.val)) == names(
        open_for_evaluation(DataConfig(f"folder:{root}"))
    )


def test_the_carve_depends_on_split_seed_alone(make_folder):
    root = make_folder({"a": 20, "b": 10})
    first = open_splits(DataConfig(f"folder:{root}", split_seed=1))
    np.random.seed(5)  # noqa: NPY002  # the global generator must not matter
    assert names(open_splits(DataConfig(f"folder:{root}", split_seed=1)).val) == names(first.val)
    assert names(open_splits(DataConfig(f"folder:{root}", split_seed=2)).val) != names(first.val)


def test_stored_splits_are_kept_as_they_are(make_folder):
    counts = {"train/a": 6, "train/b": 5, "val/a": 2, "val/b": 1, "test/a": 1, "test/b": 3}
    splits = open_splits(DataConfig(f"folder:{make_folder(counts)}"))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [11, 3, 4]
    assert splits.test.name(0) == "test/a/00.png"


def test_per_class_draws_from_what_the_carve_left(make_folder):
    root = make_folder({"a": 20, "b": 10})
    whole = open_splits(DataConfig(f"folder:{root}"))
    few = open_splits(DataConfig(f"folder:{root}", per_class=4))
    assert np.bincount(few.train.labels).tolist() == [4, 4]
    assert names(few.val) == names(whole.val)
    assert set(names(few.train)) < set(names(whole.train))


def test_the_screen_runs_after_the_carve_and_before_the_few(make_folder):
    from jxfer.data.sources import Subset

    def odd(source):
        keep = np.arange(1, len(source), 2)
        return Subset(source, keep), tuple(names(source)[::2])

    config = DataConfig(f"folder:{make_folder({'a': 20, 'b': 20})}", per_class=6)
    plain, screened = open_splits(config), open_splits(config, screen=odd)
    assert names(screened.val) == names(plain.val)[1::2]
    assert np.bincount(screened.train.labels).tolist() == [6, 6]
    assert len(screened.skipped) == 18 + 2


def test_left_out_files_are_counted_and_named_once(make_folder, caplog):
    root = make_folder({"train/a": 3, "train/b": 3, "test/a": 1, "test/b": 1})
    (root / "train" / "a" / "x.gif").touch()
    (root / "test" / "b" / "y.txt").touch()
    with caplog.at_level(logging.WARNING, logger="jxfer"):
        splits = open_splits(DataConfig(f"folder:{root}"))
    assert splits.left_out == 2
    [record] = caplog.records
    assert "left out 2 files" in record.message
    assert "train/a/x.gif" in record.message


@pytest.mark.realdata
def test_hymenoptera(hymenoptera, caplog):
    splits = open_splits(DataConfig(f"folder:{hymenoptera}"))
    assert (len(splits.train), len(splits.val), splits.test) == (244, 153, None)
    assert splits.left_out == 1
    assert "left out 1 file that is no image" in caplog.text
    assert "imageNotFound.gif" in caplog.text
    assert len(open_for_evaluation(DataConfig(f"folder:{hymenoptera}"))) == 153


def test_evaluation_takes_test_then_val_then_the_only_split(make_folder):
    root = make_folder(
        {
            f"{s}/{c}": n
            for s, n in zip(("train", "val", "test"), (9, 2, 1), strict=True)
            for c in "ab"
        }
    )
    config = DataConfig(f"folder:{root}")
    assert len(open_for_evaluation(config)) == 2
    assert len(open_for_evaluation(config, "train")) == 18
    shutil.rmtree(root / "test")
    assert len(open_for_evaluation(config)) == 4
    shutil.rmtree(root / "val")
    assert len(open_for_evaluation(config)) == 18
    assert len(open_for_evaluation(config, "train")) == 16
    assert names(open_for_evaluation(config, "validation")) == names(open_splits(config).val)


def test_evaluation_needs_no_train_split(make_folder):
    config = DataConfig(f"folder:{make_folder({'val/a': 1, 'val/b': 1})}")
    assert len(open_for_evaluation(config)) == 2
    with pytest.raises(UserError, match=r"has no train split, only val"):
        open_splits(config)
    with pytest.raises(UserError, match=r"has no split test: name one of val by --split") as error:
        open_for_evaluation(config, "test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["cifar", "", "folder:", "tfds:", "torch:x", "digits:1", "tfds"])
def test_an_unknown_spec_lists_the_known_forms(spec):
    with pytest.raises(
        UserError, match=r"unknown data source .*: expected digits, .*folder:PATH"
    ) as error:
        open_splits(DataConfig(spec))
    assert "\n" not in str(error.value)


def test_a_bare_path_is_told_its_spec(tmp_path):
    with pytest.raises(
        UserError, match=f"folder:PATH; for the folder of that name: folder:{tmp_path}"
    ):
        open_splits(DataConfig(str(tmp_path)))


@pytest.mark.parametrize("opener", [open_splits, open_for_evaluation])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/a": 2, "train/b": 2, "val/a": 1, "val/c": 1}, r"train and val differ: b, c in"),
        ({"train/a": 2, "train/b": 2, "test/a": 1}, r"train and test differ: b in"),
        ({"train": 2, "val": 2}, r"has train, val without class folders .*train/CLASS/IMAGE"),
        ({"a": 2}, r"at least two class folders"),
        ({"train/a": 2, "train/b": 0}, r"class folder .*train/b holds no image"),
    ],
)
def test_unusable_folders(make_folder, opener, counts, message):
    config = DataConfig(f"folder:{make_folder(counts)}")
    with pytest.raises(UserError, match=message) as error:
        opener(config)
    assert "\n" not in str(error.value)


def test_paths_that_are_no_folder(tmp_path):
    (tmp_path / "data.zip").touch()
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        open_splits(DataConfig(f"folder:{tmp_path / 'nowhere'}"))
    with pytest.raises(UserError, match=r"data\.zip is a file: give the folder"):
        open_splits(DataConfig(f"folder:{tmp_path / 'data.zip'}"))


def test_a_home_folder_is_expanded(make_folder, monkeypatch):
    root = make_folder({"set/a": 2, "set/b": 2})
    monkeypatch.setenv("HOME", str(root))
    assert pathlib.Path.home() == root
    assert len(open_for_evaluation(DataConfig("folder:~/set"))) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_seed": -1}, "--data.split-seed must be at least 0, not -1"),
        ({"val_fraction": 1.0}, "--data.val-fraction must be between 0 and 1, not 1.0"),
        ({"per_class": 0}, "--data.per-class must be at least 1, not 0"),
        ({"on_bad_image": "ignore"}, "--data.on-bad-image ignore: it must be error or skip"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        DataConfig("digits", **options)


def test_an_address_in_a_bucket_is_a_place_without_a_slash_at_its_end():
    places = {place(DataConfig(f"folder:gs://some-bucket/a{end}")) for end in ("", "/", "//")}
    assert places == {"gs://some-bucket/a"}
