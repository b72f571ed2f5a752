"""Each score beside an independent computation of its definition."""

import numpy as np
import pytest
import scipy.optimize

from jxfer.advise.transferability import h_score, leep, log_me, nce, shrunk_h_score


def blobs(examples, dimensions, classes=3, spread=1.0, seed=0):
    """Features around class centres, every class present; positive, as after a ReLU."""
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    centres = rng.normal(size=(classes, dimensions))
    return np.abs(spread * centres[labels] + rng.normal(size=(examples, dimensions))), labels


def entropy(labels):
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return -(share * np.log(share)).sum()


@pytest.mark.parametrize(
    ("examples", "dimensions", "spread"),
    [(40, 5, 1.0), (40, 5, 0.0), (12, 30, 1.0), (12, 12, 1.0), (60, 3, 100.0)],
)
def test_log_me_is_the_maximum_of_the_explicit_gaussian_evidence(examples, dimensions, spread):
    features, labels = blobs(examples, dimensions, spread=spread)
    gram = features @ features.T

    def evidence(logs, y):
        alpha, beta = np.exp(logs)
        covariance = np.eye(examples) / beta + gram / alpha
        fit = y @ np.linalg.solve(covariance, y)
        return -0.5 * (fit + np.linalg.slogdet(2 * np.pi * covariance)[1])

    best = []
    for label in range(3):
        y = (labels == label).astype(float)
        found = [
            scipy.optimize.minimize(
                lambda logs, y=y: -evidence(logs, y), start, method="Nelder-Mead",
                options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000},
            )
            for start in ([0, 0], [8, 2], [-4, 4])
        ]  # fmt: skip
        best.append(-min(result.fun for result in found) / examples)
    assert log_me(features, labels) == pytest.approx(np.mean(best), abs=1e-6)


def test_log_me_depends_on_neither_the_scale_nor_the_axes_nor_the_names_of_the_classes():
    features, labels = blobs(30, 6)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    wanted = log_me(features, labels)
    for changed in (1e4 * features, 1e-4 * features, features @ rotation):
        assert log_me(changed, labels) == pytest.approx(wanted, abs=1e-9)
    assert log_me(features, 7 - 3 * labels) == pytest.approx(wanted, abs=1e-12)
    assert log_me(features.astype(np.float32), labels) == pytest.approx(wanted, abs=1e-5)


def test_log_me_prefers_features_that_tell_the_classes_apart():
    scores = [log_me(*blobs(60, 8, spread=spread)) for spread in (0.0, 1.0, 3.0)]
    assert scores == sorted(scores)


def test_log_me_of_features_that_say_nothing_is_that_of_noise_alone():
    labels = np.arange(20) % 2
    # max over beta of log N(y; 0, I / beta) / N, with y'y = N / 2.
    wanted = 0.5 * (np.log(2 / (2 * np.pi)) - 1)
    assert log_me(np.zeros((20, 3)), labels) == pytest.approx(wanted, abs=1e-12)


def test_log_me_stays_finite_where_the_evidence_has_no_bound():
    labels = np.arange(20) % 2
    assert np.isfinite(log_me(np.eye(2)[labels], labels))


PROBABILITIES = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.5, 0.5]])
TARGET = np.array([0, 0, 1, 1])


def test_leep_by_hand():
    # Columns add up to 2: P(0 | z) = 1.4 / 2, 0.6 / 2; P(1 | z) = 0.6 / 2, 1.4 / 2.
    likelihoods = [
        0.8 * 0.7 + 0.2 * 0.3,
        0.6 * 0.7 + 0.4 * 0.3,
        0.1 * 0.3 + 0.9 * 0.7,
        0.5 * 0.3 + 0.5 * 0.7,
    ]
    assert leep(PROBABILITIES, TARGET) == pytest.approx(np.mean(np.log(likelihoods)))


def test_leep_by_loops():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(5, 0.3), size=50)
    probabilities[:, 2] = 0.0  # a source class that nothing looks like
    probabilities /= probabilities.sum(1, keepdims=True)
    labels = rng.integers(0, 3, 50)
    joint = np.zeros((3, 5))
    for row, y in zip(probabilities, labels, strict=True):
        for z in range(5):
            joint[y, z] += row[z] / 50
    total = 0.0
    for row, y in zip(probabilities, labels, strict=True):
        total += np.log(sum(row[z] * joint[y, z] / joint[:, z].sum() for z in (0, 1, 3, 4)))
    assert leep(probabilities, labels) == pytest.approx(total / 50)


