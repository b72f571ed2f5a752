"""Verdicts: worked examples, closed forms, and how often they are wrong."""

import dataclasses
import gc
import json

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.weightstats import ttost_paired

from jxfer import json_fields, statistics, text
from jxfer.ablate.claims import ACCURACY, Close, Falls, Greater, NotWorse, Rises
from jxfer.ablate.verdicts import ALPHA, Verdict, judge
from jxfer.errors import UserError

# Hours of sleep gained with either drug (Student 1908); R's paired t test of them: p = 0.002833.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def table(**arms):
    """Values of arms in one setting."""
    return {("sleep", arm, ACCURACY): dict(enumerate(values)) for arm, values in arms.items()}


def verdicts(*claims, **arms):
    return judge(claims, table(**arms), {"sleep": None})


def of_differences(claim, differences):
    """The verdict on a claim about arms a and b whose differences these are."""
    [found] = verdicts(claim, a=[50 + value for value in differences], b=[50.0] * len(differences))
    return found


def test_the_sleep_data_of_student():
    [found] = verdicts(Greater("second", "first"), first=FIRST, second=SECOND)
    assert (found.claim, found.setting, found.measure) == ("second > first", "sleep", ACCURACY)
    assert (found.pairs, found.missing, found.verdict) == (10, 0, "reproduced")
    assert found.estimate == pytest.approx(1.58)
    assert found.t_interval == pytest.approx((0.7001142, 2.4598858), abs=5e-8)
    assert found.bootstrap_interval[0] > 0
    assert found.p == found.p_holm == pytest.approx(0.002833, abs=5e-7)
    assert found.sign_flip_p == pytest.approx(4 / 1024)
    assert found.effect == pytest.approx(4.0621 / np.sqrt(10), abs=2e-5)
    assert found.seeds_needed is None


def test_the_other_way_round_it_is_contradicted_with_the_same_p():
    [found] = verdicts(Greater("first", "second"), first=FIRST, second=SECOND)
    assert found.verdict == "contradicted"
    assert found.estimate == pytest.approx(-1.58)
    assert found.p == pytest.approx(0.002833, abs=5e-7)


def test_a_claim_alone_is_settled_where_the_t_interval_leaves_zero_out():
    for shift in np.linspace(-3, 3, 25):
        differences = np.subtract(SECOND, FIRST) - 1.58 + shift
        found = of_differences(Greater("a", "b"), differences)
        low, high = found.t_interval
        wanted = "reproduced" if low > 0 else "contradicted" if high < 0 else "underpowered"
        assert found.verdict == wanted


def test_a_difference_that_is_real_and_too_small_contradicts_a_margin():
    small = [0.1, 0.12, 0.08, 0.11, 0.09]
    assert of_differences(Greater("a", "b"), small).verdict == "reproduced"
    found = of_differences(Greater("a", "b", margin=1.0), small)
    assert found.verdict == "contradicted"
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(small, 1).pvalue)
    wide = [0.5, 2.0, 1.0, 0.7, 1.1]  # above 0, and 1 is not out of the question
    assert of_differences(Greater("a", "b", margin=1.0), wide).verdict == "reproduced"


def test_a_margin_settles_that_two_arms_are_equal():
    none = [-0.1, 0.12, 0.0, -0.03, 0.02]
    assert of_differences(Greater("a", "b"), none).verdict == "underpowered"
    assert of_differences(Greater("a", "b", margin=1.0), none).verdict == "contradicted"


@pytest.mark.parametrize("shift", [0.0, -0.9, -1.0, -1.1, -2.5, 3.0])
def test_not_worse_is_a_one_sided_test_at_its_bound(shift):
    """At 0.025 on each side it agrees with the two-sided 95 % interval."""
    first = np.array(FIRST) + shift
    second = np.array(SECOND)
    [found] = verdicts(NotWorse("a", "b", by=1.0), a=first, b=second)
    low, high = found.t_interval
    wanted = "underpowered"
    if low > -1.0:
        wanted = "reproduced"
    elif high < -1.0:
        wanted = "contradicted"
    assert found.verdict == wanted


@pytest.mark.parametrize("shift", [0.0, 0.4, -1.4, 1.7])
def test_close_is_two_one_sided_tests(shift):
    first, second = np.array(FIRST), np.array(SECOND) - 1.58 - shift
    p_for = ttost_paired(first, second, -1.5, 1.5)[0]
    [found] = verdicts(Close("a", "b", within=1.5), a=first, b=second)
    low, high = found.t_interval
    assert found.verdict == ("reproduced" if low > -1.5 and high < 1.5 else "underpowered")
    if abs(shift) < 1.5:
        assert found.p == pytest.approx(2 * p_for)


