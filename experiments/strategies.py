"""Which part of a pretrained network should train when labels are few? Strategies side by side.

Claims under test: fine-tuning everything beats a linear probe; LP-FT, head first, beats both (Kumar
et al. 2022, "Fine-Tuning can Distort Pretrained Features"); tuning some stages alone can beat
tuning all (Lee et al. 2023, "Surgical Fine-Tuning"); norms or biases alone come close (Frankle et
al. 2021; Ben Zaken et al. 2022).

Three tasks:

- `digits-cifar100`, `digits-glyphs`: scikit-learn's digits, 10 labels per class, from the shipped
  ResNet-20 of an unlike and of a like source; 12 epochs. Nothing is downloaded.
- `hymenoptera`: ants and bees, ImageNet's ResNet-18 through stage 3 at 96 px, 6 epochs. Put the
  tutorial's `train` folder at `runs/hymenoptera/train` and its `val` folder at
  `runs/hymenoptera/test`, and the weights into a zoo at `runs/zoo` as `resnet18-imagenet`. A fifth
  of `train` is held out for validation.

Protocol: each strategy takes the learning rate with the best mean validation accuracy at seeds that
are not in the table, then runs at each seed of the table; the table holds the test accuracy of
those runs. A seed draws the images, the new leaves and the order, and is shared by the
strategies, so differences from `full` are paired. No augmentation.

Command: `python experiments/strategies.py digits-cifar100` (and so for each task)
Expected: `experiments/results/strategies-TASK.json` with every run, and `strategies.md`, the tables
of all tasks that were run.
Time: on 2 cores, a quarter of an hour for a task of digits, three quarters for hymenoptera.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tyro

from jxfer import text
from jxfer.commands.main import guard
from jxfer.data.sources import DataConfig, open_splits
from jxfer.errors import UserError
from jxfer.statistics import t_interval
from jxfer.train.config import TrainConfig
from jxfer.train.loop import run_config
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Arm:
    """A strategy; the backbone's rate is a tenth of the head's unless told."""

    strategy: StrategyConfig
    layer_decay: float | None = None
    backbone: float = 0.1

    def optimizer(self, lr: float) -> OptimizerConfig:
        return OptimizerConfig(lr=lr, backbone_lr=self.backbone * lr, layer_decay=self.layer_decay)


ARMS = {
    "scratch": Arm(StrategyConfig("scratch")),
    "linear_probe": Arm(StrategyConfig("linear_probe")),
    "partial, stage 1": Arm(StrategyConfig("partial", "stage1")),
    "partial, stage 2": Arm(StrategyConfig("partial", "stage2")),
    "full": Arm(StrategyConfig("full")),
    "full, layer decay 0.5": Arm(StrategyConfig("full"), layer_decay=0.5),
    "lp_ft": Arm(StrategyConfig("lp_ft")),
    "gradual": Arm(StrategyConfig("gradual")),
    "surgical, stem and stage 1": Arm(StrategyConfig("surgical", stages=("stem", "stage1"))),
    "surgical, stage 2": Arm(StrategyConfig("surgical", stages=("stage2",))),
    # A few hundred numbers move: at a tenth of the head's rate they hardly would.
    "bn_only": Arm(StrategyConfig("bn_only"), backbone=1.0),
    "bitfit": Arm(StrategyConfig("bitfit"), backbone=1.0),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set and weights to start from."""

    data: Callable[[int], DataConfig]
    """Of a seed."""
    model: ModelConfig
    epochs: int
    batch_size: int
    rates: tuple[float, ...]
    """Of the head."""
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    zoo: str | None = None

    def config(self, arm: Arm, lr: float, seed: int) -> TrainConfig:
        return TrainConfig(
            data=self.data(seed),
            model=self.model,
            strategy=arm.strategy,
            optimizer=arm.optimizer(lr),
            epochs=self.epochs,
            batch_size=self.batch_size,
            eval_every=self.epochs,
            seed=seed,
            zoo=self.zoo,
        )


def _digits(weights: str) -> Task:
    return Task(
        data=lambda seed: DataConfig("digits", per_class=10, split_seed=seed),
        model=ModelConfig(weights=weights),
        epochs=12,
        batch_size=20,
        rates=(0.03, 0.1, 0.3),
        tuning_seeds=(100, 101),
        seeds=(0, 1, 2, 3, 4),
    )


TASKS = {
    "digits-cifar100": _digits("resnet20-cifar100"),
    "digits-glyphs": _digits("resnet20-glyphs"),
    "hymenoptera": Task(
        data=lambda seed: DataConfig("folder:runs/hymenoptera", val_fraction=0.2, split_seed=seed),
        model=ModelConfig(weights="resnet18-imagenet", image_size=96),
        epochs=6,
        batch_size=16,
        rates=(0.01, 0.03, 0.1),
        tuning_seeds=(100,),
        seeds=(0, 1, 2),
        zoo="runs/zoo",
    ),
}


