"""Random-access sources of labelled images: a folder, a TFDS split, a subset of either.

After `folders`, before `sources`. A source hands out encoded files; nothing is decoded here.
Sources are picklable and read-only; any number of threads may read one.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from jxfer.data.folders import BucketFolder, Folder, LocalFolder
from jxfer.errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes; compared in lower case."""
_TOGETHER = 256
"""records that are read at once for their labels, in half the time of one by one"""


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled image."""

    image: bytes
    """the encoded file"""
    label: int
    """index into the source's `class_names`"""
    name: str
    """the record's id: `train/ants/0013035.jpg` for a folder, `train:17` for TFDS"""


class Sized(Protocol):
    """What knows how much memory it takes."""

    @property
    def nbytes(self) -> int: ...


Made = TypeVar("Made", bound=Sized)


class Source(abc.ABC):
    """A fixed sequence of examples: `len(source)`, `source[i]`, and their labels and names."""

    class_names: tuple[str, ...]
    """by label"""

    @property
    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """int32 `[N]`. The first access may read the whole source."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """The id of `self[index]`, without reading it."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def keep(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns; `kept.KeptImages` may have it already.

        Args:
          key: of what is made of this source; equal keys, equal things.
        """
        return make()


class View(Source):
    """A source whose examples are made from those of another one, one by one.

    Labels, names and classes are those of the other, unless a subclass says otherwise.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.class_names = source.class_names

    @property
    def labels(self) -> np.ndarray:
        return self._source.labels

    def name(self, index: int) -> str:
        return self._source.name(index)

    def __len__(self) -> int:
        return len(self._source)


class FolderSource(Source):
    """One folder of class folders, read as torchvision's ImageFolder.

    Classes are sorted by name, examples by (class, path); files in sub-folders of a class count,
    hidden files and folders do not.

    Args:
      root: the folder that names are relative to, or its path on this machine.
      split: the folder inside `root` that holds the class folders; empty for `root` itself.

    Raises:
      UserError: fewer than two class folders, one of them without images, unreadable, or with a
        name that no card could hold.
    """

    def __init__(self, root: str | os.PathLike[str] | Folder, split: str = "") -> None:
        images = root if isinstance(root, LocalFolder | BucketFolder) else LocalFolder(root)
        self._folder = images
        base = f"{images}/{split}".rstrip("/")
        self.class_names = tuple(images.folders(split))
        if len(self.class_names) < 2:
            found = f"only the class folder {self.class_names[0]}" if self.class_names else "none"
            raise UserError(
                f"data folder {base} needs at least two class folders and holds {found}"
            )
        for name in self.class_names:
            if name != name.encode(errors="replace").decode():
                raise UserError(f"class folder {base}/{name}: its name is no UTF-8; rename it")
        self._files: list[str] = []
        self.left_out = [f"{split}/{name}".lstrip("/") for name in images.files(split)]
        """names of files that are no image in a class folder"""
        counts = []
        for class_name in self.class_names:
            before = len(self._files)
            for name in images.walk(f"{split}/{class_name}".lstrip("/")):
                is_image = name.lower().endswith(IMAGE_EXTENSIONS)
                (self._files if is_image else self.left_out).append(name)
            counts.append(len(self._files) - before)
        if not self._files:
            raise UserError(
                f"data folder {base} holds no image: its class folders have no file that ends in "
                f"{' '.join(IMAGE_EXTENSIONS)}"
            )
        if 0 in counts:
            empty = self.class_names[counts.index(0)]
            raise UserError(f"class folder {base}/{empty} holds no image: add some, or remove it")
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def name(self, index: int) -> str:
        return self._files[index]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        name = self._files[index]
        return Example(self._folder.read(name), int(self._labels[index]), name)


class TfdsSource(Source):
    """One split of a prepared TFDS dataset with an image and a class label.

    Args:
      builder: a `tfds.core.DatasetBuilder` whose data is on disk.
      split: the name of one of its splits.

    Raises:
      UserError: no random access, or not one image and one class label of two classes or more.
    """

    def __init__(self, builder: Any, split: str) -> None:
        import tensorflow_datasets as tfds

        self._dataset = builder.info.full_name
        self._split = split
        features = builder.info.features
        self._image = self._only(features, tfds.features.Image)
        self._label = self._only(features, tfds.features.ClassLabel)
        self.class_names = tuple(features[self._label].names)
        if len(self.class_names) < 2:
            raise UserError(f"dataset {self._dataset} has one class; classifying needs two or more")
        self._place = f"dataset {self._dataset} in {builder.data_dir}"
        with self._told():
            self._records = builder.as_data_source(
                split=split, decoders={self._image: tfds.decode.SkipDecoding()}
            )

    def _only(self, features: Any, kind: type) -> str:
        names = [name for name, feature in features.items() if isinstance(feature, kind)]
        if len(names) != 1:
            raise UserError(
                f"dataset {self._dataset} has {len(names)} features of type {kind.__name__} and "
                f"must have one; its features are {', '.join(features)}"
            )
        return names[0]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        # Images stay encoded; all the same this is a pass over the files.
        labels: list[int] = []
        for start in range(0, len(self), _TOGETHER):
            rows = range(start, min(start + _TOGETHER, len(self)))
            with self._told():
                labels += [record[self._label] for record in self._records.__getitems__(rows)]
        if -1 in labels:
            raise self._unlabelled()
        if max(labels, default=0) >= len(self.class_names):
            raise UserError(
                f"{self._place} has labels up to {max(labels)} and names for "
                f"{len(self.class_names)} classes: it is damaged; prepare it again"
            )
        return np.array(labels, np.int32)

    def name(self, index: int) -> str:
        return f"{self._split}:{index}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        with self._told():
            record = self._records[index]
        label = int(record[self._label])
        if label == -1:
            raise self._unlabelled()
        return Example(record[self._image], label, self.name(index))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except NotImplementedError as error:
            raise UserError(
                f"{self._place} has no random access: delete it, or prepare it in another "
                "--data.data-dir with file_format='array_record'"
            ) from error
        except Exception as error:  # TFDS and array_record raise many types for a damaged file
            raise UserError(
                f"{self._place}: split {self._split} cannot be read: "
                f"{' '.join(str(error).split())[:200]}; prepare it again"
            ) from error

    def _unlabelled(self) -> UserError:
        # TFDS marks the withheld labels of a public test set with -1.
        return UserError(f"split {self._split} of {self._dataset} has no labels: use another split")


class Subset(Source):
    """Some examples of a source, in the order of `indices` (int `[M]`)."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray) -> None:
        self._source = source
        self._indices = np.asarray(indices, np.int64)
        self.class_names = source.class_names

    @property
    def labels(self) -> np.ndarray:
        return self._source.labels[self._indices]

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]


def images_sha256(source: Source) -> str:
    """Hex digest over the encoded images, in the source's order. Reads the whole source."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        image = source[index].image
        digest.update(f"{len(image)}\n".encode())
        digest.update(image)
    return digest.hexdigest()
