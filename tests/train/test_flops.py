"""What the compiled train step costs, beside the same step written by hand."""

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
from jxfer.losses.regularise import RegulariseConfig
from jxfer.models import registry
from jxfer.train import parallel, step
from jxfer.train.state import Plan, TrainState
from jxfer.transfer.labels import FROZEN, HEAD
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig, phases

PER_DEVICE = 2
IMAGES = jax.ShapeDtypeStruct((PER_DEVICE, 32, 32, 3), jnp.uint8)
LABELS = jax.ShapeDtypeStruct((PER_DEVICE,), jnp.int32)
DEPTHS = ("stem", "stage1", "stage2", "stage3")


def make_plan(name, freeze_through=None, through=None, regularise=RegulariseConfig()):
    """A plan; with a regulariser, of a backbone that is pretrained."""
    model = registry.create("resnet20", 3, through=through)
    backbone = (p for p in trees.flatten(model.shapes()["params"]) if not p.startswith("head/"))
    (phase,) = phases(StrategyConfig(name, freeze_through), model.stages)
    return Plan(
        model=model,
        preprocessing=CIFAR,
        phase=phase,
        optimizer=OptimizerConfig(),
        loss=LossConfig(),
        total_steps=10,
        steps_per_epoch=5.0,
        folded=False,
        regularise=regularise,
        pretrained=frozenset(backbone),
    )


def step_flops(plan):
    """FLOPs of the compiled train step, of one device's program. Nothing is run."""
    shapes = plan.model.shapes()
    moving, _ = trees.split(shapes["params"], plan.moves)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=shapes["params"],
        batch_stats=shapes["batch_stats"],
        opt_state=jax.eval_shape(plan.transform.init, moving),
        seed=jax.ShapeDtypeStruct((), jnp.uint32),
    )
    devices = jax.local_device_count()
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((devices, *leaf.shape), leaf.dtype),
        (state, {"image": IMAGES, "label": LABELS}, plan.reference(shapes)),
    )
    train_step = parallel.compile_step(step.make_train_step(plan))
    return train_step.lower(*arguments).compile().cost_analysis()["flops"]


def jit_flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def forward_flops(plan):
    def forward(variables, images):
        return plan.model.apply(variables, normalise(images, CIFAR))[0]["logits"]

    return jit_flops(forward, plan.model.shapes(), IMAGES)


def by_hand_flops(model, frozen_stages):
    """Forward, backward through the stages that train, and SGD with momentum, on one device."""
    shapes = model.shapes()
    params, statistics = shapes["params"], shapes["batch_stats"]
    prefix = {name: params[name] for name in frozen_stages}
    suffix = {name: params[name] for name in params if name not in frozen_stages}
    norms = frozenset(p for p in model.norm_paths() if p.split("/")[0] not in frozen_stages)

    def train(suffix, momentum, prefix, statistics, images, labels):
        pixels = normalise(images, CIFAR)

        def loss(suffix):
            variables = {"params": {**prefix, **suffix}, "batch_stats": statistics}
            outputs, new_statistics = model.apply(variables, pixels, norms)
            chosen = jax.nn.log_softmax(outputs["logits"])[jnp.arange(PER_DEVICE), labels]
            return -jnp.mean(chosen), new_statistics

        (value, new_statistics), gradients = jax.value_and_grad(loss, has_aux=True)(suffix)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
        suffix = jax.tree.map(lambda p, m: p - 0.01 * m, suffix, momentum)
        return value, suffix, momentum, new_statistics

    return jit_flops(train, suffix, suffix, prefix, statistics, IMAGES, LABELS)


STAGE1_ONLY = [("linear_probe", None), ("partial", "stem"), ("full", None)]
WHOLE = [("linear_probe", None), *(("partial", depth) for depth in DEPTHS), ("full", None)]
CASES = [pytest.param(*case, "stage1", id=f"stage1-{case[0]}-{case[1]}") for case in STAGE1_ONLY]
CASES += [
    pytest.param(*case, None, id=f"whole-{case[0]}-{case[1]}", marks=pytest.mark.slow)
    for case in WHOLE
]


@functools.cache
def case_flops(name, freeze_through, through):
    return step_flops(make_plan(name, freeze_through, through))


@pytest.mark.parametrize(("name", "freeze_through", "through"), CASES)
def test_a_step_costs_what_the_same_step_by_hand_does(name, freeze_through, through):
    model = registry.create("resnet20", 3, through=through)
    frozen = {
        "linear_probe": model.stages,
        "partial": DEPTHS[: DEPTHS.index(freeze_through) + 1] if freeze_through else None,
        "full": (),
    }[name]
    step_cost = case_flops(name, freeze_through, through)
    assert step_cost == pytest.approx(by_hand_flops(model, frozen), rel=0.02)


