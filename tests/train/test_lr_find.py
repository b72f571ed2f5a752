"""The learning-rate finder: the sweep's rates, its end, and what it makes of the losses."""

import dataclasses
import shutil

import numpy as np
import pytest

from jxfer.data.sources import DataConfig
from jxfer.train import lr_find
from jxfer.train.lr_find import Sweep, SweepConfig
from jxfer.transfer.optimizer import OptimizerConfig
from tests.train.steps import make_plan


def make_sweep(rates, smoothed, **fields):
    defaults = {"phase": "all", "losses": tuple(smoothed), "planned": len(rates)}
    return Sweep(rates=tuple(rates), smoothed=tuple(smoothed), **{**defaults, **fields})


def test_the_rates_grow_by_one_factor_and_keep_the_ratio_of_their_peaks():
    optimizer = OptimizerConfig(lr=0.5, backbone_lr=0.05, schedule="one_cycle")
    sweep = SweepConfig(1e-5, 1.0, 11)
    plan = lr_find._sweep_plan(make_plan("full", optimizer=optimizer, ema_decay=0.9), sweep)
    assert plan.ema_decay is None
    wanted = 10.0 ** np.linspace(-5, 0, 11)
    steps = np.arange(11)
    np.testing.assert_allclose(plan.rates["head"](steps), wanted, rtol=1e-5)
    np.testing.assert_allclose(plan.rates["low_lr"](steps), wanted / 10, rtol=1e-5)


def test_a_sweeps_plan_is_a_plan_of_its_own():
    plan = make_plan("full")
    swept = lr_find._sweep_plan(plan, SweepConfig())
    assert swept != plan
    assert swept != lr_find._sweep_plan(plan, SweepConfig(steps=50))
    assert hash(swept) == hash(lr_find._sweep_plan(plan, SweepConfig()))


def test_the_average_weighs_a_loss_by_its_age():
    losses = np.random.default_rng(0).uniform(1, 3, 40)
    for n, found in enumerate(lr_find.smooth(losses), start=1):
        weights = 0.98 ** np.arange(n)[::-1]
        assert found == pytest.approx(np.average(losses[:n], weights=weights))


def test_the_sweep_ends_above_four_times_the_lowest_smoothed_loss_or_where_it_is_not_finite():
    losses = [2.0, 1.0, 9.0, 1.0, 50.0, 1.0]
    smoothed = list(lr_find.smooth(losses))
    assert smoothed[2] < 4 * smoothed[1]
    assert smoothed[4] > 4 * smoothed[1]
    pairs = list(zip(losses, smoothed, strict=True))
    assert lr_find.until_it_diverges(iter(losses)) == pairs[:4]
    assert lr_find.until_it_diverges(iter(losses[:4])) == pairs[:4]
    assert lr_find.until_it_diverges(iter([2.0, 1.0, float("nan"), 1.0])) == pairs[:2]
    assert lr_find.until_it_diverges(iter([float("inf")])) == []


def test_the_suggestions_of_a_curve_in_closed_form():
    """By x = log10 of the rate: falls as a logistic curve around -3, rises from -1 on."""
    x = np.linspace(-6, 1, 141)
    losses = 2 - 1 / (1 + np.exp(-4 * (x + 3))) + np.exp(4 * x)
    found = make_sweep(10.0**x, losses).suggestions()
    assert np.log10(found["steep"]) == pytest.approx(-3, abs=0.1)
    # Lowest where exp(-4 (x + 3)) = exp(4 x), the other terms being small.
    assert np.log10(found["minimum"]) == pytest.approx(-1.5 - 1, abs=0.1)


def test_both_ends_are_left_out():
    smoothed = np.linspace(2, 1, 40)
    smoothed[1], smoothed[37] = 0.1, 0.2  # the lowest and steepest of all, in the ends
    rates = np.geomspace(1e-4, 1, 40)
    found = make_sweep(rates, smoothed).suggestions()
    assert found["minimum"] == pytest.approx(rates[34] / 10)
    assert rates[4] <= found["steep"] <= rates[34]


def test_the_tenth_that_is_left_out_is_of_the_planned_steps():
    smoothed = np.linspace(2, 1, 40)
    smoothed[8] = 0.1
    sweep = make_sweep(np.geomspace(1e-4, 1, 40), smoothed, planned=100)
    assert sweep.diverged
    assert sweep.suggestions()["minimum"] == pytest.approx(sweep.rates[34] / 10)


def test_a_sweep_that_diverges_at_once_asks_for_lower_rates(one_line):
    with one_line("diverged after 6 steps", "--sweep.lowest"):
        make_sweep([1e-3] * 6, [1.0] * 6, planned=20).suggestions()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lowest": 0.0}, ("--sweep.lowest 0", "above 0")),
        ({"lowest": 1.0, "highest": 1.0}, ("--sweep.lowest 1", "--sweep.highest 1")),
        ({"highest": float("inf")}, ("--sweep.highest inf",)),
        ({"lowest": float("nan")}, ("--sweep.lowest nan",)),
        ({"steps": 9}, ("--sweep.steps 9", "at least 10")),
    ],
)
def test_a_bad_range_is_named(fields, words, one_line):
    with one_line(*words):
        SweepConfig(**fields)


@pytest.mark.slow
def test_a_sweep_reads_training_images_alone_and_ends_where_the_loss_diverges(
    small_config, images, tmp_path
):
    """Validation and test images are no images at all."""
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    for split in ("val", "test"):
        for path in (folder / split).rglob("*.png"):
            path.write_bytes(b"no image")
    config = small_config(data=DataConfig(f"folder:{folder}"))
    sweep = SweepConfig(lowest=1e-4, highest=1e6, steps=30)
    found = lr_find.find(config, sweep)
    taken = len(found.rates)
    assert found.diverged
    assert 10 < taken < 30
    np.testing.assert_allclose(found.rates, np.geomspace(1e-4, 1e6, 30)[:taken], rtol=1e-6)
    assert len(found.losses) == len(found.smoothed) == taken
    np.testing.assert_allclose(found.smoothed, list(lr_find.smooth(found.losses)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    assert lr_find.find(config, sweep) == found
    averaged = dataclasses.replace(config, ema_decay=0.9, patience=1)
    assert lr_find.find(averaged, sweep) == found
