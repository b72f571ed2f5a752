"""What a run is: one frozen dataclass of the leaf configs that live beside their builders."""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from jxfer import choices, trees
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import AugmentConfig
from jxfer.errors import UserError
from jxfer.losses.adaptation import AdaptConfig
from jxfer.losses.classification import LossConfig
from jxfer.losses.regularise import RegulariseConfig
from jxfer.train.feature_store import CacheConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. The same config gives the same bits on the same machine."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    strategy: StrategyConfig = StrategyConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    regularise: RegulariseConfig = RegulariseConfig()
    adapt: AdaptConfig = AdaptConfig()
    cache: CacheConfig = CacheConfig()
    epochs: float = 10.0
    """Passes over the training split."""
    batch_size: int = 32
    """Examples per step, over all devices."""
    seed: int = 0
    """Of the new leaves, the order and the augmentation."""
    eval_every: float = 1.0
    """Epochs between two evaluations on the validation split."""
    log_every: int = 10
    """Steps between two lines of training metrics."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; an evaluation that is the best so far writes one too."""
    sync_bn: bool = False
    """BatchNorm over the global batch instead of per device."""
    accumulate: int = 1
    """Parts into which each device splits its share of a batch, one after another, to save memory;
    their gradients are averaged. BatchNorm in train mode normalises each part by itself and moves
    its averages with each. Slow on CPU, where XLA's convolutions lose their fast path in a loop."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the activations, in training and in the evaluations of the run. Parameters, statistics,
    optimizer, logits and loss stay float32, and so does the saved model."""
    remat: bool = False
    """Keep the input of each stage alone for the backward pass and compute the stage again there:
    a second forward pass of what trains for less memory (docs/performance.md)."""
    ema_decay: float | None = None
    """Such as 0.999: after each step average = decay * average + (1 - decay) * value, from the
    starting values on, for all that trains, BatchNorm's statistics included. The averages are what
    is evaluated and saved as the model."""
    patience: int | None = None
    """Evaluations without a better one after which the run ends; only in the last phase."""
    zoo: str | None = None
    """A folder of zoo entries that is searched first."""

    def __post_init__(self) -> None:
        choices.check(self, "--")
        for path, value in trees.flatten(dataclasses.asdict(self)).items():
            if isinstance(value, float) and not math.isfinite(value):
                option = choices.option("--", path.replace("/", "."))
                raise UserError(f"{option} {value:g}: it must be a finite number")
        positive = ("epochs", "batch_size", "eval_every", "log_every", "checkpoint_every")
        for name in (*positive, "accumulate", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{choices.option('--', name)} {value:g}: it must be above 0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"--ema-decay {self.ema_decay:g}: it must be above 0 and below 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: it must be at least 0")
        if self.data.balanced_sampling and self.loss.class_weights != "none":
            raise UserError(
                "--data.balanced-sampling and --loss.class-weights both make up for rare classes; "
                "leave one out"
            )
        if self.adapt.has_term and self.augment.mixes:
            raise UserError(
                f"--adapt.method {self.adapt.method} compares the images of two domains, and "
                "--augment.mixup and --augment.cutmix change those of one; leave them out"
            )
        if self.regularise.l2_sp and self.optimizer.weight_decay:
            raise UserError(
                "--regularise.l2-sp pulls to the start and --optimizer.weight-decay to zero: set "
                "--optimizer.weight-decay 0, and --regularise.l2-sp-head for the new parameters"
            )


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values; tuples become lists."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def to_options(values: Mapping[str, Any]) -> list[str]:
    """The options of `jxfer train` that make a config, without those at their defaults.

    Args:
      values: of `to_dict`.
    """
    defaults = trees.flatten(to_dict(TrainConfig(DataConfig(""))))
    options = []
    for path, value in trees.flatten(values).items():
        if path in defaults and value == defaults[path]:
            continue
        options.append(f"--{path.replace('/', '.').replace('_', '-')}")
        if isinstance(value, list):
            options += map(str, value)
        elif value is not True:  # every switch is off by default
            options.append(str(value))
    return options
