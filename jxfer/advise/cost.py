"""What a run will cost, before it starts: the work of its steps, as the audit counts it.

After `train` in the flow. Nothing is compiled and no image is read.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jxfer import trees
from jxfer.data.sources import Splits
from jxfer.train import flops, prefix_choice, summary
from jxfer.train.config import TrainConfig
from jxfer.train.plans import make_plans
from jxfer.train.selection import evaluation_steps
from jxfer.train.step import make_train_step
from jxfer.transfer.labels import FROZEN
from jxfer.zoo.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of the training steps of a run, over all devices; evaluations are not counted."""

    steps: int
    flops: float
    """Of convolutions and matrix products. A prefix whose output is cached runs once an image."""
    trainable: int
    """Parameters that move in the last phase."""


def cost(config: TrainConfig, pretrained: Pretrained, splits: Splits) -> Cost:
    """Counts the FLOPs of each phase's step (`flops.by_label`) and multiplies.

    Args:
      pretrained: as `plans.load` gives it for the config.

    Raises:
      UserError: as `plans.make_plans`.
    """
    examples, devices = len(splits.train), jax.device_count()
    steps = evaluation_steps(config, examples)[-1]
    plans = make_plans(config, pretrained, steps, examples / config.batch_size)
    total = 0.0
    for plan in plans:
        state = jax.eval_shape(lambda plan=plan: plan.initial_state(pretrained.variables))
        per_device = config.batch_size // devices
        reference = plan.reference(pretrained.variables)
        work = flops.by_label(make_train_step(plan), plan, state, per_device, reference)
        choice = prefix_choice.choose(plan, config, splits)
        cached = work.pop((FROZEN, False), 0) if choice.output else 0
        passes = choice.views * examples / config.batch_size
        total += devices * (plan.total_steps * sum(work.values()) + passes * cached)
    parameters = summary.parameters_by_label(plans[-1])
    return Cost(steps, total, sum(parameters.values()) - parameters.get(FROZEN, 0))


def forward_flops(pretrained: Pretrained) -> float:
    """Of one image through the whole network, counted as in `cost`."""
    model, size = pretrained.model, pretrained.preprocessing.size
    layers = [
        path.removesuffix("/kernel")
        for path in trees.flatten(model.shapes()["params"])
        if path.endswith("/kernel")
    ]
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    work = flops.by_layer(
        lambda variables, images: model.apply(variables, images)[0],
        (model.shapes(), image),
        layers,
    )
    return float(sum(work.values()))
