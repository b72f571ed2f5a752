import itertools
import threading
import time

import numpy as np
import pytest

from jxfer.data import embedded, transforms
from jxfer.data.loader import (
    eval_batches,
    feature_batches,
    train_batches,
    train_rows,
    view_batches,
)
from jxfer.data.readers import FolderSource, Subset, TfdsSource
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


@pytest.mark.slow
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


def test_a_bad_image_reaches_the_caller_by_name(damaged):
    source = FolderSource(damaged)
    with pytest.raises(UserError, match=r"^image a/03\.png is truncated") as error:
        list(eval_batches(source, SMALL, batch_size=8))
    assert type(error.value) is UserError
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^image (a/03|b/05|b/06)\.png is"):
        take(source, 7)


def test_threads_end_with_the_iterator(source):
    batches = train_batches(source, SMALL, AUGMENT, batch_size=6, seed=0)
    next(batches)
    assert any("grain-prefetch" in thread.name for thread in threading.enumerate())
    del batches
    deadline = time.monotonic() + 10
    while any("grain-prefetch" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stored_views_repeat_by_epoch(source):
    few = AugmentConfig(pad_crop=2, flip=True, views=2)
    batches = train_batches(source, SMALL, few, batch_size=33, seed=3)
    rows = train_rows(source, 2, batch_size=33, seed=3)
    seen = {}
    for epoch in range(4):
        batch, row = next(batches), next(rows)
        assert set(row // 33) == {epoch % 2}
        np.testing.assert_array_equal(batch["label"], source.labels[row % 33])
        for key, image in zip(row, batch["image"], strict=True):
            np.testing.assert_array_equal(image, seen.setdefault(int(key), image))
    assert len(seen) == 66
    assert sum(not np.array_equal(seen[i], seen[i + 33]) for i in range(33)) > 25


def test_one_order_for_new_views_stored_views_and_rows(source):
    """So that a run takes the same batches with a cache and without one."""
    fresh = take(source, 12)
    stored = AugmentConfig(pad_crop=2, views=1)
    rows = itertools.islice(train_rows(source, 1, batch_size=6, seed=0), 12)
    batches = train_batches(source, SMALL, stored, batch_size=6, seed=0)
    for batch, again, row in zip(fresh, batches, rows, strict=False):
        np.testing.assert_array_equal(batch["label"], again["label"])
        np.testing.assert_array_equal(batch["label"], source.labels[row])
    unchanged = train_batches(source, SMALL, AugmentConfig(), batch_size=6, seed=0)
    row = next(train_rows(source, 1, batch_size=6, seed=0))
    views = [transforms.decode(source[i].image, "")[:, 1:11] for i in row]
    np.testing.assert_array_equal(next(unchanged)["image"], views)


def test_a_stored_view_counts_the_draws_of_its_own_class_when_balanced(source):
    """Of 20, 10 and 3 examples, 33 draws a class make 1.65, 3.3 and 11 passes."""
    rows = train_rows(source, 4, batch_size=99, seed=0, balanced_sampling=True)
    drawn = next(rows)
    labels = source.labels[drawn % 33]
    np.testing.assert_array_equal(np.bincount(labels), [33, 33, 33])
    for label, size in enumerate((20, 10, 3)):
        views = drawn[labels == label] // 33
        np.testing.assert_array_equal(views, np.arange(33) // size % 4)


@pytest.mark.parametrize("start", [0, 7])
def test_rows_resume_at_a_step(start, source):
    whole = list(itertools.islice(train_rows(source, 2, batch_size=6, seed=0), 20))
    tail = train_rows(source, 2, batch_size=6, seed=0, start_step=start)
    np.testing.assert_array_equal(list(itertools.islice(tail, 20 - start)), whole[start:])


@pytest.mark.parametrize("start_row", [0, 12])
def test_every_view_once_in_the_order_of_the_rows(start_row, source):
    few = AugmentConfig(pad_crop=2, flip=True, views=2)
    batches = view_batches(source, SMALL, few, seed=3, batch_size=6, start_row=start_row)
    images = np.concatenate([batch["image"][batch["mask"] > 0] for batch in batches])
    assert len(images) == 66 - start_row
    batch = next(train_batches(source, SMALL, few, batch_size=33, seed=3))
    row = next(train_rows(source, 2, batch_size=33, seed=3))
    for key, image in zip(row, batch["image"], strict=True):
        if key >= start_row:
            np.testing.assert_array_equal(images[key - start_row], image)


def test_without_augmentation_the_only_view_is_the_evaluation_view(source):
    batches = view_batches(source, SMALL, AugmentConfig(), seed=3, batch_size=6)
    wanted = eval_batches(source, SMALL, batch_size=6)
    for batch, other in zip(batches, wanted, strict=True):
        real = other["mask"] > 0
        np.testing.assert_array_equal(batch["mask"], other["mask"])
        np.testing.assert_array_equal(batch["image"][real], other["image"][real])


def test_feature_batches_hold_each_row_once_and_padding():
    features, labels = np.arange(14.0).reshape(7, 2), np.arange(7)
    batches = list(feature_batches(features, labels, 4))
    assert [batch["features"].shape for batch in batches] == [(4, 2), (4, 2)]
    real = np.concatenate([batch["mask"] for batch in batches]) > 0
    for name, wanted in (("features", features), ("label", labels)):
        np.testing.assert_array_equal(np.concatenate([b[name] for b in batches])[real], wanted)
