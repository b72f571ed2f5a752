"""The rules of the audit on states made by hand."""

import dataclasses

import numpy as np
import optax
import pytest

from jxfer import trees
from jxfer.train import leaks, summary
from jxfer.transfer.optimizer import OptimizerConfig
from tests.train.steps import make_plan

BIAS, KERNEL = "stem/norm/bias", "stem/conv/kernel"


@pytest.fixture
def plan():
    """Full fine-tuning; BatchNorm stands still, so that only parameters move."""
    return make_plan("full", folded=True, optimizer=OptimizerConfig("adamw"))


def states(plan, leaf, change, right_change, moment=1.0):
    """(start, after, right): all parameters move by 1, one leaf as told."""
    start = plan.initial_state(plan.model.init(0))
    flat = trees.flatten(start.params)
    moments = {path: np.ones(value.shape, np.float32) for path, value in flat.items()}
    moments[leaf] = moments[leaf] * np.float32(moment)
    adam = optax.ScaleByAdamState(np.int32(3), trees.unflatten(moments), {})
    found = []
    for own in (change, right_change):
        moved = {path: np.asarray(value) + np.float32(1) for path, value in flat.items()}
        moved[leaf] = np.asarray(flat[leaf]) + np.float32(own)
        params = trees.unflatten(moved)
        found.append(dataclasses.replace(start, params=params, opt_state=adam))
    return start, *found


def test_equal_states_have_no_leak(plan):
    assert leaks.of_states(plan, *states(plan, BIAS, 1, 1)) == []


def test_a_small_leaf_that_stands_still_is_named(plan):
    """Too small for the group's norm to tell."""
    assert leaks.of_states(plan, *states(plan, BIAS, 0, 0.1)) == [
        f"the update of low_lr leaves out {BIAS}"
    ]


def test_a_wrong_update_is_told_by_its_norm(plan):
    (leak,) = leaks.of_states(plan, *states(plan, KERNEL, 30, 1))
    assert leak.startswith("the update of low_lr is wrong: ")


def test_an_update_made_of_rounding_errors_may_differ(plan):
    """As Adam's of a bias before a norm, whose gradient is zero but for rounding."""
    assert leaks.of_states(plan, *states(plan, BIAS, -30, 30, moment=1e-7)) == []
    assert leaks.of_states(plan, *states(plan, BIAS, -30, 30))


LEAST = leaks.Program(flops=1e9, temporary_bytes=1000, optimizer_bytes=100)
NORMS = summary.Norms({}, 0)


def costs(backward=0, optimizer_bytes=0, **figures):
    """Leaks of a probe whose frozen group has a backward pass of so many FLOPs."""
    frozen = leaks.Group("frozen", 10, optimizer_bytes, NORMS, 900, backward)
    head = leaks.Group("head", 10, 100, NORMS, 100, 100)
    program = dataclasses.replace(LEAST, **figures)
    work = {("frozen", False): 900, ("head", False): 100, ("head", True): 100}
    return leaks.of_costs(program, LEAST, (frozen, head), work)


@pytest.mark.parametrize(
    ("figures", "leak"),
    [
        ({}, None),
        ({"flops": 1.01e9}, None),
        ({"flops": 1.01e9, "backward": 5}, "the backward pass of frozen takes 5 FLOPs"),
        ({"flops": 1.5e9, "backward": 5}, "1.50 times the least"),
        ({"optimizer_bytes": 8}, "8 bytes for frozen parameters"),
        ({"temporary_bytes": 1200}, None),
        ({"temporary_bytes": 1300}, "1,300 bytes of temporary memory, the least is 1,000"),
    ],
)
def test_what_a_step_costs_above_the_least_is_a_leak(figures, leak):
    found = costs(**figures)
    assert [leak in line for line in found] == ([True] if leak else [])
