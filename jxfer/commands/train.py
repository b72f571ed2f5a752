"""`jxfer train`: one run."""

import argparse
import contextlib
import pathlib
from typing import Annotated, Any

import jax
import tyro

from jxfer import text
from jxfer.data import remote
from jxfer.data.sources import DataConfig
from jxfer.errors import UserError
from jxfer.json_fields import decode, parse
from jxfer.train import loop, mirror, program_cache, run_folder
from jxfer.train.config import TrainConfig
from jxfer.train.hosts import HostsConfig, check_same, from_first, is_first, joined

_HIGH_WAIT = 0.1


def main(args: list[str]) -> int:
    """Runs `jxfer train ARGS` and returns the exit code."""
    early = argparse.ArgumentParser("jxfer train", add_help=False, allow_abbrev=False)
    early.add_argument("--from-advice", "--from_advice", type=pathlib.Path)
    advice = early.parse_known_args(args)[0].from_advice
    start = TrainConfig(DataConfig(tyro.MISSING)) if advice is None else read_advice(advice)

    def train(
        run: pathlib.Path,
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = start,
        hosts: HostsConfig = HostsConfig(),
        from_advice: pathlib.Path | None = None,
        profile: bool = False,
        json: bool = False,
    ) -> int:
        """Train a model. The same command on the same run folder resumes it.

        Args:
          config: what to do.
          run: The run folder: config, metrics, checkpoints, summary, and the best model; on this
            machine, or gs://BUCKET/PATH.
          hosts: The processes that train it together, if there are several.
          from_advice: Start from the config in this advice.json, which jxfer advise wrote; the
            other options change it.
          profile: Trace a few steps into the run folder, for TensorBoard or Perfetto. Changes no
            result.
          json: Print summary.json instead of a table.
        """
        with joined(hosts), contextlib.ExitStack() as held:
            if jax.process_count() > 1:
                program_cache.switch_off()
            check_same({"--run": str(run)})
            # The first host alone has the folder; a bucket that fails there ends them all.
            folder = from_first(lambda: held.enter_context(mirror.mirrored(run)))
            summary = loop.run_config(config, folder, quiet=json, profile=profile)
            writes = is_first()
            # A finished run does without timing.json.
            told = writes and not json and (folder / "timing.json").exists()
            waiting = _waiting(run_folder.read_timing(folder)) if told else ""
        if not writes:
            return 0
        if json:
            print(text.to_json(summary))
            return 0
        early = " (stopped early)" if summary["stopped_early"] else ""
        steps = f"best step {summary['best_step']} of {summary['steps']}{early}"
        print(f"{steps}, in {remote.shown(run)}/model")
        print(text.table([("split", "accuracy", "correct", "of"), *_rows(summary)]))
        if waiting:
            print(waiting)
        return 0

    return tyro.cli(train, prog="jxfer train", args=args, config=(tyro.conf.FlagCreatePairsOff,))


def read_advice(file: pathlib.Path) -> TrainConfig:
    """The config that `jxfer advise` recommends.

    Raises:
      UserError: the file cannot be read, or is no advice.
    """
    try:
        value = parse(file.read_text())
    except OSError as error:
        raise UserError(f"--from-advice {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--from-advice {file}: not valid JSON: {error}") from None
    if not isinstance(value, dict) or "config" not in value:
        raise UserError(f"--from-advice {file}: no advice.json of jxfer advise")
    return decode(TrainConfig, value["config"], str(file))


def _waiting(timing: dict[str, Any]) -> str:
    """What the loop waited for data, and what to do about it; empty if no step was taken."""
    share = timing.get("data_wait_share")
    if share is None:
        return ""
    advice = (
        ""
        if share < _HIGH_WAIT
        else ": images come too slowly; use more CPU cores, smaller image files, a local disk, or "
        "more memory and --cache.images-gb, so that decoded images are kept"
    )
    return f"waited for data {share:.0%} of the training loop's time{advice}"


def _rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Accuracy on each split that there is."""
    adapt = summary["adapt"]
    if adapt is None:
        return [*_row("validation", summary, "val"), *_row("test", summary, "test")]
    rows = [
        *_row("source validation", summary, "val"),
        *_row("source test", adapt, "source_test"),
        *_row("target test", summary, "test"),
    ]
    if adapt["oracle_test_accuracy"] is not None:
        oracle = f"{adapt['oracle_test_accuracy']:.2%}"
        rows.append((f"target test, oracle's step {adapt['oracle_step']}", oracle, "", ""))
    return rows


def _row(name: str, figures: dict[str, Any], split: str) -> list[tuple[str, ...]]:
    """A row, or none where the split is missing."""
    accuracy = figures[f"{split}_accuracy"]
    if accuracy is None:
        return []
    counts = (str(figures[f"{split}_{count}"]) for count in ("correct", "examples"))
    return [(name, f"{accuracy:.2%}", *counts)]