def test_close_is_contradicted_beyond_its_bound():
    for sign in (1, -1):
        found = of_differences(Close("a", "b", within=1.0), sign * np.array([3, 3.2, 2.9, 3.1, 3]))
        assert found.verdict == "contradicted"
        assert found.estimate == pytest.approx(sign * 3.04)


def test_trends_are_judged_by_the_slopes_of_the_seeds():
    places = {"1": 1.0, "2": 2.0, "3": 3.0}
    values = {
        ("1", "AnB", ACCURACY): {0: 60.0, 1: 61.0, 2: 62.0, 3: 60.0},
        ("2", "AnB", ACCURACY): {0: 58.0, 1: 57.0, 2: 59.0, 3: 58.0},
        ("3", "AnB", ACCURACY): {0: 50.0, 1: 52.0, 2: 51.0, 3: 51.0},
    }
    falls, rises = judge([Falls("AnB"), Rises("AnB")], values, places)
    slopes = [-5.0, -4.5, -5.5, -4.5]
    assert (falls.verdict, rises.verdict) == ("reproduced", "contradicted")
    assert falls.trend
    assert rises.trend
    assert falls.estimate == rises.estimate == pytest.approx(np.mean(slopes))
    p = scipy.stats.ttest_1samp(slopes, 0).pvalue
    assert falls.p == rises.p == pytest.approx(p)
    assert falls.p_holm == pytest.approx(2 * p)


def test_holm_is_over_all_claims_of_the_table_those_without_seeds_too():
    """The sleep data's p of 0.0028 stands 0.05 / 17 and not 0.05 / 18."""
    one = Greater("second", "first")
    arms = {"first": FIRST, "second": SECOND, "none": []}
    for others, verdict in ((16, "reproduced"), (17, "underpowered")):
        found, *rest = verdicts(one, *[Greater("none", "first")] * others, **arms)
        assert found.verdict == verdict
        assert found.p_holm == pytest.approx((others + 1) * 0.002833, abs=2e-5)
        assert {row.verdict for row in rest} == {"underpowered"}
    exact = Greater("none", "first", exact=True)
    assert verdicts(one, *[exact] * 17, **arms)[0].verdict == "reproduced"


def test_no_test_below_two_pairs():
    [found] = verdicts(Greater("a", "b"), a=[51.0, np.nan], b=[50.0, 50.0])
    assert (found.pairs, found.missing, found.estimate) == (1, 1, 1.0)
    assert found.verdict == "underpowered"
    described = ("t_interval", "bootstrap_interval", "effect", "p", "p_holm", "sign_flip_p")
    assert {getattr(found, name) for name in described} == {None}
    [found] = verdicts(Greater("a", "b"), a=[], b=[50.0])
    assert (found.pairs, found.missing, found.estimate) == (0, 1, None)


def test_equal_differences_need_six_pairs():
    """They show no spread; the signs alone reach 1/32 with five pairs, 1/64 with six."""
    five = of_differences(Greater("a", "b"), [2.0] * 5)
    assert (five.verdict, five.p, five.effect) == ("underpowered", 2 / 32, None)
    assert five.seeds_needed is None
    assert of_differences(Greater("a", "b"), [2.0] * 6).verdict == "reproduced"
    assert of_differences(Greater("a", "b"), [0.0] * 16).verdict == "underpowered"


def test_an_exact_measure_is_compared():
    claims = {
        Greater("a", "b", exact=True): "reproduced",
        Greater("b", "a", exact=True): "contradicted",
        Greater("a", "a", exact=True): "contradicted",
        Greater("a", "b", margin=2.0, exact=True): "reproduced",
        Greater("a", "b", margin=2.5, exact=True): "contradicted",
        Close("a", "b", within=2.5, exact=True): "reproduced",
        Close("a", "b", within=2.0, exact=True): "contradicted",
    }
    for seeds in (1, 3):
        found = verdicts(*claims, a=[52.0] * seeds, b=[50.0] * seeds)
        assert [row.verdict for row in found] == list(claims.values())
        assert {row.p for row in found} == {None}
    assert verdicts(Greater("a", "b", exact=True), a=[], b=[])[0].verdict == "underpowered"
    with pytest.raises(UserError, match='"test accuracy" is said to be exact and differs'):
        verdicts(Greater("a", "b", exact=True), a=[52.0, 53.0], b=[50.0, 50.0])


