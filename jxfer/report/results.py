"""A finished sweep as `results.json` tells it: its cells, and the intervals of each arm.

After `ablate.claims` in the flow.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any, Literal

import numpy as np

from jxfer import sealed, statistics
from jxfer.ablate import pairing
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.verdicts import Verdict
from jxfer.errors import UserError
from jxfer.json_fields import ADDED, decode, parse

Choice = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A block of the table."""

    name: str
    x: float | None


@dataclasses.dataclass(frozen=True)
class Tried:
    """A choice of hyper-parameters, and how it did in the search."""

    choice: Choice
    accuracy: float | None
    """Mean validation accuracy over the tuning seeds, in [0, 1]; None where a run failed."""


@dataclasses.dataclass(frozen=True)
class Search:
    """The search of an arm's hyper-parameters in a setting."""

    setting: str
    arm: str
    chosen: Choice | None
    validation: tuple[Tried, ...]
    """Empty where there was nothing to choose."""
    by: str = dataclasses.field(default="validation accuracy", metadata=ADDED)
    """What its figures are means of."""

    def at_an_end(self, name: str) -> bool:
        """Whether the chosen number is the smallest or largest that was tried."""
        tried: list[Any] = [one.choice.get(name) for one in self.validation]
        if self.chosen is None or not all(map(_is_number, tried)) or len(set(tried)) < 2:
            return False
        return self.chosen[name] in (min(tried), max(tried))


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run. One that has not finished has only what comes first."""

    key: str
    role: Literal["table", "tuning", "source"]
    setting: str
    arm: str
    seed: int
    choice: Choice
    status: Literal["finished", "failed", "missing"]
    error: str | None
    measures: dict[str, Any] = dataclasses.field(default_factory=dict, metadata=ADDED)
    """Numbers; None where one is not defined."""
    val_accuracy: float | None = dataclasses.field(default=None, metadata=ADDED)
    score: float | None = dataclasses.field(default=None, metadata=ADDED)
    test_correct: int | None = dataclasses.field(default=None, metadata=ADDED)
    test_examples: int | None = dataclasses.field(default=None, metadata=ADDED)
    seconds: float | None = dataclasses.field(default=None, metadata=ADDED)
    commit: str | None = dataclasses.field(default=None, metadata=ADDED)
    diverged: bool = dataclasses.field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        for name, value in self.measures.items():
            if value is not None and not _is_number(value):
                raise UserError(f"cell {self.key}: {name} must be a number, not {value!r}")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the runs of an arm in a setting say of a measure."""

    values: dict[int, float]
    """Of each seed; at least one."""
    mean: float
    t: tuple[float, float] | None
    """95 % intervals of the mean; None of a single run."""
    bootstrap: tuple[float, float] | None
    wilson: tuple[float, float] | None
    """Of a single run's test accuracy, in percent: for the test images, not for other seeds."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The one that tables and figures show."""
        return self.t or self.wilson


@dataclasses.dataclass(frozen=True)
class Results:
    """`results.json`, as `jxfer ablate` writes it."""

    name: str
    file: str
    doc: str
    title: str
    axis: str
    note: str
    small: bool
    command: str
    commits: tuple[str, ...]
    versions: dict[str, Any]
    settings: tuple[Setting, ...]
    arms: tuple[str, ...]
    measures: tuple[str, ...]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    budget: int
    choices: tuple[Search, ...]
    cells: tuple[Cell, ...]
    claims: tuple[Verdict, ...]

    def __post_init__(self) -> None:
        settings = {setting.name for setting in self.settings}
        for cell in self.cells:
            if cell.setting not in settings or cell.arm not in self.arms:
                place = f"{cell.arm} in {cell.setting}"
                raise UserError(f"cell {cell.key} is of {place}, which the table does not have")

    def summary(self, setting: str, arm: str, measure: str) -> Summary | None:
        """Of the runs of the table that finished; None where none has the measure."""
        return self._summaries.get((setting, arm, measure))

    @functools.cached_property
    def _summaries(self) -> dict[tuple[str, str, str], Summary]:
        runs: dict[tuple[str, str, str], dict[int, Cell]] = {}
        for cell in self.cells:
            if cell.role == "table" and cell.status == "finished":
                for measure, value in cell.measures.items():
                    if value is not None and math.isfinite(value):
                        place = cell.setting, cell.arm, measure
                        runs.setdefault(place, {})[cell.seed] = cell
        return {place: _summarise(found, place[-1]) for place, found in runs.items()}

    def not_shown_worse(self, setting: str, measure: str) -> set[str]:
        """The arm with the highest mean, and those that the seeds do not tell from it.

        An arm stays out if the paired 95 % t-interval of its difference to the best, on the seeds
        that both have, lies below zero. Arms with a single run, or with fewer than two seeds in
        common with the best, cannot be compared and stay out too; so does an arm that is alone.
        """
        found = {arm: self.summary(setting, arm, measure) for arm in self.arms}
        values = {arm: one.values for arm, one in found.items() if one and len(one.values) > 1}
        if len(values) < 2:
            return set()
        best = max(values, key=lambda arm: float(np.mean(list(values[arm].values()))))
        kept = {best}
        for arm, mine in values.items():
            paired = pairing.differences([mine], [values[best]]).numbers
            if arm != best and len(paired) > 1 and statistics.t_interval(paired)[1] >= 0:
                kept.add(arm)
        return kept


def _summarise(runs: dict[int, Cell], measure: str) -> Summary:
    values = {seed: float(runs[seed].measures[measure]) for seed in sorted(runs)}
    numbers = list(values.values())
    several = len(numbers) > 1
    (first, *_) = runs.values()
    wilson = None
    if not several and measure == ACCURACY and first.test_correct is not None:
        low, high = statistics.wilson_interval(first.test_correct, first.test_examples or 0)
        wilson = 100 * low, 100 * high
    return Summary(
        values=values,
        mean=float(np.mean(numbers)),
        t=statistics.t_interval(numbers) if several else None,
        bootstrap=statistics.bootstrap_interval(numbers) if several else None,
        wilson=wilson,
    )


def read(out: pathlib.Path) -> Results:
    """Reads `OUT/results.json`.

    Raises:
      UserError: there is none, or it is not what `jxfer ablate` writes.
    """
    file = out / "results.json"
    try:
        value = parse(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}); jxfer ablate writes it"
        ) from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); jxfer ablate writes it anew") from None
    found = decode(Results, sealed.bare(value), str(file))
    sealed.unseal(value, str(file))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
