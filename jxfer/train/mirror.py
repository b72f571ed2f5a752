"""A run in a bucket: trained in a folder of this machine that is sent there while it grows.

After `run_folder`, before `loop`, which knows of no bucket. The bucket holds the files of the run
folder, and `mirror.json`: who sends, and which checkpoints are there whole. What it holds can be
resumed at any moment:

- `metrics.jsonl` goes ahead of the checkpoints, since a run that resumes drops the lines after its
  checkpoint but cannot make up for missing ones;
- a checkpoint is named in `mirror.json` once all of it has arrived, and no longer before the first
  of its objects is deleted;
- `model/` and, last of all, `summary.json` follow the last checkpoint.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import shutil
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from jxfer import disk
from jxfer.data import copies, remote
from jxfer.errors import UserError

MARKER = "mirror.json"
"""In the bucket: `writer`, an id of the folder that was sent last, and `checkpoints`, by name."""
_WRITER = "writer"  # beside the folder: its id, once the bucket has it
_END = ("timing.json", "summary.json")  # written after the model, in this order
_log = logging.getLogger("jxfer")


@contextlib.contextmanager
def mirrored(run: remote.Place, *, every: float = 30.0) -> Iterator[pathlib.Path]:
    """The folder to train in; what comes to it is sent to the bucket, and the rest at the end.

    A folder of this machine is taken as it is. Of an address, the folder lies in the user's cache.
    Where it is the last that was sent there, it is at least as new as the bucket, and stays; else
    it becomes what the bucket holds. An upload that fails is a warning, and is tried again.

    Args:
      run: the run folder, or its `gs://` address.
      every: seconds between two rounds of sending.

    Raises:
      UserError: the bucket cannot be read, or holds something else; another process of this machine
        trains there; the last round of sending failed, which leaves all in the folder.
    """
    address = remote.address(run)
    if address is None:
        yield pathlib.Path(run)
        return
    if address.count("/") < 3:
        raise UserError(f"{address} is a whole bucket; a run is gs://BUCKET/PATH")
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    place = disk.cache_dir() / "gs" / "runs" / key
    with copies.locked(place, wait=False):
        sender = _Sender(address, place)
        sender.begin()
        _log.info("%s is trained in %s and sent every %g s", address, sender.folder, every)
        if failed := sender.try_to_send():  # what an earlier process left behind
            raise failed
        stop = threading.Event()

        def send_on() -> None:
            while not stop.wait(every):
                sender.try_to_send()

        thread = threading.Thread(target=send_on, name="mirror", daemon=True)
        thread.start()
        try:
            yield sender.folder
        finally:
            stop.set()
            thread.join()
            failed = sender.try_to_send()
        if failed:
            raise UserError(
                f"the run is whole in {sender.folder}, but not in the bucket: {failed}; "
                "the same command sends the rest"
            )


class _Sender:
    """What is in the bucket by now, and what is not."""

    def __init__(self, address: str, place: pathlib.Path) -> None:
        self.folder = place / address.rpartition("/")[2]
        self._address = address
        self._place = place
        self._claimed: str | None = None
        """`writer` of the bucket, as far as we know"""
        self._checkpoints: set[str] = set()
        """those in the bucket"""
        self._sent: dict[str, tuple[int, int]] = {}
        """(size, mtime in ns) of the files in the bucket, as they were when they were read"""

    def begin(self) -> None:
        """Makes the folder what the bucket holds, unless it is the last that was sent there."""
        marker = self._read_marker()
        file = self._place / _WRITER
        own = None
        if file.exists() and self.folder.exists():
            own = file.read_text(errors="replace")
        self._own = own or uuid.uuid4().hex
        if marker is None:
            if names := list(remote.listing(self._address)):
                raise UserError(
                    f"{self._address} holds other objects ({names[0]}); take a new address as --run"
                )
            if own:
                raise UserError(
                    f"{self._address} no longer holds the run that {self.folder} was sent to; "
                    f"remove {self._place} to begin it anew"
                )
            return
        self._claimed = marker["writer"]
        self._checkpoints = set(marker["checkpoints"])
        if own == self._claimed:
            return
        if own:
            _log.warning(
                "%s: another machine has gone on with this run; taking what the bucket holds",
                self._address,
            )
        self._fetch()

    def _fetch(self) -> None:
        names = list(remote.listing(self._address))
        wanted = [name for name in names if self._belongs(name, "summary.json" in names)]
        _log.info("fetching %s, %d files", self._address, len(wanted))
        # Until all is there, the folder is nobody's: a kill in between begins again.
        (self._place / _WRITER).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        part = self._place / "fetching"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)  # even if no more than the marker has arrived
        remote.fetch(self._address, wanted, part)
        part.rename(self.folder)
        self._sent = {name: _signature(self.folder / name) for name in wanted}

    def _belongs(self, name: str, finished: bool) -> bool:
        """Whether an object is part of a state that can be resumed."""
        first, _, rest = name.partition("/")
        if first == "checkpoints":
            return rest.partition("/")[0] in self._checkpoints
        return name != MARKER and not name.endswith("/") and (finished or first != "model")

    def try_to_send(self) -> UserError | None:
        """Sends what is new; what went wrong is logged and returned."""
        try:
            self._send()
        except UserError as error:
            _log.warning("not sent: %s", error)
            return error
        except OSError as error:
            _log.warning("not sent: %s: %s", self.folder, error)
            return UserError(f"{self.folder}: {error.strerror or error}")
        return None

    def _send(self) -> None:
        if not (self.folder / "config.json").exists():
            return  # nothing has begun
        here = {path.name for path in (self.folder / "checkpoints").glob("*") if _is_step(path)}
        early = self._changed([name for name in _files(self.folder, "") if _is_early(name)])
        finished = (self.folder / "summary.json").exists()
        end = [name for name in _END if (self.folder / name).exists()]
        late = self._changed([*_files(self.folder, "model"), *end] if finished else [])
        if not early and not late and here == self._checkpoints:
            return
        self._claim()
        self._put(early)
        arrived = {
            step for step in sorted(here - self._checkpoints, key=int) if self._put_step(step)
        }
        gone = self._checkpoints - here
        if arrived or gone:
            self._write_marker((self._checkpoints | arrived) - gone)
        for step in gone:
            self._clear(f"checkpoints/{step}", [])
        if late:  # in this order
            self._clear("model", _files(self.folder, "model"))
            self._put(late)

    def _changed(self, names: list[str]) -> list[str]:
        return [name for name in names if self._sent.get(name) != _signature(self.folder / name)]

    def _put(self, names: list[str]) -> None:
        for name in names:
            signature = _signature(self.folder / name)
            # As bytes: a file that grows meanwhile has no size to announce.
            content = (self.folder / name).read_bytes()
            remote.write(f"{self._address}/{name}", content)
            self._sent[name] = signature

    def _put_step(self, step: str) -> bool:
        """Sends a checkpoint; False if it was removed meanwhile."""
        inside = f"checkpoints/{step}"
        names = _files(self.folder, inside)
        self._clear(inside, names)
        try:
            remote.send(self.folder, names, self._address)
        except FileNotFoundError:
            return False
        return _files(self.folder, inside) == names != []

    def _clear(self, inside: str, names: list[str]) -> None:
        """Deletes what lies below `inside` but for `names`: an upload that was cut off left it."""
        there = [f"{inside}/{name}" for name in remote.listing(f"{self._address}/{inside}")]
        remote.delete(self._address, [name for name in there if name not in names])

    def _claim(self) -> None:
        """Says in the bucket that this folder is what is sent.

        Raises:
          UserError: another machine has said so since we last looked.
        """
        marker = self._read_marker()
        if (marker["writer"] if marker else None) != self._claimed:
            raise self._not_ours()
        if self._claimed != self._own:
            # Where there is none the storage takes one of all that come. A run that was there is
            # read, then written.
            if not self._write_marker(self._checkpoints, new=marker is None):
                marker = self._read_marker()
                if marker is None or marker["writer"] != self._own:
                    raise self._not_ours()
            (self._place / _WRITER).write_text(self._own)
            self._claimed = self._own

    def _not_ours(self) -> UserError:
        return UserError(
            f"{self._address}: another machine trains this run by now; end one of the two"
        )

    def _read_marker(self) -> dict[str, Any] | None:
        content = remote.read(f"{self._address}/{MARKER}")
        if content is None:
            return None
        try:
            marker = json.loads(content)
            return {"writer": str(marker["writer"]), "checkpoints": list(marker["checkpoints"])}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self._address}/{MARKER} is damaged; take a new address") from None

    def _write_marker(self, checkpoints: set[str], *, new: bool = False) -> bool:
        """Whether it was written, as `remote.write` says."""
        marker = {"writer": self._own, "checkpoints": sorted(checkpoints, key=int)}
        content = json.dumps(marker).encode()
        if not remote.write(f"{self._address}/{MARKER}", content, new=new):
            return False
        self._checkpoints = checkpoints
        return True


def _is_step(path: pathlib.Path) -> bool:
    """Orbax gives a checkpoint its plain number once it is whole."""
    return path.name.isdecimal() and path.is_dir()


def _is_early(name: str) -> bool:
    """Whether a file is written while the run goes on, and is no part of a checkpoint."""
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts) or name.endswith(".tmp")
    return not hidden and parts[0] not in ("checkpoints", "model", *_END)


def _files(folder: pathlib.Path, inside: str) -> list[str]:
    """Names, relative to the folder, of all files below `inside`, sorted."""
    found = (path for path in (folder / inside).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _signature(file: pathlib.Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
