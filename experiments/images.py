"""Images for the tables: unpacks the zip files and draws sets of fixed images from them.

No claim of its own. A set is a folder of class folders in `runs/images`, drawn once for all seeds
of a table, which then draw their few out of `train`. The test images are the same at every seed.

| set | `train`, of each class | `test`, of each class | drawn from |
|---|---|---|---|
| `cifar10` | 400 | 100 | CIFAR-10's test split, two disjoint parts |
| `mnist` | 400 | 100 | MNIST's train and test split |
| `hymenoptera` | 123, 121 | 70, 83 | ants and bees of PyTorch's tutorial, its `val` as test |

Command, from the repository's root, with `cifar10_test.zip`, `mnist_20k.zip` and
`hymenoptera_data.zip` in the folder ZIPS; they hold `cifar10/test`, `mnist/train`, `mnist/test`,
`hymenoptera_data/train` and `hymenoptera_data/val`, each a folder of class folders:

    python experiments/images.py ZIPS

Time: half a minute. Sets that are there are left as they are.
"""

import csv
import pathlib
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
import tyro

from jxfer.commands.main import guard
from jxfer.data.sources import FolderSource, Source
from jxfer.errors import UserError

ROOT = pathlib.Path("runs/images")
COMMAND = "python experiments/images.py ZIPS"
TRAIN, TEST = 400, 100
"""Images of each class in a set that is drawn."""


def folder(name: str, command: str = COMMAND) -> str:
    """The data spec of a set.

    Args:
      name: of the set.
      command: what makes it.

    Raises:
      UserError: it is not there.
    """
    if not (ROOT / name).is_dir():
        raise UserError(f"{ROOT / name} does not exist; make it: {command}")
    return f"folder:{ROOT / name}"


def unpack(zips: pathlib.Path, archive: str) -> pathlib.Path:
    """The folder with the files of `ZIPS/ARCHIVE.zip`, which are unpacked once.

    Raises:
      UserError: there is no such file.
    """
    file = _found(zips / f"{archive}.zip")

    def extract(target: pathlib.Path) -> None:
        with zipfile.ZipFile(file) as opened:
            opened.extractall(target)

    return build(f"unpacked/{archive}", extract)


def jpegs(zips: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
    """`{image of CIFAR-10's test split: the same image as lossy JPEG}`, unpacked files.

    By the columns `png` and `jpeg` of `ZIPS/cifar10_jpeg_pairs.csv`: paths in `cifar10_test.zip`
    and `cifar10_jpeg_test.zip`.

    Raises:
      UserError: one of the three files is not there.
    """
    table = _found(zips / "cifar10_jpeg_pairs.csv")
    png, jpeg = unpack(zips, "cifar10_test"), unpack(zips, "cifar10_jpeg_test")
    with table.open() as file:
        return {png / row["png"]: jpeg / row["jpeg"] for row in csv.DictReader(file)}


def _found(file: pathlib.Path) -> pathlib.Path:
    if not file.is_file():
        raise UserError(f"{file} does not exist; ZIPS must hold {file.name}")
    return file


def build(name: str, fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The folder `runs/images/NAME`, filled unless it is there; a kill leaves none of that name."""
    target = ROOT / name
    if not target.exists():
        part = target.with_name(f".{target.name}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fill(part)
        part.rename(target)
    return target


def draw_images(source: FolderSource, rng: np.random.Generator, count: int) -> np.ndarray:
    """Positions of `count` images of each class, int [classes, count]."""
    members = [np.flatnonzero(source.labels == label) for label in range(len(source.class_names))]
    return np.stack([rng.permutation(positions)[:count] for positions in members])


def copy_images(
    source: FolderSource, root: pathlib.Path, drawn: np.ndarray, target: pathlib.Path
) -> None:
    """Copies images into the class folders of `target`.

    Args:
      source: the images.
      root: the folder that their names are relative to.
      drawn: their positions, of any shape.
      target: a folder, which need not exist.
    """
    copy_files((root / source.name(int(position)) for position in drawn.flat), target)


def copy_files(files: Iterable[pathlib.Path], target: pathlib.Path) -> None:
    """Copies images into the class folders of `target`: each into that of its own folder's name."""
    for file in files:
        where = target / file.parent.name
        where.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, where)


def write_images(source: Source, target: pathlib.Path) -> None:
    """Writes the images of a source below `target`, each under its name."""
    for index in range(len(source)):
        example = source[index]
        file = target / example.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(example.image)


def prepare(zips: tyro.conf.Positional[pathlib.Path]) -> None:
    """Makes the sets of the head of this file.

    Args:
      zips: the folder of the zip files.
    """

    def cifar10(target: pathlib.Path) -> None:
        root = unpack(zips, "cifar10_test") / "cifar10"
        source = FolderSource(root, "test")
        drawn = draw_images(source, np.random.default_rng(0), TRAIN + TEST)
        copy_images(source, root, drawn[:, :TRAIN], target / "train")
        copy_images(source, root, drawn[:, TRAIN:], target / "test")

    def mnist(target: pathlib.Path) -> None:
        root = unpack(zips, "mnist_20k") / "mnist"
        rng = np.random.default_rng(0)
        for split, count in (("train", TRAIN), ("test", TEST)):
            source = FolderSource(root, split)
            copy_images(source, root, draw_images(source, rng, count), target / split)

    def hymenoptera(target: pathlib.Path) -> None:
        root = unpack(zips, "hymenoptera_data") / "hymenoptera_data"
        shutil.copytree(root / "train", target / "train")
        shutil.copytree(root / "val", target / "test")

    for fill in (cifar10, mnist, hymenoptera):
        print(build(fill.__name__, fill), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(prepare)))
