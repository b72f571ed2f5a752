"""`jxfer train`: one run."""

import pathlib
from typing import Annotated

import tyro

from jxfer import text
from jxfer.train import loop
from jxfer.train.config import TrainConfig


def main(args: list[str]) -> int:
    """Runs `jxfer train ARGS` and returns the exit code."""

    def train(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")],
        run: pathlib.Path,
        json: bool = False,
    ) -> int:
        """Train a model. The same command on the same run folder resumes it.

        Args:
          config: what to do.
          run: The run folder: config, metrics, checkpoints, summary, and the best model.
          json: Print summary.json instead of a table.
        """
        summary = loop.run_config(config, run, quiet=json)
        if json:
            print(text.to_json(summary))
            return 0
        test = summary["test_accuracy"]
        rows = [
            ("split", "accuracy", "correct", "of"),
            ("validation", f"{summary['val_accuracy']:.2%}", *_counts(summary, "val")),
        ]
        if test is not None:
            rows.append(("test", f"{test:.2%}", *_counts(summary, "test")))
        early = " (stopped early)" if summary["stopped_early"] else ""
        print(f"best step {summary['best_step']} of {summary['steps']}{early}, in {run}/model")
        print(text.table(rows))
        return 0

    return tyro.cli(train, prog="jxfer train", args=args, config=(tyro.conf.FlagCreatePairsOff,))


def _counts(summary: dict[str, int], split: str) -> tuple[str, str]:
    return str(summary[f"{split}_correct"]), str(summary[f"{split}_examples"])
