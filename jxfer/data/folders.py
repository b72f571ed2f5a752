"""A folder of image folders, on this machine or in a bucket: its names, and the bytes of a file.

After `remote`, before `readers`, to which the two are the same. Hidden files and folders are left
out of both.
"""

import bisect
import errno
import os
import pathlib
import stat
from collections.abc import Sequence

from jxfer.data import remote
from jxfer.errors import UserError

LARGEST_FILE = 1 << 30
"""Bytes of an image file: more than its largest image takes without compression, in 8 bits."""


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = pathlib.Path(root)

    def __str__(self) -> str:
        return str(self._root)

    def folders(self, inside: str = "") -> list[str]:
        """Names of the folders directly in `inside` that are not hidden, sorted."""
        found = os.scandir(self._root / inside)
        return sorted(entry.name for entry in found if entry.is_dir() and _visible(entry))

    def files(self, inside: str = "") -> list[str]:
        """Names of the files directly in `inside` that are not hidden, sorted."""
        found = os.scandir(self._root / inside)
        return sorted(entry.name for entry in found if entry.is_file() and _visible(entry))

    def walk(self, inside: str) -> list[str]:
        """Names, relative to the root, of all visible files below `inside`, sorted by path.

        Links are followed, as by ImageFolder.

        Raises:
          UserError: a folder cannot be read, or links to one that it lies in: two such links would
            be followed in 2**40 ways.
        """
        top = self._root / inside

        def fail(error: OSError) -> None:
            raise UserError(
                f"data folder {error.filename} cannot be read: {error.strerror}"
            ) from error

        # Strings: a million `Path`s take half a minute.
        found: list[tuple[str, ...]] = []
        for parent, folders, files in os.walk(top, onerror=fail, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if os.path.islink(parent) and _is_circular(pathlib.Path(parent), top):
                raise UserError(
                    f"data folder {parent} is a link to a folder that it lies in: remove it"
                )
            parts = pathlib.PurePath(parent).relative_to(self._root).parts
            found += [(*parts, name) for name in files if not name.startswith(".")]
        return ["/".join(parts) for parts in sorted(found)]

    def read(self, name: str) -> bytes:
        """The file of a name relative to the root.

        Raises:
          UserError: it cannot be read.
        """
        try:
            return read_regular(self._root / name)
        except OSError as error:
            raise UserError(
                f"image {name} in {self} cannot be read: {error.strerror}; "
                "repair it, remove it, or train with --data.on-bad-image skip"
            ) from error


class BucketFolder:
    """What lies below an address; it is listed once, here."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._names = [tuple(name.split("/")) for name in remote.listing(where)]

    def __str__(self) -> str:
        return self._where

    @property
    def is_there(self) -> bool:
        """Whether anything is."""
        return bool(self._names)

    def folders(self, inside: str = "") -> list[str]:
        """As `LocalFolder.folders`."""
        names = self._below(inside)
        return sorted({name[0] for name in names if len(name) > 1 and not name[0].startswith(".")})

    def files(self, inside: str = "") -> list[str]:
        """As `LocalFolder.files`."""
        names = self._below(inside)
        return [n[0] for n in names if len(n) == 1 and n[0] and not n[0].startswith(".")]

    def walk(self, inside: str) -> list[str]:
        """As `LocalFolder.walk`."""
        return [
            "/".join((inside, *name))
            for name in self._below(inside)
            if name[-1] and not any(part.startswith(".") for part in name)
        ]

    def read(self, name: str) -> bytes:
        """As `LocalFolder.read`, but a bucket that fails raises `remote.StorageError`."""
        content = remote.read(f"{self._where}/{name}")
        if content is None:
            raise remote.StorageError(f"image {name} is no longer in {self}: put it back")
        return content

    def _below(self, inside: str) -> Sequence[tuple[str, ...]]:
        """Names below a folder, as parts relative to it, sorted."""
        above = tuple(inside.split("/")) if inside else ()
        first = bisect.bisect_left(self._names, above)
        last = bisect.bisect_left(self._names, (*above, chr(0x10FFFF)))
        return [name[len(above) :] for name in self._names[first:last]]


Folder = LocalFolder | BucketFolder


def _visible(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".")


def read_regular(path: pathlib.Path) -> bytes:
    """Bytes of a file.

    Raises:
      OSError: it cannot be read, is larger than `LARGEST_FILE`, or is a pipe or device: those may
        never end.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if found.st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"it has more than {LARGEST_FILE:,} bytes")
    return path.read_bytes()


def _is_circular(link: pathlib.Path, top: pathlib.Path) -> bool:
    """Whether a link below `top` leads to a folder on the way to it."""
    way = [parent for parent in link.parents if parent == top or top in parent.parents]
    return link.resolve() in {parent.resolve() for parent in way}
