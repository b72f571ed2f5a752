"""A sweep on disk: what is known of each cell, and running one.

After `grid` in the flow, which says which cells there are. `OUT/cells/` holds for each cell, by its
key:

    KEY/        the run folder
    KEY.json    the record: status, figures, the error of one that failed
    KEY.log     what the run said
    KEY.lock    held by the process that runs it

A key is the hash of the config, and of those of the cells before it, so the same config is run once
wherever it stands in the grid. Nothing else is stored.
"""

import contextlib
import dataclasses
import os
import pathlib
import traceback
from collections.abc import Iterator

import filelock

from jxfer import disk
from jxfer.ablate import cells
from jxfer.ablate.cell_log import logged
from jxfer.ablate.cells import (
    Job,
    Record,
    error_of,
    key_of,
    with_shared_cache,
)
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.experiment import Experiment, Measure
from jxfer.ablate.grid import Grid
from jxfer.errors import DiskError, UserError
from jxfer.train import loop, run_folder

ATTEMPTS = 2
"""Processes that may die of a cell before it counts as failed."""
_GOES_ON = "make room, and the same command goes on"


class Sweep:
    """An experiment and the folder of its runs."""

    def __init__(self, experiment: Experiment, folder: pathlib.Path) -> None:
        self.experiment = experiment
        self.grid = Grid(experiment)
        # One spelling of the folder as long as the working directory is the same; see `_run`.
        self.cells = pathlib.Path(os.path.relpath(folder)) / "cells"

    def records(self) -> dict[str, Record]:
        """What is on disk, by key.

        Raises:
          UserError: a record is damaged.
        """
        files = sorted(self.cells.glob("*.json")) if self.cells.is_dir() else []
        found = {file.stem: cells.read(file) for file in files}
        return {key: record for key, record in found.items() if record is not None}

    def retry(self) -> None:
        """Forgets failures, and who died of a cell; not of cells that another process is at.

        Whoever runs the command again may have killed it himself, as often as he likes.
        """
        for key in self.records():
            with self._lock(key) as held:
                record = self._read(key) if held else None
                if record is None or not (error_of(record) or record.attempts):
                    continue
                if record.status == "failed":
                    (self.cells / f"{key}.json").unlink()
                else:
                    self._write(key, dataclasses.replace(record, attempts=0, failed_measures={}))

    def run(self, job: Job) -> Record | None:
        """Runs a job in this process, unless another one does, or it has to wait.

        What it says goes to its log. An exception makes it a failed one, with the traceback there.

        Returns:
          Its record, or None where nothing was done.

        Raises:
          DiskError: no fault of the job's, which is not over: the same command goes on.
        """
        with disk.writing(self.cells, _GOES_ON):
            return self._run_locked(job)

    def _run_locked(self, job: Job) -> Record | None:
        self.cells.mkdir(parents=True, exist_ok=True)
        with self._lock(job.key) as held:
            # Read again: it may have ended between the list and the lock.
            before = self._read(job.key) if held else None
            if not held or (before and self.grid.is_over(job, {job.key: before})):
                return None
            begun = before or Record("running")
            if begun.status == "running" and job.cell.after is not None:
                source = self._read(key_of(job.cell.after))
                if source is None or source.status == "running":
                    return None
                if source.status == "failed":
                    told = f"the run that it starts from failed: {source.error}"
                    return self._write(job.key, Record("failed", error=told))
            if begun.attempts >= ATTEMPTS:
                return self._write(job.key, self._given_up(begun))
            self._write(job.key, dataclasses.replace(begun, attempts=begun.attempts + 1))
            try:
                with logged(self.cells / f"{job.key}.log", job.heading):
                    record = self._work(job, begun)
            except BaseException:  # interrupted, preempted, a full disk: none of its doing
                self._take_back(job.key, begun)
                raise
            return self._write(job.key, record)

    def _take_back(self, key: str, begun: Record) -> None:
        """The attempt does not count. Without room for a record, the run folder tells all."""
        try:
            self._write(key, begun)
        except DiskError:
            (self.cells / f"{key}.json").unlink(missing_ok=True)

    def _work(self, job: Job, begun: Record) -> Record:
        """Runs what is left of a job: the run, its measures, or both."""
        record = begun
        if begun.status == "running":
            try:
                record = self._run(job)
            except Exception as error:
                return Record("failed", error=_one_line(error))
            # Now, so that a process that dies of a measure leaves a finished run.
            self._write(job.key, dataclasses.replace(record, attempts=begun.attempts + 1))
        measures, failed = dict(record.measures), dict(record.failed_measures)
        takes: dict[str, Measure] = {ACCURACY: _test_accuracy, **self.experiment.measures}
        for name in self.grid.missing(job, record):
            try:
                value = takes[name](self.cells / job.key)
                measures[name] = None if value is None else float(value)
            except Exception as error:
                failed[name] = _one_line(error)
        return dataclasses.replace(record, attempts=0, measures=measures, failed_measures=failed)

    def _given_up(self, begun: Record) -> Record:
        told = f"{begun.attempts} processes died of it; see its log"
        if begun.status == "running":
            return Record("failed", error=told)
        names = (ACCURACY, *self.experiment.measures)
        failed = {name: told for name in names if name not in begun.measures}
        return dataclasses.replace(begun, attempts=0, failed_measures=failed)

    def _run(self, job: Job) -> Record:
        folder = self.cells / job.key
        config = with_shared_cache(job.cell.config)
        if job.cell.after is not None:
            weights = str(self.cells / key_of(job.cell.after))
            config = dataclasses.replace(
                config, model=dataclasses.replace(config.model, weights=weights)
            )
            # The key says which weights they are; the path depends on the working directory.
            run_folder.move_weights(folder, weights)
        summary = run_folder.read_summary(folder) or loop.run_config(config, folder)
        timing = run_folder.read_timing(folder)
        adapt = summary["adapt"]
        return Record(
            "finished",
            val_accuracy=summary["val_accuracy"],
            score=adapt["score"] if adapt else summary["val_accuracy"],
            test_correct=summary["test_correct"],
            test_examples=summary["test_examples"],
            seconds=timing["seconds"]["total"],
            commit=summary["commit"],
            diverged=bool(adapt and adapt["diverged"]),
        )

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[bool]:
        """Whether a cell is this process's, which no other has then."""
        lock = filelock.FileLock(self.cells / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _read(self, key: str) -> Record | None:
        return cells.read(self.cells / f"{key}.json")

    def _write(self, key: str, record: Record) -> Record:
        cells.write(self.cells / f"{key}.json", record)
        return record


def _test_accuracy(run: pathlib.Path) -> float:
    summary = run_folder.read_summary(run)
    if summary is None or summary["test_accuracy"] is None:
        raise UserError("its data have no test split, so it cannot stand in a table")
    return 100 * float(summary["test_accuracy"])


def _one_line(error: Exception) -> str:
    """Told to people; the traceback goes to the log.

    Raises:
      Exception: the error itself, where the job is not to blame.
    """
    with contextlib.suppress(OSError):  # of a full disk
        traceback.print_exception(error)
    if disk.is_disk(error) or type(error).__module__.startswith("submitit"):
        raise error  # of the machine, or of the job that runs the worker, whatever it was at
    told = " ".join(str(error).split())
    return told if isinstance(error, UserError) else f"{type(error).__name__}: {told[:300]}"
