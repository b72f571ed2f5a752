"""Pictures of a single run that are no charts: the confusion matrix, and the mistakes as images.

After `figures` in the flow.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from jxfer.data import transforms
from jxfer.report.diagnostics import Mistake
from jxfer.report.figures import plain
from jxfer.report.run_results import RunResults

MOST_CLASSES = 30
"""That a heat map can hold with its numbers."""
_LONGEST_NAME = 20  # in characters, beside a heat map
_LARGEST_SIDE = 128  # of a thumbnail, in pixels
_COLUMNS = 6


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Any:
    """A heat map with the counts in it, as a matplotlib `Figure`.

    Args:
      matrix: counts [K, K], a row for each actual class.
      names: of the classes.
    """
    side = 2.2 + 0.36 * len(names)
    figure = _new((side + 0.6, side))
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[row, column] > 0.7 else "black"  # the greater contrast
        count = str(matrix[row, column])
        axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    labels = class_labels(names)
    axes.set_xticks(range(len(names)), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axes.set_yticks(range(len(names)), labels)
    axes.set(xlabel="predicted class", ylabel="actual class")
    figure.colorbar(shown, label="part of the actual class", shrink=0.8)
    return figure


def thumbnail(run: RunResults, index: int) -> np.ndarray:
    """What the model saw of an image, uint8 RGB [side, side, 3], at most 128 pixels a side."""
    example = run.source[index]
    image = transforms.decode(example.image, example.name)
    view = transforms.evaluation_view(image, run.card.preprocessing)
    side = min(len(view), _LARGEST_SIDE)
    return view if side == len(view) else cv2.resize(view, (side, side), None, 0, 0, cv2.INTER_AREA)


def png(image: np.ndarray) -> bytes:
    """A PNG file of uint8 RGB [H, W, 3]."""
    encoded: np.ndarray = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1]
    return encoded.tobytes()


def mistakes(found: Sequence[Mistake], images: Sequence[np.ndarray], names: Sequence[str]) -> Any:
    """A grid of images with actual class, predicted class and confidence, as a `Figure`."""
    rows = -(-len(found) // _COLUMNS)
    figure = _new((1.5 * _COLUMNS, 2.0 * rows))
    labels = class_labels(names)
    grid = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, mistake, image in zip(grid, found, images, strict=False):
        axes.imshow(image)
        actual, predicted = labels[mistake.actual], labels[mistake.predicted]
        axes.set_title(f"{actual}\nas {predicted}\n{mistake.confidence:.1%}", fontsize=7)
    return figure


def class_labels(names: Sequence[str]) -> list[str]:
    """Names as a figure shows them: short, and `class 3` where the font lacks a letter of it."""
    labels = []
    for index, name in enumerate(names):
        shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        labels.append(plain(shown) if _is_drawable(plain(shown)) else f"class {index}")
    return labels


def _new(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _is_drawable(name: str) -> bool:
    """Whether matplotlib's own font has all letters; there is no other that every machine has."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    return all(font.get_char_index(ord(letter)) for letter in name)
