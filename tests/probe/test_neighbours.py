"""Nearest neighbours: scikit-learn's on random data, ties, and blocks."""

import numpy as np
import pytest
import sklearn.neighbors

from jxfer.probe import neighbours

NAMES = ("ants", "bees", "cats")


def random_split(rows, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    return (rng.normal(size=(rows, 6)) + labels[:, None] / 2).astype(np.float32), labels


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 4, 25])
def test_predictions_are_scikit_learns(metric, k):
    train, queries = random_split(300, 0), random_split(301, 1)[0]
    model = sklearn.neighbors.KNeighborsClassifier(k, metric=metric).fit(*train)
    found = neighbours.predict(train, queries, k, metric, 3)
    np.testing.assert_array_equal(found, model.predict(queries))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_blocks_change_nothing(metric, monkeypatch):
    train, queries = random_split(300, 0)[0], random_split(50, 1)[0]
    whole = neighbours.nearest_rows(train, queries, 40, metric)
    monkeypatch.setattr(neighbours, "_ROWS", 64)
    monkeypatch.setattr(neighbours, "_QUERIES", 16)
    np.testing.assert_array_equal(neighbours.nearest_rows(train, queries, 40, metric), whole)


def test_features_far_from_the_origin_keep_their_neighbours():
    train, queries = random_split(300, 0)[0], random_split(50, 1)[0]
    near = neighbours.nearest_rows(train, queries, 1, "euclidean")
    shift = np.float32(256)  # the features keep 15 bits after the point, their squares 7
    far = neighbours.nearest_rows(train + shift, queries + shift, 1, "euclidean")
    assert np.mean(near == far) > 0.97


def test_all_rows_are_neighbours_and_rows_of_zeros_are_allowed():
    train = np.array([[0, 0], [1, 0], [0, 2]], np.float32)
    queries = np.array([[3, 1], [0, 0]], np.float32)
    found = neighbours.nearest_rows(train, queries, 3, "cosine")
    assert found.tolist() == [[1, 2, 0], [0, 1, 2]]  # at one distance, the earlier row


def test_a_tie_of_votes_goes_to_the_lower_label():
    assert neighbours.vote(np.array([[2, 1, 1, 2], [2, 2, 0, 1]]), 3).tolist() == [1, 2]


def test_validation_picks_and_a_tie_goes_to_more_neighbours():
    train, val = random_split(60, 0), random_split(80, 1)
    found = neighbours.fit(train, val, NAMES, "euclidean")
    assert found.neighbours.tolist() == [50, 20, 10, 5, 2, 1]
    for k, correct in zip(found.neighbours, found.val_correct, strict=True):
        predicted = neighbours.predict(train, val[0], int(k), "euclidean", 3)
        assert correct == np.sum(predicted == val[1])
    assert found.val_correct[found.picked] == found.val_correct.max()

    apart = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0), np.repeat(np.arange(3), 5)
    assert neighbours.fit(apart, apart, NAMES, "cosine").k == 5


def test_what_is_wrong_is_one_line(one_line):
    split = np.ones((3, 2), np.float32), np.arange(3)
    with one_line("class cats has no training image"):
        neighbours.fit((split[0], np.array([0, 1, 1])), split, NAMES)
    with one_line("50", "from 1 to 3"):
        neighbours.fit(split, split, NAMES, neighbours=(50,))
    with one_line("no", "validation images"):
        neighbours.fit(split, (split[0][:0], split[1][:0]), NAMES)
