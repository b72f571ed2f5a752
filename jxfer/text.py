"""Plain text for people: aligned tables that survive a pipe, and JSON for programs.

Names of classes and files may hold anything. What a terminal would act on is escaped here, and in
no other place: `one_line` for log lines, errors and cells, `to_json` for JSON.
"""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any


def one_line(shown: str) -> str:
    """Text with what cannot be printed escaped as Python does it: `\\n`, `\\x1b`, `\\u202e`.

    So are line ends, what turns the direction of writing, and the lone surrogates of file names
    that are no Unicode, which no stream takes.
    """
    return _escape(shown, lambda letter: letter.encode("unicode_escape").decode())


class OneLine(logging.Formatter):
    """A log record as one line, but for a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, as wide as their widest cell; the first row is the header."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    header, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])


def to_json(value: Any) -> str:
    """Indented JSON that a terminal shows as it is and that reads back to the same text."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(_escape(line, lambda letter: json.dumps(letter)[1:-1]) for line in lines)


def _escape(shown: str, escape: Callable[[str], str]) -> str:
    if shown.isprintable():
        return shown
    return "".join(letter if letter.isprintable() else escape(letter) for letter in shown)
