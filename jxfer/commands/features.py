"""`jxfer features`: outputs of a frozen network on a data set, in files that NumPy opens."""

import logging
import pathlib
from collections.abc import Generator
from typing import Annotated

import numpy as np
import tyro

from jxfer import text
from jxfer.commands.evaluate import EvaluationData, open_data
from jxfer.models.registry import Model
from jxfer.probe import feature_files, feature_writer, features
from jxfer.train import program
from jxfer.train.writers import ProgressBar
from jxfer.zoo import store, weights

STAGES = "stages"
"""Stands for every stage among the names of outputs."""
_log = logging.getLogger("jxfer")


def main(args: list[str]) -> int:
    """Runs `jxfer features ARGS` and returns the exit code."""

    def write_features(
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")],
        out: pathlib.Path,
        data: EvaluationData = EvaluationData(),
        split: str | None = None,
        outputs: tuple[str, ...] = ("pooled",),
        form: features.Form = "pooled",
        batch_size: int = 128,
        zoo: str | None = None,
        json: bool = False,
    ) -> int:
        """Write what a frozen network puts out for each image to a folder of .npy files.

        Args:
          model: A run folder, the name or folder of a zoo entry, timm/NAME, hf:OWNER/NAME,
            torchvision:NAME, or a .safetensors file that jxfer zoo export wrote. No head is needed.
          out: The folder; the same command on it again resumes. docs/features.md has its format.
          data: which images.
          split: test, val or train; unless given the test split, else val, else the only one.
          outputs: Stages, such as stage2 or fc6, after their last ReLU; pooled, the mean over
            positions of the last one; logits; or stages, for every stage.
          form: What becomes of a map: pooled, its mean over positions; flat, a vector; spatial,
            the map.
          batch_size: Images per step over all devices.
          zoo: A folder of zoo entries that is searched first.
          json: Print one JSON object.
        """
        found = weights.load(model, zoo=zoo)
        card, network = found.card, store.build(found.card)
        names = expand(outputs, network)
        shapes = features.row_shapes(network, card.preprocessing, names, form)
        features.check_batch_size(batch_size)
        feature_writer.check_folder(out)
        config, source, skipped = open_data(model, data, split)  # from here on images are read
        rows = len(source)

        def blocks_from(start: int) -> Generator[dict[str, np.ndarray], None, None]:
            done = start
            with ProgressBar(rows, start, unit="image") as bar:
                for block in features.blocks(
                    network,
                    card.preprocessing,
                    found.variables,
                    source,
                    names,
                    form=form,
                    batch_size=batch_size,
                    start=start,
                ):
                    yield block
                    bar.describe(card.name)
                    done += len(block[names[0]])
                    bar.advance(done)

        computed = feature_writer.write(
            out,
            feature_files.make_key(card, config.source, split, source, names, form),
            program.identity(features.rows_per_block(rows, batch_size)),
            shapes,
            source,
            blocks_from,
        )
        if not computed:
            _log.warning("%s has finished; nothing is left to do", out)
        if json:
            written = {name: [rows, *shape] for name, shape in shapes.items()}
            figures = {"folder": str(out), "outputs": written, "skipped_images": list(skipped)}
            print(text.to_json({"model": found.where, "data": config.source, **figures}))
            return 0
        print(text.one_line(f"{card.name} on {config.source}: {rows:,} images, in {out}"))
        table = [("file", "shape")]
        table += [
            (f"{name}.npy", " x ".join(map(str, (rows, *shape)))) for name, shape in shapes.items()
        ]
        print(text.table(table))
        if skipped:
            left_out = f"{len(skipped)} unreadable images left out: {', '.join(skipped[:5])}"
            print(text.one_line(left_out))
        return 0

    return tyro.cli(
        write_features, prog="jxfer features", args=args, config=(tyro.conf.FlagCreatePairsOff,)
    )


def expand(outputs: tuple[str, ...], model: Model) -> list[str]:
    """The names of outputs, each once; `STAGES` becomes every stage."""
    names = [
        name for output in outputs for name in (model.stages if output == STAGES else (output,))
    ]
    return list(dict.fromkeys(names))
