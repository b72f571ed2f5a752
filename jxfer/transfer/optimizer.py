"""Labels and rates -> one `optax.multi_transform`.

After `strategy` in the flow. Clipping and weight decay stand inside each group: around the whole
transform they would need every gradient, and the compiler could no longer drop the backward pass
of the frozen part.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import optax

from jxfer import choices
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
    layer_decay: float | None = None
    """The k-th stage below the top one learns at backbone_lr * layer_decay^k (Clark et al. 2020,
    ELECTRA, section 3.1: layer-wise learning-rate decay)."""
    stage_lrs: tuple[str, ...] = ()
    """Peak learning rates of single stages, such as stem=1e-5 stage1=1e-4 (Howard & Ruder 2018,
    section 3.1: discriminative fine-tuning); the others keep backbone_lr."""
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
    """step: StepLR; one_cycle: Smith & Topin 2018, cosine up over 30 % of the phase, then down;
    it needs some ten steps to have a shape."""
    warmup_epochs: float = 0.0
    """Linear warm-up from zero, before the schedule starts; one_cycle has its own."""
    step_epochs: float = 7.0
    """For step: epochs between two decays."""
    step_factor: float = 0.1
    """For step: the factor of each decay."""

    def __post_init__(self) -> None:
        choices.check(self, "--optimizer.")
        bounds = {
            "lr": (self.lr > 0, "above 0"),
            "backbone_lr": (self.backbone_lr is None or self.backbone_lr >= 0, "at least 0"),
            "layer_decay": (
                self.layer_decay is None or 0 < self.layer_decay <= 1,
                "above 0 and at most 1",
            ),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "above 0"),
            "warmup_epochs": (self.warmup_epochs >= 0, "at least 0"),
            "step_epochs": (self.step_epochs > 0, "above 0"),
            "step_factor": (self.step_factor > 0, "above 0"),
        }
        for name, (holds, bound) in bounds.items():
            if not holds:
                option = choices.option("--optimizer.", name)
                raise UserError(f"{option} {getattr(self, name)}: it must be {bound}")
        idle = {
            "momentum": self.name != "sgd" and "--optimizer.name adamw",
            "nesterov": (self.name != "sgd" and "--optimizer.name adamw")
            or (not self.momentum and "--optimizer.momentum 0"),
            "step_epochs": self.schedule != "step" and f"--optimizer.schedule {self.schedule}",
            "step_factor": self.schedule != "step" and f"--optimizer.schedule {self.schedule}",
        }
        for name, where in idle.items():
            if where and getattr(self, name) != getattr(OptimizerConfig, name):
                option = choices.option("--optimizer.", name)
                raise UserError(f"{option} does nothing under {where}; leave it out")
        if self.layer_decay is not None and self.stage_lrs:
            raise UserError(
                "--optimizer.layer-decay and --optimizer.stage-lrs both set the rates of the "
                "stages; leave one out"
            )
        self.rates_by_stage()

    @property
    def per_stage(self) -> bool:
        """Whether stages learn at rates of their own, so that each needs its own label."""
        return self.layer_decay is not None or bool(self.stage_lrs)

    def rates_by_stage(self) -> dict[str, float]:
        """What `stage_lrs` says, by stage.

        Raises:
          UserError: an item is not STAGE=RATE with a rate of at least 0, or a stage comes twice.
        """
        rates: dict[str, float] = {}
        for item in self.stage_lrs:
            stage, _, text = item.partition("=")
            try:
                rate = float(text)
            except ValueError:
                rate = math.nan
            if not stage or not 0 <= rate < math.inf:
                raise UserError(
                    f"--optimizer.stage-lrs {item}: it must be STAGE=RATE, such as stage1=1e-4"
                )
            if stage in rates:
                raise UserError(f"--optimizer.stage-lrs: {stage} comes twice; leave one out")
            rates[stage] = rate
        return rates

    def without_rates(self) -> "OptimizerConfig":
        """The same rule, with the rates and the schedule at their defaults."""
        rates = ("lr", "backbone_lr", "layer_decay", "stage_lrs")
        shape = ("schedule", "warmup_epochs", "step_epochs", "step_factor")
        defaults = {name: getattr(OptimizerConfig, name) for name in (*rates, *shape)}
        return dataclasses.replace(self, **defaults)

    def peaks(self, stages: Sequence[str] = ()) -> dict[str, float]:
        """Peak learning rate of each label that trains.

        Args:
          stages: of the backbone, from the stem on; each has a label, `low_lr/STAGE`.
        """
        backbone = self.lr / 10 if self.backbone_lr is None else self.backbone_lr
        decay = 1.0 if self.layer_decay is None else self.layer_decay
        own = self.rates_by_stage()
        by_stage = {
            f"{LOW_LR}/{stage}": own.get(stage, backbone * decay ** (len(stages) - 1 - i))
            for i, stage in enumerate(stages)
        }
        return {LOW_LR: backbone, **by_stage, HEAD: self.lr}


def schedule(
    config: OptimizerConfig, peak: float, total_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    """Learning rate by step, from 0 to `total_steps` - 1.

    Raises:
      UserError: the warm-up does not fit.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "one_cycle":
        if warmup:
            raise UserError("--optimizer.warmup-epochs: one_cycle has its own warm-up; leave it 0")
        return optax.cosine_onecycle_schedule(
            total_steps, peak, pct_start=0.3, div_factor=25.0, final_div_factor=1e4
        )
    if warmup >= total_steps:
        raise UserError(
            f"--optimizer.warmup-epochs {config.warmup_epochs:g} is {warmup} of {total_steps} "
            "steps; it must be shorter than the run and each of its phases"
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
    config: OptimizerConfig, total_steps: int, steps_per_epoch: float, stages: Sequence[str] = ()
) -> dict[str, optax.Schedule]:
    """The schedule of each label that trains; see `OptimizerConfig.peaks`."""
    return {
        label: schedule(config, peak, total_steps, steps_per_epoch)
        for label, peak in config.peaks(stages).items()
    }