def test_seeds_are_planned_where_a_claim_is_underpowered():
    """d_z is 0.5 here; R's pwr.t.test(d=0.5, power=0.8, type="paired") says 33.37."""
    half = np.array([-1, 0, 1]) + 0.5
    assert of_differences(Greater("a", "b"), half).seeds_needed == 34
    assert of_differences(Greater("b", "a"), half).seeds_needed == 34
    # With a second claim in the table, each at half the level.
    arms = {"a": 50 + half, "b": [50.0] * 3}
    first, _ = verdicts(Greater("a", "b"), Greater("b", "a"), **arms)
    assert first.seeds_needed == statistics.seeds_needed(0.5, alpha=ALPHA / 2)
    # 0.5 below the margin, 1.5 above 0: the nearer verdict is the one that is planned for.
    found = of_differences(Greater("a", "b", margin=1.0), half)
    assert found.seeds_needed == 34


def test_seeds_planned_for_a_close_claim_reach_the_power():
    """Simulated: two arms that do not differ, bounds at one standard deviation."""
    pairs = of_differences(Close("a", "b", within=1.0), [-1.0, 0.0, 1.0]).seeds_needed
    drawn = np.random.default_rng(0).standard_normal((4000, pairs))
    low, high = scipy.stats.t.interval(
        0.95, pairs - 1, drawn.mean(axis=1), scipy.stats.sem(drawn, axis=1)
    )
    assert 0.78 < np.mean((low > -1) & (high < 1)) < 0.86


def test_a_verdict_is_json():
    for found in verdicts(
        Greater("a", "b"), Close("c", "b", within=1.0), a=FIRST, b=SECOND, c=[1.0]
    ):
        value = json.loads(text.to_json(dataclasses.asdict(found)))
        assert json_fields.decode(Verdict, value, "results.json") == found


@pytest.fixture(autouse=True)
def _no_garbage(monkeypatch):
    """statsmodels collects garbage at every correction, which takes a tenth of a second."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


@pytest.fixture
def quick(monkeypatch):
    """Without what stands beside a verdict and has no part in it."""
    monkeypatch.setattr(statistics, "t_interval", lambda numbers: None)
    monkeypatch.setattr(statistics, "bootstrap_interval", lambda numbers: None)
    monkeypatch.setattr(statistics, "seeds_needed", lambda effect, alpha, power: None)


def error_rates(claims, means, tables=1000, seeds=5):
    """How many tables have a reproduced claim, how many a contradicted one. The arms have these
    means; their noise is correlated within a seed, as that of arms which share a seed."""
    generator = np.random.default_rng(0)
    seen = {"reproduced": 0, "contradicted": 0, "underpowered": 0}
    for _ in range(tables):
        shared = generator.standard_normal(seeds)
        arms = {
            arm: mean + shared + generator.standard_normal(seeds) for arm, mean in means.items()
        }
        for verdict in {row.verdict for row in verdicts(*claims, **arms)}:
            seen[verdict] += 1
    return seen["reproduced"] / tables, seen["contradicted"] / tables


# Three standard errors of a rate of 2.5 % over 1000 tables.
SLACK = 3 * np.sqrt(ALPHA * (1 - ALPHA) / 1000)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_of_tables_without_a_difference_2_5_percent_say_either():
    reproduced, contradicted = error_rates([Greater("a", "b")], {"a": 50, "b": 50})
    assert reproduced == pytest.approx(ALPHA, abs=SLACK)
    assert contradicted == pytest.approx(ALPHA, abs=SLACK)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_several_claims_are_no_more_often_wrong_than_one():
    """Without the correction about 8 % of such tables would have a false verdict of either kind."""
    means = dict.fromkeys("abcde", 50)
    claims = [Greater("a", arm) for arm in "bcde"]
    reproduced, contradicted = error_rates(claims, means)
    assert 0.005 < reproduced < ALPHA + SLACK
    assert 0.005 < contradicted < ALPHA + SLACK


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_at_the_bound_a_close_claim_is_wrong_as_rarely():
    """Where the arms differ by just `within`, neither verdict is right more than 2.5 %."""
    reproduced, contradicted = error_rates([Close("a", "b", within=1.0)], {"a": 51, "b": 50})
    assert reproduced < ALPHA + SLACK
    assert contradicted < ALPHA + SLACK
    # Bounds far narrower than the noise: both ends are within reach.
    _, contradicted = error_rates([Close("a", "b", within=0.01)], {"a": 50.01, "b": 50})
    assert contradicted == pytest.approx(ALPHA, abs=SLACK)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_at_the_margin_a_claim_is_wrong_as_rarely():
    _, contradicted = error_rates([Greater("a", "b", margin=1.0)], {"a": 51, "b": 50})
    assert contradicted == pytest.approx(ALPHA, abs=SLACK)
    reproduced, _ = error_rates([Greater("a", "b", margin=1.0)], {"a": 50, "b": 50})
    assert reproduced < ALPHA + SLACK
