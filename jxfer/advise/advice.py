"""Advice: a config that can be run, the figures that decided it, and what would change it.

After `rules` in the flow, last of the advisor's files.
"""

import dataclasses
import math
from typing import Any

import jax

from jxfer.advise import measure, rules
from jxfer.advise.cost import Cost, cost, forward_flops
from jxfer.advise.measure import Measurements, Size
from jxfer.advise.rules import Reach, Verdict
from jxfer.data.sources import DataConfig, Splits
from jxfer.data.transforms import AugmentConfig
from jxfer.train import config as configs
from jxfer.train.config import TrainConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig, Pretrained

MOST_SHARE = 0.05
"""Of the work of full fine-tuning that the measurements may take."""
ALWAYS_FLOPS = 1.2e12
"""Work that they may take in any case: half a minute of two CPU cores."""
_PASSES = 2.4
"""Over the images looked at: features, norms, and some of them again and mirrored."""
_BATCH_SIZES = ((2000, 32), (80, 20), (0, 10))
"""(training images from which on, examples per step)."""
_RATE = 0.1
_RATES_WITHOUT_NORMS: dict[Reach, float] = {
    "freeze_most": 0.03,
    "freeze_part": 0.03,
    "full": 0.01,
}
"""Where norms are folded, or there are none, nothing normalises what a step does to a layer."""


