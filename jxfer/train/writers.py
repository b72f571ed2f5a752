"""Where a run's figures go: `metrics.jsonl`, TensorBoard, the terminal, and a trace."""

import json
import logging
import os
import pathlib
import sys
import time
import zlib
from typing import Any

import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jxfer.errors import UserError
from jxfer.train.profile import Profile

METRICS = "metrics.jsonl"
Mark = dict[str, int]
"""`bytes` of `metrics.jsonl` and their `crc32`: where a checkpoint stands in it."""
_log = logging.getLogger("jxfer")


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
    """Writes each record to `metrics.jsonl` and TensorBoard.

    Args:
      folder: the run folder; None writes nothing, as on all hosts but the first.
      from_step: the step that the run resumes from; later records, left by a killed run, are
        dropped, because they will be written again.
      profile: trace a few steps, too.
      mark: of the checkpoint that the run resumes from, if it has one.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        from_step: int,
        profile: bool = False,
        mark: Mark | None = None,
    ) -> None:
        self.profile = Profile(folder if profile else None)
        self._open = folder is not None
        if folder is None:
            return
        path = folder / METRICS
        content = path.read_bytes() if path.exists() else b""
        if mark is None:
            lines = content.splitlines(keepends=True)
            kept = b"".join(line for line in lines if _step_of(line) <= from_step)
        else:
            kept = content[: mark["bytes"]]
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_bytes(kept)
        temporary.replace(path)
        self._file = path.open("ab")
        self._bytes, self._crc = len(kept), zlib.crc32(kept)
        self._board = tensorboardX.SummaryWriter(
            str(folder), purge_step=from_step + 1 if from_step else None
        )

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        self.profile.close()
        if self._open:
            self._file.close()
            self._board.close()

    def write(self, step: int, record: dict[str, Any]) -> None:
        """One line of metrics; floats are written so that they read back to the same bits."""
        if not self._open:
            return
        line = (json.dumps({"step": step, **record}) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        self._bytes, self._crc = self._bytes + len(line), zlib.crc32(line, self._crc)
        for name, value in record.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def mark(self) -> Mark | None:
        """Where a checkpoint that is about to be saved stands; the lines are on the disk then."""
        if not self._open:
            return None
        os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "crc32": self._crc}


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
        self._progress.stop()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)
