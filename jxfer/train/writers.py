"""Where a run's figures go: `metrics.jsonl`, TensorBoard, the terminal, and a trace."""

import json
import pathlib
import sys
import time
from typing import Any

import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jxfer.train.profile import Profile


class Writers:
    """Writes each record to `metrics.jsonl` and TensorBoard.

    Args:
      folder: the run folder; None writes nothing, as on all hosts but the first.
      from_step: the step that the run resumes from; later records, left by a killed run, are
        dropped, because they will be written again.
      profile: trace a few steps, too.
    """

    def __init__(self, folder: pathlib.Path | None, from_step: int, profile: bool = False) -> None:
        self.profile = Profile(folder if profile else None)
        self._open = folder is not None
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= from_step]
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a")
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
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        for name, value in record.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)


def _step_of(line: str) -> float:
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