@dataclasses.dataclass(frozen=True)
class TableSays:
    """One published table, asked about the measured cell."""

    table: str
    says: Reach | None
    """None: it cannot be asked, since nothing tells likeness"""
    agrees: bool


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to run, and why."""

    config: TrainConfig
    reach: Reach
    verdict: Verdict
    measured: Measurements
    """of the weights that were chosen"""
    tables: tuple[TableSays, ...]
    cost: Cost
    full_cost: Cost
    """of fine-tuning everything, for as many epochs"""
    seconds: float | None
    """estimate for the training steps: their work at the speed of the measured forward pass; None
    where that was too short to tell"""
    full_seconds: float | None
    warnings: tuple[str, ...]
    would_change: tuple[str, ...]


def advise(
    data: DataConfig,
    splits: Splits,
    candidates: dict[str, tuple[ModelConfig, Pretrained]],
    *,
    zoo: str | None = None,
    seed: int = 0,
) -> tuple[Size, list[Measurements], Advice]:
    """Measures every candidate on the training split and recommends one way to train one of them.

    Neither the validation nor the test split is read. So many images are looked at that this takes
    at most `MOST_SHARE` of the work of full fine-tuning, or `ALWAYS_FLOPS` where that is more.

    Args:
      data: of the run.
      splits: what it opens.
      candidates: by the name that the report uses; each as `plans.load` gives it.
      zoo: of the run.
      seed: of the run, of folds and draws.

    Raises:
      UserError: as `measure.size`, `measure.measure` and `plans.make_plans`.
    """
    size = measure.size(splits.train)

    def config(name: str, reach: Reach, flip: bool = False) -> TrainConfig:
        model, pretrained = candidates[name]
        flip = flip and reach != "linear_probe"  # whose features are computed once
        return make_config(reach, data, model, pretrained, size, flip=flip, zoo=zoo, seed=seed)

    forward, full = {}, {}
    for name, (_, pretrained) in candidates.items():
        forward[name] = forward_flops(pretrained)
        full[name] = cost(config(name, "full"), pretrained, splits)

    # The same images for all: with more of them, a probe would be better for that alone.
    most = min(
        images_to_measure(full[name].flops, forward[name], len(candidates)) for name in candidates
    )
    sample = measure.sample(splits.train, seed, most)
    found = [
        measure.measure(name, pretrained, sample, seed)
        for name, (_, pretrained) in candidates.items()
    ]
    chosen = rules.choose(found)
    verdict = rules.verdict(size, chosen)
    reach = rules.reach(verdict, chosen.folded)
    planned = config(chosen.weights, reach, chosen.mirrors.harmless)
    spent = cost(planned, candidates[chosen.weights][1], splits)
    pace = chosen.image_seconds and chosen.image_seconds / forward[chosen.weights]
    advice = Advice(
        config=planned,
        reach=reach,
        verdict=verdict,
        measured=chosen,
        tables=tuple(
            TableSays(name, rules.says(name, verdict), rules.says(name, verdict) == reach)
            for name in rules.TABLES
        ),
        cost=spent,
        full_cost=full[chosen.weights],
        seconds=pace and spent.flops * pace,
        full_seconds=pace and full[chosen.weights].flops * pace,
        warnings=_warnings(size, chosen),
        would_change=_would_change(size, verdict, chosen.folded),
    )
    return size, found, advice


def images_to_measure(full_flops: float, forward_flops: float, candidates: int) -> int:
    """How many images may be looked at through each of the candidates.

    Args:
      full_flops: of fine-tuning all of this one.
      forward_flops: of one image through it.
    """
    budget = max(MOST_SHARE * full_flops, ALWAYS_FLOPS) / candidates
    return min(int(budget / (_PASSES * forward_flops)), measure.MOST_IMAGES)


def make_config(
    reach: Reach,
    data: DataConfig,
    model: ModelConfig,
    pretrained: Pretrained,
    size: Size,
    *,
    flip: bool = False,
    zoo: str | None = None,
    seed: int = 0,
) -> TrainConfig:
    """The run that goes with a reach, as `experiments/advisor_grid.py` has it, or near that.

    Fine-tuning takes 12 epochs of 100 images; with more images fewer epochs and more steps, both by
    the square root. A probe, whose features are computed once, takes four times the epochs.
    """
    stages = pretrained.model.stages
    through = {"freeze_most": len(stages) - 2, "freeze_part": min(1, len(stages) - 2)}
    epochs = float(min(max(round(12 * math.sqrt(100 / size.examples)), 3), 30))
    devices = jax.device_count()
    batch_size = next(batch for least, batch in _BATCH_SIZES if size.examples >= least)
    strategy = StrategyConfig()
    if reach in through and len(stages) > 1:
        strategy = StrategyConfig("partial", stages[through[reach]])
    elif reach in (*through, "linear_probe"):  # nothing lies between all of one stage and none
        strategy = StrategyConfig("linear_probe")
        epochs *= 4
    normless = pretrained.folded or not pretrained.model.norm_paths()
    lr = _RATES_WITHOUT_NORMS.get(reach, _RATE) if normless else _RATE
    return TrainConfig(
        data=data,
        model=model,
        strategy=strategy,
        optimizer=OptimizerConfig(lr=lr),
        augment=AugmentConfig(flip=flip),
        epochs=epochs,
        batch_size=-(-batch_size // devices) * devices,
        eval_every=epochs / 4,
        seed=seed,
        zoo=zoo,
    )


def _warnings(size: Size, measured: Measurements) -> tuple[str, ...]:
    found = [
        f"{source}, which {measured.weights} learned from, has {len(names)} of the {size.classes} "
        f"classes by name ({', '.join(names[:5])}): accuracy here says little about classes that "
        "are new to it"
        for source, names in measured.known_classes.items()
    ]
    if size.largest_class > 4 * size.smallest_class:
        found.append(
            f"classes have {size.smallest_class} to {size.largest_class} images: look at macro-F1, "
            "and at --data.balanced-sampling or --loss.class-weights balanced"
        )
    if measured.folded:
        found.append("the norms of these weights are folded: they stay frozen, whatever trains")
    return tuple(found)


def _would_change(size: Size, verdict: Verdict, folded: bool) -> tuple[str, ...]:
    """The same rules at the other side of each threshold."""
    each = size.examples / size.classes
    side = "at least" if verdict.few else "fewer than"
    other = "different from" if verdict.similar else "similar to"
    changes = {
        f"{side} {rules.FEW} images of a class (there are {each:.3g})": dataclasses.replace(
            verdict, few=not verdict.few
        ),
        f"images {other} the source ({verdict.decided_by})": dataclasses.replace(
            verdict, similar=not verdict.similar
        ),
    }
    return tuple(
        f"{condition}: {instead}"
        for condition, changed in changes.items()
        if (instead := rules.reach(changed, folded)) != rules.reach(verdict, folded)
    )


def to_dict(size: Size, found: list[Measurements], advice: Advice) -> dict[str, Any]:
    """`advice.json`: `config` is what `jxfer train --from-advice` runs."""
    return {
        "config": configs.to_dict(advice.config),
        "reach": advice.reach,
        "weights": advice.measured.weights,
        "verdict": dataclasses.asdict(advice.verdict),
        "size": dataclasses.asdict(size),
        "measurements": [dataclasses.asdict(measured) for measured in found],
        "tables": [dataclasses.asdict(table) for table in advice.tables],
        "cost": dataclasses.asdict(advice.cost) | {"seconds": advice.seconds},
        "full_cost": dataclasses.asdict(advice.full_cost) | {"seconds": advice.full_seconds},
        "warnings": list(advice.warnings),
        "would_change": list(advice.would_change),
    }
