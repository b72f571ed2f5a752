"""Pre-trains the shipped entry `resnet20-cifar100`: ResNet-20 on 30,000 images of CIFAR-100.

Claim: none; this makes the source model that other experiments transfer from. It is trained like
any run, from scratch, and the classes are those of CIFAR-100 (Krizhevsky 2009).

Data: 300 images for each of 100 fine classes of the CIFAR-100 training split, in class folders; of
each class 30 are held out for validation (`--data.val-fraction 0.1`, split seed 0). The test split
is never read.

Command, from the repository's root, with the class folders in `runs/cifar100`:

    python experiments/pretrain_cifar100.py --publish checkpoints

Expected: at least 48 % held-out top-1 (3,000 images; the 95 % interval is +-1.8 points). PyTorch
reached 43.8 % in 8 one-cycle epochs; this run takes 18 and reached 53.8 %.
Time: about an hour on 2 cores.
"""

import dataclasses
import pathlib
import sys

import tyro

from jxfer.commands.main import guard
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import AugmentConfig
from jxfer.train.config import TrainConfig
from jxfer.train.loop import run_config
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig

DATASET = "CIFAR-100 (27,000 training images)"
HELD_OUT = "CIFAR-100 (3,000 held-out training images)"
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


def main(
    run: pathlib.Path = pathlib.Path("runs/resnet20-cifar100"),
    publish: pathlib.Path | None = None,
) -> None:
    """Trains, resumes, or finds the run finished; then publishes.

    Args:
      run: The run folder.
      publish: A zoo folder, such as checkpoints, that gets the best model with a full card.
    """
    summary = run_config(CONFIG, run)
    correct, examples = summary["val_correct"], summary["val_examples"]
    print(f"held-out top-1: {correct / examples:.2%} ({correct} of {examples})")
    if publish is None:
        return
    card, variables = store.load(run / "model")
    (held_out,) = card.measured
    card = dataclasses.replace(
        card,
        name="resnet20-cifar100",
        dataset=DATASET,
        licence="Apache-2.0 (the weights; CIFAR-100 states no licence)",
        measured=(dataclasses.replace(held_out, dataset=HELD_OUT),),
        command="python experiments/pretrain_cifar100.py",
        notes="trained on 2 CPU cores; the accuracy is top-1 on the images held out of training, "
        "at the best of six evaluations; the code at `commit` repeats the run",
    )
    store.save(publish / card.name, card, variables)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
