"""`jxfer evaluate`: figures of a run or zoo entry on a data set."""

import dataclasses
from typing import Annotated, Literal

import tyro

from jxfer import statistics, text
from jxfer.data import copies, screen
from jxfer.data.sources import DataConfig, Source
from jxfer.errors import UserError
from jxfer.models.registry import Model
from jxfer.train import parallel, run_folder
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import Evaluator
from jxfer.train.feed import load_target
from jxfer.trees import Tree
from jxfer.zoo import store, weights
from jxfer.zoo.card import Card


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Which images; a run's own data unless given: of one that adapts, its target's."""

    source: str | None = None
    """digits, tfds:NAME[/CONFIG][:VERSION] or folder:PATH."""
    data_dir: str | None = None
    """Where tfds: datasets are prepared, a folder or gs://; else TFDS_DATA_DIR."""
    on_bad_image: Literal["error", "skip"] | None = None
    """Stop at an image that cannot be read, or leave such images out; of a run's own data what the
    run did, of others error, unless given."""


def main(args: list[str]) -> int:
    """Runs `jxfer evaluate ARGS` and returns the exit code."""

    def evaluate(
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        data: EvaluationData = EvaluationData(),
        split: str | None = None,
        batch_size: int = 128,
        zoo: str | None = None,
        json: bool = False,
    ) -> int:
        """Evaluate a run's best model, or a zoo entry: every example once.

        Args:
          model: A run folder, the name or folder of a zoo entry, timm/NAME, hf:OWNER/NAME,
            torchvision:NAME, or a .safetensors file that jxfer zoo export wrote.
          data: which images.
          split: test, val or train; unless given the test split, else val, else the only one.
          batch_size: Examples per step over all devices.
          zoo: A folder of zoo entries that is searched first.
          json: Print one JSON object.
        """
        found = weights.load(model, zoo=zoo)
        found.check_named()
        evaluator, replicated = build(found.card, found.variables, batch_size)
        spec, source, skipped = _open(model, data, split, found.card)
        found.card.check_classes(source.class_names)
        result = evaluator.evaluate(replicated, source)
        low, high = statistics.wilson_interval(result.correct, result.examples)
        figures = dataclasses.asdict(result) | {
            "errors": result.examples - result.correct,
            "accuracy_interval": [low, high],
            "skipped_images": list(skipped),
        }
        if json:
            print(text.to_json({"model": found.where, "data": spec, **figures}))
            return 0
        top5 = "-" if result.top5_accuracy is None else f"{result.top5_accuracy:.2%}"
        rows = [
            (
                "examples",
                "errors",
                "accuracy",
                "95 % interval (Wilson)",
                "top-5",
                "macro-F1",
                "loss",
            ),
            (
                str(result.examples),
                str(result.examples - result.correct),
                f"{result.accuracy:.2%}",
                f"{low:.2%} to {high:.2%}",
                top5,
                f"{result.macro_f1:.4f}",
                f"{result.loss:.4f}",
            ),
        ]
        print(text.one_line(f"{found.card.name} on {spec}"))
        print(text.table(rows))
        if skipped:
            left_out = f"{len(skipped)} unreadable images left out: {', '.join(skipped[:5])}"
            print(text.one_line(left_out))
        return 0

    return tyro.cli(
        evaluate, prog="jxfer evaluate", args=args, config=(tyro.conf.FlagCreatePairsOff,)
    )


def model_of(card: Card) -> Model:
    """The model that an entry's variables belong to.

    Raises:
      UserError: the entry has no head.
    """
    if not card.class_names:
        raise UserError(f"{card.name} has no head, only a backbone; train one on it first")
    return store.build(card)


def build(card: Card, variables: Tree, batch_size: int) -> tuple[Evaluator, Tree]:
    """An evaluator for an entry, and its variables on the devices; raises as `model_of`."""
    evaluator = Evaluator(model_of(card), card.preprocessing, batch_size)
    return evaluator, parallel.replicate(variables)


def _open(
    model: str, data: EvaluationData, split: str | None, card: Card
) -> tuple[str, Source, tuple[str, ...]]:
    """(data spec, images, names of those left out): the target's under the classes of the card."""
    if data.source is None and ((run := copies.local(model)) / "config.json").is_file():
        config = run_folder.read_config(run)
        own = dataclasses.replace(config, data=_own_data(config, data))
        target = load_target(own, card.class_names)
        if target is not None:
            held_out = {"test": target.test, "val": target.val, "validation": target.val}
            source = (target.test or target.val) if split is None else held_out.get(split)
            if source is None:
                raise UserError(
                    f"--split {split}: {model} adapts, and is evaluated on the "
                    f"{'test or ' if target.test else ''}val split of its target; name other "
                    "images by --data.source"
                )
            return str(config.adapt.target), source, target.skipped
    opened, source, skipped = open_data(model, data, split)
    return opened.source, source, skipped


def open_data(
    model: str, data: EvaluationData, split: str | None
) -> tuple[DataConfig, Source, tuple[str, ...]]:
    """(config, one split of it, names of the unreadable images that were left out).

    Raises:
      UserError: as `sources.open_for_evaluation`, or nothing names the images.
    """
    config = _data_config(model, data)
    return config, *screen.load_for_evaluation(config, split)


def _data_config(model: str, data: EvaluationData) -> DataConfig:
    if data.source is not None:
        return DataConfig(data.source, data.data_dir, on_bad_image=data.on_bad_image or "error")
    folder = copies.local(model)
    if not (folder / "config.json").is_file():
        raise UserError(f"{model} holds no config.json of a run; name the images: --data.source")
    return _own_data(run_folder.read_config(folder), data)


def _own_data(run: TrainConfig, data: EvaluationData) -> DataConfig:
    """Of a run's own images, from where `data` says."""
    given = {name: getattr(data, name) for name in ("data_dir", "on_bad_image")}
    return dataclasses.replace(run.data, **{name: value for name, value in given.items() if value})
