"""What a disk refuses, in one line; files that are written whole or not at all; the cache folder.

After `errors`, before all that writes.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

from jxfer.errors import DiskError

_NO_BUG = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
_PIECE = 1 << 20  # bytes per read when a checksum is taken
_CLOSED = "Event loop is closed"
_TENSORSTORE = re.compile(r"\[os_error_code='(\d+)'\]")


def cache_dir() -> pathlib.Path:
    """`$JXFER_CACHE`, else `$XDG_CACHE_HOME/jxfer`, else `~/.cache/jxfer`."""
    if own := os.environ.get("JXFER_CACHE"):
        return pathlib.Path(own).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jxfer"


def is_disk(error: BaseException) -> bool:
    """Whether a disk fails, wherever that happened: it is full, read-only or broken."""
    code = error.errno if isinstance(error, OSError) else None
    return isinstance(error, DiskError) or code in _NO_BUG


def reason(error: BaseException) -> str | None:
    """What the system says; None of an error that is none of the system's.

    TensorStore and array_record tell it in the text of errors of their own.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if found := _TENSORSTORE.search(str(error)):
        return os.strerror(int(found[1]))
    return next((told for told in map(os.strerror, _NO_BUG) if told in str(error)), None)


@contextlib.contextmanager
def writing(
    place: str | os.PathLike[str], advice: str = "make room or name another place"
) -> Iterator[None]:
    """Around code that writes to a place and reads from no other.

    Args:
      place: for the message.
      advice: what to do about it.

    Raises:
      DiskError: the system refuses.
    """
    try:
        yield
    except Exception as error:
        told = reason(error)
        if told is None:
            raise
        raise DiskError(f"{place}: cannot be written: {told}; {advice}") from error


def replace(path: pathlib.Path, content: bytes) -> None:
    """Makes a file of bytes, whole or not at all; of two processes the last one's stays.

    Raises:
      DiskError: it cannot be written.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            new.write_bytes(content)
            new.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes a file as a whole or not at all.

    Raises:
      DiskError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        with temporary.open("w") as file:
            file.write(json.dumps(values, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def append(file: int, content: bytes) -> None:
    """Writes all of it to an open file; nothing is left to write when that is closed."""
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def crc32(path: pathlib.Path, size: int | None = None) -> int:
    """CRC-32 of a file, or of its first `size` bytes; -1 if it is shorter than these."""
    crc, read = 0, 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE if size is None else min(size - read, _PIECE)):
            crc, read = zlib.crc32(piece, crc), read + len(piece)
    return crc if size in (None, read) else -1


def let_writers_end(folder: pathlib.Path) -> None:
    """Returns when half a second has brought no new name into a folder, after 10 s at the latest.

    Where one tensor fails, TensorStore's threads go on with the others for some milliseconds, and
    make folders anew that were moved or removed meanwhile.

    Raises:
      OSError: it cannot be read.
    """
    before = None
    for _ in range(20):
        now = sorted(folder.rglob("*"))
        if now == before:
            return
        before = now
        time.sleep(0.5)


class _Raised(logging.Filter):
    """Drops what Orbax logs, with tracebacks, of errors that it raises as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in record.pathname


_RAISED = _Raised()


def tell_once() -> None:
    """Errors of Orbax are told by those who catch them, not by its log too."""
    logging.getLogger("absl").addFilter(_RAISED)


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Of the writes that go on when one has failed, TensorStore's threads then say nothing.

    They report to the event loop that Orbax has closed by then.
    """
    before = sys.unraisablehook

    def show_others(found: Any) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and _CLOSED in str(found.exc_value)):
            before(found)

    sys.unraisablehook = show_others
    try:
        yield
    finally:
        sys.unraisablehook = before
