"""What a claim covers, and the numbers that it is judged by."""

import numpy as np
import pytest
import scipy.stats

from jxfer.ablate.claims import ACCURACY, Close, Falls, Greater, NotWorse, Rises, samples
from jxfer.errors import UserError

PLACES = {"small": 1.0, "middle": 2.0, "large": 4.0, "other": None}
VALUES = {
    ("small", "full", ACCURACY): {0: 50.0, 1: 52.0, 2: 54.0},
    ("middle", "full", ACCURACY): {0: 60.0, 1: 61.0, 2: 59.0},
    ("large", "full", ACCURACY): {0: 70.0, 1: 75.0, 2: 71.0},
    ("other", "full", ACCURACY): {0: 30.0, 1: 31.0, 2: 32.0},
    ("small", "probe", ACCURACY): {0: 49.0, 1: 50.0, 3: 47.0},
    ("large", "probe", ACCURACY): {1: 70.0, 0: 69.0, 2: float("nan")},
    ("other", "probe", "drift"): {0: 0.1},
}


def drawn(claim):
    return [
        (setting, paired.numbers.tolist(), paired.missing)
        for setting, paired in samples(claim, VALUES, PLACES)
    ]


def test_text():
    assert str(Greater("lp_ft", "full")) == "lp_ft > full"
    assert str(Greater("lp_ft", "full", margin=0.5)) == "lp_ft > full (margin 0.5)"
    assert str(Close("lp_ft", "full", within=1)) == "lp_ft within 1 of full"
    assert str(NotWorse("lp_ft", "full", by=1)) == "lp_ft not worse than full by 1"
    assert (str(Falls("AnB")), str(Rises("AnB+"))) == ("AnB falls", "AnB+ rises")


def test_differences_are_paired_by_seed_in_each_setting_that_has_both_arms():
    """Seeds 2 and 3 have one arm only, or a value that is no number."""
    assert drawn(Greater("full", "probe")) == [
        ("small", [1.0, 2.0], 2),
        ("large", [1.0, 5.0], 1),
    ]
    assert drawn(Close("probe", "full", 1.0, settings=("large",))) == [("large", [-1.0, -5.0], 1)]


def test_pooled_is_the_mean_over_settings_of_seeds_that_have_them_all():
    assert drawn(Greater("full", "probe", pooled=True)) == [("mean of 2 settings", [1.0, 3.5], 2)]
    [(name, *_)] = drawn(Greater("full", "probe", pooled="digits"))
    assert name == "mean of digits"
    one = Greater("full", "probe", settings=("small",), pooled=True)
    assert drawn(one) == [("small", [1.0, 2.0], 2)]


def test_slopes_are_those_of_least_squares_where_there_is_an_x():
    [(setting, numbers, missing)] = drawn(Rises("full"))
    wanted = [
        scipy.stats.linregress([1, 2, 4], row).slope
        for row in ([50, 60, 70], [52, 61, 75], [54, 59, 71])
    ]
    assert (setting, missing) == ("all", 0)
    assert numbers == pytest.approx(wanted)
    [(setting, numbers, missing)] = drawn(Falls("full", settings=("large", "small")))
    assert (setting, missing) == ("large, small", 0)
    assert numbers == pytest.approx([20 / 3, 23 / 3, 17 / 3])
    assert drawn(Falls("probe"))[0][2] == 2


def test_rounding_errors_are_no_numbers():
    """0.1 + 0.2 - 0.3 is 5.6e-17; a constant has a slope of about 1e-16."""
    values = {
        ("a", "left", ACCURACY): {0: 0.1, 1: 90.1},
        ("a", "right", ACCURACY): {0: 0.3, 1: 90.3},
        ("b", "left", ACCURACY): {0: 0.2, 1: 90.2},
        ("b", "right", ACCURACY): {0: 0.0, 1: 90.0},
        ("c", "left", ACCURACY): {0: 0.1, 1: 90.1},
    }
    places = {"a": 0.1, "b": 0.2, "c": 0.7}
    [(_, pooled)] = samples(Greater("left", "right", pooled=True), values, places)
    assert pooled.numbers.tolist() == [0.0, 0.0]
    values = {(place, "left", ACCURACY): {0: 90.1, 1: 33.3} for place in places}
    [(_, flat)] = samples(Falls("left"), values, places)
    assert flat.numbers.tolist() == [0.0, 0.0]


def test_a_setting_in_which_every_seed_failed_is_not_left_out():
    values = {**VALUES, ("middle", "full", ACCURACY): {}}
    [(_, paired)] = samples(Rises("full"), values, PLACES)
    assert (len(paired.numbers), paired.missing) == (0, 3)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (Greater("ful", "probe"), 'claim "ful > probe": no arm "ful"; there are: full, probe'),
        (Falls("AnB"), 'claim "AnB falls": no arm "AnB"; there are: full, probe'),
        (
            Greater("full", "probe", settings=("tiny",)),
            'no setting "tiny"; there are: small, middle, large, other',
        ),
        (Rises("full", measure="ECE"), 'no measure "ECE"; there are: test accuracy, drift'),
        (
            Greater("full", "probe", settings=("small", "middle")),
            'the setting "middle" does not have full and probe with "test accuracy"',
        ),
        (Greater("full", "probe", measure="drift"), 'no setting has full and probe with "drift"'),
        (Rises("full", settings=("small", "other")), 'the setting "other" has no x'),
        (Rises("full", settings=("small",)), "a slope needs settings at two places or more"),
    ],
)
def test_names_are_checked(claim, message):
    with pytest.raises(UserError) as error:
        samples(claim, VALUES, PLACES)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Greater("a", "b", margin=-1.0),
        lambda: Greater("a", "b", margin=np.nan),
        lambda: Close("a", "b", within=0.0),
        lambda: NotWorse("a", "b", by=0.0),
    ],
)
def test_bounds_have_a_sense(build):
    with pytest.raises(UserError, match=r'^claim "a'):
        build()
