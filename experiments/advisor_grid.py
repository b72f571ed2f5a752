"""What does each strategy reach, for which weights, images and number of labels? The grid.

`experiments/advisor_regret.py` judges the advisor by it; no claim of its own. A cell is (weights,
data, labelled images per class); each runs six strategies at four seeds. A seed draws the images,
the new leaves and the order, and is shared by the strategies.

| data | images | for |
|---|---|---|
| `digits` | embedded | tuning the advisor |
| `hymenoptera` | ants and bees of PyTorch's tutorial, its `val` as test | tuning |
| `cifar10` | of CIFAR-10's test split, two disjoint parts | judging only |
| `mnist` | MNIST | judging only |
| `usps` | USPS | judging only |

Weights: the shipped `resnet20-cifar100` and `resnet20-glyphs`, and for hymenoptera
`resnet18-imagenet`, ImageNet's ResNet-18 through stage 3, at 96 px. No weights meet the images that
they were trained on; ants and bees are classes of ImageNet, though.

The protocol is fixed beforehand. Learning rates do not depend on the data: for the ResNet-20s 0.1,
which in `strategies.md` was best, or within 1.6 points of it, by validation on digits, for each of
these strategies but `early_probe`, which is not there; for the ResNet-18 those of its section. The
backbone learns at a tenth. Probes, whose features are computed once, take four times the epochs;
LP-FT its probe in addition to the epochs of `full`.

Commands, from the repository's root, with the folders mnist, usps (`train` and `test`), cifar10
(`test`) and hymenoptera_data (`train` and `val`) of class folders in IMAGES, and the ResNet-18 as
`resnet18-imagenet` in a zoo at `runs/zoo`:

    python experiments/advisor_grid.py prepare IMAGES
    python experiments/advisor_grid.py run

Expected: `experiments/results/advisor-grid.json`: test and validation accuracy of every run.
Time: some two hours on 2 cores; finished runs are not repeated.
"""

import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro
from images import copy_images, draw_images

from jxfer import text
from jxfer.commands.main import guard
from jxfer.data.sources import DataConfig, FolderSource
from jxfer.errors import UserError
from jxfer.train.config import TrainConfig
from jxfer.train.loop import run_config
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parent
IMAGES = pathlib.Path("runs/advisor/images")
SEEDS = (0, 1, 2, 3)
TUNING = ("digits", "hymenoptera")
JUDGING = ("cifar10", "mnist", "usps")

