"""The charts of a sweep's report, from its results.

After `chart` and `sweep_tables`, before `sweep`, which shows them on its page and as figures.
"""

import itertools
import math
import re
from collections.abc import Sequence

from jxfer.report.chart import Chart, Line
from jxfer.report.results import Results, Setting
from jxfer.report.sweep_tables import heading, label

LOG_FROM = 30
"""The axis is logarithmic where the largest x is so many times the smallest."""
_CAPTION = "Bars: the 95 % intervals of the table."


def charts(results: Results, measure: str) -> list[Chart]:
    """A curve for each arm wherever settings lie on the axis; dots by setting for the others.

    Where x does not grow from a setting to the next, another chart begins. None where no run has
    the measure.
    """
    shown = label(measure)
    groups = [group for group in _along_the_axis(results.settings) if len(group) > 1]
    made = []
    for group in groups:
        xs = [x for setting in group if (x := setting.x) is not None]
        lines = _lines(results, measure, group, xs)
        if lines:
            title = f"{heading(measure)}, by {results.axis}"
            if len(groups) > 1:
                title += f": {_shared_name(group)}"
            log_x = xs[0] > 0 and xs[-1] >= LOG_FROM * xs[0]
            made.append(Chart(title, results.axis, shown, lines, _CAPTION, log_x))
    if sum(map(len, groups)) < len(results.settings):
        names = [setting.name for setting in results.settings]
        lines = _lines(results, measure, results.settings, range(len(names)))
        if lines:
            made.append(
                Chart(f"{heading(measure)}, by setting", "", shown, lines, _CAPTION, names=names)
            )
    return made


def _along_the_axis(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Runs of neighbours whose x grows."""
    groups: list[list[Setting]] = []
    last: float | None = None
    for setting in settings:
        if setting.x is not None:
            if last is None or setting.x <= last:
                groups.append([])
            groups[-1].append(setting)
        last = setting.x
    return groups


def _shared_name(group: Sequence[Setting]) -> str:
    """How the names of the settings begin, without a separator or number at the end."""
    letters = zip(*(setting.name for setting in group), strict=False)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, letters)
    shared = "".join(column[0] for column in same)
    whole = re.sub(r"[\s,:;=/(_-]+[\d.]*$", "", shared)
    return whole or f"{group[0].name} to {group[-1].name}"


def _lines(
    results: Results, measure: str, settings: Sequence[Setting], xs: Sequence[float]
) -> list[Line]:
    """One for each arm that has a figure; NaN bounds where it has no interval."""
    lines = []
    for arm in results.arms:
        found = [
            (x, one)
            for x, setting in zip(xs, settings, strict=True)
            if (one := results.summary(setting.name, arm, measure))
        ]
        if found:
            ends = [one.interval or (math.nan, math.nan) for _, one in found]
            lines.append(
                Line(
                    arm,
                    [x for x, _ in found],
                    [one.mean for _, one in found],
                    [low for low, _ in ends],
                    [high for _, high in ends],
                )
            )
    return lines
