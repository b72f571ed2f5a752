"""What the regularisers cost: no backward pass of what is frozen."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jxfer import trees
from jxfer.data.transforms import CIFAR, normalise
from jxfer.losses.regularise import RegulariseConfig
from jxfer.models import registry
from jxfer.train import parallel, step
from jxfer.train.state import TrainState
from jxfer.transfer.strategy import StrategyConfig
from tests.train import steps

pytestmark = pytest.mark.slow

PER_DEVICE = 2
IMAGES = jax.ShapeDtypeStruct((PER_DEVICE, 32, 32, 3), jnp.uint8)
LABELS = jax.ShapeDtypeStruct((PER_DEVICE,), jnp.int32)


def make_plan(regularise=RegulariseConfig()):
    """Stem and stage 1, both pretrained, the stem frozen."""
    plan = steps.make_plan(StrategyConfig("partial", "stem"), regularise=regularise)
    paths = trees.flatten(plan.model.shapes()["params"])
    backbone = frozenset(path for path in paths if not path.startswith("head/"))
    return dataclasses.replace(plan, pretrained=backbone)


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


def test_l2_sp_leaves_the_backward_pass_of_what_is_frozen_away():
    """A difference, a square, a sum and the gradient's share: a few FLOPs a parameter."""
    pulled = make_plan(RegulariseConfig(l2_sp=0.1))
    plain = step_flops(make_plan())
    assert plain < step_flops(pulled) < plain + 10 * trees.size(pulled.model.shapes()["params"])


def test_delta_runs_the_start_through_what_trains_and_through_nothing_else():
    """The frozen stem is computed once for both networks, and not differentiated."""
    plan = make_plan(RegulariseConfig(delta=0.1))
    plain = step_flops(make_plan())
    stem = registry.create("resnet20", None, through="stage1")
    stem = dataclasses.replace(stem, stages=("stem",), module=stem.module.copy(stages=("stem",)))

    def forward(variables, images):
        return stem.apply(variables, images)[0]["stem"]

    images = jax.ShapeDtypeStruct((PER_DEVICE, 32, 32, 3), jnp.float32)
    shapes = plan.model.shapes()
    shapes = {kind: {"stem": shapes[kind]["stem"]} for kind in shapes}
    start = forward_flops(plan) - jit_flops(forward, shapes, images)
    assert step_flops(plan) == pytest.approx(plain + start, rel=0.02)
