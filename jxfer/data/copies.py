"""Copies of what a bucket holds, on this machine, where they are used like any other folder.

After `remote` and `embedded`, before `prepared` and the zoo. Data that are read as a whole, zoo
entries and finished runs are copied to `cache_dir()/gs/copies`.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator

import filelock

from jxfer.data import remote
from jxfer.data.embedded import cache_dir
from jxfer.errors import UserError

_log = logging.getLogger("jxfer")


def copy(where: str, keep: Callable[[str], bool] = lambda name: True) -> pathlib.Path:
    """A copy of what lies at an address, a folder or a single object, on this machine.

    A copy never changes: once the bucket does, the next call makes another one.

    Args:
      where: the address.
      keep: takes the name of an object below it; those it rejects are left out.

    Returns:
      A folder or file of the address's own name.

    Raises:
      UserError: nothing is there, or it cannot be read, or not be written here.
    """
    found = {n: o for n, o in remote.listing(where).items() if keep(n) and not n.endswith("/")}
    if not found:
        parent, _, name = where.rpartition("/")
        alone = remote.listing(parent).get(name) if len(parent) > len("gs://") else None
        if alone is None:
            raise UserError(f"{where}: nothing of that name is in the bucket")
        found = {"": alone}
    content = [(name, one.size, one.generation) for name, one in found.items()]
    key = hashlib.sha256(json.dumps([where, content]).encode()).hexdigest()[:16]
    target = _copies() / key / where.rpartition("/")[2]
    if not target.exists():
        with locked(target.parent):
            if not target.exists():  # else another process was first
                size = sum(one.size for one in found.values()) / 1e6
                _log.info("copying %s to %s, %.1f MB", where, target, size)
                part = target.with_name(target.name + ".part")
                shutil.rmtree(part, ignore_errors=True)
                remote.fetch(where, found, part)
                part.rename(target)
    return target


def local(place: remote.Place) -> pathlib.Path:
    """A path on this machine as it is, and of an address a copy without a run's checkpoints.

    Raises:
      UserError: as `copy`.
    """
    found = remote.address(place)
    if found is None:
        return pathlib.Path(place)
    return copy(found, lambda name: not name.startswith("checkpoints/"))


def is_copy(path: pathlib.Path) -> bool:
    """Whether a path is what `copy` made: it must stay as it is."""
    return path.resolve().is_relative_to(_copies().resolve())


@contextlib.contextmanager
def locked(folder: pathlib.Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a folder of the cache for this process, by a file beside it.

    Raises:
      UserError: the cache cannot be written; another process holds it and `wait` is off.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        raise UserError(f"{folder}: another process is at it; wait for it") from None
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror or error}; point JXFER_CACHE to a folder that takes files"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _copies() -> pathlib.Path:
    return cache_dir() / "gs" / "copies"
