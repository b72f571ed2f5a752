"""The charts of a single run: how it learned, and whether its confidence can be believed.

After `run_results` in the flow.
"""

import itertools
import math
from collections.abc import Sequence

from jxfer.report.chart import Chart, Line
from jxfer.report.diagnostics import BINS, Bin, expected_calibration_error
from jxfer.report.run_results import RunResults

_MOST_POINTS = 400
"""Of a curve; where there are more records, a point is the mean of neighbours."""
_RATE = "lr/"


def learning_curves(run: RunResults) -> dict[str, Chart]:
    """Loss, accuracy and learning rates by step, each under the name of its figure's files."""
    best = f"The best step by validation, whose model is kept: {run.summary['best_step']}."
    groups = {key: None for record in run.metrics for key in record if key.startswith(_RATE)}
    charts = {
        "loss": Chart(
            "Loss",
            "step",
            "cross-entropy, nats",
            _curves(run, {"training": "train_loss", "validation": "val_loss"}),
            "Training: the mean over the steps since the point before, on images as they are "
            "augmented, with label smoothing and mixing where the run has them. Validation: all "
            f"images of the split, without. {best}",
            marks=_marks(run),
        ),
        "accuracy": Chart(
            "Accuracy",
            "step",
            "accuracy, %",
            _curves(run, {"training": "train_accuracy", "validation": "val_accuracy"}, scale=100),
            f"Training and validation as for the loss. {best}",
            marks=_marks(run),
        ),
        "learning-rates": Chart(
            "Learning rates",
            "step",
            "learning rate",
            _curves(run, {key.removeprefix(_RATE): key for key in groups}),
            "Of each group of parameters that trains.",
            marks=_marks(run),
        ),
    }
    return {stem: chart for stem, chart in charts.items() if chart.lines}


def calibration(bins: Sequence[Bin]) -> Chart:
    """The reliability diagram."""
    rates = [part.accuracy for part in bins]
    model = Line(
        "model",
        [part.confidence for part in bins],
        [rate.value for rate in rates],
        [rate.low for rate in rates],
        [rate.high for rate in rates],
    )
    return Chart(
        "Calibration",
        "mean confidence",
        "accuracy",
        [model, Line("perfectly calibrated", [0, 1], [0, 1])],
        f"Reliability diagram over {BINS} bins of equal width; empty ones are left out. Bars: 95 % "
        "Wilson intervals. Expected calibration error (Guo et al. 2017, eq. 3): "
        f"{expected_calibration_error(bins):.4f}.",
    )


def _curves(run: RunResults, keys: dict[str, str], scale: float = 1.0) -> list[Line]:
    """A line for each key that the metrics hold, under its name."""
    lines = []
    for name, key in keys.items():
        points = [(record["step"], scale * record[key]) for record in run.metrics if key in record]
        points = [point for point in points if math.isfinite(point[1])]
        if points:
            together = math.ceil(len(points) / _MOST_POINTS)
            parts = [points[i : i + together] for i in range(0, len(points), together)]
            means = [sum(y for _, y in part) / len(part) for part in parts]
            lines.append(Line(name, [part[-1][0] for part in parts], means))
    return lines


def _marks(run: RunResults) -> list[tuple[float, str]]:
    """Where each phase begins; nothing where there is only one."""
    phases = run.summary["phases"]
    starts = itertools.accumulate((phase["steps"] for phase in phases), initial=0)
    if len(phases) == 1:
        return []
    return [(start, phase["name"]) for start, phase in zip(starts, phases, strict=False)]
