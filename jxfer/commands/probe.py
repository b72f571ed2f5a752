"""`jxfer probe`: a classifier on the features of every stage of a frozen network."""

import dataclasses
import pathlib
from typing import Annotated, Any

import numpy as np
import tyro

from jxfer import statistics, text
from jxfer.commands.features import STAGES, expand
from jxfer.data import screen
from jxfer.data.readers import Source
from jxfer.data.sources import DataConfig
from jxfer.probe import features, stages
from jxfer.probe.linear import Path
from jxfer.probe.neighbours import Neighbours
from jxfer.probe.stages import ProbeConfig, Split, StageProbe
from jxfer.train import run_folder
from jxfer.zoo import store, weights


def main(args: list[str]) -> int:
    """Runs `jxfer probe ARGS` and returns the exit code."""

    def run(
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")],
        data: DataConfig,
        probe: ProbeConfig = ProbeConfig(),
        outputs: tuple[str, ...] = (STAGES,),
        batch_size: int = 128,
        out: pathlib.Path | None = None,
        zoo: str | None = None,
        json: bool = False,
    ) -> int:
        """Train a classifier on what each stage of a frozen network puts out.

        Validation picks the strength of the penalty, or the number of neighbours, at each stage;
        then the test images are looked at once.

        Args:
          model: A run folder, the name or folder of a zoo entry, timm/NAME, hf:OWNER/NAME,
            torchvision:NAME, or a .safetensors file that jxfer zoo export wrote. No head is needed.
          data: which images.
          probe: which classifier.
          outputs: Stages, such as stage2 or fc6, after their last ReLU, maps as their mean over
            positions; pooled, which is the last stage; logits; or stages, for every stage.
          batch_size: Images per step over all devices.
          out: A folder for probe.json, which holds the whole path of each stage.
          zoo: A folder of zoo entries that is searched first.
          json: Print one JSON object.
        """
        found = weights.load(model, zoo=zoo)
        card, network = found.card, store.build(found.card)
        names = expand(outputs, network)
        features.row_shapes(network, card.preprocessing, names)
        splits = screen.load_splits(data)
        if out is not None:
            run_folder.make_folder(out, "--out")

        def extract(source: Source) -> Split:
            rows = features.extract(
                network, card.preprocessing, found.variables, source, names, batch_size=batch_size
            )
            return Split(rows, source.labels)

        sources = {"train": splits.train, "val": splits.val, "test": splits.test}
        by_name = {name: source for name, source in sources.items() if source is not None}
        extracted = {name: extract(source) for name, source in by_name.items()}
        results = stages.probe(
            probe,
            extracted["train"],
            extracted["val"],
            extracted.get("test"),
            splits.train.class_names,
        )
        examples = {name: len(source) for name, source in by_name.items()}
        figures: dict[str, Any] = {
            "model": found.where,
            "data": data.source,
            "probe": dataclasses.asdict(probe),
            "classes": list(splits.train.class_names),
            "examples": examples,
            "stages": {
                name: _figures(result, examples, extracted["train"].features[name].shape[1])
                for name, result in results.items()
            },
            "skipped_images": list(splits.skipped),
        }
        if out is not None:
            run_folder.write_json(out / "probe.json", figures)
        if json:
            print(text.to_json(figures))
            return 0
        counts = ", ".join(f"{count:,} {name}" for name, count in examples.items())
        print(f"{card.name} on {data.source}: {counts} images")
        print(text.table(_rows(figures["stages"], probe)))
        return 0

    return tyro.cli(run, prog="jxfer probe", args=args, config=(tyro.conf.FlagCreatePairsOff,))


def _figures(result: StageProbe, examples: dict[str, int], width: int) -> dict[str, Any]:
    test = None
    if result.test_correct is not None:
        test = _accuracy(result.test_correct, examples["test"])
    return {
        "features": width,
        "val": _accuracy(result.val_correct, examples["val"]),
        "test": test,
        **_path(result.chosen),
    }


def _accuracy(correct: int, examples: int) -> dict[str, Any]:
    return {
        "accuracy": correct / examples,
        "interval": list(statistics.wilson_interval(correct, examples)),
        "correct": correct,
        "examples": examples,
    }


def _path(chosen: Path | Neighbours) -> dict[str, Any]:
    if isinstance(chosen, Neighbours):
        return {"k": chosen.k, "path": _columns(chosen, "neighbours", "val_correct")}
    columns = ("strengths", "objective", "val_correct", "iterations", "converged")
    return {"strength": chosen.strength, "path": _columns(chosen, *columns)}


def _columns(chosen: Path | Neighbours, *names: str) -> dict[str, list[Any]]:
    return {name: np.asarray(getattr(chosen, name)).tolist() for name in names}


def _rows(found: dict[str, dict[str, Any]], probe: ProbeConfig) -> list[tuple[str, ...]]:
    setting = "k" if probe.kind == "knn" else "strength"
    header = ["stage", "features", setting, "val accuracy", "test accuracy", "95 % interval"]
    linear = probe.kind != "knn"
    rows = [(*header, "converged") if linear else tuple(header)]
    for stage, figures in found.items():
        test, interval = "-", "-"
        if figures["test"] is not None:
            test = f"{figures['test']['accuracy']:.2%}"
            interval = "{:.2%} to {:.2%}".format(*figures["test"]["interval"])
        cells = [
            stage,
            str(figures["features"]),
            f"{figures[setting]:.3g}",
            f"{figures['val']['accuracy']:.2%}",
            test,
            interval,
        ]
        if linear:
            reached = figures["path"]["converged"]
            cells.append(f"{sum(reached)} of {len(reached)}")
        rows.append(tuple(cells))
    return rows
