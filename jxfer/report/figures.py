"""Figures for papers: SVG, PNG and PDF of the charts of a page.

After `chart` in the flow. Colours are blind-safe, each curve has a marker of its own, and intervals
are drawn. The same chart gives the same bytes.
"""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

from jxfer import disk
from jxfer.report.chart import COLOURS, MOST_POINTS, Chart, Line, log_ticks

MARKERS = ("o", "s", "^", "D", "v", "X", "P", "h")
"""In the order of `chart.SHAPES`."""
_METADATA: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def draw(chart: Chart) -> Any:
    """A matplotlib `Figure`: curves with error bars over x, or dots beside the names of places."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(chart.names) * len(chart.lines)
    figure = Figure(figsize=(7, max(2.5, 1 + 0.18 * rows) if rows else 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if chart.names:
        _dots(axes, chart)
    else:
        _curves(axes, chart)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.lines) > 1:
        handles: list[Any] = list(axes.containers)
        names = [plain(line.name) for line in chart.lines]
        figure.legend(handles, names, loc="outside right upper")
    return figure


def save(figure: Any, stem: pathlib.Path) -> list[pathlib.Path]:
    """Writes `STEM.svg`, `STEM.png` and `STEM.pdf`, without dates or random names in them.

    Raises:
      DiskError: a file cannot be written.
    """
    import matplotlib

    files = []
    with matplotlib.rc_context({"svg.hashsalt": "jxfer", "pdf.fonttype": 42}):
        for kind, metadata in _METADATA.items():
            file = stem.with_name(f"{stem.name}.{kind}")
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=150, metadata=metadata)
            disk.replace(file, content.getvalue())
            files.append(file)
    return files


def _curves(axes: Any, chart: Chart) -> None:
    xs = [x for line in chart.lines for x in line.x]
    low, high = min(xs), max(xs)
    # Side by side, so that no interval hides another: this part of the axis from line to line.
    step = 0.006 if any(any(line.intervals) for line in chart.lines) else 0.0
    for i, line in enumerate(chart.lines):
        aside = step * (i - (len(chart.lines) - 1) / 2)
        if chart.log_x:
            places = [x * (high / low) ** aside for x in line.x]
        else:
            places = [x + (high - low) * aside for x in line.x]
        axes.errorbar(places, line.y, yerr=_bars(line), **_style(i, len(line.x)))
    if chart.log_x:
        axes.set_xscale("log")
        ticks = log_ticks(low, high)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    axes.set(xlabel=plain(chart.x_label), ylabel=plain(chart.y_label))
    for x, name in chart.marks:
        axes.axvline(x, color="0.6", linestyle=":", linewidth=1)
        frame = axes.get_xaxis_transform()  # x of the data, y of the frame
        axes.text(x, 1.01, plain(name), transform=frame, color="0.4", fontsize=8)


def _dots(axes: Any, chart: Chart) -> None:
    """Places from top to bottom, and in each its lines in their order."""
    step = 0.8 / len(chart.lines)
    for i, line in enumerate(chart.lines):
        aside = step * (i - (len(chart.lines) - 1) / 2)
        style = {**_style(i, 1), "linestyle": "none"}
        axes.errorbar(line.y, [x + aside for x in line.x], xerr=_bars(line), **style)
    axes.set_yticks(range(len(chart.names)), [plain(name) for name in chart.names])
    axes.set_ylim(len(chart.names) - 0.5, -0.5)
    axes.set_xlabel(plain(chart.y_label))


def _style(index: int, points: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)] if points <= MOST_POINTS else None,
        "markersize": 5,
        "capsize": 2.5,
        "linewidth": 1.3,
    }


def _bars(line: Line) -> list[Sequence[float]] | None:
    """Lengths of the error bars, [below, above]."""
    if line.low is None or line.high is None:
        return None
    return [
        [y - low for y, low in zip(line.y, line.low, strict=True)],
        [high - y for y, high in zip(line.y, line.high, strict=True)],
    ]


def plain(name: str) -> str:
    """Nothing in it is mathematics or unprintable; a legend leaves out what begins with "_"."""
    shown = "".join(letter if letter.isprintable() else " " for letter in name)
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")