def main(
    task: tyro.conf.Positional[Literal["digits-cifar100", "digits-glyphs", "hymenoptera"]],
    out: pathlib.Path = pathlib.Path("runs/strategies"),
    results: pathlib.Path = ROOT / "results",
) -> None:
    """Runs every strategy on a task and writes the table.

    Args:
      task: data and weights.
      out: folder of the runs; finished runs in it are not repeated.
      results: where the table and the figures of all runs go.
    """
    chosen = TASKS[task]
    if open_splits(chosen.data(chosen.seeds[0])).test is None:
        raise UserError(f"{task}: its data have no test split; see the top of this file")
    found: dict[str, Any] = {}
    commits: set[str | None] = set()
    for name, arm in ARMS.items():
        folder = out / task / name.replace(", ", "-").replace(" ", "_")

        def run(lr: float, seed: int, arm: Arm = arm, folder: pathlib.Path = folder) -> Any:
            print(f"{task}: {folder.name}, rate {lr:g}, seed {seed} ...", file=sys.stderr)
            where = folder / f"{lr:g}-{seed}"
            summary = run_config(chosen.config(arm, lr, seed), where, quiet=True)
            commits.add(summary["commit"])
            if len(commits) > 1:
                raise UserError(f"{out / task} holds runs of several commits; take another --out")
            timing = json.loads((where / "timing.json").read_text())
            return summary | {"seconds": timing["seconds"]["total"]}

        validation = {
            lr: float(np.mean([run(lr, seed)["val_accuracy"] for seed in chosen.tuning_seeds]))
            for lr in chosen.rates
        }
        lr = max(validation, key=lambda rate: validation[rate])  # the smallest of equals
        summaries = [run(lr, seed) for seed in chosen.seeds]
        assert all(summary["frozen_unchanged"] in (True, None) for summary in summaries)
        found[name] = {
            "rate": lr,
            "validation": validation,
            "test": [summary["test_accuracy"] for summary in summaries],
            "test_correct": [summary["test_correct"] for summary in summaries],
            "test_examples": summaries[0]["test_examples"],
            "train_examples": summaries[0]["train_examples"],
            "trainable": [
                sum(n for label, n in phase["parameters"].items() if label != "frozen")
                for phase in summaries[0]["phases"]
            ],
            "seconds": [summary["seconds"] for summary in summaries],
            "commit": summaries[0]["commit"],
        }
    results.mkdir(exist_ok=True)
    record = {
        "task": task,
        "epochs": chosen.epochs,
        "tuning_seeds": chosen.tuning_seeds,
        "seeds": chosen.seeds,
        "versions": summaries[0]["versions"],
        "arms": found,
    }
    (results / f"strategies-{task}.json").write_text(text.to_json(record) + "\n")
    write_page(results)
    print(text.table(_table(found)))


def write_page(results: pathlib.Path) -> None:
    """`strategies.md`: the tasks that were run, side by side, then each by itself."""
    files = [results / f"strategies-{task}.json" for task in TASKS]
    records = [json.loads(file.read_text()) for file in files if file.is_file()]
    (results / "strategies.md").write_text(
        "\n\n".join(
            [
                "# Fine-tuning strategies, side by side",
                "`python experiments/strategies.py TASK`. Test accuracy, % (95 % interval). "
                "Intervals are of single comparisons, not corrected for their number.",
                text.markdown(_side_by_side(records)),
                *(part for record in records for part in _section(record)),
            ]
        )
        + "\n"
    )


def _side_by_side(records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Strategies in the order of `ARMS`, a column for each task."""

    def cell(record: dict[str, Any], name: str) -> str:
        accuracy = 100 * np.array(record["arms"][name]["test"])
        low, high = t_interval(list(accuracy))
        return f"{accuracy.mean():.1f} ({low:.1f} to {high:.1f})"

    heads = [f"{record['task']}, {len(record['seeds'])} seeds" for record in records]
    rows = [(name, *(cell(record, name) for record in records)) for name in ARMS]
    return [("strategy", *heads), *rows]


def _table(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Best mean first; differences from `full` are of the same seed."""
    full = 100 * np.array(found["full"]["test"])
    rows: list[tuple[str, ...]] = [
        (
            "strategy",
            "trains at most",
            "rate",
            "test accuracy, %",
            "95 % interval",
            "minus full",
            "95 % interval",
        )
    ]
    for name, arm in sorted(found.items(), key=lambda item: -np.mean(item[1]["test"])):
        accuracy = 100 * np.array(arm["test"])
        low, high = t_interval(list(accuracy))
        difference = [f"{np.mean(accuracy - full):+.1f}", "-"]
        if name != "full" and np.ptp(accuracy - full):
            ends = t_interval(list(accuracy - full))
            difference[1] = f"{ends[0]:+.1f} to {ends[1]:+.1f}"
        rows.append(
            (
                name,
                f"{max(arm['trainable']):,}",
                f"{arm['rate']:g}" + "*" * (arm["rate"] in _ends(arm["validation"])),
                f"{accuracy.mean():.1f}",
                f"{low:.1f} to {high:.1f}",
                *difference,
            )
        )
    return rows


def _ends(validation: dict[Any, float]) -> tuple[float, float]:
    """The smallest and the largest rate; JSON has made strings of them."""
    rates = sorted(map(float, validation))
    return rates[0], rates[-1]


def _section(record: dict[str, Any]) -> list[str]:
    some = record["arms"]["full"]
    rates = ", ".join(map(str, some["validation"]))
    tuning, seeds = (", ".join(map(str, record[key])) for key in ("tuning_seeds", "seeds"))
    return [
        f"## {record['task']}",
        f"{some['train_examples']} training images, {some['test_examples']} test images, "
        f"{record['epochs']} epochs; rates chosen by validation among "
        f"{rates} at seed {tuning}; the table's seeds are {seeds}. "
        "Intervals are t-intervals over the seeds; those of differences pair the seeds; a dash "
        "where all differences are equal; an asterisk where the best rate is an end of the grid.",
        text.markdown(_table(record["arms"])),
    ]


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
