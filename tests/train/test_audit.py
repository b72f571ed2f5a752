"""The audit passes right plans, catches each planted trap, and its least is the least."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

from jxfer import trees
from jxfer.data.transforms import CIFAR, normalise
from jxfer.losses.classification import LossConfig
from jxfer.models import registry
from jxfer.models.heads import HeadConfig
from jxfer.train.audit import audit, by_group
from jxfer.train.state import Plan
from jxfer.transfer.labels import FROZEN, HEAD
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig, phases

PER_DEVICE = 2
DEPTHS = ("stem", "stage1", "stage2", "stage3")
PLAIN = OptimizerConfig(lr=0.01, momentum=0.0, weight_decay=0.0, schedule="constant")
ADAMW = OptimizerConfig("adamw", lr=0.01, decay_norm_and_bias=True, schedule="constant")


def make_plans(
    strategy, optimizer=OptimizerConfig(), through="stage1", head=HeadConfig(), **fields
):
    model = registry.create("resnet20", 3, through=through, head=head)
    found = phases(strategy, model.stages, per_stage=optimizer.per_stage)
    base = {"loss": LossConfig(), "total_steps": 10, "steps_per_epoch": 5.0, "folded": False}
    return [
        Plan(model=model, preprocessing=CIFAR, phase=phase, optimizer=optimizer, **(base | fields))
        for phase in found
    ]


def run_audit(plan):
    return audit(plan, plan.model.init(0), PER_DEVICE)


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
