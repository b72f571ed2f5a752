"""A file or folder that appears whole or not at all.

Before `store` and `export`, which write through it. What is written stands beside its target under
a hidden name, with the machine's name and the process's id in it, and is renamed at the end.
"""

import contextlib
import errno
import glob
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from jxfer import disk
from jxfer.data import remote
from jxfer.errors import DiskError, UserError


@contextlib.contextmanager
def replacing(
    target: Path, *, overwrite: bool, kind: str, is_one: Callable[[Path], bool]
) -> Iterator[Path]:
    """Yields a path that does not exist; what the block wrote there then becomes the target.

    If the block raises, nothing is left of it and the target stays what it was. Of two processes
    that make it at once the second is refused, or with `overwrite` the last one's stays. A folder
    that is replaced is away for a moment between two renames. Whoever is killed then, or before,
    leaves hidden folders behind: the next call for this target clears them, and brings the old
    folder back if it is the only one.

    Args:
      target: a file or folder; its parents are made.
      overwrite: replace a target that is there.
      kind: what the target is, for the message: "zoo entry".
      is_one: whether a path is of that kind; nothing else is ever replaced.

    Raises:
      UserError: the target exists and `overwrite` is off, or it is of another kind.
      DiskError: it cannot be written, or its parents cannot be made.
    """
    remote.refuse(target, f"a new {kind}")
    target = target.resolve()  # of a link, what it points to is replaced
    if not target.name:
        raise UserError(f"{target} cannot be replaced; name a file or folder in it")
    _clear_leftovers(target)
    if target.exists():
        if not overwrite:
            raise UserError(f"{target} exists; choose another name or overwrite it")
        if not is_one(target):
            raise UserError(f"{target} is no {kind} and is not overwritten")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file is in the way, or it is not ours to write
        raise DiskError(f"{target.parent}: no folder can be made: {error.strerror}") from None
    new, old = (_beside(target, role, os.getpid()) for role in ("new", "old"))
    try:
        with disk.writing(target):  # no space, no right, or a folder that vanished
            yield new
            while not _put(new, target, old, overwrite):
                pass  # another process was faster
    finally:
        if old.exists() and not target.exists():  # an error or a signal between the two renames
            old.rename(target)
        for path in (new, old):
            _remove(path)


def _put(new: Path, target: Path, old: Path, overwrite: bool) -> bool:
    """Renames `new` to the target; False if another process put a folder there meanwhile."""
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists by now; choose another name or overwrite it")
    _remove(old)
    if target.is_dir():  # a folder cannot be renamed over another
        target.rename(old)
    try:
        new.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        if old.exists():
            old.rename(target)
        raise
    return True


def _beside(target: Path, role: str, process: int | str) -> Path:
    """A hidden name beside the target, so that the renames stay on one file system."""
    return target.with_name(f".{target.name}.{role}-{platform.node()}-{process}")


def _clear_leftovers(target: Path) -> None:
    """Removes what dead processes of this machine left; those of others may be alive."""
    for role in ("old", "new"):
        prefix = _beside(target, role, "").name
        for path in sorted(target.parent.glob(f"{glob.escape(prefix)}*")):
            process = path.name.removeprefix(prefix)
            if not process.isdecimal() or _alive(int(process)):
                continue
            if role == "old" and not target.exists():
                path.rename(target)
            else:
                _remove(path)


def _alive(process: int) -> bool:
    """Whether another process of this id runs; nothing of our own is under way."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
