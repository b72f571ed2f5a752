"""Pre-trains the shipped entry `resnet20-cifar100`: ResNet-20 on 30,000 images of CIFAR-100.

Claim: none; this makes the source model that other experiments transfer from. It is trained like
any run, from scratch, and the classes are those of CIFAR-100 (Krizhevsky 2009).

Data: 300 images for each of 100 fine classes of the CIFAR-100 training split, in class folders; of
each class 30 are held out for validation (`--data.val-fraction 0.1`, split seed 0). The test split
is never read.

Command, from the repository's root, with the class folders in `runs/cifar100`:

    python experiments/pretrain_cifar100.py

Expected: at least 48 % held-out top-1 (3,000 images; the 95 % interval is +-1.8 points). PyTorch
reached 43.8 % in 8 one-cycle epochs; this run takes 18.
Time: about an hour on 2 cores.
"""

import pathlib
import sys

import tyro

from jxfer.commands.main import guard
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import AugmentConfig
from jxfer.train.config import TrainConfig
from jxfer.train.loop import train
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

CONFIG = TrainConfig(
    data=DataConfig(source="folder:runs/cifar100", val_fraction=0.1),
    model=ModelConfig(arch="resnet20"),
    strategy=StrategyConfig(name="scratch"),
    # No label smoothing: it helps the source task and hurts the transfer (Kornblith et al. 2021,
    # "Why Do Better Loss Functions Lead to Less Transferable Features?").
    optimizer=OptimizerConfig(
        name="sgd", lr=0.1, nesterov=True, weight_decay=5e-4, schedule="one_cycle"
    ),
    augment=AugmentConfig(flip=True, pad_crop=4),
    epochs=18,
    batch_size=128,
    seed=0,
    eval_every=3,
    log_every=50,
)


def main(run: pathlib.Path = pathlib.Path("runs/resnet20-cifar100")) -> None:
    """Trains (or resumes) and leaves the entry in `RUN/model`.

    Args:
      run: the run folder; copy its `model/` to `checkpoints/resnet20-cifar100` to ship it.
    """
    summary = train(CONFIG, run)
    print(f"held-out top-1: {summary['val_accuracy']:.2%} of {summary['val_examples']}")


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
