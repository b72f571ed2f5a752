"""Intervals: of repeated runs, and of proportions."""

from collections.abc import Sequence

import numpy as np
import scipy.stats


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t-interval of the mean of at least two independent values."""
    mean, error = np.mean(values), scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(level, len(values) - 1, mean, error)
    return float(low), float(high)


def wilson_interval(correct: int, examples: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, such as an accuracy."""
    low, high = scipy.stats.binomtest(correct, examples).proportion_ci(level, method="wilson")
    return float(low), float(high)
