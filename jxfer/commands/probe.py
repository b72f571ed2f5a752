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
from jxfer.errors import UserError
from jxfer.probe import feature_files, features, stages
from jxfer.probe.linear import RegularisationPath
from jxfer.probe.neighbours import Neighbours
from jxfer.probe.stages import ProbeConfig, Split, StageProbe
from jxfer.train import run_folder
from jxfer.zoo import store, weights
from jxfer.zoo.weights import Weights

NO_DATA = DataConfig("")
BATCH_SIZE = 128


def main(args: list[str]) -> int:
    """Runs `jxfer probe ARGS` and returns the exit code."""

    def run(
        model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")] = None,
        data: DataConfig = NO_DATA,
        probe: ProbeConfig = ProbeConfig(),
        outputs: tuple[str, ...] = (STAGES,),
        folders: Annotated[tuple[pathlib.Path, ...], tyro.conf.arg(name="features")] = (),
        batch_size: int = BATCH_SIZE,
        out: pathlib.Path | None = None,
        zoo: str | None = None,
        json: bool = False,
    ) -> int:
        """Train a classifier on what each stage of a frozen network puts out.

        Validation picks the strength of the penalty, or the number of neighbours, at each stage;
        then the test images are looked at once. Takes WEIGHTS and --data.source, or --features.

        Args:
          model: A run folder, the name or folder of a zoo entry, timm/NAME, hf:OWNER/NAME,
            torchvision:NAME, or a .safetensors file that jxfer zoo export wrote. No head is needed.
          data: which images.
          probe: which classifier.
          outputs: Stages, such as stage2 or fc6, after their last ReLU, maps as their mean over
            positions; pooled, which is the last stage; logits; or stages, for every stage.
          folders: Instead of weights and data, folders that jxfer features wrote: of training
            images, of validation images and, if there are any, of test images.
          batch_size: Images per step over all devices.
          out: A folder for probe.json, which holds the whole path of each stage.
          zoo: A folder of zoo entries that is searched first.
          json: Print one JSON object.
        """
        if out is not None:
            run_folder.make_folder(out, "--out")
        if folders:
            given = (model, data, outputs, batch_size, zoo)
            read = _read(folders, given == (None, NO_DATA, (STAGES,), BATCH_SIZE, None))
        elif model is None or data == NO_DATA:
            raise UserError("give WEIGHTS and --data.source, or --features TRAIN VAL TEST")
        else:
            read = _extract(weights.load(model, zoo=zoo), data, outputs, batch_size)
        by_split = read.splits
        results = stages.probe(
            probe,
            by_split["train"],
            by_split["val"],
            by_split.get("test"),
            read.class_names,
        )
        examples = {name: len(split.labels) for name, split in by_split.items()}
        figures: dict[str, Any] = {
            "model": read.model,
            "data": read.data,
            "probe": dataclasses.asdict(probe),
            "classes": list(read.class_names),
            "examples": examples,
            "stages": {
                name: _figures(result, examples, by_split["train"].features[name].shape[1])
                for name, result in results.items()
            },
            "skipped_images": list(read.skipped),
        }
        if out is not None:
            run_folder.write_result(out / "probe.json", figures, "--out")
        if json:
            print(text.to_json(figures))
            return 0
        counts = ", ".join(f"{count:,} {name}" for name, count in examples.items())
        print(text.one_line(f"{read.name} on {read.data}: {counts} images"))
        print(text.table(_rows(figures["stages"], probe)))
        return 0

    return tyro.cli(run, prog="jxfer probe", args=args, config=(tyro.conf.FlagCreatePairsOff,))


@dataclasses.dataclass(frozen=True)
class _Read:
    """Features of all splits, and what they are of."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    model: str
    name: str
    data: str
    skipped: tuple[str, ...] = ()


def _extract(found: Weights, data: DataConfig, outputs: tuple[str, ...], batch_size: int) -> _Read:
    """Runs the network over every split, where it is given weights and images."""
    card, network = found.card, store.build(found.card)
    names = expand(outputs, network)
    features.row_shapes(network, card.preprocessing, names)
    features.check_batch_size(batch_size)
    opened = screen.load_splits(data)

    def extract(source: Source) -> Split:
        rows = features.extract(
            network, card.preprocessing, found.variables, source, names, batch_size=batch_size
        )
        return Split(rows, source.labels)

    sources = {"train": opened.train, "val": opened.val, "test": opened.test}
    splits = {name: extract(source) for name, source in sources.items() if source is not None}
    classes = opened.train.class_names
    return _Read(splits, classes, found.where, card.name, data.source, opened.skipped)


def _read(folders: tuple[pathlib.Path, ...], alone: bool) -> _Read:
    """Opens the folders of the splits."""
    if not alone:
        raise UserError(
            "--features stands for WEIGHTS, --data, --outputs, --batch-size and --zoo; leave them "
            "out"
        )
    if len(folders) not in (2, 3):
        raise UserError(
            "--features takes two or three folders, of training, validation and test images, not "
            f"{len(folders)}"
        )
    found = feature_files.load_splits(folders)
    names = ("train", "val", "test")
    splits = {name: Split(one.arrays, one.labels) for name, one in zip(names, found, strict=False)}
    first, model = found[0], found[0].key["weights"]["name"]
    return _Read(splits, first.class_names, model, model, first.key["data"]["source"])


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


def _path(chosen: RegularisationPath | Neighbours) -> dict[str, Any]:
    if isinstance(chosen, Neighbours):
        return {"k": chosen.k, "path": _columns(chosen, "neighbours", "val_correct")}
    columns = ("strengths", "objective", "val_correct", "iterations", "converged")
    return {"strength": chosen.strength, "path": _columns(chosen, *columns)}


def _columns(chosen: RegularisationPath | Neighbours, *names: str) -> dict[str, list[Any]]:
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
