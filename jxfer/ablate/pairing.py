"""From cells to the numbers of a claim: one for each seed that all of its cells have.

Before `claims` in the flow. A cell here is {seed: value} of one arm's measure in one setting.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Cell = Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Paired:
    """What a claim is judged by."""

    numbers: npt.NDArray[np.float64]
    """[seeds], differences or slopes, in the order of the seeds"""
    missing: int
    """seeds that only some of the cells have"""


def differences(left: Sequence[Cell], right: Sequence[Cell]) -> Paired:
    """Left minus right by seed: the mean over the settings, of which each side has a cell."""
    grid, missing = _grid([*left, *right])
    gaps = (grid[: len(left)] - grid[len(left) :]).mean(axis=0)
    return Paired(_cleaned(gaps, grid), missing)


def slopes(x: Sequence[float], cells: Sequence[Cell]) -> Paired:
    """Slope of the line of least squares through (x, value), by seed; not all x are one."""
    grid, missing = _grid(cells)
    centred = np.asarray(x, float) - np.mean(x)
    found = centred @ grid / (centred @ centred)
    return Paired(_cleaned(found, grid / np.ptp(x)), missing)


def _grid(cells: Sequence[Cell]) -> tuple[npt.NDArray[np.float64], int]:
    """The values [cells, seeds] of the seeds that all cells have, and how many seeds miss.

    A value that is not finite, as of a run that diverged, is missing.
    """
    finite = [{seed for seed, value in cell.items() if math.isfinite(value)} for cell in cells]
    seeds = sorted(set.intersection(*finite))
    missing = len(set[int]().union(*cells)) - len(seeds)
    return np.array([[cell[seed] for seed in seeds] for cell in cells], float), missing


def _cleaned(
    numbers: npt.NDArray[np.float64], grid: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Zero where a number is only rounding error of the values behind it: no test shall see it."""
    return np.where(np.abs(numbers) < 1e-12 * np.abs(grid).max(initial=0.0), 0.0, numbers)
