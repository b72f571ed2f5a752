"""Curves as inline SVG: where each point, tick and label stands.

Pure: `draw` turns a `Chart` into coordinates, which the page's template writes down.
"""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676")
"""Okabe and Ito's colour-blind-safe palette. Grey stands for black, so that a dark page shows it;
yellow is left out, since a white one does not."""
SHAPES = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "m-3.5-3.5h7v7h-7z",
    "m0-5l4.5 8h-9z",
    "m0-5l5 5l-5 5l-5-5z",
    "m0 5l4.5-8h-9z",
    "m-4-4l8 8m0-8l-8 8",
    "m0-5v10m-5-5h10",
    "m-2-5h4l3 5l-3 5h-4l-3-5z",
)
"""Of a point, as an SVG path from its centre: circle, square, triangles, diamond, crosses, hexagon.
Their number and that of the colours have no common factor: a pair returns after 56 lines."""
WIDTH, HEIGHT = 640.0, 340.0
LEFT, RIGHT, TOP = 64.0, 16.0, 12.0
_LINE = 16.0  # of text
MOST_POINTS = 60
"""Of a line that are drawn as points too."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve.

    Raises:
      ValueError: columns of unequal length, one bound without the other, or a point that is not
        finite.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    """Lower ends of the intervals of y; NaN where a point has none."""
    high: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.name}: an interval has two ends")
        columns = [column for column in (self.x, self.y, self.low, self.high) if column is not None]
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"{self.name}: columns of unequal length")
        if not all(math.isfinite(value) for column in (self.x, self.y) for value in column):
            raise ValueError(f"{self.name}: a point that is not finite")

    @property
    def intervals(self) -> list[tuple[float, float] | None]:
        """Of each point."""
        if self.low is None or self.high is None:
            return [None] * len(self.y)
        pairs = zip(self.low, self.high, strict=True)
        return [pair if math.isfinite(pair[1] - pair[0]) else None for pair in pairs]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves over one axis; the page shows the values under the pointer."""

    heading: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    caption: str = ""
    log_x: bool = False
    names: Sequence[str] = ()
    """Of the places x = 0, 1, ...: points of one place are then set side by side and not joined."""
    marks: Sequence[tuple[float, str]] = ()
    """Places on the axis with their names, between points, such as where a phase begins."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line in the coordinates of the drawing; the strings are SVG paths."""

    name: str
    colour: int
    """Its index into `COLOURS`."""
    shape: str
    joined: str
    bars: str
    points: str


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A chart in coordinates: x to the right, y down."""

    width: float
    height: float
    right: float
    """Where the plot ends; it begins at `LEFT`."""
    bottom: float
    """Where the plot ends; it begins at `TOP`."""
    x_ticks: tuple[tuple[float, tuple[str, ...]], ...]
    """Places, and the lines of their labels."""
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str], ...]
    """Places, and names."""
    curves: tuple[Curve, ...]
    stops: tuple[dict[str, Any], ...]
    """For every x from left to right: `at`, its place, and `text`, lines that tell its values."""


def draw(chart: Chart) -> Drawing:
    """Lays a chart out.

    Raises:
      ValueError: no line has a point, or a logarithmic axis has one at or below zero.
    """
    xs = sorted({float(value) for line in chart.lines for value in line.x})
    if not xs:
        raise ValueError(f"{chart.heading}: no point to draw")
    ys = [float(value) for line in chart.lines for value in line.y]
    ys += [end for line in chart.lines for pair in line.intervals if pair for end in pair]
    labels = [tuple(textwrap.wrap(name, 14)) or ("",) for name in chart.names]
    slot = 8.0 * max((len(part) for label in labels for part in label), default=0) + 12
    width = max(WIDTH, LEFT + RIGHT + slot * len(labels))
    rows = max(map(len, labels), default=1)
    height = HEIGHT + _LINE * (rows - 1)
    right, bottom = width - RIGHT, height - _LINE * (rows + (2 if chart.x_label else 1))

    y_values = _linear_ticks(min(ys), max(ys))
    place_y = _scale(min(*ys, y_values[0]), max(*ys, y_values[-1]), bottom, TOP)
    if chart.names:
        place_x = _scale(-0.5, len(labels) - 0.5, LEFT, right)
        x_ticks = tuple((place_x(i), label) for i, label in enumerate(labels))
    else:
        places = [*xs, *(x for x, _ in chart.marks)]
        ends = min(places), max(places)
        values = log_ticks(*ends) if chart.log_x else _linear_ticks(*ends)
        of_axis: Callable[[float], float] = math.log10 if chart.log_x else float
        low, high = min(ends[0], values[0]), max(ends[1], values[-1])
        place = _scale(of_axis(low), of_axis(high), LEFT + 16, right - 16)

        def place_x(value: float) -> float:
            return place(of_axis(value))

        x_ticks = tuple((place_x(value), (f"{value:g}",)) for value in values)

    # Side by side, so that no interval hides another.
    step = 4.0 if any(any(line.intervals) for line in chart.lines) else 0.0
    if chart.names:
        step = min(12.0, 0.8 * (right - LEFT) / len(labels) / len(chart.lines))
    curves = []
    for i, line in enumerate(chart.lines):
        aside = step * (i - (len(chart.lines) - 1) / 2)
        curves.append(_curve(line, i, aside, place_x, place_y, chart))
    stops = tuple({"at": _short(place_x(x)), "text": _told(chart, x)} for x in xs)
    y_ticks = tuple((place_y(value), f"{value:g}") for value in y_values)
    marks = tuple((place_x(x), name) for x, name in chart.marks)
    return Drawing(width, height, right, bottom, x_ticks, y_ticks, marks, tuple(curves), stops)


def _curve(
    line: Line,
    index: int,
    aside: float,
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
    chart: Chart,
) -> Curve:
    at = [
        f"{_short(place_x(x) + aside)} {_short(place_y(y))}"
        for x, y in zip(line.x, line.y, strict=True)
    ]
    bars = ""
    for x, pair in zip(line.x, line.intervals, strict=True):
        if pair is not None:
            px, low, high = (
                _short(place_x(x) + aside),
                _short(place_y(pair[0])),
                _short(place_y(pair[1])),
            )
            bars += f"M{px} {low}V{high}m-4 0h8M{px} {low}m-4 0h8"
    shape = SHAPES[index % len(SHAPES)]
    return Curve(
        name=line.name,
        colour=index % len(COLOURS),
        shape=shape,
        joined="" if chart.names or len(at) < 2 else "M" + "L".join(at),
        bars=bars,
        points="".join(f"M{point}{shape}" for point in at) if len(at) <= MOST_POINTS else "",
    )


def _told(chart: Chart, x: float) -> list[str]:
    """What a reader is shown at x: the place, then a line for each curve that has a point there."""
    told = [chart.names[int(x)] if chart.names else f"{chart.x_label} {x:g}".strip()]
    for line in chart.lines:
        for place, y, pair in zip(line.x, line.y, line.intervals, strict=True):
            if place == x:
                interval = f" ({pair[0]:.4g} to {pair[1]:.4g})" if pair else ""
                told.append(f"{line.name}: {y:.4g}{interval}")
    return told


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The affine map of [low, high] to [start, end]; a single value lies in the middle."""
    if low == high:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _linear_ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    if low == high:
        return [low]
    return [
        float(value) for value in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    ]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... up to two decades, then powers of ten; the first is at or below `low`."""
    if low <= 0:
        raise ValueError(f"{low:g} has no place on a logarithmic axis")
    steps = (1, 2, 5) if high <= 100 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    first = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
    last = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
    return ticks[first : last + 1]


def _short(value: float) -> float:
    """A tenth of a pixel is enough, and keeps pages small."""
    return round(value, 1)
