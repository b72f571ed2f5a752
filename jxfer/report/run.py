"""The report of a single run: how it learned, what it got right, and what it took for what.

After `run_raw_tables` in the flow: it puts tables, charts and images where they belong.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from jxfer.report import (
    diagnostics,
    figures,
    page,
    run_charts,
    run_drawings,
    run_raw_tables,
    run_results,
    run_tables,
    tables,
)
from jxfer.report.output import address, write_text
from jxfer.report.page import Chart, Gallery, Image, Link, Section, Table, Text
from jxfer.report.run_results import RunResults
from jxfer.train import run_folder

_MOST_MISTAKES = 24
_MOST_PAIRS = 20


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A drawing that is no chart."""

    heading: str
    figure: Any
    """a matplotlib `Figure`"""
    caption: str
    images: Sequence[Image] = ()
    """what the page shows in its place"""


_Part = Table | Chart | _Picture


def write(folder: pathlib.Path, to: pathlib.Path | None = None) -> pathlib.Path:
    """Writes `report.md`, `index.html`, `tables/` and `figures/` of a finished run.

    The model is evaluated once more. The same run folder gives the same bytes, on the same machine.

    Args:
      folder: the run folder.
      to: the folder of the report; `RUN/report` unless given.

    Returns:
      The folder of the report.

    Raises:
      UserError: as `run_results.read`; a file cannot be written.
    """
    run = run_results.read(folder)
    to = folder / "report" if to is None else to
    for place in (to, to / "tables", to / "figures"):
        run_folder.make_folder(place, "--out")
    parts, raw = _parts(run, address(folder, to))
    texts = {
        f"{stem}.tex": tables.latex(part, stem)
        for stem, part in parts.items()
        if isinstance(part, Table)
    }
    for stem, (header, *rows) in raw.items():
        texts[f"{stem}.csv"] = tables.to_csv(list(map(str, header)), rows)
    files = [to / "tables" / name for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        write_text(file, text)
    for stem, part in parts.items():
        if not isinstance(part, Table):
            figure = figures.draw(part) if isinstance(part, Chart) else part.figure
            files += figures.save(figure, to / "figures" / stem)
    title = f"Run {run.card.name}"
    write_text(to / "report.md", _markdown(title, parts))
    links = [[Link(address(file, to), address(file, to))] for file in files]
    sections = [*_sections(parts, to / "figures"), Table("Files", ["file"], links)]
    page.write(to / "index.html", title, sections)
    return to


def _parts(run: RunResults, base: str) -> tuple[dict[str, _Part], dict[str, run_raw_tables.Rows]]:
    """(tables, charts and pictures in the order of the report; raw tables), by file name."""
    names, labels = run.card.class_names, run.source.labels
    matrix = diagnostics.confusion_matrix(labels, run.predicted, len(names))
    classes = diagnostics.per_class(matrix)
    bins = diagnostics.reliability(run.probabilities, labels)
    wrong = diagnostics.confident_mistakes(run.probabilities, labels, _MOST_MISTAKES)
    error = diagnostics.expected_calibration_error(bins)
    parts: dict[str, _Part] = {"key-figures": run_tables.key_figures(run, error)}
    parts |= run_charts.learning_curves(run)
    parts["classes"] = run_tables.per_class(names, classes)
    if len(names) <= run_drawings.MOST_CLASSES:
        parts["confusion"] = _Picture(
            "Confusion matrix",
            run_drawings.confusion(matrix, names),
            f"{run_tables.SPLITS[run.split].capitalize()} images by actual class (rows) and "
            "predicted class (columns); the colour is the part of the actual class. A class whose "
            "name the font lacks goes by its number, from 0.",
        )
    if wrong:
        pairs = diagnostics.most_confused(matrix, _MOST_PAIRS)
        parts["confused"] = run_tables.confused(names, pairs)
    parts["calibration"] = run_charts.calibration(bins)
    parts["calibration-bins"] = run_tables.bins(bins)
    if wrong:
        parts["mistake-images"] = _mistakes(run, wrong)
        parts["mistakes"] = run_tables.mistakes(run, wrong)
    parts["lineage"] = run_tables.lineage(run)
    parts["provenance"] = run_tables.provenance(run, base)
    raw = {
        "classes": run_raw_tables.per_class(names, classes),
        "confusion": run_raw_tables.confusion(names, matrix),
        "calibration-bins": run_raw_tables.bins(bins),
        "mistakes": run_raw_tables.mistakes(run, wrong),
    }
    return parts, raw


def _mistakes(run: RunResults, wrong: Sequence[diagnostics.Mistake]) -> _Picture:
    names = run.card.class_names
    thumbnails = [run_drawings.thumbnail(run, one.index) for one in wrong]
    images = [
        Image(
            run_drawings.png(image),
            "image/png",
            f"{names[one.actual]}, taken for {names[one.predicted]}\n"
            f"confidence {one.confidence:.1%}",
        )
        for one, image in zip(wrong, thumbnails, strict=True)
    ]
    return _Picture(
        "The mistakes as the model sees them",
        run_drawings.mistakes(wrong, thumbnails, names),
        "The wrong predictions of the highest confidence, resized and cropped as for the model.",
        images,
    )


def _markdown(title: str, parts: dict[str, _Part]) -> str:
    blocks = [f"# {tables.escape_markdown(title)}"]
    for stem, part in parts.items():
        shown = f"![{part.heading}](figures/{stem}.svg)"
        if isinstance(part, Table):
            shown = tables.markdown(part)
        blocks += [f"## {part.heading}", shown, tables.escape_markdown(part.caption)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _sections(parts: dict[str, _Part], folder: pathlib.Path) -> list[Section]:
    """The parts as sections of the page, where pictures are not files but inside."""
    sections: list[Section] = []
    for stem, part in parts.items():
        if not isinstance(part, _Picture):
            sections.append(part)
        elif part.images:
            sections.append(Gallery(part.heading, part.images, part.caption))
        else:
            drawn = (folder / f"{stem}.svg").read_bytes()
            sections += [Text(part.heading, ()), Image(drawn, "image/svg+xml", part.caption)]
    return sections
