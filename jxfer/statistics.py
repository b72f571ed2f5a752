"""Intervals of repeated runs and of proportions; tests of paired differences; seeds to plan for.

Values of repeated runs are one number for each seed. A test speaks of other seeds of the same
experiment (other draws of images, orders and initial heads), not of other test images: these are
the same in every run.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.stats

Numbers = Sequence[float] | npt.NDArray[np.float64]

LEAST_FLIPS = 8
"""Pairs below which a sign-flip test is not made: n pairs cannot go below p = 2 / 2**n."""
EXACT_FLIPS = 16
"""Pairs up to which every pattern of signs is tried."""
MOST_SEEDS = 1000
"""The largest number of seeds that a plan names."""


def t_interval(values: Numbers, level: float = 0.95) -> tuple[float, float]:
    """Student's t-interval of the mean of at least two independent values.

    Equal values show no spread, so their interval has no width.
    """
    mean = float(np.mean(values))
    if _equal(values):
        return mean, mean
    low, high = scipy.stats.t.interval(level, len(values) - 1, mean, scipy.stats.sem(values))
    return float(low), float(high)


def bootstrap_interval(values: Numbers, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean of at least two independent values, always the same.

    Bias-corrected and accelerated (Efron 1987), of 9999 resamples. It assumes no shape, but it
    cannot leave the range of the values: of few it is too narrow (below about ten seeds read it
    beside `t_interval`, not in its place). Equal values give an interval of no width.
    """
    if _equal(values):
        return float(np.mean(values)), float(np.mean(values))
    found = scipy.stats.bootstrap(
        (np.asarray(values, float),), np.mean, confidence_level=level, method="BCa", rng=0
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def wilson_interval(correct: int, examples: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, such as an accuracy."""
    low, high = scipy.stats.binomtest(correct, examples).proportion_ci(level, method="wilson")
    return float(low), float(high)


def paired_t(differences: Numbers, mean: float = 0.0) -> tuple[float, float]:
    """Student's t-test of paired differences, to either side.

    Where the differences are all equal, t is infinite however few they are. Then the p-value is
    that of the signs alone, 2**-n: the smallest that n pairs can show without a measured spread.

    Args:
      differences: at least two, independent.
      mean: the hypothetical mean.

    Returns:
      (p_less, p_greater): one-sided p-values. A small p_less says that the true mean is less than
      `mean`, a small p_greater that it is greater. Both are 1 where every difference is `mean`.
    """
    values = np.asarray(differences, float)
    if _equal(values):
        if np.isclose(values[0], mean, rtol=1e-9, atol=0.0):
            return 1.0, 1.0
        signs = 0.5 ** len(values)
        return (signs, 1.0) if values[0] < mean else (1.0, signs)
    found = scipy.stats.ttest_1samp(values, mean)
    tail = float(found.pvalue) / 2
    return (tail, 1 - tail) if found.statistic < 0 else (1 - tail, tail)


def sign_flip(differences: Numbers) -> float | None:
    """Two-sided p-value of the mean of paired differences when each could have had either sign.

    It needs no normal distribution, only symmetry about 0 (Fisher 1935). Exact through 16 pairs;
    beyond, 65,536 random patterns of signs, always the same. None below 8 pairs: there it could
    hardly speak (5 pairs cannot go below 1/16).
    """
    if len(differences) < LEAST_FLIPS:
        return None
    found = scipy.stats.permutation_test(
        (np.asarray(differences, float),),
        np.mean,
        permutation_type="samples",
        n_resamples=2**EXACT_FLIPS,
        rng=0,
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given.

    Those at most alpha may be called significant together: the chance of one false call or more is
    at most alpha, however the tests depend on each other.
    """
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def effect_size(differences: Numbers, mean: float = 0.0) -> float | None:
    """Cohen's d_z: how many standard deviations the mean of the differences lies above `mean`.

    None where it has no value: fewer than two differences, or all of them equal.
    """
    if len(differences) < 2 or _equal(differences):
        return None
    return float((np.mean(differences) - mean) / np.std(differences, ddof=1))


def seeds_needed(effect: float, alpha: float = 0.025, power: float = 0.8) -> int | None:
    """Pairs with which a one-sided paired t-test at level `alpha` finds d_z = `effect` so often.

    A plan for a new experiment, not evidence about the old one: an effect that few seeds show is
    itself uncertain, and to add seeds until a test succeeds spoils the test.

    Returns:
      At least 2. None where `MOST_SEEDS` are too few, as for an effect of 0 or less.
    """
    from statsmodels.stats.power import TTestPower

    # For ever larger effects the noncentral t distribution has no value.
    pairs = np.arange(2, MOST_SEEDS + 1)
    found = TTestPower().power(min(effect, 1e6), pairs, alpha, alternative="larger")
    return int(pairs[np.argmax(found >= power)]) if np.any(found >= power) else None


def _equal(values: Numbers) -> bool:
    """Whether values are one number but for rounding, so that no spread was measured."""
    return bool(np.ptp(values) <= 1e-9 * np.max(np.abs(values)))
