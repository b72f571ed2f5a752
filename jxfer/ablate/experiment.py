"""What an experiment file declares: a grid of configs x seeds, and the claims that it puts to test.

After `claims` in the flow. The file has a docstring (claim, paper, expected shape, command, time)
and a function `experiment(small: bool = False) -> Experiment`; `load` reads it.
"""

import dataclasses
import importlib.util
import math
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jxfer.ablate.claims import ACCURACY, Claim
from jxfer.errors import UserError
from jxfer.train.config import TrainConfig

PARENT = "PARENT"
"""As `config.model.weights`: the model of the cell before."""

Choice = Mapping[str, Any]
"""Hyper-parameters by name, such as `{"lr": 0.1}`; JSON values."""
Measure = Callable[[pathlib.Path], float | None]
"""Of a finished run's folder; None where it is not defined."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    config: TrainConfig
    after: "Cell | None" = None
    """The run whose best model this one starts from; it takes the place of `PARENT`."""

    def __post_init__(self) -> None:
        if (self.config.model.weights == PARENT) != (self.after is not None):
            raise UserError(f"a cell starts from {PARENT} exactly if it comes after another cell")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A block of the table; arms are compared within one."""

    name: str
    x: float | None = None
    """Its place on the axis of the figure, and for claims about trends."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table: arms side by side in each setting, every arm at every seed.

    Raises:
      UserError: two settings or arms of one name; seeds that occur twice; an unequal budget of
        search; a search without seeds of its own; a measure named as the accuracy.
    """

    title: str
    settings: tuple[Setting, ...]
    arms: tuple[str, ...]
    cell: Callable[[Setting, str, Choice, int], TrainConfig | Cell | None]
    """(setting, arm, hyper-parameters, seed) -> the run; None where the setting has no such arm. A
    seed is shared by the arms, so that differences are paired: it should draw the same images and
    order in each."""
    seeds: tuple[int, ...]
    choices: Mapping[str, tuple[Choice, ...]]
    """Hyper-parameters to choose from, for each arm. All arms have equally many, so that none is
    better only because it was tuned more."""
    tuning_seeds: tuple[int, ...] = ()
    """Of the search, never those of the table. The choice with the best mean validation accuracy
    over them is taken, the first of equals."""
    tune_in: Callable[[Setting], Setting] | None = None
    """The setting whose search a setting shares; each has its own unless given."""
    claims: tuple[Claim, ...] = ()
    measures: Mapping[str, Measure] = dataclasses.field(default_factory=dict)
    """Figures of each run beside its test accuracy."""
    axis: str = ""
    """What the settings' `x` is; "" where they have none."""
    note: str = ""
    """For the caption: what was cut, and why."""

    def __post_init__(self) -> None:
        names = [setting.name for setting in self.settings]
        for what, values in (
            ("settings", names),
            ("arms", self.arms),
            ("seeds", self.seeds),
            ("tuning seeds", self.tuning_seeds),
        ):
            if len(set(values)) != len(values):
                raise UserError(
                    f"{self.title}: two {what} are the same: {', '.join(map(str, values))}"
                )
        if not (self.settings and self.arms and self.seeds):
            raise UserError(f"{self.title}: it needs a setting, an arm and a seed")
        if set(self.choices) != set(self.arms):
            raise UserError(f"{self.title}: choices must name each arm, and nothing else")
        budgets = {arm: len(self.choices[arm]) for arm in self.arms}
        if len(set(budgets.values())) > 1 or not all(budgets.values()):
            told = ", ".join(f"{arm} {n}" for arm, n in budgets.items())
            raise UserError(f"{self.title}: every arm needs the same budget of choices, not {told}")
        if self.budget > 1 and not self.tuning_seeds:
            raise UserError(f"{self.title}: a search needs tuning seeds")
        if shared := set(self.seeds) & set(self.tuning_seeds):
            raise UserError(f"{self.title}: seed {min(shared)} is for the search and for the table")
        for tuned in map(self.tune_in, self.settings) if self.tune_in is not None else ():
            if tuned.name not in names:
                raise UserError(f"{self.title}: tune_in gives {tuned.name!r}, which is no setting")
        if ACCURACY in self.measures:
            raise UserError(f"{self.title}: {ACCURACY} is measured anyway")
        if any(setting.x is not None and not math.isfinite(setting.x) for setting in self.settings):
            raise UserError(f"{self.title}: a place on the axis must be a finite number")

    @property
    def budget(self) -> int:
        """Choices of hyper-parameters that each arm may try."""
        return len(self.choices[self.arms[0]])

    def make(self, setting: Setting, arm: str, choice: Choice, seed: int) -> Cell | None:
        """The cell, or None where the setting has no such arm."""
        made = self.cell(setting, arm, choice, seed)
        return Cell(made) if isinstance(made, TrainConfig) else made


@dataclasses.dataclass(frozen=True)
class File:
    """An experiment and where it was read from."""

    path: pathlib.Path
    small: bool
    doc: str
    experiment: Experiment

    @property
    def name(self) -> str:
        return self.path.stem + ("-small" if self.small else "")


def load(path: pathlib.Path, small: bool = False) -> File:
    """Reads an experiment file. Its folder goes on `sys.path`, as when Python runs it.

    Raises:
      UserError: there is no such file, it declares no experiment, or its data are missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such experiment file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(f"_jxfer_experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: an experiment is a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    declare = getattr(module, "experiment", None)
    if declare is None:
        raise UserError(f"{path}: it has no function experiment(small) -> Experiment")
    return File(path, small, module.__doc__ or "", declare(small=small))
