import itertools

import numpy as np
import pytest

from jxfer.data.loader import train_batches
from jxfer.data.readers import Subset
from jxfer.data.sampling import class_balanced
from jxfer.data.transforms import AugmentConfig, Preprocessing

COUNTS = [(0, 20), (1, 10), (2, 3)]  # (class, examples) of the source


@pytest.fixture
def names(source):
    """The names of the first `number` examples that a seed draws."""

    def draw(number, seed=0):
        order = class_balanced(source, seed)
        return [source.name(order[i][0]) for i in range(number)]

    return draw


def test_every_class_comes_once_in_a_round(source):
    order = class_balanced(source, 0)
    rounds = source.labels[[order[i][0] for i in range(300)]].reshape(100, 3)
    np.testing.assert_array_equal(np.sort(rounds), np.tile([0, 1, 2], (100, 1)))
    assert len({tuple(found) for found in rounds}) == 6  # in every order


@pytest.mark.parametrize(("label", "count"), COUNTS)
def test_a_class_goes_through_all_its_examples_before_one_repeats(names, label, count):
    drawn = [name for name in names(360) if name.startswith("abc"[label])]
    passes = [drawn[start : start + count] for start in range(0, 120, count)]
    assert all(len(set(found)) == count for found in passes)
    assert len({tuple(found) for found in passes}) > 1  # in another order


def test_the_draws_depend_on_the_seed(names):
    assert names(60, seed=1) == names(60, seed=1)
    assert names(60, seed=1) != names(60, seed=2)


def test_a_class_of_one_example_repeats_it(source):
    few = Subset(source, [0, 1, 2, 20, 30])
    order = class_balanced(few, 0)
    drawn = [few.name(order[i][0]) for i in range(9)]
    assert sorted(drawn)[:3] == ["a/00.png", "a/01.png", "a/02.png"]
    assert sorted(drawn)[3:] == ["b/00.png"] * 3 + ["c/00.png"] * 3


def test_a_class_without_examples_is_named(source, one_line):
    with one_line("class b has no training image", "--data.balanced-sampling"):
        class_balanced(Subset(source, [0, 1, 30]), 0)


def take(source, steps, **options):
    """Labels and pixels of augmented batches of six."""
    augment = AugmentConfig(pad_crop=2, flip=True)
    batches = train_batches(
        source, Preprocessing(10), augment, batch_size=6, seed=0, balanced_sampling=True, **options
    )
    return [(batch["label"], batch["image"]) for batch in itertools.islice(batches, steps)]


def assert_equal(batches, others):
    for (labels, images), (other_labels, other_images) in zip(batches, others, strict=True):
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_array_equal(images, other_images)


def test_a_batch_that_the_classes_divide_holds_as_many_of_each(source):
    for labels, _ in take(source, 20):
        assert np.bincount(labels).tolist() == [2, 2, 2]


@pytest.mark.parametrize("step", [1, 5, 17])
def test_resuming_draws_as_an_undisturbed_run_does(source, step):
    assert_equal(take(source, 4, start_step=step, threads=5), take(source, step + 4)[step:])


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_interleave_to_the_one_host_batch(source, hosts):
    parts = [take(source, 8, host=host, hosts=hosts) for host in range(hosts)]
    for step, whole in enumerate(take(source, 8)):
        for host in range(hosts):
            for array, part in zip(whole, parts[host][step], strict=True):
                np.testing.assert_array_equal(array[host::hosts], part)