def test_leep_lies_between_minus_the_entropy_and_zero():
    labels = np.array([0, 0, 0, 1, 2])
    assert leep(np.full((5, 4), 0.25), labels) == pytest.approx(-entropy(labels))
    assert leep(np.eye(3)[labels], labels) == pytest.approx(0.0)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), size=5)
    assert -entropy(labels) < leep(probabilities, labels) < 0


def test_leep_of_a_certain_source_is_nce():
    rng = np.random.default_rng(0)
    source, labels = rng.integers(0, 6, 80), rng.integers(0, 3, 80)
    assert leep(np.eye(6)[source], labels) == pytest.approx(nce(source, labels))


def test_leep_takes_no_logits():
    with pytest.raises(ValueError, match="add up to 1"):
        leep(np.array([[2.0, -1.0], [0.5, 0.5]]), np.array([0, 1]))


def test_nce_by_hand():
    # Z = 0: Y = 0, 0, 1; Z = 1: Y = 1.
    source, labels = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    wanted = (2 * np.log(2 / 3) + np.log(1 / 3) + np.log(1)) / 4
    assert nce(source, labels) == pytest.approx(wanted)


def test_nce_is_the_target_given_the_source():
    fine, coarse = np.arange(8) % 4, np.arange(8) % 2
    assert nce(fine, coarse) == pytest.approx(0.0)  # a fine source tells the coarse label
    assert nce(coarse, fine) == pytest.approx(-np.log(2))


def test_nce_lies_between_minus_the_entropy_and_zero():
    labels = np.array([0, 0, 0, 1, 2])
    assert nce(np.zeros(5, int), labels) == pytest.approx(-entropy(labels))
    assert nce(labels + 5, labels) == pytest.approx(0.0)


def test_h_score_is_the_trace():
    features, labels = blobs(50, 6)
    means = np.stack([features[labels == label].mean(0) for label in labels])
    wanted = np.trace(np.linalg.inv(np.cov(features.T)) @ np.cov(means.T))
    assert h_score(features, labels) == pytest.approx(wanted)


def test_h_score_is_the_same_under_every_invertible_map():
    features, labels = blobs(50, 6)
    transform = np.random.default_rng(1).normal(size=(6, 6))
    assert h_score(features @ transform + 3, labels) == pytest.approx(h_score(features, labels))


def test_h_score_leaves_dead_and_repeated_units_out():
    features, labels = blobs(50, 6)
    features = features.astype(np.float32)
    more = np.hstack([features, np.zeros((50, 2), np.float32), features[:, :1]])
    assert h_score(more, labels) == pytest.approx(h_score(features, labels), rel=1e-5)
    assert h_score(np.ones((50, 2)), labels) == 0


def test_h_score_is_bounded_by_the_classes_and_reached_with_few_examples():
    noise = np.random.default_rng(0).normal(size=(12, 40))
    labels = np.arange(12) % 3
    assert h_score(noise, labels) == pytest.approx(2)
    assert shrunk_h_score(noise, labels) < 1.5


def test_the_shrunk_h_score_is_the_trace_of_the_shrunk_covariances():
    from sklearn.covariance import ledoit_wolf

    features, labels = blobs(12, 40)
    covariance, weight = ledoit_wolf(features)
    assert 0.05 < weight < 0.95
    means = np.stack([features[labels == label].mean(0) for label in labels])
    between = (1 - weight) * np.cov(means.T, bias=True)
    wanted = np.trace(np.linalg.inv(covariance) @ between)
    assert shrunk_h_score(features, labels) == pytest.approx(wanted)
    assert shrunk_h_score(np.ones((12, 4)), labels) == 0


def test_with_many_examples_nothing_is_shrunk():
    features, labels = blobs(20_000, 4)
    features *= [1, 2, 4, 8]  # far from a multiple of the identity
    assert shrunk_h_score(features, labels) == pytest.approx(h_score(features, labels), rel=5e-3)


@pytest.mark.parametrize("score", [log_me, leep, h_score, shrunk_h_score])
def test_bad_features_are_one_line(one_line, score):
    rows = np.full((4, 2), 0.5)
    with one_line("all of one class"):
        score(rows, np.ones(4, int))
    rows[1, 1] = np.nan
    with one_line("not a finite number"):
        score(rows, np.arange(4))
    with pytest.raises(ValueError, match="belong together"):
        score(rows, np.arange(3))


def test_nce_of_one_class_is_one_line(one_line):
    with one_line("all of one class"):
        nce(np.arange(4), np.ones(4, int))
