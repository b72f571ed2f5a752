import logging

import pytest

from jxfer.data.loader import eval_batches
from jxfer.data.readers import FolderSource, Subset
from jxfer.data.screen import drop_unreadable, load_for_evaluation, load_splits
from jxfer.data.sources import DataConfig, Splits
from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError


def test_unreadable_images_are_dropped_by_name(damaged):
    source = FolderSource(damaged)
    kept, names = drop_unreadable(source)
    assert names == ("a/03.png", "b/05.png", "b/06.png")
    assert len(kept) == 37
    assert len(list(eval_batches(kept, Preprocessing(10), batch_size=37))) == 1
    assert drop_unreadable(kept) == (kept, ())


def test_skip_leaves_bad_images_out_of_every_split(damaged, caplog):
    with caplog.at_level(logging.WARNING, logger="jxfer"):
        splits = load_splits(DataConfig(f"folder:{damaged}", on_bad_image="skip"))
    assert sorted(splits.skipped) == ["a/03.png", "b/05.png", "b/06.png"]
    assert len(splits.train) + len(splits.val) == 37
    assert "unreadable images skipped: 3, the first" in caplog.text


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_is_evaluated_as_it_is_trained_on(damaged, split):
    config = DataConfig(f"folder:{damaged}", on_bad_image="skip", val_fraction=0.5)
    trained = getattr(load_splits(config), split)
    evaluated, skipped = load_for_evaluation(config, split)
    names = [evaluated.name(i) for i in range(len(evaluated))]
    assert names == [trained.name(i) for i in range(len(trained))]
    assert len(names) + len(skipped) == 20
    assert len(load_for_evaluation(DataConfig(f"folder:{damaged}"))[0]) == 40


def test_without_skip_nothing_is_scanned(damaged):
    splits = load_splits(DataConfig(f"folder:{damaged}"))
    assert (len(splits.train) + len(splits.val), splits.skipped) == (40, ())


def test_a_class_without_readable_images_is_named(make_folder):
    root = make_folder({"a": 5, "b": 2})
    for file in (root / "b").iterdir():
        file.write_bytes(b"")
    message = r"class b has no readable training image \(2 skipped, the first b/0[01]\.png\)"
    with pytest.raises(UserError, match=message):
        load_splits(DataConfig(f"folder:{root}", on_bad_image="skip"))


def test_a_split_without_readable_images_is_refused(make_folder):
    root = make_folder({"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 2})
    for file in (root / "val").rglob("*.png"):
        file.write_bytes(b"")
    for load in (load_splits, load_for_evaluation):
        with pytest.raises(UserError, match=r"none of 4 images is readable, the first .*a/00\.png"):
            load(DataConfig(f"folder:{root}", on_bad_image="skip"))


def test_balanced_sampling_is_refused_before_a_run_where_a_class_is_empty(
    source, monkeypatch, one_line
):
    splits = Splits(Subset(source, [0, 1, 30]), source, None)
    monkeypatch.setattr("jxfer.data.sources.open_splits", lambda config, screen, by_class: splits)
    assert load_splits(DataConfig("digits")) is splits
    with one_line("class b has no training image", "--data.balanced-sampling"):
        load_splits(DataConfig("digits", balanced_sampling=True))
