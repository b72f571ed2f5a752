"""The audit catches each planted trap, and names it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

from jxfer import trees
from jxfer.transfer.labels import FROZEN, HEAD
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from tests.train.audits import make_plans, run_audit

PLAIN = OptimizerConfig(lr=0.01, momentum=0.0, weight_decay=0.0, schedule="constant")
ADAMW = OptimizerConfig("adamw", lr=0.01, decay_norm_and_bias=True, schedule="constant")


def sgd_head_and(frozen):
    return lambda labels: optax.multi_transform({HEAD: optax.sgd(0.01), FROZEN: frozen}, labels)


def masked_freeze(labels):
    frozen = jax.tree.map(lambda label: label == FROZEN, labels)
    return optax.chain(optax.adamw(0.01), optax.masked(optax.set_to_zero(), frozen))


def masked_alone(labels):
    return optax.masked(optax.adamw(0.01), jax.tree.map(lambda label: label == HEAD, labels))


def clip_outside(labels):
    return optax.chain(optax.clip_by_global_norm(1.0), sgd_head_and(optax.set_to_zero())(labels))


def clip_outside_adamw(labels):
    right = {HEAD: optax.adamw(0.01), FROZEN: optax.set_to_zero()}
    return optax.chain(optax.clip_by_global_norm(0.1), optax.multi_transform(right, labels))


def log_all_norms(labels):
    """The transform is right, but something reads the norm of every gradient."""
    right = sgd_head_and(optax.set_to_zero())(labels)

    def update(gradients, state, params=None):
        updates, inner = right.update(gradients, state[1], params)
        return updates, (optax.tree.norm(gradients), inner)

    return optax.GradientTransformation(lambda p: (jnp.zeros(()), right.init(p)), update)


_lengths = itertools.count(100)


def plant(plan, **properties):
    """The plan, with other values in place of what it works out for itself."""
    # Another length, so that no cache takes it for the plan itself; the rate is constant.
    planted = dataclasses.replace(plan, total_steps=next(_lengths))
    vars(planted).update(properties)
    return planted


def differentiate_everything(optimizer, make_transform):
    """The linear probe's own step, but with gradients of all leaves and another transform."""
    (probe,) = make_plans(StrategyConfig("linear_probe"), optimizer)
    return plant(
        probe,
        trainable=frozenset(trees.flatten(probe.labels)),
        train_layers=frozenset(),
        transform=make_transform(probe.labels),
    )


COST = "times the least"
STATE = "the optimizer keeps"
MOVE = "frozen parameters move: "
DRIFT = "statistics of BatchNorm that should stay move: "
UPDATE = "the update of head is wrong"
MOMENTS = "the optimizer keeps wrong moments of head's gradients"
TRAPS = {
    "set_to_zero, right": (PLAIN, sgd_head_and(optax.set_to_zero()), set()),
    "sgd of rate 0": (PLAIN, sgd_head_and(optax.sgd(0.0)), {COST}),
    "masked freeze": (ADAMW, masked_freeze, {COST, STATE}),
    "clip outside": (PLAIN, clip_outside, {COST, UPDATE}),
    "clip outside, adamw": (ADAMW, clip_outside_adamw, {COST, UPDATE}),
    "log all norms": (PLAIN, log_all_norms, {COST}),
    "masked alone": (ADAMW, masked_alone, {COST, MOVE}),
}
SLOW = {
    "sgd of rate 0",
    "log all norms",
    "masked alone",
    "masked freeze",
    "clip outside, adamw",
}  # the others leak in the same way, and more


def told(leaks):
    kinds = (MOMENTS, COST, STATE, MOVE, DRIFT, UPDATE)
    found = [next(kind for kind in kinds if kind in leak) for leak in leaks]
    return set(found)


@pytest.mark.parametrize(
    ("optimizer", "make_transform", "leaks"),
    [
        pytest.param(*trap, id=name, marks=[pytest.mark.slow] * (name in SLOW))
        for name, trap in TRAPS.items()
    ],
)
def test_each_trap_of_the_optimizer_is_caught_and_named(optimizer, make_transform, leaks):
    found = run_audit(differentiate_everything(optimizer, make_transform))
    assert told(found.leaks) == leaks
    assert (found.step.flops > 1.5 * found.least.flops) == bool(leaks)


def test_a_wrong_update_is_caught_at_a_small_rate():
    (probe,) = make_plans(StrategyConfig("linear_probe"), OptimizerConfig(lr=1e-5))
    transform = optax.chain(probe.transform, optax.scale(0.3))
    (leak,) = run_audit(plant(probe, transform=transform)).leaks
    assert leak.startswith(UPDATE)


def test_doubled_gradients_show_in_adam_s_moments():
    (probe,) = make_plans(StrategyConfig("linear_probe"), ADAMW)
    transform = optax.chain(optax.scale(2.0), probe.transform)
    (leak,) = run_audit(plant(probe, transform=transform)).leaks
    assert leak == MOMENTS


def test_a_rate_that_rounds_to_nothing_is_no_rate_of_0():
    (probe,) = make_plans(StrategyConfig("linear_probe"), OptimizerConfig(lr=1e-30))
    assert run_audit(probe).leaks == ()


def test_memory_that_the_optimizer_keeps_without_a_name_is_caught():
    (probe,) = make_plans(StrategyConfig("linear_probe"), OptimizerConfig(schedule="constant"))
    transform = optax.flatten(optax.adam(0.01))
    leaks = run_audit(plant(probe, transform=transform)).leaks
    assert any(leak.startswith(STATE) and "the least is" in leak for leak in leaks)


def test_statistics_that_drift_under_frozen_parameters_are_caught():
    (probe,) = make_plans(StrategyConfig("linear_probe"), PLAIN)
    found = run_audit(plant(probe, train_layers=frozenset(probe.model.norm_paths())))
    (leak,) = [leak for leak in found.leaks if leak.startswith(DRIFT)]
    assert leak == DRIFT + (
        "stage1/block0/norm1/mean, stage1/block0/norm1/var, stage1/block0/norm2/mean and 11 more"
    )


def test_statistics_that_should_follow_the_batch_and_do_not_are_caught():
    (plan,) = make_plans(StrategyConfig("linear_probe", frozen_norms="adapt"), PLAIN)
    leaks = run_audit(plant(plan, train_layers=frozenset())).leaks
    assert "statistics of BatchNorm do not follow the batch: " in leaks[-1]


@pytest.mark.slow
def test_a_group_at_a_rate_of_0_is_a_leak():
    (plan,) = make_plans(StrategyConfig("bitfit"), OptimizerConfig(backbone_lr=0.0))
    (leak,) = run_audit(plan).leaks
    assert leak.startswith("low_lr learns at a rate of 0")


@pytest.mark.parametrize("trap", [clip_outside, log_all_norms], ids=["clip", "log norms"])
def test_our_step_computes_no_more_whatever_stands_around_the_optimizer(trap):
    """Only the trainable subtree is differentiated, so there is no backward pass to bring back."""
    (probe,) = make_plans(StrategyConfig("linear_probe"), PLAIN)
    labels, _ = trees.split(probe.labels, probe.moves)
    found = run_audit(plant(probe, transform=trap(labels)))
    assert COST not in told(found.leaks)
