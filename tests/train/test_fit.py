"""The largest batch that fits: by search over any cost, and by compiled programs."""

import dataclasses
import math

import pytest

from jxfer.train import fit, memory
from jxfer.transfer.strategy import StrategyConfig, phases
from tests.train.steps import make_plan

COSTS = {
    "straight": lambda n: 1000 + 7 * n,
    "bent": lambda n: 1000 + 3 * n + 0.01 * n * n,
    "stairs": lambda n: 1000 + 40 * (n // 6),
    "refused": lambda n: math.inf if n > 90 else 10 * n,
    "jump": lambda n: n + (5000 if n > 37 else 0),
}


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("start", [1, 20, 3000])
def test_the_search_finds_what_trying_every_number_finds(cost, start):
    calls = []

    def counted(number):
        calls.append(number)
        return cost(number)

    for limit in (1, 1007, 1500, 1993):
        calls.clear()
        (number, size), above = fit.search(counted, start, limit)
        fits = [n for n in range(1, 4000) if cost(n) <= limit]
        assert number == max(fits, default=0)
        assert size == (cost(number) if fits else 0)
        assert above == cost(number + 1) > limit
        assert len(calls) == len(set(calls)) <= 24


@pytest.mark.parametrize("start", [8, 100])
def test_four_programs_are_enough_where_memory_is_a_straight_line(start):
    calls = []
    (number, _), _ = fit.search(lambda n: calls.append(n) or 900 + 7 * n, start, 1600)
    assert number == 100
    assert len(calls) <= 4


@pytest.fixture
def lp_ft():
    """The plans of two phases: the head, then everything."""
    plan = make_plan()
    found = phases(StrategyConfig("lp_ft"), plan.model.stages)
    return [dataclasses.replace(plan, phase=phase) for phase in found]


def test_the_batch_fits_in_every_phase(lp_ft, monkeypatch):
    asked = []

    def step_bytes(plan, variables, batch_size):
        asked.append((plan.phase.name, batch_size))
        return batch_size * (10 if plan.phase.name == "all" else 4)

    monkeypatch.setattr(fit, "step_bytes", step_bytes)
    found = fit.largest_batch(lp_ft, {}, 16, 1000)
    assert found == fit.Fit("all", 96, 960, 104, 1040, 1000)
    assert [size for name, size in asked if name == "head"] == [96]


def test_a_phase_that_takes_more_though_less_trains_decides(lp_ft, monkeypatch):
    costs = {"all": 10, "head": 20}
    monkeypatch.setattr(fit, "step_bytes", lambda plan, _, n: n * costs[plan.phase.name])
    found = fit.largest_batch(lp_ft, {}, 16, 1000)
    assert (found.phase, found.batch_size, found.next_batch_size) == ("head", 48, 56)


def test_parts_divide_the_batch(lp_ft, monkeypatch):
    monkeypatch.setattr(fit, "step_bytes", lambda plan, variables, n: n)
    plans = [dataclasses.replace(plan, accumulate=3) for plan in lp_ft]
    assert fit.largest_batch(plans, {}, 24, 100).batch_size == 96


def test_not_even_one_image_fits(lp_ft, monkeypatch, one_line):
    monkeypatch.setattr(fit, "step_bytes", lambda plan, variables, n: math.inf)
    with one_line("a step of 8 images takes more than there is", "0.001 GB", "--remat"):
        fit.largest_batch(lp_ft, {}, 16, 10**6)


@pytest.mark.slow
def test_the_figures_are_those_of_compiled_programs():
    plan = make_plan("linear_probe")
    variables = plan.model.init(0)
    limit = fit.step_bytes(plan, variables, 40)
    found = fit.largest_batch([plan], variables, 8, limit)
    assert (found.batch_size, found.bytes, found.next_batch_size) == (40, limit, 48)
    assert found.next_bytes == fit.step_bytes(plan, variables, 48) > limit
    # By hand: parameters and statistics in and out, images and labels, and what lies between.
    per_device = limit / 8
    assert per_device > 2 * 4 * 14_000 - 4 * 51 + 5 * (32 * 32 * 3 + 4)
    assert memory.limit_bytes() > limit
