"""Does fine-tuning distort pretrained features, and does a linear probe first prevent it?

Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", section 4, tables 1 and 2. CIFAR-100's ResNet-20 learns CIFAR-10
from few labels; it is tested on images of the same kind, and on the same images under shift:
re-encoded as lossy JPEG, and corrupted (noise, blur, low contrast, as in CIFAR-10-C).

Claims: fine-tuning beats the linear probe in distribution; the probe beats fine-tuning under shift;
LP-FT, which fine-tunes from the probe's head, is at least as good as both, in distribution and
under shift; it moves the features less than fine-tuning does.

One rate for backbone and head in fine-tuning, as in the paper: a small rate for the backbone, the
default elsewhere, is a remedy of its own. In LP-FT the head learns at 0.1.

Expected: in distribution full and LP-FT above the probe by some points; under shift the order of
the paper where the shift is large and the features are good.

Command: `python experiments/kumar2022_lp_ft.py --jobs 2`, after `python experiments/shifts.py ZIPS`
Time: 25 minutes on 2 cores; `--small` (digits, 3 seeds) two minutes, without images.
"""

import sys

import measures
import shifts

from jxfer.ablate.claims import Greater
from jxfer.ablate.experiment import Choice, Experiment, Setting
from jxfer.commands.main import main
from jxfer.data.sources import DataConfig
from jxfer.train.config import TrainConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

STRATEGIES = {
    "full": StrategyConfig("full"),
    "linear_probe": StrategyConfig("linear_probe"),
    "lp_ft": StrategyConfig("lp_ft"),
}
SETTINGS = {"20 labels a class": (20, 12.0), "100 labels a class": (100, 6.0)}
"""Training images of each class, and epochs."""
JPEG, CORRUPTED, DRIFT = "lossy JPEG", "corrupted", "feature drift"


def experiment(small: bool = False) -> Experiment:
    """The table.

    Args:
      small: digits, fewer epochs and seeds, no JPEG.

    Raises:
      UserError: images are not there.
    """
    source = "digits" if small else shifts.source("cifar10")
    settings = {"digits, 10 labels a class": (10, 4.0)} if small else SETTINGS
    shifted = {CORRUPTED: measures.accuracy_under_corruption(source)}
    if not small:
        shifted[JPEG] = measures.accuracy_on(shifts.source("jpeg"))

    def cell(setting: Setting, arm: str, choice: Choice, seed: int) -> TrainConfig:
        per_class, epochs = settings[setting.name]
        return TrainConfig(
            data=DataConfig(source, per_class=per_class, split_seed=seed, val_fraction=0.05),
            model=ModelConfig("resnet20-cifar100"),
            strategy=STRATEGIES[arm],
            optimizer=OptimizerConfig(**choice),
            epochs=epochs,
            batch_size=32,
            eval_every=epochs,
            seed=seed,
        )

    def beats_under_shift(left: str, right: str) -> tuple[Greater, ...]:
        return tuple(Greater(left, right, measure=measure) for measure in shifted)

    return Experiment(
        title="Linear probe, fine-tuning and LP-FT under distribution shift",
        settings=tuple(Setting(name) for name in settings),
        arms=tuple(STRATEGIES),
        cell=cell,
        seeds=(0, 1, 2) if small else (0, 1, 2, 3, 4),
        choices={
            "full": tuple({"lr": lr, "backbone_lr": lr} for lr in (0.01, 0.03, 0.1)),
            "linear_probe": tuple({"lr": lr} for lr in (0.03, 0.1, 0.3)),
            "lp_ft": tuple({"lr": 0.1, "backbone_lr": lr} for lr in (0.01, 0.03, 0.1)),
        },
        tuning_seeds=(100,),
        claims=(
            Greater("full", "linear_probe"),
            *beats_under_shift("linear_probe", "full"),
            Greater("lp_ft", "full"),
            Greater("lp_ft", "linear_probe"),
            *beats_under_shift("lp_ft", "full"),
            *beats_under_shift("lp_ft", "linear_probe"),
            Greater("full", "lp_ft", measure=DRIFT),
        ),
        measures=shifted | {DRIFT: measures.feature_drift(source)},
        note=(
            "The small preset tries the code: digits, 100 images, 4 epochs."
            if small
            else "Test accuracy is in distribution, on 1,000 images of CIFAR-10's test split; "
            "under shift it is of the same images as lossy JPEG, and the mean over Gaussian "
            "noise, Gaussian blur and low contrast at severity 5. Feature drift is the mean "
            "over the test images of |f(x) - f0(x)| / |f0(x)|, of pooled features. Every arm "
            "has the same epochs, of which LP-FT takes half for each part. The paper's "
            "shifts are of other kinds, and its networks larger."
        ),
    )


if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv]))
