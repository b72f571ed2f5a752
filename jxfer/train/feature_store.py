"""Rows of features that are computed once: in memory, or in a folder that runs share.

After `feature_room` in the flow; knows nothing of models. Rows are filled in order. On disk
an entry is `cache_dir()/features/KEY/`, where KEY is the hash of all that decides the values:

    features.bin    the rows, one after another, without a header
    features.part   the same while they are being computed
    entry.json      what the key was made of, shape, dtype, and the CRC-32 of the rows
    filled.json     beside features.part: the rows that are known to be whole, and their CRC-32

Anything else about the key gives another folder, so an entry is never stale. A kill leaves
`features.part`, which the next run that needs it takes up. Removing an entry that another process
reads is safe: the file, and its room on the disk, live on until that process closes it. The locks,
and the bound on the room of all entries, are those of `feature_room`.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import filelock
import jax.numpy as jnp
import numpy as np

from jxfer import choices, disk
from jxfer.errors import DiskError, UserError
from jxfer.train import feature_room

_log = logging.getLogger("jxfer")

RowsFrom = Callable[[int], Iterable[np.ndarray]]
"""What computes an entry: blocks [n, ...] of rows from a row on, in order."""


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """What is computed once and kept: the output of the frozen part, and decoded images."""

    mode: Literal["auto", "off", "memory", "disk", "shared"] = "auto"
    """auto: in memory where that saves passes over the same pixels and fits, else off. memory,
    disk: so, or an error. disk: in $JXFER_CACHE/features, memory-mapped, for later runs too.
    shared: on disk where auto would be in memory, as the cells of a sweep have it; in memory where
    other processes fill the disk's share, or the disk is full or read-only."""
    max_gb: float = 4.0
    """At most this many 10^9 bytes in memory (auto: and half of the machine's), or on disk in all
    entries together: there, those that were not used for longest make room."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 halves the room and rounds the features."""
    images_gb: float = 4.0
    """Keep decoded images in memory if those of training and validation take at most this many 10^9
    bytes, and a quarter of the memory that is available; 0: never. The pixels are the same."""

    def __post_init__(self) -> None:
        choices.check(self, "--cache.")
        if not self.max_gb > 0:
            raise UserError(f"--cache.max-gb {self.max_gb:g}: it must be above 0")
        if not self.images_gb >= 0:
            raise UserError(f"--cache.images-gb {self.images_gb:g}: it must be at least 0")
        if self.mode == "off" and (self.max_gb, self.dtype) != (CacheConfig.max_gb, "float32"):
            raise UserError("--cache.max-gb and --cache.dtype do nothing under --cache.mode off")

    @property
    def max_bytes(self) -> float:
        return self.max_gb * 1e9

    @property
    def on_disk(self) -> bool:
        """Whether other runs find what is kept."""
        return self.mode in ("disk", "shared")

    @property
    def is_explicit(self) -> bool:
        """Whether the user asked for a cache."""
        return self.mode in ("memory", "disk")


@dataclasses.dataclass(frozen=True)
class Form:
    """Shape and type of the rows."""

    rows: int
    shape: tuple[int, ...]
    """Of one row."""
    dtype: Literal["float32", "bfloat16"]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return jnp.dtype(self.dtype)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


def in_memory(form: Form, rows_from: RowsFrom) -> np.ndarray:
    """All rows, [rows, *shape]."""
    array = np.empty((form.rows, *form.shape), form.numpy_dtype)
    filled = 0
    for block in rows_from(0):
        array[filled : filled + len(block)] = block
        filled += len(block)
    assert filled == form.rows
    return array


def on_disk(key: dict[str, Any], form: Form, rows_from: RowsFrom, max_bytes: float) -> np.ndarray:
    """All rows, [rows, *shape], memory-mapped and read-only; computed unless they are there.

    A second process that needs the same rows waits for the first. Rows that were damaged since are
    computed again.

    Args:
      key: JSON values; with `form`, all that decides the rows.
      max_bytes: of all entries together, those that are being filled at their whole size.

    Raises:
      UserError: the rows are more than `max_bytes`, alone or (`feature_room.NoRoom`) with the
        entries that other processes are filling.
      DiskError: the folder cannot be written.
    """
    identity = {"key": key, **dataclasses.asdict(form)}
    text = json.dumps(identity, sort_keys=True)
    root = disk.cache_dir() / "features"
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:32]
    with _own_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = _acquire(folder)
    try:
        with _own_errors(root):
            whole = _is_whole(folder, form)
            if whole:
                (folder / "filled.json").unlink(missing_ok=True)  # left by a kill after the rename
        if not whole:
            _fill(folder, json.loads(text), form, rows_from, max_bytes)
        # Mapped while the lock is held: from here on a removal does no harm.
        with _own_errors(root):
            os.utime(folder / "entry.json")
            shape = (form.rows, *form.shape)
            return np.memmap(folder / "features.bin", form.numpy_dtype, "r", shape=shape)
    finally:
        lock.release()


@contextlib.contextmanager
def _own_errors(root: pathlib.Path) -> Iterator[None]:
    """Those of the store; what goes wrong while rows are computed is told by whoever computes."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"cached features in {root}: {error.strerror or error}; free some room, set "
            "$JXFER_CACHE to another folder, or use --cache.mode memory"
        ) from error


def _acquire(folder: pathlib.Path) -> filelock.BaseFileLock:
    lock = feature_room.lock(folder)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _log.warning("another process computes the same features; waiting for it")
        lock.acquire()
    return lock


def _is_whole(folder: pathlib.Path, form: Form) -> bool:
    try:
        entry = json.loads((folder / "entry.json").read_text())
        if (folder / "features.bin").stat().st_size != form.bytes:
            return False
        return bool(disk.crc32(folder / "features.bin", form.bytes) == entry["crc32"])
    except (OSError, ValueError, KeyError):
        return False


def _fill(
    folder: pathlib.Path, identity: Any, form: Form, rows_from: RowsFrom, max_bytes: float
) -> None:
    root, part = folder.parent, folder / "features.part"
    with _own_errors(root):
        filled, crc = _known_whole(folder, form)
        feature_room.reserve(folder, form.bytes, max_bytes)
        file = part.open("r+b", buffering=0)  # so that nothing is left to write when it closes
    with file:
        file.seek(filled * form.row_bytes)
        for block in rows_from(filled):
            with _own_errors(root):
                data = np.ascontiguousarray(block, form.numpy_dtype).tobytes()
                disk.append(file.fileno(), data)
                filled, crc = filled + len(block), zlib.crc32(data, crc)
                _write_json(folder / "filled.json", {"rows": filled, "crc32": crc})
    assert filled == form.rows
    with _own_errors(root):
        _write_json(folder / "entry.json", {**identity, "crc32": crc})
        with feature_room.lock(root):
            part.replace(folder / "features.bin")
        (folder / "filled.json").unlink()


def _known_whole(folder: pathlib.Path, form: Form) -> tuple[int, int]:
    """Rows that a killed process left whole, and their checksum."""
    try:
        filled = json.loads((folder / "filled.json").read_text())
        rows, crc = int(filled["rows"]), int(filled["crc32"])
        if rows <= form.rows and disk.crc32(folder / "features.part", rows * form.row_bytes) == crc:
            return rows, crc
    except (OSError, ValueError, KeyError):
        pass
    return 0, 0


def _write_json(path: pathlib.Path, values: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(path)
