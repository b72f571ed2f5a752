import itertools
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from jxfer.statistics import (
    bootstrap_interval,
    effect_size,
    holm,
    paired_t,
    seeds_needed,
    sign_flip,
    t_interval,
    wilson_interval,
)

# Hours of sleep that ten patients gained with the first drug, less those with the second (Student
# 1908): R's example of a paired t test prints t = -4.0621, df = 9, p-value = 0.002833 and the
# interval -2.4598858 -0.7001142.
SLEEP = [-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4]


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


def test_the_sleep_data_of_student():
    less, greater = paired_t(SLEEP)
    assert 2 * less == pytest.approx(0.002833, abs=5e-7)
    assert less + greater == pytest.approx(1)
    assert paired_t(np.negative(SLEEP)) == pytest.approx((greater, less))
    assert t_interval(SLEEP) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert effect_size(SLEEP) == pytest.approx(-4.0621 / np.sqrt(10), abs=2e-5)


def test_a_hypothetical_mean_shifts_the_differences():
    shifted = [value - 0.5 for value in SLEEP]
    assert paired_t(SLEEP, 0.5) == pytest.approx(paired_t(shifted))
    assert effect_size(SLEEP, 0.5) == pytest.approx(effect_size(shifted))


@pytest.mark.parametrize("rounding", [0.0, 1e-14])
def test_equal_differences_are_judged_by_their_signs_alone(rounding):
    """Of 2**5 patterns of signs one is as extreme as five differences of +2."""
    two = [2.0, 2.0 + rounding, 2.0, 2.0 - rounding, 2.0]
    assert paired_t(two) == (1.0, 1 / 32)
    assert paired_t(two, mean=3.0) == (1 / 32, 1.0)
    assert paired_t(two, mean=2.0) == (1.0, 1.0)
    assert effect_size(two) is None
    assert t_interval(two) == bootstrap_interval(two) == pytest.approx((2.0, 2.0))


def test_no_difference_at_all_says_nothing():
    assert paired_t([0.0] * 5) == (1.0, 1.0)
    assert sign_flip([0.0] * 8) == 1.0
    assert effect_size([0.0] * 5) is None
    assert effect_size([1.0]) is None


def test_signs_are_flipped_exactly():
    """Nine of ten differences are negative and one is 0, whose sign is free: 2 of 2**10 patterns
    reach the mean that was seen, 2 more its opposite."""
    assert sign_flip(SLEEP) == pytest.approx(4 / 1024)
    assert sign_flip(SLEEP[:8]) == pytest.approx(4 / 256)
    assert sign_flip(SLEEP[:7]) is None


def test_signs_that_are_drawn_find_the_exact_p_value():
    """Ranks 1 to 20 with signs: the exact p-value is that of Wilcoxon's signed-rank test."""
    ranks = np.arange(1.0, 21.0)
    ranks[[17, 12, 8, 5]] *= -1
    exact = scipy.stats.wilcoxon(ranks, method="exact").pvalue
    found = sign_flip(ranks)
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact / 2**16))
    assert found == sign_flip(ranks)


def test_the_bootstrap_is_bca():
    """Against every resample that there is, by Efron and Tibshirani (1993), eq. 14.9 to 14.15."""
    values = np.array([1.0, 2.0, 4.0, 7.0, 15.0, 30.0])
    means = np.mean(list(itertools.product(values, repeat=6)), axis=1)
    mean = values.mean()
    z0 = scipy.stats.norm.ppf(np.mean(means < mean) / 2 + np.mean(means <= mean) / 2)
    left_out = mean - (values.sum() - values) / 5
    a = np.sum(left_out**3) / (6 * np.sum(left_out**2) ** 1.5)
    z = z0 + scipy.stats.norm.ppf([0.025, 0.975])
    levels = scipy.stats.norm.cdf(z0 + z / (1 - a * z))
    wanted = np.quantile(means, levels)
    found = bootstrap_interval(values)
    assert found == pytest.approx(wanted, rel=0.02)
    assert found == bootstrap_interval(values)
    assert found[1] - mean > 1.3 * (mean - found[0])  # the data are skewed to the right


def test_the_bootstrap_has_an_interval_for_any_few_values():
    for values in itertools.combinations_with_replacement(range(4), 4):
        low, high = bootstrap_interval(values)
        assert min(values) <= low <= np.mean(values) <= high <= max(values)


def test_holm_is_the_textbooks():
    """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm"): 4 * 0.005, 3 * 0.01, 2 * 0.03, and no less
    than the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.3, 0.8]) == pytest.approx([0.6, 0.8])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_for_the_effects_that_cohen_calls_small_medium_large(effect, pairs):
    """R's pwr.t.test(d=, power=0.8, type="paired"), two-sided at 0.05: n = 198.15, 33.37, 14.30."""
    assert seeds_needed(effect) == pairs


def test_seeds_have_bounds():
    assert seeds_needed(1e6) == 2
    assert seeds_needed(0.01) is None
    assert seeds_needed(0.0) is None
    assert seeds_needed(-1.0) is None
    assert seeds_needed(0.5, alpha=0.0025) > seeds_needed(0.5, power=0.9) > seeds_needed(0.5)


def test_the_package_does_not_wait_for_statsmodels():
    code = "import sys, jxfer.ablate.verdicts; assert 'statsmodels' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
