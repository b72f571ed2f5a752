import numpy as np
import pytest

from jxfer.data import subsets
from jxfer.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [100, 50, 4, 1]))


def test_carve_is_stratified_and_disjoint():
    kept, carved = subsets.carve(LABELS, 0.1, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, carved])), np.arange(155))
    assert np.bincount(LABELS[carved], minlength=4).tolist() == [10, 5, 1, 0]


def test_carve_leaves_every_class_an_example():
    kept, _ = subsets.carve(LABELS, 0.99, seed=0)
    assert np.bincount(LABELS[kept]).tolist() == [1, 1, 1, 1]


def test_carve_depends_on_its_seed_alone():
    np.testing.assert_array_equal(
        subsets.carve(LABELS, 0.1, 3)[1], subsets.carve(LABELS, 0.1, 3)[1]
    )
    assert (subsets.carve(LABELS, 0.1, 3)[1] != subsets.carve(LABELS, 0.1, 4)[1]).any()


def test_carve_draws_the_same_on_every_machine():
    _, carved = subsets.carve(np.repeat([0, 1], 10), 0.2, seed=0)
    assert carved.tolist() == [4, 6, 12, 19]


def test_nothing_to_carve_is_an_error():
    with pytest.raises(UserError, match=r"no class has two images, .*val split"):
        subsets.carve(np.arange(3), 0.5, 0)


def test_few_are_balanced_and_nested():
    names = ("a", "b", "c")
    labels = LABELS[LABELS < 3]
    two = subsets.few_per_class(labels, names, 2, seed=0)
    four = subsets.few_per_class(labels, names, 4, seed=0)
    assert np.bincount(labels[four]).tolist() == [4, 4, 4]
    assert set(two) < set(four)
    assert (np.diff(four) > 0).all()


def test_few_depend_on_their_seed_alone():
    labels, names = LABELS[LABELS < 2], ("a", "b")
    draws = [subsets.few_per_class(labels, names, 5, seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_too_few_names_the_class():
    with pytest.raises(UserError, match=r"class c has 4 training images.*per-class 5") as error:
        subsets.few_per_class(LABELS, ("a", "b", "c", "d"), 5, seed=0)
    assert "\n" not in str(error.value)
