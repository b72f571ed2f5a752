"""A finished run as its report sees it: what it wrote down, and what its model says of each image.

After `diagnostics` in the flow.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from jxfer.data import screen
from jxfer.data.sources import Source
from jxfer.errors import UserError
from jxfer.json_fields import parse
from jxfer.train import parallel, run_folder
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import Evaluator
from jxfer.train.feed import load_target
from jxfer.train.writers import METRICS, Mark, holds
from jxfer.zoo import store
from jxfer.zoo.card import Card

_BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True)
class RunResults:
    """A run folder, read and evaluated."""

    folder: pathlib.Path
    config: TrainConfig
    summary: dict[str, Any]
    timing: dict[str, Any]
    metrics: list[dict[str, Any]]
    """the records of `metrics.jsonl`, in their order"""
    card: Card
    """of the best model by validation"""
    split: str
    """which images stand below: "test", or "val" where the data has no test split"""
    data: str
    """their data spec: in a run that adapts, the test images are the target's"""
    source: Source
    probabilities: np.ndarray
    """[N, K] float32, of the best model on each of them"""
    correct: int
    """how many of them the run itself counted as right"""

    @property
    def predicted(self) -> np.ndarray:
        """Classes [N]."""
        return self.probabilities.argmax(-1)

    @property
    def figures(self) -> dict[str, float | None]:
        """What the run measured on the split: `loss`, `macro_f1` and `top5_accuracy`."""
        record = self.summary
        if self.split == "val":
            step = self.summary["best_step"]
            found = [r for r in self.metrics if r["step"] == step and "val_loss" in r]
            if not found:
                raise UserError(
                    f"{self.folder / METRICS} lost the line of step {step}, the best; restore it"
                )
            record = found[0]
        names = ("loss", "macro_f1", "top5_accuracy")
        return {name: record[f"{self.split}_{name}"] for name in names}


def read(folder: pathlib.Path) -> RunResults:
    """Reads a run and evaluates its model once, in float32, on the test split if there is one.

    Raises:
      UserError: it is no run folder, or has not finished; a file of it is damaged; its images are
        not where they were, or not the same.
    """
    config = run_folder.read_config(folder)
    summary = run_folder.read_summary(folder)
    if summary is None:
        raise UserError(
            f"{folder} has no summary.json: the run has not finished; its train command resumes it"
        )
    card, variables = store.load(folder / "model")
    split = "val" if summary["test_examples"] is None else "test"
    data = config.data.source
    if split == "test" and (target := load_target(config, card.class_names)) is not None:
        assert target.test is not None
        assert config.adapt.target is not None
        data, source = config.adapt.target, target.test
    else:
        source, _ = screen.load_for_evaluation(config.data, split)
    card.check_classes(source.class_names)
    if len(source) != summary[f"{split}_examples"]:
        raise UserError(
            f"{data} has {len(source)} {split} images and had "
            f"{summary[f'{split}_examples']} when {folder} was trained; restore them"
        )
    timing = run_folder.read_timing(folder)
    evaluator = Evaluator(store.build(card), card.preprocessing, _BATCH_SIZE)
    return RunResults(
        folder=folder,
        config=config,
        summary=summary,
        timing=timing,
        metrics=_read_lines(folder / METRICS, timing.get("metrics")),
        card=card,
        split=split,
        data=data,
        source=source,
        probabilities=evaluator.probabilities(parallel.replicate(variables), source),
        correct=summary[f"{split}_correct"],
    )


def _read_lines(path: pathlib.Path, mark: Mark | None) -> list[dict[str, Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; the run is damaged") from error
    if mark is not None and not holds(content, mark):
        raise UserError(f"{path} is damaged: its lines are not those that the run wrote")
    try:
        return [parse(line) for line in content.decode().splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); the run is damaged") from error