def carry(old: optax.OptState, fresh: optax.OptState) -> optax.OptState:
    """The optimizer state at the start of a phase, from that at the end of the one before.

    What a leaf has gathered (momentum, Adam's moments and their count) stays; leaves that begin to
    train have a fresh state, and every schedule starts anew. A state belongs to a path under a
    label: Adam counts steps by label, so leaves that begin later need a label of their own.

    Args:
      old: of the phase that ended.
      fresh: the initial state of the phase that begins.

    Raises:
      ValueError: a label is in both phases, but not with the same leaves.
    """
    for label in old.inner_states.keys() & fresh.inner_states.keys():
        before, after = _paths(old.inner_states[label]), _paths(fresh.inner_states[label])
        if before.keys() != after.keys():
            raise ValueError(f"the leaves of {label} change between two phases")
    kept = _paths(old)

    def restart(node: Any, carried: Any) -> Any:
        return node if _is_schedule(node) else carried

    carried = jax.tree_util.tree_map_with_path(lambda path, leaf: kept.get(path, leaf), fresh)
    return jax.tree.map(restart, fresh, carried, is_leaf=_is_schedule)


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def _paths(state: optax.OptState) -> dict[Any, Any]:
    return dict(jax.tree_util.tree_flatten_with_path(state)[0])


def build(
    config: OptimizerConfig, labels: Tree, rates: dict[str, optax.Schedule]
) -> optax.GradientTransformation:
    """One transform for all groups.

    Args:
      config: rule and options.
      labels: a label for each parameter that the transform will see.
      rates: from `schedules`.
    """
    groups = {label: group(config, rate) for label, rate in rates.items()}
    return optax.multi_transform({FROZEN: optax.set_to_zero(), **groups}, labels)


def group(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """The transform of one group, over its own leaves alone."""
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
