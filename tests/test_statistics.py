import numpy as np
import pytest

from jxfer.statistics import t_interval


def test_the_interval_is_its_closed_form():
    """Mean 3, standard error sqrt(2.5 / 5); the 97.5 % quantile of t with 4 degrees is 2.776445."""
    half = 2.7764451 * np.sqrt(2.5 / 5)
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), rel=1e-6)
