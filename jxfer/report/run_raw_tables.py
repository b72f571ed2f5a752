"""The figures of a single run as raw rows for CSV, the header first: nothing is rounded.

After `run_tables` in the flow.
"""

from collections.abc import Sequence

import numpy as np

from jxfer.report.diagnostics import Bin, ClassFigures, Mistake, Rate
from jxfer.report.run_results import RunResults

Rows = list[list[str | float | None]]


def per_class(names: Sequence[str], figures: Sequence[ClassFigures]) -> Rows:
    """A row for each class; what cannot be told is empty."""
    rows: Rows = [["class", *_head("accuracy"), *_head("precision"), *_head("f1")]]
    for name, one in zip(names, figures, strict=True):
        rows.append([name, *_cells(one.accuracy), *_cells(one.precision), *_cells(one.f1)])
    return rows


def confusion(names: Sequence[str], matrix: np.ndarray) -> Rows:
    """A row for each actual class, a column for each predicted one."""
    rows: Rows = [["actual class", *names]]
    rows += ([name, *map(int, row)] for name, row in zip(names, matrix, strict=True))
    return rows


def bins(found: Sequence[Bin]) -> Rows:
    """A row for each bin of the reliability diagram that is not empty."""
    rows: Rows = [["above", "at most", "confidence", *_head("accuracy")]]
    return rows + [[one.left, one.right, one.confidence, *_cells(one.accuracy)] for one in found]


def mistakes(run: RunResults, found: Sequence[Mistake]) -> Rows:
    """A row for each of the most confident mistakes."""
    names = run.card.class_names
    rows: Rows = [["index", "image", "actual class", "predicted class", "confidence"]]
    for one in found:
        classes = (names[one.actual], names[one.predicted])
        rows.append([one.index, run.source.name(one.index), *classes, one.confidence])
    return rows


def _head(name: str) -> tuple[str, ...]:
    return (name, f"{name}_low", f"{name}_high", f"{name}_n")


def _cells(rate: Rate | None) -> tuple[float | None, ...]:
    return (None, None, None, 0) if rate is None else (rate.value, rate.low, rate.high, rate.n)
