"""Fills a folder of features, block by block; a kill costs no more than a block.

After `feature_files`, which has the format. Rows are appended and synced to the disk before
`progress.json` counts them, so what a killed process left is taken up at its last whole block.
"""

import contextlib
import dataclasses
import io
import logging
import math
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import filelock
import numpy as np

from jxfer import disk, sealed, trees
from jxfer.data.readers import Source
from jxfer.errors import UserError
from jxfer.json_fields import parse
from jxfer.probe.feature_files import DTYPE, MANIFEST, PROGRESS, Manifest, load
from jxfer.train.run_folder import changes
from jxfer.zoo import store

_LOCK = ".lock"
_log = logging.getLogger("jxfer")

BlocksFrom = Callable[[int], Generator[dict[str, np.ndarray], None, None]]
"""What computes the rows: blocks of each output from a row on, as `features.blocks`."""


def write(
    folder: pathlib.Path,
    key: dict[str, Any],
    program: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    source: Source,
    blocks_from: BlocksFrom,
) -> bool:
    """Fills a folder, or takes up what a killed process left there, in the memory of a block.

    Rows that were damaged since, or computed by another program, are computed again.

    Args:
      key: see `make_key`.
      program: see `program.identity`.
      shapes: of a row of each output.

    Returns:
      Whether there was anything to do; False: the folder was whole.

    Raises:
      UserError: the folder belongs to another key, to something else, or to a live process; it is
        whole but damaged; it cannot be written, or has no room.
    """
    with _held(folder):
        if (folder / MANIFEST).exists():
            _check_same(folder, load(folder).key, key)
            with _own_errors(folder):
                (folder / PROGRESS).unlink(missing_ok=True)  # left by a kill after the last row
            return False
        parts = _Parts(folder, key, program, shapes, len(source))
        if parts.rows < len(source):
            with contextlib.closing(blocks_from(parts.rows)) as blocks:
                for block in blocks:
                    with _own_errors(folder):
                        parts.append(block)
        assert parts.rows == len(source)
        with _own_errors(folder):
            parts.finish(source)
        return True


def check_folder(folder: pathlib.Path) -> None:
    """Refuses what `write` would refuse whatever the key, before there is one; makes no folder.

    Raises:
      UserError: as `write`.
    """
    with _own_errors(folder):
        if folder.exists():
            with _held(folder):
                return
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"--out {folder}: {above} is no folder that can be written")