@pytest.mark.parametrize("through", ["stage1", pytest.param(None, marks=pytest.mark.slow)])
def test_a_linear_probe_costs_the_forward_pass_and_nothing_else(through):
    forward = forward_flops(make_plan("linear_probe", through=through))
    assert case_flops("linear_probe", None, through) == pytest.approx(forward, rel=0.02)


@pytest.mark.slow
def test_each_frozen_stage_makes_the_step_cheaper():
    probe, *depths, full = (case_flops(*case, None) for case in WHOLE)
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


def log_all_norms(labels):
    """The transform is right, but something reads the norm of every gradient."""
    right = sgd_head_and(optax.set_to_zero())(labels)

    def update(gradients, state, params=None):
        updates, inner = right.update(gradients, state[1], params)
        return updates, (optax.tree.norm(gradients), inner)

    return optax.GradientTransformation(lambda p: (jnp.zeros(()), right.init(p)), update)


def plant(plan, **properties):
    """The plan, with other values in place of what it works out for itself."""
    planted = dataclasses.replace(plan)
    vars(planted).update(properties)
    return planted


def differentiate_everything(plan, make_transform):
    """The linear probe's own step, but with gradients of all leaves and another transform."""
    everything = frozenset(trees.flatten(plan.labels))
    return plant(
        plan,
        trainable=everything,
        train_layers=frozenset(),
        transform=make_transform(plan.labels),
    )


@pytest.fixture(scope="module")
def probe():
    return make_plan("linear_probe", through="stage1")


def test_set_to_zero_lets_the_compiler_drop_the_backward_pass(probe):
    planted = differentiate_everything(probe, sgd_head_and(optax.set_to_zero()))
    assert step_flops(planted) == pytest.approx(forward_flops(probe), rel=0.02)


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param(sgd_head_and(optax.sgd(0.0)), id="sgd of rate 0"),
        pytest.param(log_all_norms, id="log all norms"),
        pytest.param(masked_freeze, id="masked freeze", marks=pytest.mark.slow),
        pytest.param(masked_alone, id="masked alone", marks=pytest.mark.slow),
        pytest.param(clip_outside, id="clip outside", marks=pytest.mark.slow),
    ],
)
def test_this_measure_sees_a_trap_that_brings_the_backward_pass_back(probe, trap):
    planted = differentiate_everything(probe, trap)
    assert step_flops(planted) > 1.5 * forward_flops(probe)


@pytest.mark.parametrize("trap", [clip_outside, log_all_norms], ids=["clip", "log norms"])
def test_our_step_is_immune_to_what_stands_around_the_optimizer(probe, trap):
    """Only the trainable subtree is differentiated, so there is no backward pass to bring back."""
    labels, _ = trees.split(probe.labels, probe.moves)
    planted = plant(probe, transform=trap(labels))
    assert step_flops(planted) == pytest.approx(forward_flops(probe), rel=0.02)


def test_l2_sp_leaves_the_backward_pass_of_what_is_frozen_away():
    """A difference, a square, a sum and the gradient's share: a few FLOPs a parameter."""
    pulled = make_plan("partial", "stem", "stage1", RegulariseConfig(l2_sp=0.1))
    plain = case_flops("partial", "stem", "stage1")
    assert plain < step_flops(pulled) < plain + 10 * trees.size(pulled.model.shapes()["params"])


def test_delta_runs_the_start_through_what_trains_and_through_nothing_else():
    """The frozen stem is computed once for both networks, and not differentiated."""
    plan = make_plan("partial", "stem", "stage1", RegulariseConfig(delta=0.1))
    plain = case_flops("partial", "stem", "stage1")
    stem = registry.create("resnet20", None, through="stage1")
    stem = dataclasses.replace(stem, stages=("stem",), module=stem.module.copy(stages=("stem",)))

    def forward(variables, images):
        return stem.apply(variables, images)[0]["stem"]

    images = jax.ShapeDtypeStruct((PER_DEVICE, 32, 32, 3), jnp.float32)
    shapes = plan.model.shapes()
    shapes = {kind: {"stem": shapes[kind]["stem"]} for kind in shapes}
    start = forward_flops(plan) - jit_flops(forward, shapes, images)
    assert step_flops(plan) == pytest.approx(plain + start, rel=0.02)
