"""Which cells an experiment has, by what is known of them: its searches, then its tables.

After `cells` in the flow; pure. The hyper-parameters that are chosen, and with them the cells that
are left, follow from the records, for every process alike.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping

import numpy as np

from jxfer.ablate.cells import BY_ACCURACY, Job, Record, Role, Search
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.experiment import Choice, Experiment, Setting
from jxfer.errors import UserError


class Grid:
    """The cells of an experiment."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._chains: dict[str, list[Job]] = {}

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
        return record.status == "failed" or not self.missing(job, record)

    def missing(self, job: Job, record: Record) -> list[str]:
        """Measures that a job is to have and that were not tried yet."""
        if job.role != "table":
            return []
        known = {*record.measures, *record.failed_measures}
        return [name for name in (ACCURACY, *self.experiment.measures) if name not in known]

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
