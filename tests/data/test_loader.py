import itertools
import logging
import threading
import time

import numpy as np
import pytest

from jxfer.data import embedded, transforms
from jxfer.data.loader import drop_unreadable, eval_batches, load_splits, train_batches
from jxfer.data.readers import FolderSource, Subset, TfdsSource
from jxfer.data.sources import DataConfig, Splits
from jxfer.data.transforms import AugmentConfig, Preprocessing
from jxfer.errors import UserError

SMALL = Preprocessing(10)
AUGMENT = AugmentConfig(pad_crop=2, flip=True, colour_jitter=0.3)


def take(source, steps, *, batch_size=6, seed=0, **options):
    batches = train_batches(source, SMALL, AUGMENT, batch_size=batch_size, seed=seed, **options)
    return list(itertools.islice(batches, steps))


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_training_batches_have_the_promised_shapes(source):
    [batch] = take(source, 1)
    assert (batch["image"].shape, batch["image"].dtype) == ((6, 10, 10, 3), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((6,), np.int32)


def test_batches_are_a_function_of_the_seed(source):
    assert_equal(take(source, 8, seed=1), take(source, 8, seed=1, threads=5))
    assert (take(source, 1, seed=1)[0]["image"] != take(source, 1, seed=2)[0]["image"]).any()


def test_threads_may_share_a_tfds_source():
    digits = TfdsSource(embedded.open_embedded("digits"), "train")
    assert_equal(
        take(digits, 40, batch_size=64, threads=1), take(digits, 40, batch_size=64, threads=8)
    )


@pytest.mark.parametrize("step", [1, 5, 6, 17])  # an epoch is 5.5 batches
def test_resuming_gives_what_an_undisturbed_run_gives(source, step):
    assert_equal(take(source, 4, start_step=step), take(source, step + 4)[step:])


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_interleave_to_the_one_host_batch(source, hosts):
    whole = take(source, 13)
    parts = [take(source, 13, host=host, hosts=hosts) for host in range(hosts)]
    for step, batch in enumerate(whole):
        for key in batch:
            for host in range(hosts):
                np.testing.assert_array_equal(batch[key][host::hosts], parts[host][step][key])


def test_every_epoch_sees_every_example_once_in_another_order(source):
    plain = train_batches(source, SMALL, AugmentConfig(), batch_size=11, seed=0)
    epochs = [
        np.concatenate([batch["image"] for batch in itertools.islice(plain, 3)]) for _ in range(2)
    ]
    views = {
        transforms.evaluation_view(transforms.decode(e.image, e.name), SMALL).tobytes()
        for e in map(source.__getitem__, range(33))
    }
    for epoch in epochs:
        assert {image.tobytes() for image in epoch} == views
    assert (epochs[0] != epochs[1]).any()


def test_a_source_smaller_than_the_batch_is_repeated(source):
    batches = take(Subset(source, [0, 20, 30]), 4, batch_size=8)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert np.bincount(labels[:30]).tolist() == [10, 10, 10]
    assert_equal(take(Subset(source, [0, 20, 30]), 1, batch_size=8, start_step=3), batches[3:])


@pytest.mark.parametrize("size", [1, 7, 12, 33])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_evaluation_counts_every_example_once(source, size, hosts):
    subset = Subset(source, np.arange(33)[::-1][:size])
    parts = [
        list(eval_batches(subset, SMALL, batch_size=6, host=host, hosts=hosts))
        for host in range(hosts)
    ]
    assert {len(part) for part in parts} == {-(-size // 6)}
    seen = []
    for batch in itertools.chain(*parts):
        assert batch["image"].shape == (6 // hosts, 10, 10, 3)
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        assert (batch["mask"].dtype, batch["index"].dtype) == (np.float32, np.int32)
        for row, index in enumerate(batch["index"]):
            if not batch["mask"][row]:
                assert index >= size
                continue
            seen.append(index)
            example = subset[index]
            image = transforms.decode(example.image, example.name)
            assert batch["label"][row] == example.label
            np.testing.assert_array_equal(
                batch["image"][row], transforms.evaluation_view(image, SMALL)
            )
    assert sorted(seen) == list(range(size))
    if hosts == 1:
        assert seen == sorted(seen)


def test_evaluating_nothing_gives_no_batch(source):
    assert list(eval_batches(Subset(source, []), SMALL, batch_size=6)) == []


@pytest.mark.parametrize(("batch_size", "hosts"), [(6, 4), (0, 1)])
def test_hosts_must_share_the_batch_evenly(source, batch_size, hosts):
    message = rf"batch size {batch_size} must be a positive multiple .* {hosts}$"
    with pytest.raises(UserError, match=message):
        train_batches(source, SMALL, AUGMENT, batch_size=batch_size, seed=0, hosts=hosts)
    with pytest.raises(UserError, match=message):
        eval_batches(source, SMALL, batch_size=batch_size, hosts=hosts)


def test_training_on_nothing_is_refused(source):
    with pytest.raises(UserError, match="holds no image"):
        train_batches(Subset(source, []), SMALL, AUGMENT, batch_size=6, seed=0)


@pytest.fixture
def damaged(make_folder):
    """Two classes of 20 images, of which a/03 is truncated, b/05 empty and b/06 a text file."""
    root = make_folder({"a": 20, "b": 20})
    whole = (root / "a" / "03.png").read_bytes()
    (root / "a" / "03.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "05.png").write_bytes(b"")
    (root / "b" / "06.png").write_text("not found")
    return root


def test_a_bad_image_reaches_the_caller_by_name(damaged):
    source = FolderSource(damaged)
    with pytest.raises(UserError, match=r"^image a/03\.png is truncated") as error:
        list(eval_batches(source, SMALL, batch_size=8))
    assert type(error.value) is UserError
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^image (a/03|b/05|b/06)\.png is"):
        take(source, 7)


def test_unreadable_images_are_dropped_by_name(damaged):
    source = FolderSource(damaged)
    kept, names = drop_unreadable(source)
    assert names == ("a/03.png", "b/05.png", "b/06.png")
    assert len(kept) == 37
    assert len(list(eval_batches(kept, SMALL, batch_size=37))) == 1
    assert drop_unreadable(kept) == (kept, ())


def test_skip_leaves_bad_images_out_of_every_split(damaged, caplog):
    with caplog.at_level(logging.WARNING, logger="jxfer"):
        splits = load_splits(DataConfig(f"folder:{damaged}", on_bad_image="skip"))
    assert sorted(splits.skipped) == ["a/03.png", "b/05.png", "b/06.png"]
    assert len(splits.train) + len(splits.val) == 37
    assert "unreadable images skipped: 3, the first" in caplog.text


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


def test_balanced_sampling_is_refused_before_a_run_where_a_class_is_empty(
    source, monkeypatch, one_line
):
    splits = Splits(Subset(source, [0, 1, 30]), source, None)
    monkeypatch.setattr("jxfer.data.sources.open_splits", lambda config: splits)
    assert load_splits(DataConfig("digits")) is splits
    with one_line("class b has no training image", "--data.balanced-sampling"):
        load_splits(DataConfig("digits", balanced_sampling=True))


def test_threads_end_with_the_iterator(source):
    batches = train_batches(source, SMALL, AUGMENT, batch_size=6, seed=0)
    next(batches)
    assert any("grain-prefetch" in thread.name for thread in threading.enumerate())
    del batches
    deadline = time.monotonic() + 10
    while any("grain-prefetch" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
