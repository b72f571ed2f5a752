"""Labels and rates -> one `optax.multi_transform`.

After `strategy` in the flow. Clipping and weight decay stand inside each group: around the whole
transform they would need every gradient, and the compiler could no longer drop the backward pass
of the frozen part.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import optax

from jxfer.errors import UserError
from jxfer.transfer.labels import FROZEN, HEAD, LOW_LR
from jxfer.trees import Tree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How the trainable parameters move."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd with momentum, or adamw (Loshchilov & Hutter 2019)."""
    lr: float = 0.01
    """Peak learning rate of the head (of everything under scratch)."""
    backbone_lr: float | None = None
    """Peak learning rate of pretrained parameters; a tenth of lr unless given."""
    momentum: float = 0.9
    """For sgd."""
    nesterov: bool = False
    """For sgd."""
    weight_decay: float = 1e-4
    """sgd: added to the gradient, times the parameter; adamw: decoupled."""
    decay_norm_and_bias: bool = False
    """Decay BatchNorm's parameters and biases too."""
    clip_norm: float | None = None
    """Clips each group's gradient to this global norm."""
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "cosine"
    """step: StepLR; one_cycle: Smith & Topin 2018, cosine up over 30 % of the run, then down."""
    warmup_epochs: float = 0.0
    """Linear warm-up from zero, before the schedule starts; one_cycle has its own."""
    step_epochs: float = 7.0
    """For step: epochs between two decays."""
    step_factor: float = 0.1
    """For step: the factor of each decay."""

    def __post_init__(self) -> None:
        bounds = {
            "lr": self.lr > 0,
            "backbone_lr": self.backbone_lr is None or self.backbone_lr >= 0,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "clip_norm": self.clip_norm is None or self.clip_norm > 0,
            "step_epochs": self.step_epochs > 0,
            "step_factor": self.step_factor > 0,
        }
        for name, holds in bounds.items():
            if not holds:
                option = name.replace("_", "-")
                raise UserError(f"--optimizer.{option} {getattr(self, name)}: it is out of range")

    def peaks(self) -> dict[str, float]:
        """Peak learning rate of each label that trains."""
        backbone = self.lr / 10 if self.backbone_lr is None else self.backbone_lr
        return {LOW_LR: backbone, HEAD: self.lr}


def schedule(
    config: OptimizerConfig, peak: float, total_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    """Learning rate by step, from 0 to `total_steps` - 1.

    Raises:
      UserError: the warm-up is negative or does not fit.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "one_cycle":
        if warmup:
            raise UserError("--optimizer.warmup-epochs: one_cycle has its own warm-up; leave it 0")
        return optax.cosine_onecycle_schedule(
            total_steps, peak, pct_start=0.3, div_factor=25.0, final_div_factor=1e4
        )
    if not 0 <= warmup < total_steps:
        raise UserError(
            f"--optimizer.warmup-epochs {config.warmup_epochs:g} is {warmup} of {total_steps} "
            "steps; it must be shorter than the run"
        )
    after: optax.Schedule
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, total_steps - warmup)
    elif config.schedule == "step":
        every = max(1, round(config.step_epochs * steps_per_epoch))
        after = optax.exponential_decay(peak, every, config.step_factor, staircase=True)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    # Step 0 already moves: the ramp's first value is peak / warmup.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def schedules(
    config: OptimizerConfig, total_steps: int, steps_per_epoch: float
) -> dict[str, optax.Schedule]:
    """The schedule of each label that trains."""
    return {
        label: schedule(config, peak, total_steps, steps_per_epoch)
        for label, peak in config.peaks().items()
    }


def build(
    config: OptimizerConfig, labels: Tree, rates: dict[str, optax.Schedule]
) -> optax.GradientTransformation:
    """One transform for all groups.

    Args:
      config: rule and options.
      labels: a label for each parameter that the transform will see.
      rates: from `schedules`.
    """
    groups = {label: _group(config, rate) for label, rate in rates.items()}
    return optax.multi_transform({FROZEN: optax.set_to_zero(), **groups}, labels)


def _group(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    decays: Callable[[Tree], Tree] | None = None
    if not config.decay_norm_and_bias:
        # Kernels have two or more axes; scales and biases have one.
        decays = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    parts = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.name == "adamw":
        parts.append(optax.adamw(rate, weight_decay=config.weight_decay, mask=decays))
    else:
        if config.weight_decay:
            parts.append(optax.add_decayed_weights(config.weight_decay, decays))
        parts.append(optax.sgd(rate, config.momentum or None, config.nesterov))
    return optax.chain(*parts)
