"""The report of a sweep: what `jxfer ablate` found, as Markdown, LaTeX, CSV, figures and a page.

After `sweep_charts` in the flow: it puts tables and charts where they belong.
"""

import pathlib
import re
import shlex
from collections.abc import Mapping

from jxfer import sealed
from jxfer.ablate.claims import ACCURACY
from jxfer.errors import UserError
from jxfer.json_fields import parse
from jxfer.report import figures, page, raw_tables, results, sweep_charts, sweep_tables, tables
from jxfer.report.output import address, write_text
from jxfer.report.page import Chart, Code, Link, Number, Table, Text
from jxfer.report.results import Results
from jxfer.report.sweep_tables import NONE
from jxfer.train import config as configs
from jxfer.train import run_folder

_OWN = ("claims", "hyper-parameters", "intervals", "unfinished", "diverged-runs", "cells")
"""Names of files; a measure of such a name gets another one."""


def write(out: pathlib.Path, to: pathlib.Path | None = None) -> pathlib.Path:
    """Writes `report.md`, `index.html`, `tables/` and `figures/` of a sweep.

    Args:
      out: the folder of the sweep, with `results.json`.
      to: the folder of the report; `OUT/report` unless given.

    Returns:
      The folder of the report.

    Raises:
      UserError: `results.json` is missing or damaged, the config of a cell is, or a file cannot be
        written.
    """
    found = results.read(out)
    to = out / "report" if to is None else to
    sections, cells = _sections(found), _cells(found, out, to)
    for folder in (to, to / "tables", to / "figures"):
        run_folder.make_folder(folder, "--out")
    charts = {name: part for name, part in sections.items() if isinstance(part, Chart)}
    files = [to / "tables" / name for name in _write_tables(found, sections, to / "tables")]
    for name, chart in charts.items():
        files += figures.save(figures.draw(chart), to / "figures" / name)
    write_text(to / "report.md", _markdown(found, sections))
    about = [
        Text("Claim", re.split(r"\n\s*\n", found.doc.strip())),
        *sections.values(),
        cells,
        Text("How it was made", _provenance(found)),
        Table("Files", ["file"], [[_link(file, to)] for file in files]),
    ]
    page.write(to / "index.html", _title(found), about)
    return to


def _sections(found: Results) -> dict[str, Table | Chart]:
    """Tables and charts by the name of their files, in the order of the report."""
    sections: dict[str, Table | Chart] = {}
    for i, (name, stem) in enumerate(_stems(found).items()):
        sections[stem] = sweep_tables.measure(found, name)
        for k, chart in enumerate(sweep_charts.charts(found, name), start=1):
            sections[f"{stem}-chart-{k}"] = chart
        if i == 0 and found.claims:
            sections["claims"] = sweep_tables.claims(found)
    if found.budget > 1:
        sections["hyper-parameters"] = sweep_tables.search(found)
    sections["intervals"] = sweep_tables.intervals(found)
    if any(cell.status != "finished" or cell.error for cell in found.cells):
        sections["unfinished"] = sweep_tables.unfinished(found)
    if any(cell.diverged for cell in found.cells):
        sections["diverged-runs"] = sweep_tables.diverged(found)
    return sections


def _stems(found: Results) -> dict[str, str]:
    """Measures, and file names for them."""
    stems: dict[str, str] = {}
    for i, name in enumerate(found.measures):
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "measure"
        taken = stem in stems.values() or stem in _OWN
        stems[name] = f"{stem}-{i}" if taken else stem
    return stems


def _write_tables(
    found: Results, sections: Mapping[str, Table | Chart], folder: pathlib.Path
) -> list[str]:
    """Writes LaTeX and CSV, and returns the names of the files."""
    texts = {
        f"{name}.tex": tables.latex(part, name)
        for name, part in sections.items()
        if isinstance(part, Table)
    }
    for name, (header, *rows) in {
        "means": raw_tables.means(found),
        "claims": raw_tables.claims(found),
        "cells": raw_tables.cells(found),
    }.items():
        texts[f"{name}.csv"] = tables.to_csv(list(map(str, header)), rows)
    for name, text in texts.items():
        write_text(folder / name, text)
    return list(texts)


def _markdown(found: Results, sections: Mapping[str, Table | Chart]) -> str:
    parts = [f"# {tables.escape_markdown(_title(found))}", found.doc.strip()]
    for name, part in sections.items():
        if isinstance(part, Chart):
            parts.append(f"![{tables.escape_markdown(part.heading)}](figures/{name}.svg)")
        else:
            parts += [
                f"## {tables.escape_markdown(part.heading)}",
                tables.markdown(part),
                tables.escape_markdown(part.caption),
            ]
    parts += ["## How it was made", *map(tables.escape_markdown, _provenance(found))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _title(found: Results) -> str:
    return found.title + (" (small preset)" if found.small else "")


def _provenance(found: Results) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    # A run may stand at several places of the table.
    cells = {cell.key: cell for cell in found.cells}.values()
    finished = sum(cell.status == "finished" for cell in cells)
    seconds = sum(cell.seconds or 0.0 for cell in cells)
    commits = ", ".join(found.commits) or NONE
    return [
        f"Experiment: {found.file}",
        f"Command: {found.command}",
        f"Commit: {commits}" + (" (runs of several commits)" if len(found.commits) > 1 else ""),
        f"Versions: {versions or NONE}",
        f"Cells: {finished} of {len(cells)} finished, {seconds / 3600:.2g} hours in all",
    ]


def _cells(found: Results, out: pathlib.Path, to: pathlib.Path) -> Table:
    """Every run, with links to its files where they are there."""
    rows: list[list[page.Cell]] = []
    for cell in found.cells:
        config, log = out / "cells" / cell.key / "config.json", out / "cells" / f"{cell.key}.log"
        accuracy = cell.measures.get(ACCURACY)
        rows.append(
            [
                *(cell.setting, cell.arm),
                Number(str(cell.seed), cell.seed),
                *(cell.role, sweep_tables.told(cell.choice)),
                cell.status if cell.error is None else f"{cell.status}: {cell.error}",
                NONE if accuracy is None else Number(f"{accuracy:.2f}", accuracy),
                NONE if cell.seconds is None else Number(f"{cell.seconds:.0f}", cell.seconds),
                Link("config", address(config, to)) if config.is_file() else NONE,
                Link("log", address(log, to)) if log.is_file() else NONE,
                NONE if cell.commit is None else cell.commit,
                Code(_command(config, cell.key)) if config.is_file() else NONE,
            ]
        )
    columns = [
        *("setting", "arm", "seed", "role", "choice", "status", sweep_tables.label(ACCURACY)),
        *("seconds", "config", "log", "commit", "command"),
    ]
    caption = (
        "Source: a run that others start from. The command makes a run again by itself, in a "
        "folder of its own."
    )
    return Table("Every cell", columns, rows, caption)


def _command(config: pathlib.Path, key: str) -> str:
    try:
        found = parse(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config} cannot be read: {error}") from None
    values = sealed.unseal(found, str(config))
    return shlex.join(["jxfer", "train", "--run", f"runs/{key}", *configs.to_options(values)])


def _link(file: pathlib.Path, to: pathlib.Path) -> Link:
    return Link(file.relative_to(to).as_posix(), address(file, to))
