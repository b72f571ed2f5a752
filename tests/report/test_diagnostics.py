import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics

from jxfer import statistics
from jxfer.report import diagnostics
from jxfer.report.diagnostics import Confusion, Mistake


@pytest.fixture(scope="module")
def noisy():
    """(probabilities [400, 5], labels [400]) that agree for about half of the examples."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    logits = rng.normal(size=(400, 5)) + 1.5 * np.eye(5)[labels]
    exponentials = np.exp(2 * logits)
    return exponentials / exponentials.sum(-1, keepdims=True), labels


def test_the_confusion_matrix_has_actual_classes_as_rows():
    labels, predicted = np.array([0, 0, 0, 2]), np.array([1, 1, 0, 2])
    matrix = diagnostics.confusion_matrix(labels, predicted, 4)
    assert matrix.tolist() == [[1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_per_class_figures_are_those_of_scikit_learn(noisy):
    probabilities, labels = noisy
    predicted = probabilities.argmax(-1)
    figures = diagnostics.per_class(diagnostics.confusion_matrix(labels, predicted, 5))
    wanted = sklearn.metrics.precision_recall_fscore_support(labels, predicted)
    found = [(f.precision.value, f.accuracy.value, f.f1.value, f.accuracy.n) for f in figures]
    np.testing.assert_allclose(np.transpose(found), wanted, rtol=1e-12)


def test_the_intervals_of_a_class_are_wilsons():
    # 8 of 10 examples are recognised, and 8 of 16 predictions are right.
    (first, _) = diagnostics.per_class(np.array([[8, 2], [8, 82]]))
    assert (first.accuracy.low, first.accuracy.high) == statistics.wilson_interval(8, 10)
    assert (first.precision.low, first.precision.high) == statistics.wilson_interval(8, 16)
    assert (first.accuracy.n, first.precision.n) == (10, 16)


def test_the_interval_of_f1_is_a_function_of_wilsons_of_the_examples_in_both():
    # 8 of the 18 examples that are of the class or predicted as it are both.
    (first, _) = diagnostics.per_class(np.array([[8, 2], [8, 82]]))
    low, high = statistics.wilson_interval(8, 18)
    assert first.f1.value == pytest.approx(2 * 8 / (10 + 16))
    assert first.f1.low == pytest.approx(2 / (1 + 1 / low))
    assert first.f1.high == pytest.approx(2 / (1 + 1 / high))


def test_a_class_that_never_occurs_has_no_accuracy_and_one_never_predicted_no_precision():
    absent, never_predicted, neither = diagnostics.per_class(
        np.array([[0, 0, 0], [3, 0, 0], [0, 0, 0]])
    )
    assert absent.accuracy is None
    assert (absent.precision.value, absent.f1.value) == (0, 0)
    assert never_predicted.precision is None
    assert (never_predicted.accuracy.value, never_predicted.f1.value) == (0, 0)
    assert (neither.accuracy, neither.precision, neither.f1) == (None, None, None)


def test_the_most_confused_pairs_come_first_and_of_equals_the_first():
    matrix = np.array([[90, 3, 0], [0, 5, 7], [3, 0, 1]])
    assert diagnostics.most_confused(matrix, 2) == [Confusion(1, 2, 7, 12), Confusion(0, 1, 3, 93)]
    assert [(p.actual, p.predicted) for p in diagnostics.most_confused(matrix, 99)] == [
        (1, 2),
        (0, 1),
        (2, 0),
    ]
    assert diagnostics.most_confused(np.diag([5, 5]), 3) == []


def test_calibration_error_of_a_published_example():
    # James D. McCaffrey, "How to Calculate Expected Calibration Error for Multi-Class
    # Classification", 2021. He rounds on the way; Maja Pavlovic, "Expected Calibration Error (ECE):
    # A Step-by-Step Visual Explanation", 2023, gets 0.192 from the same numbers.
    probabilities = np.array(
        [
            [0.25, 0.20, 0.22, 0.18, 0.15],
            [0.16, 0.06, 0.50, 0.07, 0.21],
            [0.06, 0.03, 0.80, 0.07, 0.04],
            [0.02, 0.03, 0.01, 0.04, 0.90],
            [0.40, 0.15, 0.16, 0.14, 0.15],
            [0.15, 0.28, 0.18, 0.17, 0.22],
            [0.07, 0.80, 0.03, 0.06, 0.04],
            [0.10, 0.05, 0.03, 0.75, 0.07],
            [0.25, 0.22, 0.05, 0.30, 0.18],
            [0.12, 0.09, 0.02, 0.17, 0.60],
        ]
    )
    labels = np.array([0, 2, 3, 4, 2, 0, 1, 3, 3, 2])
    bins = diagnostics.reliability(probabilities, labels, bins=3)
    assert diagnostics.expected_calibration_error(bins) == pytest.approx(0.192)


def test_calibration_error_is_the_sum_of_its_definition(noisy):
    probabilities, labels = noisy
    total = 0.0
    for m in range(1, 16):
        members = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if (m - 1) / 15 < row.max() <= m / 15
        ]
        if members:
            confidence, accuracy = np.mean(members, axis=0)
            total += len(members) / len(labels) * abs(accuracy - confidence)
    bins = diagnostics.reliability(probabilities, labels)
    assert total > 0.05  # the example is not calibrated
    assert diagnostics.expected_calibration_error(bins) == pytest.approx(total, rel=1e-12)


def test_the_reliability_diagram_is_that_of_scikit_learn(noisy):
    probabilities, labels = noisy
    bins = diagnostics.reliability(probabilities, labels)
    right = probabilities.argmax(-1) == labels
    accuracy, confidence = sklearn.calibration.calibration_curve(
        right, probabilities.max(-1), n_bins=15
    )
    np.testing.assert_allclose([part.accuracy.value for part in bins], accuracy)
    np.testing.assert_allclose([part.confidence for part in bins], confidence)
    assert sum(part.accuracy.n for part in bins) == len(labels)
    assert all(part.left < part.confidence <= part.right for part in bins)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_and_certainty_to_the_last():
    probabilities = np.array([[0.75, 0.25], [1.0, 0.0]], np.float32)
    bins = diagnostics.reliability(probabilities, np.array([0, 1]), bins=4)
    assert [(part.left, part.right, part.accuracy.value) for part in bins] == [
        (0.5, 0.75, 1.0),
        (0.75, 1.0, 0.0),
    ]
    assert diagnostics.expected_calibration_error(bins) == 0.5 * 0.25 + 0.5 * 1.0


def test_mistakes_come_by_confidence_and_of_equals_the_first():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    labels = np.array([0, 0, 1, 0, 1])
    assert diagnostics.confident_mistakes(probabilities, labels, 2) == [
        Mistake(index=1, actual=0, predicted=1, confidence=0.8),
        Mistake(index=2, actual=1, predicted=0, confidence=0.75),
    ]
    assert len(diagnostics.confident_mistakes(probabilities, labels, 9)) == 3
    assert diagnostics.confident_mistakes(probabilities, probabilities.argmax(-1), 9) == []
