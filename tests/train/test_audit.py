"""The audit passes right plans, and its least is the least."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from jxfer.data.transforms import CIFAR, normalise
from jxfer.losses.classification import LossConfig
from jxfer.models.heads import HeadConfig
from jxfer.train.audit import by_group
from jxfer.transfer.labels import FROZEN
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from tests.train.audits import PER_DEVICE, make_plans, run_audit

DEPTHS = ("stem", "stage1", "stage2", "stage3")


@functools.cache
def audit_of(name, freeze_through=None, through="stage1"):
    (plan,) = make_plans(StrategyConfig(name, freeze_through), through=through)
    return run_audit(plan)


RIGHT = {
    "linear probe": (StrategyConfig("linear_probe"), {}),
    "adapt, dropout": (
        StrategyConfig("linear_probe", frozen_norms="adapt"),
        {"head": HeadConfig("mlp", (8,), dropout=0.5)},
    ),
    "folded": (StrategyConfig("bitfit"), {"folded": True}),
}
RIGHT_SLOW = {
    "scratch": (StrategyConfig("scratch"), {}),
    "partial, norms adapt": (StrategyConfig("partial", "stem", frozen_norms="adapt"), {}),
    "full, norms frozen": (StrategyConfig("full", trainable_norms="frozen"), {}),
    "full, adamw": (StrategyConfig("full"), {"optimizer": OptimizerConfig("adamw")}),
    "full, clipped": (StrategyConfig("full"), {"optimizer": OptimizerConfig(clip_norm=0.1)}),
    "full, layer decay": (StrategyConfig("full"), {"optimizer": OptimizerConfig(layer_decay=0.5)}),
    "full, smoothing": (StrategyConfig("full"), {"loss": LossConfig(label_smoothing=0.1)}),
    "lp_ft": (StrategyConfig("lp_ft"), {}),
    "gradual": (StrategyConfig("gradual"), {}),
    "surgical": (StrategyConfig("surgical", stages=("stem",)), {}),
    "bn_only": (StrategyConfig("bn_only"), {}),
    "bitfit": (StrategyConfig("bitfit"), {}),
    "rules": (StrategyConfig("rules", rules=("stem/.*|head/.*=head", ".*=frozen")), {}),
}


@pytest.mark.parametrize(
    ("strategy", "fields"),
    [pytest.param(*case, id=name) for name, case in RIGHT.items()]
    + [pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in RIGHT_SLOW.items()],
)
def test_a_right_plan_has_no_leak(strategy, fields):
    for plan in make_plans(strategy, **fields):
        found = run_audit(plan)
        assert found.leaks == ()
        assert found.step.flops == pytest.approx(found.least.flops, rel=0.001)
        assert found.step.optimizer_bytes == found.least.optimizer_bytes
        work = sum(group.forward_flops + group.backward_flops for group in found.groups)
        assert 0.9 * found.step.flops < work < found.step.flops
        assert sum(group.optimizer_bytes for group in found.groups) == found.step.optimizer_bytes


def by_hand_flops(plan, frozen_stages):
    """Forward, backward through the stages that train, and SGD with momentum, on one device."""
    shapes = plan.model.shapes()
    params, statistics = shapes["params"], shapes["batch_stats"]
    prefix = {name: params[name] for name in frozen_stages}
    suffix = {name: params[name] for name in params if name not in frozen_stages}
    norms = frozenset(p for p in plan.model.norm_paths() if p.split("/")[0] not in frozen_stages)

    def train(suffix, momentum, prefix, statistics, images, labels):
        pixels = normalise(images, CIFAR)

        def loss(suffix):
            variables = {"params": {**prefix, **suffix}, "batch_stats": statistics}
            outputs, new_statistics = plan.model.apply(variables, pixels, norms)
            chosen = jax.nn.log_softmax(outputs["logits"])[jnp.arange(PER_DEVICE), labels]
            return -jnp.mean(chosen), new_statistics

        (value, new_statistics), gradients = jax.value_and_grad(loss, has_aux=True)(suffix)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
        suffix = jax.tree.map(lambda p, m: p - 0.01 * m, suffix, momentum)
        return value, suffix, momentum, new_statistics

    images = jax.ShapeDtypeStruct((PER_DEVICE, 32, 32, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((PER_DEVICE,), jnp.int32)
    lowered = jax.jit(train).lower(suffix, suffix, prefix, statistics, images, labels)
    return lowered.compile().cost_analysis()["flops"]


WHOLE = [("linear_probe", None), *(("partial", depth) for depth in DEPTHS), ("full", None)]
CASES = [pytest.param("linear_probe", None, "stage1", id="stage1-linear_probe-None")]
CASES += [
    pytest.param(*case, None, id=f"whole-{case[0]}-{case[1]}", marks=pytest.mark.slow)
    for case in WHOLE
]


@pytest.mark.parametrize(("name", "freeze_through", "through"), CASES)
def test_a_step_and_the_least_cost_what_the_same_step_without_optax_does(
    name, freeze_through, through
):
    (plan,) = make_plans(StrategyConfig(name, freeze_through), through=through)
    frozen = {
        "linear_probe": plan.model.stages,
        "partial": DEPTHS[: DEPTHS.index(freeze_through) + 1] if freeze_through else None,
        "full": (),
    }[name]
    by_hand = by_hand_flops(plan, frozen)
    found = audit_of(name, freeze_through, through)
    assert found.leaks == ()
    assert found.least.flops == pytest.approx(by_hand, rel=0.02)
    assert found.step.flops == pytest.approx(by_hand, rel=0.02)


@pytest.mark.parametrize("through", ["stage1", pytest.param(None, marks=pytest.mark.slow)])
def test_a_linear_probe_costs_the_forward_pass_and_nothing_else(through):
    (plan,) = make_plans(StrategyConfig("linear_probe"), through=through)

    def forward(variables, images):
        return plan.model.apply(variables, normalise(images, CIFAR))[0]["logits"]

    images = jax.ShapeDtypeStruct((PER_DEVICE, 32, 32, 3), jnp.uint8)
    lowered = jax.jit(forward).lower(plan.model.shapes(), images)
    found = audit_of("linear_probe", through=through)
    forward_flops = lowered.compile().cost_analysis()["flops"]
    assert found.step.flops == pytest.approx(forward_flops, rel=0.02)
    frozen, head = found.groups
    assert (frozen.label, frozen.backward_flops) == (FROZEN, 0)
    assert head.backward_flops == head.forward_flops  # of the kernel alone: none below it trains


@pytest.mark.slow
def test_each_frozen_stage_makes_the_step_cheaper():
    probe, *depths, full = (audit_of(*case, None).step.flops for case in WHOLE)
    costs = [full, *depths, probe]  # from the most that trains to the least
    assert costs[-1] == pytest.approx(costs[-2], rel=0.001)  # all stages frozen: two names for it
    assert all(cost > 1.02 * next_cost for cost, next_cost in itertools.pairwise(costs[:-1]))
    assert costs[0] > 3 * costs[-1]


def test_the_groups_add_up_to_the_network():
    """bn_only: the way back leads through frozen kernels, but for the first one, whose input is the
    image."""
    (plan,) = make_plans(StrategyConfig("bn_only"))
    frozen, low_lr, head = by_group(plan, plan.initial_state(plan.model.init(0)), PER_DEVICE)
    stem = 2 * PER_DEVICE * 16 * 3 * 94**2  # 94 pairs of rows and kernel rows: 32 * 3 - 2 at edges
    block = 2 * PER_DEVICE * 16 * 16 * 94**2
    assert frozen.forward_flops == stem + 6 * block
    assert frozen.backward_flops == 6 * block
    assert (low_lr.forward_flops, low_lr.backward_flops) == (0, 0)
    assert head.forward_flops == 2 * PER_DEVICE * 16 * 3
    assert low_lr.norms.modes == {"train": 7}
    assert low_lr.norms.bytes == 7 * 2 * 16 * 4
    assert low_lr.optimizer_bytes == 7 * 2 * 16 * 4 + 4
    assert sum(group.parameters for group in (frozen, low_lr, head)) == 14531
