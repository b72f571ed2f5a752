"""What a classifier's probabilities on labelled examples say of it.

Before `run_results` in the flow, and pure: NumPy in, figures out. Everywhere `probabilities` is
[N, K] with rows that sum to 1, `labels` and `predicted` are integers [N] below K, and N is at
least 1.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import sklearn.metrics

from jxfer import statistics

BINS = 15
"""Of equal width over [0, 1], as in the tables of Guo et al. 2017."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """A proportion, or F1, which is a function of one."""

    value: float
    """in [0, 1]"""
    low: float
    """of the 95 % interval"""
    high: float
    n: int
    """the examples that it is of"""


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """How well one class is recognised. A rate of no example is None."""

    accuracy: Rate | None
    """Of its examples, those that are predicted as it: its recall. Wilson's interval."""
    precision: Rate | None
    """Of the predictions of it, those that are right. Wilson's interval."""
    f1: Rate | None
    """The harmonic mean of the two. It is 2 j / (1 + j), where j is the part of the examples of the
    class or predicted as it that are both; its interval is that function of Wilson's interval of j
    (the indirect method of Lam, Gopal & Qian 2023, arXiv:2309.14621)."""


@dataclasses.dataclass(frozen=True)
class Bin:
    """A bin of the reliability diagram that holds examples."""

    left: float
    """Its examples' confidence is above this,"""
    right: float
    """and at most this."""
    confidence: float
    """their mean confidence"""
    accuracy: Rate
    """how many of them are classified rightly, with Wilson's interval"""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An example whose predicted class is wrong."""

    index: int
    """its place in the arrays"""
    actual: int
    predicted: int
    confidence: float
    """the probability of the predicted class"""


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Examples of one class that are predicted as another."""

    actual: int
    predicted: int
    count: int
    n: int
    """examples of the actual class"""


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 [K, K]: a row for each actual class, a column for each predicted one."""
    return sklearn.metrics.confusion_matrix(labels, predicted, labels=np.arange(classes))


def per_class(confusion: np.ndarray) -> list[ClassFigures]:
    """The figures of each class, from a confusion matrix [K, K]."""
    figures = []
    for k in range(len(confusion)):
        right = int(confusion[k, k])
        actual, predicted = int(confusion[k].sum()), int(confusion[:, k].sum())
        figures.append(
            ClassFigures(
                accuracy=_rate(right, actual),
                precision=_rate(right, predicted),
                f1=_f1(_rate(right, actual + predicted - right)),
            )
        )
    return figures


def most_confused(confusion: np.ndarray, most: int) -> list[Confusion]:
    """The pairs of classes with the most wrong predictions, at most `most`; the first of equals.

    Args:
      confusion: [K, K], as from `confusion_matrix`.
    """
    wrong = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        Confusion(int(row), int(column), int(wrong[row, column]), int(confusion[row].sum()))
        for row, column in pairs
        if wrong[row, column]
    ]


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The reliability diagram: accuracy by confidence, in bins ((m - 1) / M, m / M].

    Confidence is the probability of the predicted class (Guo et al. 2017, section 2). Empty bins
    are left out. `sklearn.calibration.calibration_curve` has the same bins and does not count them.
    """
    confidence = probabilities.max(-1).astype(np.float64)
    right = probabilities.argmax(-1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence)
    found = []
    for m in np.unique(place):
        inside = place == m
        accuracy = _rate(int(right[inside].sum()), int(inside.sum()))
        assert accuracy is not None  # a bin of `unique` holds an example
        mean = float(confidence[inside].mean())
        found.append(Bin(float(edges[m]), float(edges[m + 1]), mean, accuracy))
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """ECE = sum over bins of n_m / N |accuracy_m - confidence_m| (Guo et al. 2017, eq. 3)."""
    examples = sum(part.accuracy.n for part in bins)
    gaps = (part.accuracy.n * abs(part.accuracy.value - part.confidence) for part in bins)
    return sum(gaps) / examples


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, most: int) -> list[Mistake]:
    """The wrong predictions of the highest confidence, at most `most`; the first of equals."""
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    (wrong,) = np.nonzero(predicted != labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return [Mistake(int(i), int(labels[i]), int(predicted[i]), float(confidence[i])) for i in order]


def _rate(part: int, whole: int) -> Rate | None:
    if not whole:
        return None
    return Rate(part / whole, *statistics.wilson_interval(part, whole), whole)


def _f1(both: Rate | None) -> Rate | None:
    if both is None:
        return None
    value, low, high = (2 * part / (1 + part) for part in (both.value, both.low, both.high))
    return Rate(value, low, high, both.n)
