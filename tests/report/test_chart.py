import pytest

from jxfer.report import figures
from jxfer.report.chart import LEFT, MOST_POINTS, Chart, Line, draw


@pytest.fixture
def phases():
    return Chart(
        "Loss", "step", "loss", [Line("a", [10, 20], [1, 2])], marks=[(0, "a$"), (15, "b")]
    )


def test_a_mark_stands_at_its_place_inside_the_plot(phases):
    drawn = draw(phases)
    (first, name), (middle, _) = drawn.marks
    left, right = (stop["at"] for stop in drawn.stops)
    assert name == "a$"
    assert LEFT < first < left
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert drawn.x_ticks[0] == (pytest.approx(first), ("0",))


def test_a_figure_has_the_marks_too(phases):
    (axes,) = figures.draw(phases).axes
    assert [text.get_text() for text in axes.texts] == [r"a\$", "b"]
    assert [line.get_xdata()[0] for line in axes.lines[-2:]] == [0, 15]


@pytest.mark.parametrize(("points", "marked"), [(MOST_POINTS, True), (MOST_POINTS + 1, False)])
def test_a_line_of_many_points_is_drawn_without_them(points, marked):
    chart = Chart("Loss", "step", "loss", [Line("a", range(points), range(points))])
    assert bool(draw(chart).curves[0].points) == marked
    (axes,) = figures.draw(chart).axes
    assert (axes.lines[0].get_marker() not in (None, "None", "")) == marked
