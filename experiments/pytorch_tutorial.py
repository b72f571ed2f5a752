"""Ants and bees: fine-tune all of a ResNet-18, or freeze it and train the last layer?

Claims: "fine-tuning all layers takes a little longer but is a little more accurate; with all layers
frozen it takes a little less and is a little less accurate" (a tutorial's two code listings, in
Korean, github.com/eunhwa99/NLP, Transfer.py: ResNet-18, SGD of rate 1e-3, StepLR(7, 0.1), 3
epochs), so in `listings` all is more accurate; and PyTorch's "Transfer Learning for Computer
Vision" (Chilamkurthy), where both reach some 95 %, the frozen one a little more, and freezing takes
about half of the time, so in `tutorial` the frozen one is more accurate. In both, training all
takes longer.

- `tutorial`: as PyTorch's: SGD of rate 1e-3 and momentum 0.9, StepLR(7, 0.1), batches of 4, random
  resized crops and flips; 10 epochs instead of 25.
- `listings`: as theirs: no momentum, 3 epochs, which end before the first step of the schedule;
  they leave data, batch and augmentation open, here ants and bees, 4 and none.

One rate for all parameters and no weight decay, as in both. Changed in both: 96 px instead of 224,
through stage 3, and the norms, which are folded into these weights, stay as they are; a tenth of
the training images is held out and the last epoch counts, where the tutorial picks the best epoch
by the images that it reports. Ants and bees are classes of ImageNet.

Expected: in the tutorial a frozen network near 85 %, full a few points apart from it in either
direction; the listings end too early, full some ten points ahead; full takes about three times as
long. Time is that of training without compiling: steps, their data, and no cache of frozen
features, as in the listings.

Measured: in the tutorial the frozen network has 77 to 84 %, full 72 to 83; in the listings full is
8 to 21 points ahead; full takes 3.3 to 4.9 times as long.

Command: `python experiments/pytorch_tutorial.py`, after `python experiments/images.py ZIPS` and
`jxfer zoo import FOLDER_OF_NPY --zoo runs/zoo --name resnet18-imagenet --arch resnet18 --through
stage3 --dataset ImageNet-1k`; one job, since it measures time
Time: 6 minutes on 2 cores; `--small` (digits and resnet20-cifar100) two.
"""

import pathlib
import sys

import images
import measures

from jxfer.ablate.claims import Greater
from jxfer.ablate.experiment import Choice, Experiment, Setting
from jxfer.commands.main import main
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import AugmentConfig
from jxfer.errors import UserError
from jxfer.train.config import TrainConfig
from jxfer.train.feature_store import CacheConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

ALL, FROZEN = "all", "frozen"
SECONDS = "training, s"
ZOO = pathlib.Path("runs/zoo")
WEIGHTS = "resnet18-imagenet"
SETTINGS = {
    # momentum, epochs, augmentation
    "tutorial": (0.9, 10.0, AugmentConfig(random_resized_crop=True, flip=True)),
    "listings": (0.0, 3.0, AugmentConfig()),
}


def training_seconds(run: pathlib.Path) -> float | None:
    """Time in a run's steps and waiting for their images, without compiling; None if it resumed."""
    seconds = measures.seconds(run)
    return None if seconds is None else seconds["step"] + seconds["data_wait"]


def experiment(small: bool = False) -> Experiment:
    """The table.

    Args:
      small: 10 digits of each class, and the shipped weights; fewer seeds.

    Raises:
      UserError: images or weights are not there.
    """
    if small:
        source, model = "digits", ModelConfig("resnet20-cifar100")
    else:
        source, model = images.folder("hymenoptera"), ModelConfig(WEIGHTS, image_size=96)
        if not (ZOO / WEIGHTS).is_dir():
            raise UserError(
                f"{ZOO / WEIGHTS} does not exist; make it: jxfer zoo import FOLDER_OF_NPY "
                f"--zoo {ZOO} --name {WEIGHTS} --arch resnet18 --through stage3"
            )

    def cell(setting: Setting, arm: str, choice: Choice, seed: int) -> TrainConfig:
        momentum, epochs, augment = SETTINGS[setting.name]
        lr = choice["lr"]
        return TrainConfig(
            data=DataConfig(source, per_class=10 if small else None, split_seed=seed),
            model=model,
            strategy=StrategyConfig("full" if arm == ALL else "linear_probe"),
            optimizer=OptimizerConfig(
                lr=lr, backbone_lr=lr, momentum=momentum, weight_decay=0.0, schedule="step"
            ),
            augment=augment,
            cache=CacheConfig("off"),
            epochs=epochs,
            batch_size=4,
            eval_every=epochs,
            seed=seed,
            zoo=None if small else str(ZOO),
        )

    return Experiment(
        title="PyTorch's tutorial and the two listings: train all, or the last layer",
        settings=tuple(Setting(name) for name in SETTINGS),
        arms=(ALL, FROZEN),
        cell=cell,
        seeds=(0, 1, 2) if small else (0, 1, 2, 3, 4),
        choices=dict.fromkeys((ALL, FROZEN), ({"lr": 0.001},)),
        claims=(
            Greater(ALL, FROZEN, ("listings",)),
            Greater(FROZEN, ALL, ("tutorial",)),
            Greater(ALL, FROZEN, measure=SECONDS),
        ),
        measures={SECONDS: training_seconds},
        note="96 px instead of 224, through stage 3, 10 epochs of the tutorial's 25: 2 cores. The "
        "rate is that of the tutorial and the listings, so nothing was searched. 153 test "
        "images, the same at every seed. With earlier pixels of crops and resized sides frozen > "
        "all was reproduced (3.5 points, 0.9 to 6.1); with the present ones, on the same seeds, it "
        "is underpowered (3.7, but with a larger spread). Once more the table was run for its "
        "times, on a quiet machine, with the same accuracies. p and its correction are those of a "
        "single look.",
    )


if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv]))
