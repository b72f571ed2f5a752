"""Does transfer beat training from scratch when labels are few? The smallest honest answer.

Claim: with 10 labelled images per class, a network that starts from pretrained weights reaches a
higher test accuracy than the same network from random weights. Three arms share the architecture,
the images and the number of epochs: `scratch` (everything, from random weights), `linear_probe`
(the pretrained base frozen, a new head) and `full` (everything fine-tuned, the base at a tenth of
the head's rate). The weights are the shipped `resnet20-cifar100`; the data are scikit-learn's
handwritten digits. A seed draws the images, the new leaves and the order; it is shared by the arms.

Command: `python experiments/quickstart.py`
Expected: an order of the three arms with 95 % t-intervals over the seeds, whatever it is; the
README quotes one run.
Time: under 2 minutes on 2 cores, compilation included. Nothing is downloaded.
"""

import json
import pathlib
import sys

import matplotlib
import numpy as np
import tyro

from jxfer import text
from jxfer.commands.main import guard
from jxfer.data.sources import DataConfig
from jxfer.statistics import t_interval
from jxfer.train.config import TrainConfig
from jxfer.train.loop import run_config
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

ARMS = {
    "scratch": OptimizerConfig(lr=0.05),
    "linear_probe": OptimizerConfig(lr=0.1),
    "full": OptimizerConfig(lr=0.2),
}
"""Each rate is the best of four by validation accuracy at seeds 100 and 101, which are not in the
table: of 0.02, 0.05, 0.1, 0.2, and for the probe of 0.1, 0.5, 2, 5."""


def config(strategy: str, seed: int) -> TrainConfig:
    """One run: `seed` draws the images as well as the order and the new leaves."""
    return TrainConfig(
        data=DataConfig(source="digits", per_class=10, split_seed=seed),
        model=ModelConfig(weights="resnet20-cifar100"),
        strategy=StrategyConfig(name=strategy),  # type: ignore[arg-type]
        optimizer=ARMS[strategy],
        epochs=12,
        batch_size=20,
        eval_every=12,
        seed=seed,
    )


def main(out: pathlib.Path = pathlib.Path("runs/quickstart"), seeds: int = 4) -> None:
    """Trains three arms and prints their test accuracies.

    Args:
      out: folder of the runs and the plot; finished runs in it are not repeated.
      seeds: runs of each arm.
    """
    accuracy: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for arm in ARMS:
        for seed in range(seeds):
            run = out / f"{arm}-{seed}"
            print(f"{arm}, seed {seed} ...", file=sys.stderr)
            summary = run_config(config(arm, seed), run, quiet=True)
            accuracy.setdefault(arm, []).append(100 * summary["test_accuracy"])
            timing = json.loads((run / "timing.json").read_text())
            seconds.setdefault(arm, []).append(timing["seconds"]["total"])

    order = sorted(ARMS, key=lambda arm: -np.mean(accuracy[arm]))
    rows = [("strategy", "test accuracy, %", "95 % interval", "single seeds", "seconds a run")]
    for arm in order:
        low, high = t_interval(accuracy[arm])
        rows.append(
            (
                arm,
                f"{np.mean(accuracy[arm]):.1f}",
                f"{low:.1f} to {high:.1f}",
                " ".join(f"{value:.1f}" for value in accuracy[arm]),
                f"{np.median(seconds[arm]):.0f}",
            )
        )
    print(f"\ndigits, 10 labels per class, ResNet-20, {seeds} seeds, test split of 500 images")
    print(text.table(rows))
    plot(out / "accuracy.png", order, accuracy)
    print(f"\nplot: {out / 'accuracy.png'}")
    print(
        "next, your own images in class folders:\n"
        "  jxfer train --run runs/mine --data.source folder:PATH "
        "--model.weights resnet20-cifar100\n"
        f"  jxfer predict {out}/{order[0]}-0 IMAGE"
    )


def plot(path: pathlib.Path, order: list[str], accuracy: dict[str, list[float]]) -> None:
    """Means with their intervals, and each seed as a dot."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    for y, arm in enumerate(reversed(order)):
        mean, (low, high) = float(np.mean(accuracy[arm])), t_interval(accuracy[arm])
        axes.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=4)
        axes.plot(accuracy[arm], [y] * len(accuracy[arm]), "|", color="0.4", markersize=12)
    axes.set_yticks(range(len(order)), list(reversed(order)))
    axes.set_xlabel("test accuracy, %")
    axes.set_title("digits, 10 labels per class: mean, 95 % t-interval, single seeds", fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
