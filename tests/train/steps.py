"""Train steps of a small network on one device, without a run around them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jxfer.data.transforms import CIFAR
from jxfer.losses.classification import LossConfig
from jxfer.losses.regularise import RegulariseConfig
from jxfer.models import registry
from jxfer.train import parallel, step
from jxfer.train.plans import set_up
from jxfer.train.state import Plan
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig, phases
from tests.conftest import CLASSES

BATCH = 16
SGD = OptimizerConfig(
    lr=0.05, backbone_lr=0.02, momentum=0.0, weight_decay=0.0, schedule="constant"
)
"""Plain gradient descent: a step is a gradient times a rate."""
EVERY_REGULARISER = RegulariseConfig(
    l2_sp=0.1, l2_sp_head=0.2, delta=0.3, co_tuning=0.5, bss=0.01, bss_k=2
)
"""Each at a strength of its own."""


def make_plan(strategy="full", **fields):
    """ResNet-20 through stage 1 with 3 classes; `head` and fields of the plan by keyword.

    `strategy` is a config of one phase, or the name of one.
    """
    strategy = StrategyConfig(strategy) if isinstance(strategy, str) else strategy
    head = {"head": fields.pop("head")} if "head" in fields else {}
    model = registry.create("resnet20", 3, through="stage1", **head)
    (phase,) = phases(strategy, model.stages)
    defaults = {
        "model": model,
        "preprocessing": CIFAR,
        "phase": phase,
        "optimizer": OptimizerConfig(lr=0.5, clip_norm=1.0),
        "loss": LossConfig(label_smoothing=0.1),
        "total_steps": 10,
        "steps_per_epoch": 5.0,
        "folded": False,
    }
    return Plan(**{**defaults, **fields})


def prepare(config):
    """(network, plans) of a run on `images` that takes nine steps."""
    return set_up(config, CLASSES, total_steps=9, steps_per_epoch=2.25)


def equations(jaxpr):
    """All of them, inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def traced(plan, images=(8, 2, 32, 32, 3)):
    """The equations of a plan's step on 8 devices."""
    state = jax.eval_shape(plan.initial_state, plan.model.shapes())
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((8, *x.shape), x.dtype), state)
    batch = {
        "image": jax.ShapeDtypeStruct(images, jnp.uint8),
        "label": jax.ShapeDtypeStruct(images[:2], jnp.int32),
    }
    mapped = parallel.compile_step(step.make_train_step(plan))
    return list(equations(jax.make_jaxpr(mapped)(state, batch).jaxpr))


def draw_batch(size=8):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, BATCH).astype(np.int32),
    }


@functools.cache
def compiled(plan):
    return jax.jit(jax.vmap(step.make_train_step(plan), axis_name=parallel.AXIS))


def train(plan, steps):
    """(state, sums) after each step, on the same batch, as host arrays."""
    state = jax.tree.map(
        lambda leaf: np.asarray(leaf)[None], plan.initial_state(plan.model.init(0), 3)
    )
    batch = {name: array[None] for name, array in draw_batch().items()}
    found = []
    for _ in range(steps):
        state, sums = compiled(plan)(state, batch)
        found.append(jax.tree.map(lambda leaf: np.asarray(leaf)[0], (state, sums)))
    return found


@functools.cache
def on_one_device(plan):
    """The step of a plan: `take(state, batch, reference)`, host arrays in and out."""

    def take(state, batch, reference):
        one = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (state, batch, reference))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[0], compiled(plan)(*one))

    return take
