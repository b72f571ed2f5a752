"""`jxfer predict`: class names and probabilities of images."""

import pathlib
from typing import Annotated

import numpy as np
import tyro

from jxfer import text
from jxfer.commands import evaluate, predict_dense
from jxfer.data import copies
from jxfer.data.folders import read_regular
from jxfer.data.readers import IMAGE_EXTENSIONS
from jxfer.data.sources import Example, Source
from jxfer.errors import UserError
from jxfer.zoo import weights


class FileSource(Source):
    """Image files without labels (the label is 0)."""

    def __init__(self, files: list[pathlib.Path]) -> None:
        self.class_names = ()
        self._files = files

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self), np.int32)

    def name(self, index: int) -> str:
        return str(self._files[index])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path = self._files[index]
        try:
            return Example(read_regular(path), 0, str(path))
        except OSError as error:
            raise UserError(
                f"image {path} cannot be read: {error.strerror}; mend it or leave it out"
            ) from error


def main(args: list[str]) -> int:
    """Runs `jxfer predict ARGS` and returns the exit code."""

    def predict(
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        images: Annotated[
            tuple[pathlib.Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")
        ],
        top: int | None = None,
        batch_size: int | None = None,
        dense: bool = False,
        scale: float | None = None,
        class_name: str | None = None,
        out: pathlib.Path | None = None,
        zoo: str | None = None,
        json: bool = False,
    ) -> int:
        """Predict the classes of images with a run's best model, or a zoo entry.

        Args:
          model: A run folder, the name or folder of a zoo entry, timm/NAME, hf:OWNER/NAME,
            torchvision:NAME, or a .safetensors file that jxfer zoo export wrote.
          images: Image files, or folders of them (with their sub-folders), or gs:// addresses.
          top: Classes shown for each image; 3 unless given.
          batch_size: Images per step over all devices; 32 unless given.
          dense: Run the classifier as a convolution over the whole of each image, larger than it
            was trained on, and draw the map of scores over it.
          scale: With --dense, the size of the image, relative to what is classified whole; 2 unless
            given.
          class_name: With --dense, whose scores to draw; the class that scores highest on average
            unless given.
          out: With --dense, the folder of the drawings, scores unless given; those of an earlier
            call are replaced.
          zoo: A folder of zoo entries that is searched first.
          json: Print a JSON list with the probabilities of all classes.
        """
        of_whole = {"top": top, "batch-size": batch_size}
        of_maps = {"scale": scale, "class-name": class_name, "out": out}
        for name, value in (of_whole if dense else of_maps).items():
            if value is not None:
                raise UserError(
                    f"--{name} does nothing {'with' if dense else 'without'} --dense; leave it out"
                )
        top = 3 if top is None else top
        batch_size = 32 if batch_size is None else batch_size
        if top < 1:
            raise UserError(f"--top {top}: it must be at least 1")
        source = FileSource(find_images(images))
        found = weights.load(model, zoo=zoo)
        found.check_named()
        card, variables = found.card, found.variables
        if dense:
            predict_dense.predict(
                card,
                variables,
                source,
                scale=2.0 if scale is None else scale,
                class_name=class_name,
                out=out or pathlib.Path("scores"),
                json=json,
            )
            return 0
        evaluator, replicated = evaluate.build(card, variables, batch_size)
        probabilities = evaluator.probabilities(replicated, source)
        order = np.argsort(-probabilities, axis=-1)
        if json:
            records = [
                {
                    "image": source.name(i),
                    "class": card.class_names[order[i, 0]],
                    "probability": float(row.max()),
                    "probabilities": dict(zip(card.class_names, map(float, row), strict=True)),
                }
                for i, row in enumerate(probabilities)
            ]
            print(text.to_json(records))
            return 0
        rows = [("image", *(f"{k + 1}." for k in range(min(top, len(card.class_names)))))]
        for i, row in enumerate(probabilities):
            best = order[i, :top]
            rows.append((source.name(i), *(f"{card.class_names[k]} {row[k]:.1%}" for k in best)))
        print(text.table(rows))
        return 0

    return tyro.cli(
        predict, prog="jxfer predict", args=args, config=(tyro.conf.FlagCreatePairsOff,)
    )


def find_images(paths: tuple[pathlib.Path, ...]) -> list[pathlib.Path]:
    """Files as given, folders as their image files, sorted.

    Raises:
      UserError: nothing is given, a path is missing, a folder holds no image.
    """
    if not paths:
        raise UserError("no image given; name image files or folders after the run")
    files: list[pathlib.Path] = []
    for path in map(copies.local, paths):
        if path.is_dir():
            found = [f for f in sorted(path.rglob("*")) if f.suffix.lower() in IMAGE_EXTENSIONS]
            if not found:
                raise UserError(
                    f"folder {path} holds no image; name one with files that end in "
                    f"{' '.join(IMAGE_EXTENSIONS)}"
                )
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"image {path} does not exist; check the path")
    return files
