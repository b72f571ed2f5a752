"""How deep should a network be frozen, by the number of images of a class?

Claim under test: the fewer the images, the more of the convolutional base stays frozen, since a
large network overfits a few; with many, more of it can be trained (tutorials, such as
jeinalog.tistory.com/13, in Korean; Yosinski et al. 2014, section 1, argue the same). Here: with 5
images of a class accuracy rises with the number of frozen stages, with 80 it falls.

CIFAR-10 from `resnet20-cifar100`: other classes, like images. A ResNet-20 has a stem and three
stages; with all four frozen only the head trains, on features that are kept, for four times the
epochs: a probe learns from them alone, and they cost next to nothing.

Expected: with 5 a slight rise that ends before the last stage; with 80 level up to stage 2, then
a fall.

Measured: with 5 a rise through the last stage, 46.3 to 48.5 %, not beyond doubt; with 80 no fall,
63.0 to 63.7. At every depth 44 to 53 % with 5 and 60 to 66 with 80.

Command: `python experiments/freeze_depth.py --jobs 2`, after `python experiments/images.py ZIPS`
Time: 25 minutes on 2 cores; `--small` (digits, 5 and 20 of a class, 2 seeds) five, without
images.
"""

import sys

import images

from jxfer.ablate.claims import Falls, Rises
from jxfer.ablate.experiment import Choice, Experiment, Setting
from jxfer.commands.main import main
from jxfer.data.sources import DataConfig
from jxfer.train.config import TrainConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

DEPTHS = {
    "nothing": StrategyConfig("full"),
    "through stem": StrategyConfig("partial", "stem"),
    "through stage1": StrategyConfig("partial", "stage1"),
    "through stage2": StrategyConfig("partial", "stage2"),
    "through stage3": StrategyConfig("linear_probe"),
}
EPOCHS = {5: 20.0, 20: 8.0, 80: 3.0}
"""By images of a class; the probe takes four times as many."""
RATES = tuple({"lr": lr} for lr in (0.01, 0.03, 0.1, 0.3, 1.0))
"""Of the head. A first search, from 0.03, ended there in most arms."""


def _arm(per_class: int) -> str:
    return f"{per_class} of a class"


def experiment(small: bool = False) -> Experiment:
    """The table.

    Args:
      small: digits, of 5 and 20 images a class, with fewer rates and seeds, half as long.

    Raises:
      UserError: images are not there.
    """
    counts = {_arm(count): count for count in ((5, 20) if small else EPOCHS)}
    source = "digits" if small else images.folder("cifar10")

    def cell(setting: Setting, arm: str, choice: Choice, seed: int) -> TrainConfig:
        strategy = DEPTHS[setting.name]
        epochs = EPOCHS[counts[arm]] * (4 if strategy.name == "linear_probe" else 1)
        epochs /= 2 if small else 1
        return TrainConfig(
            data=DataConfig(source, per_class=counts[arm], split_seed=seed),
            model=ModelConfig("resnet20-cifar100"),
            strategy=strategy,
            optimizer=OptimizerConfig(lr=choice["lr"]),
            epochs=epochs,
            batch_size=20,
            eval_every=epochs,
            seed=seed,
        )

    few, *_, many = counts
    return Experiment(
        title="Freeze depth and images of a class",
        settings=tuple(Setting(name, x=float(depth)) for depth, name in enumerate(DEPTHS)),
        arms=tuple(counts),
        cell=cell,
        seeds=(0, 1) if small else (0, 1, 2, 3, 4),
        choices=dict.fromkeys(counts, RATES[1:3] if small else RATES),
        tuning_seeds=(100,) if small else (100, 101),
        claims=(Rises(few), Falls(many)),
        axis="frozen stages, the stem included",
        note="The head's rate, a tenth of which is the backbone's, is chosen for each depth and "
        "number of images. No augmentation. "
        + ("10, 4" if small else "20, 8 and 3")
        + " epochs, with more images fewer, in batches of 20; with everything frozen the head has "
        "four times as many, and the slopes include that point. "
        + ("500" if small else "1,000")
        + " test images, the same at every seed. Rates are chosen on "
        + ("130" if small else "400")
        + " validation images, more than so few labels would leave for it. A first search ended "
        "at its lower end in most arms; with a lower rate, on the same seeds, no verdict changed; "
        "p and its correction are those of a single look, and this is the second.",
    )


if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv]))
