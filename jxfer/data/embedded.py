"""Datasets that come with an installed package: TFDS builders that need no download.

After `glyphs`, before `prepared`. Each set is prepared once, as array_record, into the user's cache
folder and read from there like any other TFDS dataset. Neither step needs TensorFlow. Whether the
files are those that were written is checked whenever a set is opened: TFDS believes what they say.
"""

import abc
import contextlib
import io
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import cv2
import filelock
import numpy as np

from jxfer import disk
from jxfer.data import glyphs
from jxfer.errors import DiskError

_CHECKSUMS = "checksums.json"  # in the folder of a set: CRC-32 of the other files, by name
_log = logging.getLogger("jxfer")


class EmbeddedSet(abc.ABC):
    """What a set must say of itself to become a TFDS builder."""

    name: ClassVar[str]
    """the data spec that opens it, in snake_case"""
    version: ClassVar[str]
    """MAJOR.MINOR.PATCH; raise it when `splits` changes, so that old caches are not read"""
    description: ClassVar[str]
    """what it is and where it comes from"""
    image_shape: ClassVar[tuple[int, int, int]]
    """height, width, channels"""
    class_names: ClassVar[tuple[str, ...]]
    """by label"""

    @staticmethod
    @abc.abstractmethod
    def splits() -> dict[str, list[tuple[bytes, int]]]:
        """`{split: [(PNG file, label), ...]}`, in the order in which they are read back."""


