"""`jxfer train`: one run."""

import argparse
import json as jsons
import pathlib
from typing import Annotated

import tyro

from jxfer import text
from jxfer.data.sources import DataConfig
from jxfer.errors import UserError
from jxfer.json_fields import decode
from jxfer.train import loop
from jxfer.train.config import TrainConfig


def main(args: list[str]) -> int:
    """Runs `jxfer train ARGS` and returns the exit code."""
    early = argparse.ArgumentParser("jxfer train", add_help=False, allow_abbrev=False)
    early.add_argument("--from-advice", "--from_advice", type=pathlib.Path)
    advice = early.parse_known_args(args)[0].from_advice
    start = TrainConfig(DataConfig(tyro.MISSING)) if advice is None else read_advice(advice)

    def train(
        run: pathlib.Path,
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = start,
        from_advice: pathlib.Path | None = None,
        json: bool = False,
    ) -> int:
        """Train a model. The same command on the same run folder resumes it.

        Args:
          config: what to do.
          run: The run folder: config, metrics, checkpoints, summary, and the best model.
          from_advice: Start from the config in this advice.json, which jxfer advise wrote; the
            other options change it.
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


def read_advice(file: pathlib.Path) -> TrainConfig:
    """The config that `jxfer advise` recommends.

    Raises:
      UserError: the file cannot be read, or is no advice.
    """
    try:
        value = jsons.loads(file.read_text())
    except OSError as error:
        raise UserError(f"--from-advice {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--from-advice {file}: not valid JSON: {error}") from None
    if not isinstance(value, dict) or "config" not in value:
        raise UserError(f"--from-advice {file}: no advice.json of jxfer advise")
    return decode(TrainConfig, value["config"], str(file))


def _counts(summary: dict[str, int], split: str) -> tuple[str, str]:
    return str(summary[f"{split}_correct"]), str(summary[f"{split}_examples"])
