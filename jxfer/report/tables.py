"""Tables for people and programs: Markdown, LaTeX (booktabs) and CSV.

After `page` in the flow, whose `Table` they write.
"""

import csv
import io
from collections.abc import Sequence

from jxfer import text
from jxfer.report.page import Cell, Link, Number, Table

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{mark: f"\\{mark}" for mark in "{}$&%#_"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
        "–": "--",
        # After the end of a row these two would be read as its options.
        "[": "{[}",
        "*": "{*}",
    }
)
_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\|*_`[]<>#"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With which a spreadsheet takes text for a formula (OWASP, "CSV Injection")."""


def markdown(table: Table) -> str:
    """A Markdown table; what stands in a cell is shown as it is."""

    def show(cell: Cell) -> str:
        if isinstance(cell, Link):
            return f"[{escape_markdown(cell.text)}]({cell.href})"
        if isinstance(cell, Number):
            return (
                f"**{escape_markdown(cell.text)}**" if cell.strong else escape_markdown(cell.text)
            )
        return escape_markdown(cell if isinstance(cell, str) else cell.text)

    header = [escape_markdown(column) for column in table.columns]
    return text.markdown([header, *([show(cell) for cell in row] for row in table.rows)])


def latex(table: Table, label: str) -> str:
    """A `table` with its caption, for a document that loads booktabs and fontenc's T1.

    Columns that hold numbers are set to the right.

    Args:
      table: what to show.
      label: for `\\ref`; ASCII letters, digits and dashes.
    """

    def show(cell: Cell) -> str:
        shown = escape_latex(cell if isinstance(cell, str) else cell.text)
        return f"\\textbf{{{shown}}}" if isinstance(cell, Number) and cell.strong else shown

    sides = "".join(
        "r" if any(isinstance(row[i], Number) for row in table.rows) else "l"
        for i in range(len(table.columns))
    )
    caption = " ".join(filter(None, (f"{table.heading}.", table.caption)))
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape_latex(caption)}}}",
        f"\\label{{tab:{label}}}",
        f"\\begin{{tabular}}{{{sides}}}",
        "\\toprule",
        " & ".join(map(escape_latex, table.columns)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(show, row)) + " \\\\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(shown: str) -> str:
    """Text as LaTeX sets it; white space becomes a blank, and what cannot be printed "?"."""
    return _printable(shown).translate(_LATEX)


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """Comma-separated values. Numbers keep all their digits; None is an empty field.

    Text that a spreadsheet would take for a formula gets a "'" before it.
    """
    return "".join(map(_csv_line, (columns, *rows)))


def _csv_line(row: Sequence[str | float | None]) -> str:
    stream = io.StringIO()
    # Quotes a carriage return only where one ends the line.
    csv.writer(stream, lineterminator="\r\n").writerow(map(_as_text, row))
    return stream.getvalue().removesuffix("\r\n") + "\n"


def _as_text(cell: str | float | None) -> str | float | None:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def escape_markdown(shown: str) -> str:
    """Text as Markdown shows it, in one line."""
    return _printable(shown).translate(_MARKDOWN)


def _printable(shown: str) -> str:
    spaced = " ".join(shown.split())
    return "".join(letter if letter.isprintable() else "?" for letter in spaced)
