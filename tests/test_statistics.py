import numpy as np
import pytest

from jxfer.statistics import t_interval, wilson_interval


def test_the_interval_is_its_closed_form():
    """Mean 3, standard error sqrt(2.5 / 5); the 97.5 % quantile of t with 4 degrees is 2.776445."""
    half = 2.7764451 * np.sqrt(2.5 / 5)
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), rel=1e-6)


def test_wilson_is_the_closed_form():
    z, n, p = 1.959964, 12, 9 / 12
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = wilson_interval(9, 12)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-6)
