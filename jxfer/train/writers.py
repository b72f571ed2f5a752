"""Where a run's figures go: `metrics.jsonl`, TensorBoard, the terminal, and a trace."""

import json
import logging
import os
import pathlib
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from jxfer import disk
from jxfer.errors import UserError
from jxfer.train.profile import Profile

METRICS = "metrics.jsonl"
Mark = dict[str, int]
"""`bytes` of `metrics.jsonl` and their `crc32`: where a checkpoint stands in it."""
_log = logging.getLogger("jxfer")
_RESUMES = "make room, and the same command resumes"


def check_metrics(folder: pathlib.Path, mark: Mark | None) -> None:
    """Holds the lines of a run against what was written; without any, it goes on and says so.

    Args:
      mark: of the checkpoint that it resumes from; None of one that has none.

    Raises:
      UserError: they are others.
    """
    path = folder / METRICS
    if mark is None or not mark["bytes"]:
        return
    if not path.exists():
        _log.warning("%s is missing: its lines up to this step are lost", path)
    elif not holds(path.read_bytes(), mark):
        raise UserError(
            f"{path} is damaged: its lines up to the checkpoint are not those that were written; "
            "restore it, or remove it to go on without them"
        )


def has_begun(folder: pathlib.Path) -> bool:
    """Whether a run has written lines there."""
    path = folder / METRICS
    return path.exists() and path.stat().st_size > 0


def holds(content: bytes, mark: Mark) -> bool:
    """Whether `metrics.jsonl` begins with what a mark stands for."""
    size = mark["bytes"]
    return len(content) >= size and zlib.crc32(content[:size]) == mark["crc32"]


class Writers:
    """Writes each record to `metrics.jsonl` and to an events file of TensorBoard's.

    Both are unbuffered, and written here. The thread of tensorboardX's own writer lags behind a
    checkpoint, so that a kill loses points; it dies of a full disk, and whoever hands it more then
    waits for ever.

    Args:
      folder: the run folder; None writes nothing, as on all hosts but the first.
      from_step: the step that the run resumes from; later records, left by a killed run, are
        dropped, because they will be written again.
      profile: trace a few steps, too.
      mark: of the checkpoint that the run resumes from, if it has one.
      check: called before each record; see `run_folder.open_run`.

    Raises:
      DiskError: a file cannot be written.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        from_step: int,
        profile: bool = False,
        mark: Mark | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.profile = Profile(folder if profile else None)
        self._check = check
        self._open: dict[pathlib.Path, int] = {}
        if folder is None:
            return
        self._lines = folder / METRICS
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{from_step}"
        self._events = folder / name
        with disk.writing(self._lines, _RESUMES):
            kept = self._kept(from_step, mark)
            temporary = self._lines.with_suffix(".jsonl.tmp")
            temporary.write_bytes(kept)
            temporary.replace(self._lines)
        self._bytes, self._crc = len(kept), zlib.crc32(kept)
        for path in (self._lines, self._events):
            with disk.writing(path, _RESUMES):
                self._open[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        # TensorBoard hides the points of later steps, which a killed run left, from here on.
        start = SessionLog(status=SessionLog.START)
        self._append_events(
            [
                Event(file_version="brain.Event:2", step=from_step + 1),
                Event(session_log=start, step=from_step + 1),
            ]
        )

    def _kept(self, from_step: int, mark: Mark | None) -> bytes:
        content = self._lines.read_bytes() if self._lines.exists() else b""
        if mark is not None:
            return content[: mark["bytes"]]
        lines = content.splitlines(keepends=True)
        return b"".join(line for line in lines if _step_of(line) <= from_step)

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            os.close(file)
        self.profile.close()

    def write(self, step: int, record: dict[str, Any]) -> None:
        """One line of metrics; floats are written so that they read back to the same bits."""
        if not self._open:
            return
        self._check()
        line = (json.dumps({"step": step, **record}) + "\n").encode()
        self._append(self._lines, line)
        self._bytes, self._crc = self._bytes + len(line), zlib.crc32(line, self._crc)
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if isinstance(value, int | float)
        ]
        self._append_events([Event(step=step, summary=Summary(value=values))])

    def mark(self) -> Mark | None:
        """Where a checkpoint that is about to be saved stands; the lines are on the disk then."""
        if not self._open:
            return None
        with disk.writing(self._lines, _RESUMES):
            os.fsync(self._open[self._lines])
        return {"bytes": self._bytes, "crc32": self._crc}

    def _append_events(self, events: list[Any]) -> None:
        for event in events:
            event.wall_time = time.time()
        content = b"".join(_as_record(event.SerializeToString()) for event in events)
        self._append(self._events, content)

    def _append(self, path: pathlib.Path, content: bytes) -> None:
        with disk.writing(path, _RESUMES):
            disk.append(self._open[path], content)


def _as_record(content: bytes) -> bytes:
    """A record of TensorFlow's: length, its masked CRC-32C, the bytes, theirs."""
    length = struct.pack("<Q", len(content))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(checks) + content + next(checks)


def _step_of(line: bytes) -> float:
    try:
        return int(json.loads(line)["step"])
    except ValueError:  # the line that a kill cut off
        return float("inf")


class Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        return elapsed


class ProgressBar:
    """What is done, a description and time left on stderr; nothing when that is no terminal."""

    def __init__(self, total: int, start: int, quiet: bool = False, unit: str = "step") -> None:
        self._progress = Progress(
            TextColumn(unit + " {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("compiling", total=total, completed=start)

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._progress.disable:  # rich 14.0 ends even what never began with an empty line
            self._progress.stop()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)