class _Parts:
    """The unfinished files of a folder; `rows` of each output are known to be whole."""

    def __init__(
        self,
        folder: pathlib.Path,
        key: dict[str, Any],
        program: dict[str, Any],
        shapes: dict[str, tuple[int, ...]],
        total: int,
    ) -> None:
        self._folder, self._identity = folder, {"key": key, "program": program}
        self._headers = {name: _header((total, *shape)) for name, shape in shapes.items()}
        row_bytes = {name: math.prod(shape) * DTYPE.itemsize for name, shape in shapes.items()}
        with _own_errors(folder):
            self.rows, self._crc = self._known_whole(row_bytes)
            sizes = {n: len(self._headers[n]) + self.rows * row_bytes[n] for n in shapes}
            needed = (total - self.rows) * sum(row_bytes.values())
            free = shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(
                    f"{folder}: the features take {needed / 1e9:.3g} GB more, and "
                    f"{free / 1e9:.3g} GB are free; free some room, or ask for fewer outputs"
                )
            for name, size in sizes.items():
                with self._part(name).open("ab") as file:
                    file.truncate(size if self.rows else 0)  # the rest is not known to be whole
                    if not self.rows:
                        file.write(self._headers[name])
            self._save_progress()

    def append(self, block: dict[str, np.ndarray]) -> None:
        """Adds rows to every output, on the disk before they count."""
        for name in self._headers:
            data = np.ascontiguousarray(block[name], DTYPE).data
            with self._part(name).open("ab") as file:
                file.write(data)
                _sync(file)
            self._crc[name] = zlib.crc32(data, self._crc[name])
        self.rows += len(data)
        self._save_progress()

    def finish(self, source: Source) -> None:
        """All rows are there: gives the files their names and says so."""
        arrays = {
            "labels": np.asarray(source.labels, np.int32),
            "ids": np.array([source.name(index) for index in range(len(source))], np.str_),
        }
        for name, array in arrays.items():
            with self._part(name).open("wb") as file:
                np.save(file, array, allow_pickle=False)
                _sync(file)
            self._crc[name] = disk.crc32(self._part(name))
        for name in self._crc:
            self._part(name).replace(self._whole(name))
        _sync_folder(self._folder)
        manifest = Manifest(
            format=1,
            rows=self.rows,
            class_names=source.class_names,
            **self._identity,
            jxfer_version=store.own_version(),
            crc32={self._whole(name).name: crc for name, crc in self._crc.items()},
        )
        disk.write_json(self._folder / MANIFEST, sealed.seal(dataclasses.asdict(manifest)))
        _sync_folder(self._folder)
        (self._folder / PROGRESS).unlink()

    def _known_whole(self, row_bytes: dict[str, int]) -> tuple[int, dict[str, int]]:
        """Rows that a killed process left, and the CRC-32 of each output up to them."""
        path = self._folder / PROGRESS
        none = 0, {name: zlib.crc32(header) for name, header in self._headers.items()}
        if not path.exists():
            return none
        try:
            found = sealed.unseal(parse(path.read_text(encoding="utf-8")), str(path))
            key, program = found["key"], found["program"]
            rows, crc = int(found["rows"]), dict(found["crc32"])
        except (ValueError, KeyError, TypeError, UserError):
            _log.warning("%s is damaged; starting at the first row", path)
            return none
        _check_same(self._folder, key, self._identity["key"])
        if program != self._identity["program"]:
            was, now = trees.flatten(program), trees.flatten(self._identity["program"])
            _log.warning(
                "%s: its rows were computed otherwise (%s); starting at the first row",
                self._folder,
                changes(was, now),
            )
            return none
        for name, header in self._headers.items():
            part, whole = self._part(name), self._whole(name)
            if whole.exists():  # killed between the renames at the end
                whole.replace(part)
            size = len(header) + rows * row_bytes[name]
            if not part.exists() or disk.crc32(part, size) != crc.get(name):
                _log.warning("%s is damaged; starting at the first row", part)
                return none
        return rows, crc

    def _save_progress(self) -> None:
        found = {**self._identity, "rows": self.rows, "crc32": self._crc}
        disk.write_json(self._folder / PROGRESS, sealed.seal(found))

    def _whole(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.npy"

    def _part(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.npy.part"


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder and holds it for this process."""
    lock = filelock.FileLock(folder / _LOCK)
    with _own_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; --out takes a folder")
        folder.mkdir(parents=True, exist_ok=True)
        had_lock = (folder / _LOCK).exists()
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise UserError(
                f"{folder}: another process is writing features here; wait for it"
            ) from error
    try:
        with _own_errors(folder):
            # Now, not before the lock: another process may have finished in between.
            if others := _other_files(folder):
                if not had_lock:
                    (folder / _LOCK).unlink()
                raise UserError(
                    f"{folder} holds other files ({min(others)}); take a new folder as --out"
                )
        yield
    finally:
        lock.release()


def _other_files(folder: pathlib.Path) -> set[str]:
    """Names of what no process that writes features can have left in a folder of none."""
    names = {entry.name for entry in folder.iterdir()}
    if not names.isdisjoint({MANIFEST, PROGRESS}):
        return set()
    return {name for name in names - {_LOCK, f"{PROGRESS}.tmp"} if not name.endswith(".npy.part")}


@contextlib.contextmanager
def _own_errors(folder: pathlib.Path) -> Iterator[None]:
    """Those of the folder; what goes wrong while rows are computed is told by whoever computes."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--out {folder}: {error.strerror or error}; free some room, or name another folder"
        ) from error


def _check_same(folder: pathlib.Path, found: Any, wanted: dict[str, Any]) -> None:
    if changed := changes(trees.flatten(found), trees.flatten(wanted)):
        raise UserError(
            f"{folder} holds other features ({changed}); "
            "take a new folder as --out, or the old options"
        )


def _header(shape: tuple[int, ...]) -> bytes:
    """What comes before the rows in a .npy file."""
    file = io.BytesIO()
    fields = {"descr": DTYPE.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: pathlib.Path) -> None:
    """Puts the names of its files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