STRATEGIES = {
    "linear_probe": StrategyConfig("linear_probe"),
    "early_probe": StrategyConfig("linear_probe"),
    "partial, stage 2": StrategyConfig("partial", "stage2"),
    "partial, stage 1": StrategyConfig("partial", "stage1"),
    "full": StrategyConfig("full"),
    "lp_ft": StrategyConfig("lp_ft"),
}
EARLY = "stage2"
"""The stage that `early_probe` classifies: the network is cut after it."""
FOLDED_RATES = {
    "linear_probe": 0.1,
    "early_probe": 0.1,
    "partial, stage 2": 0.03,
    "partial, stage 1": 0.1,
    "full": 0.01,
    "lp_ft": 0.01,
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Weights, images and how many of each class."""

    weights: str
    data: str
    per_class: int
    epochs: float
    """Of fine-tuning."""
    batch_size: int = 20
    image_size: int | None = None

    @property
    def name(self) -> str:
        return f"{self.weights}-{self.data}-{self.per_class}"

    def data_config(self, seed: int) -> DataConfig:
        embedded = self.data == "digits"
        return DataConfig(
            self.data if embedded else f"folder:{IMAGES / self.data}",
            per_class=self.per_class,
            split_seed=seed,
            val_fraction=0.2 if self.data == "hymenoptera" else 0.1,
        )

    def config(self, strategy: str, seed: int) -> TrainConfig:
        early = strategy == "early_probe"
        rates = FOLDED_RATES if self.weights == "resnet18-imagenet" else {}
        chosen, epochs = STRATEGIES[strategy], self.epochs
        if strategy.endswith("probe"):
            epochs = 4 * self.epochs
        if strategy == "lp_ft":
            epochs = 2 * self.epochs
            chosen = dataclasses.replace(chosen, phase_epochs=self.epochs)
        return TrainConfig(
            data=self.data_config(seed),
            model=ModelConfig(
                weights=self.weights,
                through=EARLY if early else None,
                image_size=self.image_size,
            ),
            strategy=chosen,
            optimizer=OptimizerConfig(lr=rates.get(strategy, 0.1)),
            epochs=epochs,
            batch_size=self.batch_size,
            eval_every=epochs,
            seed=seed,
            zoo="runs/zoo" if self.weights == "resnet18-imagenet" else None,
        )


def _ten_classes(data: str) -> list[Cell]:
    return [
        Cell(weights, data, per_class, epochs)
        for per_class, epochs in ((10, 12), (80, 4))
        for weights in ("resnet20-cifar100", "resnet20-glyphs")
    ]


CELLS = [
    *_ten_classes("digits"),
    Cell("resnet20-cifar100", "hymenoptera", 10, 30, batch_size=10),
    Cell("resnet20-cifar100", "hymenoptera", 80, 12),
    Cell("resnet18-imagenet", "hymenoptera", 10, 30, batch_size=10, image_size=96),
    Cell("resnet18-imagenet", "hymenoptera", 80, 5, batch_size=10, image_size=96),
    *(cell for data in JUDGING for cell in _ten_classes(data)),
]


def prepare(images: tyro.conf.Positional[pathlib.Path]) -> None:
    """Draws the images of every folder set, once for all seeds, into `runs/advisor/images`.

    100 of each class to learn from (validation is held out of them) and 100 to test on; of
    hymenoptera all.

    Args:
      images: the folder of the sets; see the head of this file.
    """
    shutil.copytree(images / "hymenoptera_data/train", IMAGES / "hymenoptera/train")
    shutil.copytree(images / "hymenoptera_data/val", IMAGES / "hymenoptera/test")
    for name in JUDGING:
        stored = {
            split: FolderSource(images / name, split)
            for split in ("train", "test")
            if (images / name / split).is_dir()
        }
        rng = np.random.default_rng(0)
        if "train" in stored:
            for split, source in stored.items():
                copy_images(
                    source, images / name, draw_images(source, rng, 100), IMAGES / name / split
                )
        else:
            drawn = draw_images(stored["test"], rng, 200)
            for split, part in (("train", drawn[:, :100]), ("test", drawn[:, 100:])):
                copy_images(stored["test"], images / name, part, IMAGES / name / split)


def run(
    data: Sequence[str] = (*TUNING, *JUDGING),
    out: pathlib.Path = pathlib.Path("runs/advisor/grid"),
    results: pathlib.Path = ROOT / "results",
) -> None:
    """Runs every cell, or finds it finished, and writes the figures.

    Args:
      data: the sets to run.
      out: folder of the runs.
      results: where `advisor-grid.json` goes.
    """
    found: dict[str, Any] = {}
    commits: set[str | None] = set()
    for cell in CELLS:
        if cell.data not in data:
            continue
        runs: dict[str, list[dict[str, Any]]] = {}
        for strategy in STRATEGIES:
            runs[strategy] = []
            for seed in SEEDS:
                folder = out / cell.name / strategy.replace(", ", "-").replace(" ", "_") / str(seed)
                print(f"{folder} ...", file=sys.stderr)
                summary = run_config(cell.config(strategy, seed), folder, quiet=True)
                commits.add(summary["commit"])
                if len(commits) > 1:
                    raise UserError(f"{out} holds runs of several commits; take another --out")
                timing = json.loads((folder / "timing.json").read_text())
                runs[strategy].append(
                    {
                        "seed": seed,
                        "test_accuracy": summary["test_accuracy"],
                        "test_correct": summary["test_correct"],
                        "val_accuracy": summary["val_accuracy"],
                        "seconds": timing["seconds"]["total"],
                    }
                )
        found[cell.name] = {
            **dataclasses.asdict(cell),
            "train_examples": summary["train_examples"],
            "test_examples": summary["test_examples"],
            "runs": runs,
        }
        results.mkdir(exist_ok=True)
        record = {"commit": summary["commit"], "versions": summary["versions"], "cells": found}
        (results / "advisor-grid.json").write_text(text.to_json(record) + "\n")
        means = {
            name: float(np.mean([run["test_accuracy"] for run in some]))
            for name, some in runs.items()
        }
        print(cell.name, {name: f"{100 * mean:.1f}" for name, mean in means.items()})


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "run": run})))
