"""Makes the pairs of domains between which the experiments adapt: the same classes, other images.

Claim: none; other experiments read what this writes into `runs/images/domains`:

| folder | `train`, of each class | `test`, of each class | drawn from |
|---|---|---|---|
| `mnist` | 200 | 100 | MNIST's train and test split |
| `usps` | 200 | 100 | USPS's train and test split |
| `textured` | 200 | 100 | MNIST's, other digits, each blended with a crop of a photograph |
| `cifar10` | 400 | 100 | CIFAR-10's test split |
| `jpeg` | 400 | 100 | the same split as lossy JPEG, other images |

| pair | source | target |
|---|---|---|
| MNIST -> USPS | `mnist` | `usps` |
| USPS -> MNIST | `usps` | `mnist` |
| rendered -> digits | `rendered_digits`, embedded | `digits`, embedded |
| CIFAR-10 -> JPEG | `cifar10` | `jpeg` |
| MNIST -> textured | `mnist` | `textured` |

No image is in two of the parts of a pair in any form: neither in source and target, nor in `train`
and `test`. `textured` follows MNIST-M (Ganin et al. 2016, section 5.2.4), with CIFAR-10's test
split, one half for `train` and the other for `test`, in place of the photographs of BSDS500.

Command, from the repository's root, with `mnist_20k.zip`, `usps.zip`, `cifar10_test.zip`,
`cifar10_jpeg_test.zip` and `cifar10_jpeg_pairs.csv` (columns `jpeg` and `png`: paths in the two) in
the folder ZIPS; they hold `mnist`, `usps`, `cifar10/test` and `cifar10_jpeg/test`, the first two
with `train` and `test`, folders of class folders:

    python experiments/domains.py ZIPS

Expected: the folders above, 19,000 images.
Time: half a minute.
"""

import pathlib
import sys
import zlib

import cv2
import images
import numpy as np
import tyro

from jxfer.commands.main import guard
from jxfer.data.embedded import EMBEDDED
from jxfer.data.mapped import MappedSource
from jxfer.data.sources import FolderSource, Source, Subset
from jxfer.data.transforms import decode

PAIRS = {
    "MNIST -> USPS": ("mnist", "usps"),
    "USPS -> MNIST": ("usps", "mnist"),
    "rendered -> digits": ("rendered_digits", "digits"),
    "CIFAR-10 -> JPEG": ("cifar10", "jpeg"),
    "MNIST -> textured": ("mnist", "textured"),
}
"""{pair: (source, target)}, each a set of this file or an embedded one."""
DIGITS = {"train": 200, "test": 100}
PHOTOGRAPHS = {"train": 400, "test": 100}
"""Images of each class: in a domain of digits, and in `cifar10` and `jpeg`."""


def source(name: str) -> str:
    """The data spec of a domain; raises UserError where it is not there."""
    if name in EMBEDDED:
        return name
    return images.folder(f"domains/{name}", "python experiments/domains.py ZIPS")


def specs(pair: str) -> tuple[str, str]:
    """The data specs of a pair's source and target; raises UserError where one is not there."""
    labelled, unlabelled = PAIRS[pair]
    return source(labelled), source(unlabelled)


def textured(digits: Source, photographs: Source) -> MappedSource:
    """Digits on photographs: |photograph - digit|, pixel by pixel and channel by channel.

    The formula of MNIST-M, Ganin et al. 2016, section 5.2.4. Which photograph, and where it is cut
    to the digit's size, is drawn from the digit's name.

    Args:
      digits: white on black.
      photographs: none smaller than a digit.
    """

    def change(digit: np.ndarray, name: str) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        example = photographs[int(rng.integers(len(photographs)))]
        photograph = decode(example.image, example.name)
        height, width = digit.shape[:2]
        top = rng.integers(photograph.shape[0] - height + 1)
        left = rng.integers(photograph.shape[1] - width + 1)
        return cv2.absdiff(photograph[top : top + height, left : left + width], digit)

    return MappedSource(digits, change)


def prepare(zips: tyro.conf.Positional[pathlib.Path]) -> None:
    """Makes the sets of the head of this file.

    Args:
      zips: the folder of the zip files.
    """
    mnist = images.unpack(zips, "mnist_20k") / "mnist"
    usps = images.unpack(zips, "usps") / "usps"
    cifar10 = images.unpack(zips, "cifar10_test") / "cifar10"
    jpegs = images.jpegs(zips)

    def fill(out: pathlib.Path) -> None:
        photographs = FolderSource(cifar10, "test")
        _mnist(mnist, photographs, out)
        _usps(usps, out)
        _cifar10(cifar10, photographs, jpegs, out)

    print(images.build("domains", fill), file=sys.stderr)


def _mnist(root: pathlib.Path, photographs: Source, out: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    halves = np.array_split(rng.permutation(len(photographs)), 2)
    for (split, count), half in zip(DIGITS.items(), halves, strict=True):
        digits = FolderSource(root, split)
        plain, others = np.split(images.draw_images(digits, rng, 2 * count), 2, axis=1)
        images.copy_images(digits, root, plain, out / "mnist" / split)
        blended = textured(Subset(digits, others.ravel()), Subset(photographs, half))
        images.write_images(blended, out / "textured")  # their names start with the split


def _usps(root: pathlib.Path, out: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in DIGITS.items():
        digits = FolderSource(root, split)
        drawn = images.draw_images(digits, rng, count)
        images.copy_images(digits, root, drawn, out / "usps" / split)


def _cifar10(
    root: pathlib.Path,
    photographs: FolderSource,
    jpegs: dict[pathlib.Path, pathlib.Path],
    out: pathlib.Path,
) -> None:
    count = 2 * sum(PHOTOGRAPHS.values())
    drawn = images.draw_images(photographs, np.random.default_rng(0), count)
    parts = np.split(drawn, [2 * PHOTOGRAPHS["train"]], axis=1)
    for split, part in zip(PHOTOGRAPHS, parts, strict=True):
        clean, others = np.split(part, 2, axis=1)
        images.copy_images(photographs, root, clean, out / "cifar10" / split)
        files = (jpegs[root / photographs.name(int(position))] for position in others.flat)
        images.copy_files(files, out / "jpeg" / split)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(prepare)))
