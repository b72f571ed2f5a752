"""A sweep on disk: which cells there are, what is known of each, and running one.

After `cells` in the flow. `OUT/cells/` holds for each cell, by its key:

    KEY/        the run folder
    KEY.json    the record: status, figures, the error of one that failed
    KEY.log     what the run said
    KEY.lock    held by the process that runs it

A key is the hash of the config, and of those of the cells before it, so the same config is run once
wherever it stands in the grid. Nothing else is stored: the hyper-parameters that were chosen, and
with them the cells that are left, follow from the records, for every process alike.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import traceback
from collections.abc import Iterator, Mapping

import filelock
import numpy as np

from jxfer import disk
from jxfer.ablate import cells
from jxfer.ablate.cell_log import logged
from jxfer.ablate.cells import (
    BY_ACCURACY,
    Job,
    Record,
    Role,
    Search,
    error_of,
    key_of,
    with_shared_cache,
)
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.experiment import Choice, Experiment, Measure, Setting
from jxfer.errors import DiskError, UserError
from jxfer.train import loop, run_folder

ATTEMPTS = 2
"""Processes that may die of a cell before it counts as failed."""
_GOES_ON = "make room, and the same command goes on"


class Sweep:
    """An experiment and the folder of its runs."""

    def __init__(self, experiment: Experiment, folder: pathlib.Path) -> None:
        self.experiment = experiment
        # One spelling of the folder, since a run remembers what it starts from.
        self.cells = pathlib.Path(os.path.relpath(folder)) / "cells"
        self._chains: dict[str, list[Job]] = {}

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

    def jobs(self, records: Mapping[str, Record]) -> list[Job]:
        """All that are known by now: searches, and tables whose search is over.

        In the order of settings, arms and seeds, so that those of one compiled program stand side
        by side; each after the cells that it starts from.
        """
        found: dict[tuple[str, ...], Job] = {}
        for setting in self.experiment.settings:
            for arm in self.experiment.arms:
                for job in self._arm(setting, arm, records):
                    # A source is that of all who start from it.
                    place = () if job.role == "source" else (job.setting, job.arm)
                    found.setdefault((job.key, job.role, *place), job)
        return list(found.values())

    def planned(self) -> list[Job]:
        """All jobs there will be, each search's first choice standing for the one it will make."""
        found: list[Job] = []
        for setting in self.experiment.settings:
            for arm in self.experiment.arms:
                if self._exists(setting, arm):
                    found += self._search(setting, arm, {})[1]
                    found += self._table(setting, arm, self.experiment.choices[arm][0])
        return found

    def searches(self, records: Mapping[str, Record]) -> list[Search]:
        """Of each setting and arm, but those that share another setting's."""
        found: dict[tuple[str, str], Search] = {}
        for setting in self.experiment.settings:
            for arm in self.experiment.arms:
                if self._exists(setting, arm):
                    search = self._search(setting, arm, records)[0]
                    found.setdefault((search.setting, search.arm), search)
        return list(found.values())

    def is_over(self, job: Job, records: Mapping[str, Record]) -> bool:
        """Whether the job is finished, with its measures, or has failed."""
        record = records.get(job.key)
        if record is None or record.status == "running":
            return False
        return record.status == "failed" or not self._missing(job, record)

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
            if not held or (before and self.is_over(job, {job.key: before})):
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
        for name, measure in self._missing(job, record).items():
            try:
                value = measure(self.cells / job.key)
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

    def _arm(self, setting: Setting, arm: str, records: Mapping[str, Record]) -> Iterator[Job]:
        if not self._exists(setting, arm):
            return
        search, tuning = self._search(setting, arm, records)
        yield from tuning
        if search.chosen is not None:
            yield from self._table(setting, arm, search.chosen)

    def _table(self, setting: Setting, arm: str, choice: Choice) -> Iterator[Job]:
        keys: dict[str, int] = {}
        for seed in self.experiment.seeds:
            *sources, job = self._with_sources("table", setting, arm, choice, seed)
            if job.key in keys:
                raise UserError(
                    f"{self.experiment.title}: {arm} in {setting.name} is the same run at seeds "
                    f"{keys[job.key]} and {seed}; its config must use the seed"
                )
            keys[job.key] = seed
            yield from (*sources, job)

    def _exists(self, setting: Setting, arm: str) -> bool:
        some = self.experiment.choices[arm][0]
        return self.experiment.make(setting, arm, some, self.experiment.seeds[0]) is not None

    def _search(
        self, setting: Setting, arm: str, records: Mapping[str, Record]
    ) -> tuple[Search, list[Job]]:
        """What came of the search that a setting and arm rest on, and its jobs."""
        choices = self.experiment.choices[arm]
        if len(choices) == 1:
            return Search(setting.name, arm, (), choices[0]), []
        if self.experiment.tune_in is not None:
            setting = self.experiment.tune_in(setting)
        jobs: list[Job] = []
        accuracies: list[tuple[Choice, float | None]] = []
        for choice in choices:
            made = [
                list(self._with_sources("tuning", setting, arm, choice, seed))
                for seed in self.experiment.tuning_seeds
            ]
            jobs += [job for chain in made for job in chain]
            found = [records.get(chain[-1].key) for chain in made]
            values = [record.score for record in found if record and not record.error]
            whole = [value for value in values if value is not None]
            accuracies.append((choice, float(np.mean(whole)) if len(whole) == len(made) else None))
        chosen = None
        if all(self.is_over(job, records) for job in jobs):
            known = [(value, choice) for choice, value in accuracies if value is not None]
            chosen = max(known, key=lambda pair: pair[0])[1] if known else None
        select = jobs[-1].cell.config.adapt.select
        by = BY_ACCURACY if select == "source" else f"score by {select}"
        return Search(setting.name, arm, tuple(accuracies), chosen, by), jobs

    def _with_sources(
        self, role: Role, setting: Setting, arm: str, choice: Choice, seed: int
    ) -> Iterator[Job]:
        """The cells that a cell starts from, first of all first, then the cell.

        Kept, with their keys: a worker looks at the whole grid before each run.
        """
        place = json.dumps([role, setting.name, arm, dict(choice), seed])
        if place not in self._chains:
            self._chains[place] = list(self._make_chain(role, setting, arm, choice, seed))
        yield from self._chains[place]

    def _make_chain(
        self, role: Role, setting: Setting, arm: str, choice: Choice, seed: int
    ) -> Iterator[Job]:
        cell = self.experiment.make(setting, arm, choice, seed)
        if cell is None:
            raise UserError(
                f"{self.experiment.title}: {arm} in {setting.name} has no cell of {dict(choice)} "
                f"at seed {seed}, though it has others"
            )
        job = Job(cell, role, setting.name, arm, choice, seed)
        chain = [job]
        while chain[0].cell.after is not None:
            chain.insert(0, dataclasses.replace(job, cell=chain[0].cell.after, role="source"))
        yield from chain

    def _run(self, job: Job) -> Record:
        folder = self.cells / job.key
        config = with_shared_cache(job.cell.config)
        if job.cell.after is not None:
            weights = str(self.cells / key_of(job.cell.after))
            config = dataclasses.replace(
                config, model=dataclasses.replace(config.model, weights=weights)
            )
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
        )

    def _missing(self, job: Job, record: Record) -> dict[str, Measure]:
        """Measures that a job is to have and that were not tried yet."""
        if job.role != "table":
            return {}
        known = {*record.measures, *record.failed_measures}
        every: dict[str, Measure] = {ACCURACY: _test_accuracy, **self.experiment.measures}
        return {name: measure for name, measure in every.items() if name not in known}

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
