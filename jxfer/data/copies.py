"""Copies of what a bucket holds, on this machine, where they are used like any other folder.

After `remote`, before `prepared` and the zoo. Data that are read as a whole, zoo entries and
finished runs are copied to `cache_dir()/gs/copies`. Beside a copy lie the CRC-32 of its files; one
that was damaged since is told, and copied again. Nothing removes a copy, as another process may be
reading it (docs/storage.md).
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

import filelock

from jxfer import disk
from jxfer.data import remote
from jxfer.errors import UserError

_CHECKSUMS = "checksums.json"
_MOST_READ = 1e9
"""Bytes of a copy that is read before it is used; of larger ones, the sizes of the files count."""
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
    if not _is_whole(target, found):
        with locked(target.parent):
            if not _is_whole(target, found):  # else another process was first
                _make(where, found, target)
    return target


def _make(where: str, found: Mapping[str, remote.Object], target: pathlib.Path) -> None:
    size = sum(one.size for one in found.values()) / 1e6
    if target.exists():
        _log.warning("%s is damaged, or of an earlier version: copying it again", target)
    _log.info("copying %s to %s, %.1f MB", where, target, size)
    part, old = (target.with_name(target.name + end) for end in (".part", ".old"))
    for path in (part, old):
        _remove(path)
    remote.fetch(where, found, part)
    checksums = {name: disk.crc32(part / name) for name in found}
    (target.parent / _CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n")
    if target.exists():
        target.rename(old)
    part.rename(target)
    _remove(old)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_whole(target: pathlib.Path, found: Mapping[str, remote.Object]) -> bool:
    try:
        if any((target / name).stat().st_size != one.size for name, one in found.items()):
            return False
        wanted = json.loads((target.parent / _CHECKSUMS).read_text())
        if sum(one.size for one in found.values()) > _MOST_READ:
            return set(wanted) == set(found)
        return bool(wanted == {name: disk.crc32(target / name) for name in found})
    except (OSError, ValueError):
        return False


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
    return disk.cache_dir() / "gs" / "copies"
