"""Figures are the same bytes each time, and hold what the chart says."""

import math
import xml.etree.ElementTree as ElementTree

import cv2
import pytest

from jxfer.report import chart, figures
from jxfer.report.chart import Chart, Line

CURVES = Chart(
    "accuracy", "images $n$", "test accuracy, %",
    [
        Line("_full $x", [1, 10, 100], [50.0, 60.0, 70.0], [48.0, 59.0, math.nan],
             [52.0, 61.0, math.nan]),
        Line("probe\x1b\n", [1, 10], [55.0, 57.0]),
    ],
    log_x=True,
)  # fmt: skip
DOTS = Chart(
    "accuracy", "", "test accuracy, %",
    [Line("full", [0, 1], [50.0, 60.0], [48.0, 59.0], [52.0, 61.0]), Line("probe", [1], [55.0])],
    names=["digits", "cifar10"],
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [CURVES, DOTS])
def test_two_writes_give_the_same_bytes(drawn, tmp_path):
    first = figures.save(figures.draw(drawn), tmp_path / "a")
    second = figures.save(figures.draw(drawn), tmp_path / "b")
    assert [file.suffix for file in first] == [".svg", ".png", ".pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    svg, png, pdf = first
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert min(cv2.imread(str(png)).shape[:2]) > 200
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"Date" not in pdf.read_bytes()


def test_the_axes_hold_the_points_and_their_intervals():
    (axes,) = figures.draw(CURVES).axes
    assert axes.get_xscale() == "log"
    full, probe = axes.containers
    assert full.lines[0].get_ydata().tolist() == [50, 60, 70]
    (bars,) = full.lines[2]
    first, second, none = bars.get_segments()
    assert [first[:, 1].tolist(), second[:, 1].tolist()] == [[48, 52], [59, 61]]
    assert len(none) == 0
    assert full.lines[0].get_marker() != probe.lines[0].get_marker()
    assert full.lines[0].get_color() != probe.lines[0].get_color()


@pytest.mark.parametrize("drawn", [CURVES, DOTS])
def test_all_points_are_in_sight_and_next_to_their_places(drawn):
    (axes,) = figures.draw(drawn).axes
    for container, line in zip(axes.containers, drawn.lines, strict=True):
        x, y = container.lines[0].get_data()
        (left, right), (bottom, top) = axes.get_xlim(), sorted(axes.get_ylim())
        assert all(left <= place <= right for place in x)
        assert all(bottom <= place <= top for place in y)
        if drawn is CURVES:
            assert list(x) == pytest.approx(line.x, rel=0.03)


def test_the_legend_names_every_line():
    (legend,) = figures.draw(CURVES).legends
    assert [text.get_text().strip() for text in legend.get_texts()] == [r"_full \$x", "probe"]


def test_dots_stand_beside_their_places():
    (axes,) = figures.draw(DOTS).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["digits", "cifar10"]
    full, probe = axes.containers
    assert full.lines[0].get_xdata().tolist() == [50, 60]
    assert [round(y) for y in full.lines[0].get_ydata()] == [0, 1]
    assert round(float(probe.lines[0].get_ydata()[0])) == 1


def test_a_folder_that_is_not_there_is_one_line(tmp_path, one_line):
    with one_line("nothing"):
        figures.save(figures.draw(DOTS), tmp_path / "nothing" / "a")


def test_places_of_the_drawing_are_affine_in_the_values():
    drawing = chart.draw(CURVES)
    (x1, _), (x10, _), (x100, _) = [(stop["at"], stop) for stop in drawing.stops]
    assert x10 - x1 == pytest.approx(x100 - x10, abs=0.11)
    heights = {float(label): at for at, label in drawing.y_ticks}
    assert heights.keys() >= {50, 60, 70}
    slopes = [(at - heights[50]) / (value - 50) for value, at in heights.items() if value != 50]
    assert slopes == pytest.approx([slopes[0]] * len(slopes))
    assert slopes[0] < 0
    assert drawing.stops[0]["text"] == [
        "images $n$ 1", "_full $x: 50 (48 to 52)", "probe\x1b\n: 55"
    ]  # fmt: skip
    assert drawing.stops[2]["text"] == ["images $n$ 100", "_full $x: 70"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 100, [1, 2, 5, 10, 20, 50, 100]),
        (0.03, 0.3, [0.02, 0.05, 0.1, 0.2, 0.5]),
        (1e-3, 1e3, [1e-3, 1e-2, 0.1, 1, 10, 100, 1e3]),
        (7, 7, [5, 10]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low, high, ticks):
    assert chart.log_ticks(low, high) == pytest.approx(ticks)


def test_lines_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="unequal"):
        Line("a", [1, 2], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        Line("a", [1], [math.nan])
    with pytest.raises(ValueError, match="two ends"):
        Line("a", [1], [1.0], low=[0.0])
    with pytest.raises(ValueError, match="no point"):
        chart.draw(Chart("empty", "", "", [Line("a", [], [])]))
    with pytest.raises(ValueError, match="logarithmic"):
        chart.draw(Chart("zero", "", "", [Line("a", [0, 1], [1.0, 2.0])], log_x=True))