class Digits(EmbeddedSet):
    """1797 handwritten digits, 8x8 grey, from scikit-learn (UCI "optdigits", its test part).

    Pixels 0..16 are stored as 8-bit grey 0..255. Train is the first 1297 images, test the last
    500, in scikit-learn's order: that order follows the writers, so most test images are by hands
    that train has not seen, and accuracy is lower than on a random split.
    """

    name = "digits"
    version = "1.0.0"
    description = "Handwritten digits of scikit-learn (UCI optdigits, test part), 8x8 grey."
    image_shape = (8, 8, 1)
    class_names = tuple("0123456789")

    @staticmethod
    def splits() -> dict[str, list[tuple[bytes, int]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        records = [
            (cv2.imencode(".png", image)[1].tobytes(), int(label))
            for image, label in zip(images, digits.target, strict=True)
        ]
        return {"train": records[:1297], "test": records[1297:]}


# Letters whose two cases have one shape are one class, as in EMNIST's balanced set.
_ONE_SHAPE = "CIJKLMOPSUVWXYZ"
_TWO_SHAPES = "abdefghnqrt"


class Glyphs(EmbeddedSet):
    """25,900 rendered letters, no digits, 32x32 grey: `glyphs.render`.

    The 37 classes are the letters of EMNIST's balanced set (Cohen et al. 2017, section II-C):
    A to Z, and a small letter where its shape differs from the capital's. Train holds 600 images of
    each, test 100 more of the same fonts, drawn from another seed.
    """

    name = "glyphs"
    version = "1.0.0"
    description = "Letters rendered from the fonts of matplotlib, distorted, 32x32 grey."
    image_shape = (glyphs.SIDE, glyphs.SIDE, 1)
    class_names = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ" + _TWO_SHAPES)

    @staticmethod
    def splits() -> dict[str, list[tuple[bytes, int]]]:
        characters = [
            name + name.lower() if name in _ONE_SHAPE else name for name in Glyphs.class_names
        ]
        return _rendered(characters, seed=0)


class RenderedDigits(EmbeddedSet):
    """7,000 rendered digits, 32x32 grey, drawn as the letters of `Glyphs` are: `glyphs.render`.

    The classes are those of `Digits`, whose handwriting they can be adapted to. Train holds 600
    images of each, test 100 more of the same fonts, drawn from another seed.
    """

    name = "rendered_digits"
    version = "1.0.0"
    description = "Digits rendered from the fonts of matplotlib, distorted, 32x32 grey."
    image_shape = (glyphs.SIDE, glyphs.SIDE, 1)
    class_names = Digits.class_names

    @staticmethod
    def splits() -> dict[str, list[tuple[bytes, int]]]:
        return _rendered(RenderedDigits.class_names, seed=1)


def _rendered(characters: Sequence[str], seed: int) -> dict[str, list[tuple[bytes, int]]]:
    """The splits of a rendered set; `characters` are those of each class, as in `glyphs.render`."""
    return {
        split: [
            (cv2.imencode(".png", image)[1].tobytes(), label)
            for image, label in glyphs.render(characters, per_class, seed=(seed, i))
        ]
        for i, (split, per_class) in enumerate((("train", 600), ("test", 100)))
    }


EMBEDDED: dict[str, type[EmbeddedSet]] = {
    embedded.name: embedded for embedded in (Digits, Glyphs, RenderedDigits)
}


def open_embedded(name: str) -> Any:
    """Returns the read-only TFDS builder of an embedded set, preparing it on first use.

    It lies in `cache_dir()/embedded/NAME/VERSION`. Of several processes the first prepares it. One
    that was damaged since is told, and prepared again.

    Args:
      name: a key of `EMBEDDED`.

    Raises:
      DiskError: the cache folder cannot be written.
    """
    import tensorflow_datasets as tfds

    embedded = EMBEDDED[name]
    folder = disk.cache_dir() / "embedded" / name / embedded.version
    # A scratch folder is of a process that is at it, or was killed.
    if not _is_whole(folder) or _scratch(folder).exists():
        try:
            _prepare(embedded, folder)
        except Exception as error:
            if (told := disk.reason(error)) is None:
                raise
            raise DiskError(
                f"cannot prepare {name} in {folder}: {told}; "
                "point JXFER_CACHE to a folder that can be written"
            ) from error
    return tfds.builder_from_directory(folder)


def _is_whole(folder: pathlib.Path) -> bool:
    try:
        wanted = json.loads((folder / _CHECKSUMS).read_text())
        return bool(wanted == _checksums(folder))
    except (OSError, ValueError):
        return False


def _checksums(folder: pathlib.Path) -> dict[str, int]:
    files = sorted(path for path in folder.iterdir() if path.name != _CHECKSUMS)
    return {path.name: disk.crc32(path) for path in files}


def _scratch(folder: pathlib.Path) -> pathlib.Path:
    return folder.parent / ".preparing"


def _prepare(embedded: type[EmbeddedSet], folder: pathlib.Path) -> None:
    """Builds beside `folder`, then renames: whoever sees `folder` sees all of it."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()  # these sets take seconds
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(folder)
    with filelock.FileLock(folder.parent.with_suffix(".lock")):
        if scratch.exists():  # a process was killed
            shutil.rmtree(scratch)
        if _is_whole(folder):  # another process was first
            return
        try:
            if folder.exists():
                _log.warning("%s is damaged, or of an earlier version: preparing it again", folder)
                folder.rename(scratch)  # at once for all who look
                shutil.rmtree(scratch)
            else:
                _log.info("preparing %s in %s, once", embedded.name, folder)
            builder = _builder(embedded, str(scratch))
            # TFDS announces its work on stdout, where `--json` output goes.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(file_format="array_record")
            written = pathlib.Path(builder.data_dir)
            (written / _CHECKSUMS).write_text(json.dumps(_checksums(written), indent=2) + "\n")
            written.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _builder(embedded: type[EmbeddedSet], data_dir: str) -> Any:
    """The set as a TFDS builder that writes below `data_dir`."""
    import tensorflow_datasets as tfds

    # Not registered: the name is ours, and `tfds.builder(name)` should not find it.
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = embedded.name
        VERSION = tfds.core.Version(embedded.version)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=embedded.description,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(
                            shape=embedded.image_shape, encoding_format="png"
                        ),
                        "label": tfds.features.ClassLabel(names=list(embedded.class_names)),
                    }
                ),
                supervised_keys=("image", "label"),
                disable_shuffling=True,  # keep the order of `splits`
            )

        def _split_generators(self, download_manager: Any) -> dict[str, Iterator[Any]]:
            return {
                split: self._generate_examples(rows) for split, rows in embedded.splits().items()
            }

        def _generate_examples(
            self, rows: list[tuple[bytes, int]]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (image, label) in enumerate(rows):
                yield index, {"image": image, "label": label}

    return Builder(data_dir=data_dir)
