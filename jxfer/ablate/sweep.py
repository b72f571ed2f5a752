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
import datetime
import json
import logging
import pathlib
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping

import filelock
import numpy as np

from jxfer.ablate import cells
from jxfer.ablate.cells import Job, Record, Role, Search, key_of, with_shared_cache
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.experiment import Choice, Experiment, Setting
from jxfer.errors import UserError
from jxfer.train import loop, run_folder

ATTEMPTS = 2
"""Processes that may die of a cell before it counts as failed."""


class Sweep:
    """An experiment and the folder of its runs."""

    def __init__(self, experiment: Experiment, folder: pathlib.Path) -> None:
        self.experiment = experiment
        self.cells = folder / "cells"

    def records(self) -> dict[str, Record]:
        """What is on disk, by key.

        Raises:
          UserError: a record is damaged.
        """
        files = sorted(self.cells.glob("*.json")) if self.cells.is_dir() else []
        return {file.stem: cells.read(file) for file in files}

    def retry(self) -> None:
        """Forgets failures, and how often a process died of a cell."""
        for key, record in self.records().items():
            if record.status != "finished":
                (self.cells / f"{key}.json").unlink(missing_ok=True)

    def jobs(self, records: Mapping[str, Record]) -> list[Job]:
        """All that are known by now: searches, and tables whose search is over.

        In the order of settings, arms and seeds, so that those of one compiled program stand side
        by side; each after the cells that it starts from.
        """
        found: dict[tuple[str, Role, str, str], Job] = {}
        for setting in self.experiment.settings:
            for arm in self.experiment.arms:
                for job in self._arm(setting, arm, records):
                    found.setdefault((job.key, job.role, job.setting, job.arm), job)
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
        return record.status == "failed" or job.role != "table" or not self._missing(record)

    def run(self, job: Job) -> Record | None:
        """Runs a job in this process, unless another one does, or it has to wait.

        What it says goes to its log. An exception makes it a failed one, with the traceback there.

        Returns:
          Its record, or None where nothing was done.
        """
        self.cells.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(filelock.FileLock(self.cells / f"{job.key}.lock", timeout=0))
            except filelock.Timeout:
                return None
            # Read again: it may have ended between the list and the lock.
            before = self._read(job.key)
            if before and self.is_over(job, {job.key: before}):
                return None
            if (obstacle := self._obstacle(job, before)) == "":
                return None
            if obstacle is not None:
                return self._write(job.key, Record("failed", error=obstacle))
            attempts = before.attempts + 1 if before and before.status == "running" else 1
            if before is None or before.status == "running":
                self._write(job.key, Record("running", attempts))
            try:
                with _logged(self.cells / f"{job.key}.log", job):
                    record = self._run(job, before)
            except Exception as error:
                record = Record("failed", attempts, error=_one_line(error))
            return self._write(job.key, record)

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
            values = [record.val_accuracy for record in found if record and not record.error]
            whole = [value for value in values if value is not None]
            accuracies.append((choice, float(np.mean(whole)) if len(whole) == len(made) else None))
        chosen = None
        if all(self.is_over(job, records) for job in jobs):
            known = [pair for pair in accuracies if pair[1] is not None]
            chosen = max(known, key=lambda pair: pair[1] or 0.0)[0] if known else None
        return Search(setting.name, arm, tuple(accuracies), chosen), jobs

    def _with_sources(
        self, role: Role, setting: Setting, arm: str, choice: Choice, seed: int
    ) -> Iterator[Job]:
        """The cells that a cell starts from, first of all first, then the cell."""
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

    def _obstacle(self, job: Job, before: Record | None) -> str | None:
        """Why a job cannot run; "" where it has to wait for another one."""
        if job.cell.after is not None:
            source = self._read(key_of(job.cell.after))
            if source is None or source.status == "running":
                return ""
            if source.status == "failed":
                return f"the run that it starts from failed: {source.error}"
        if before and before.status == "running" and before.attempts >= ATTEMPTS:
            return f"{before.attempts} processes died of it; see its log"
        return None

    def _run(self, job: Job, before: Record | None) -> Record:
        folder = self.cells / job.key
        config = with_shared_cache(job.cell.config)
        if job.cell.after is not None:
            weights = str(self.cells / key_of(job.cell.after))
            config = dataclasses.replace(
                config, model=dataclasses.replace(config.model, weights=weights)
            )
        summary = run_folder.read_summary(folder) or loop.run_config(config, folder)
        timing = json.loads((folder / "timing.json").read_text())
        measures = dict(before.measures) if before and before.status == "finished" else {}
        if job.role == "table":
            if summary["test_accuracy"] is None:
                raise UserError("its data have no test split, so it cannot stand in a table")
            measures[ACCURACY] = 100 * summary["test_accuracy"]
            for name, measure in self.experiment.measures.items():
                if name not in measures:
                    measures[name] = measure(folder)
        return Record(
            "finished",
            measures=measures,
            val_accuracy=summary["val_accuracy"],
            test_correct=summary["test_correct"],
            test_examples=summary["test_examples"],
            seconds=timing["seconds"]["total"],
            commit=summary["commit"],
        )

    def _missing(self, record: Record) -> set[str]:
        return {ACCURACY, *self.experiment.measures} - set(record.measures)

    def _read(self, key: str) -> Record | None:
        file = self.cells / f"{key}.json"
        return cells.read(file) if file.exists() else None

    def _write(self, key: str, record: Record) -> Record:
        run_folder.write_json(self.cells / f"{key}.json", dataclasses.asdict(record))
        return record


def _one_line(error: Exception) -> str:
    told = " ".join(str(error).split())
    return told if isinstance(error, UserError) else f"{type(error).__name__}: {told[:300]}"


@contextlib.contextmanager
def _logged(file: pathlib.Path, job: Job) -> Iterator[None]:
    """Sends to a file what a run says, start-up table and traceback included."""
    log = logging.getLogger("jxfer")
    with file.open("a") as stream, contextlib.redirect_stderr(stream):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("jxfer: %(message)s"))
        handlers, log.handlers = log.handlers, [handler]
        try:
            _say(f"{job.setting} | {job.arm} | {dict(job.choice)} | seed {job.seed}, {job.role}")
            yield
            _say("finished")
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            log.handlers = handlers


def _say(text: str) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    print(f"{now} {socket.gethostname()}: {text}", file=sys.stderr)
