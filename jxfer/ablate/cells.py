"""The cells of a sweep: what each is, what is known of it, and which key it goes by.

After `experiment` in the flow.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any, Literal

from jxfer import disk, sealed
from jxfer.ablate.experiment import Cell, Choice
from jxfer.errors import UserError
from jxfer.json_fields import ADDED, decode, parse
from jxfer.train import config as configs
from jxfer.train.config import TrainConfig

Role = Literal["table", "tuning", "source"]


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell and its place in the experiment."""

    cell: Cell
    role: Role
    setting: str
    arm: str
    choice: Choice
    seed: int

    @property
    def heading(self) -> str:
        """For its log."""
        place = f"{self.setting} | {self.arm} | {dict(self.choice)} | seed {self.seed}"
        return f"{place}, {self.role}"

    @functools.cached_property
    def key(self) -> str:
        return key_of(self.cell)


BY_ACCURACY = "validation accuracy"


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of a cell."""

    status: Literal["running", "finished", "failed"]
    """Of the run itself."""
    attempts: int = 0
    """Processes that have begun to work on it, and neither came to an end nor were interrupted."""
    error: str | None = None
    """Why the run failed, in one line."""
    measures: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """Of a finished run that stands in the table."""
    failed_measures: dict[str, str] = dataclasses.field(default_factory=dict)
    """Why a measure failed, in one line."""
    val_accuracy: float | None = None
    score: float | None = None
    """What a search chooses by: that accuracy, or in a run that adapts its own score; None where
    the run has none that is finite."""
    test_correct: int | None = None
    test_examples: int | None = None
    seconds: float | None = None
    commit: str | None = None
    diverged: bool = dataclasses.field(default=False, metadata=ADDED)
    """Whether a run that adapts says so of itself."""


@dataclasses.dataclass(frozen=True)
class Search:
    """The choice of an arm's hyper-parameters in a setting."""

    setting: str
    arm: str
    accuracies: tuple[tuple[Choice, float | None], ...]
    """Mean validation accuracy of each choice, or mean score of runs that adapt; None where a run
    of it failed or is still to come. Empty where there is nothing to choose."""
    chosen: Choice | None
    """None while runs are to come, or where all choices failed."""
    by: str = BY_ACCURACY
    """What the figures of the choices are means of."""


def key_of(cell: Cell) -> str:
    """12 hexadecimal digits."""
    config = configs.to_dict(with_shared_cache(cell.config))
    value = {"config": config, "after": key_of(cell.after) if cell.after else None}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def with_shared_cache(config: TrainConfig) -> TrainConfig:
    """A frozen prefix is computed once for all cells that have it, wherever they run."""
    if config.cache.mode != "auto":
        return config
    return dataclasses.replace(config, cache=dataclasses.replace(config.cache, mode="shared"))


def read(file: pathlib.Path) -> Record | None:
    """A record; None where there is none.

    Raises:
      UserError: it is damaged.
    """
    try:
        value = parse(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{file}: not valid JSON; delete it to run the cell again") from None
    record = decode(Record, sealed.bare(value), str(file))
    sealed.unseal(value, str(file))
    return record


def write(file: pathlib.Path, record: Record) -> None:
    """Inverse of `read`."""
    disk.write_json(file, sealed.seal(dataclasses.asdict(record)))


def unique(jobs: Iterable[Job]) -> list[Job]:
    """One job for each key; that of a table, which also takes measures, before others."""
    found: dict[str, Job] = {}
    for job in jobs:
        if job.key not in found or job.role == "table":
            found[job.key] = job
    return list(found.values())


def error_of(record: Record) -> str | None:
    """Why a run, or a measure of it, failed."""
    if record.error is not None:
        return record.error
    return "; ".join(f"{name}: {why}" for name, why in record.failed_measures.items()) or None


def as_json(search: Search) -> dict[str, Any]:
    """As `results.json` has it."""
    return {
        "setting": search.setting,
        "arm": search.arm,
        "chosen": None if search.chosen is None else dict(search.chosen),
        "validation": [
            {"choice": dict(choice), "accuracy": accuracy} for choice, accuracy in search.accuracies
        ],
        "by": search.by,
    }
