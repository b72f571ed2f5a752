"""One self-contained HTML page: tables that sort, curves that tell their values, images.

The page needs no network and opens from the file system. All text is escaped: class names and
messages may hold anything. A content security policy lets nothing but the page's own script run.
"""

import base64
import dataclasses
import hashlib
import importlib.resources
import json
import math
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from jxfer.report import chart as charts
from jxfer.report import output
from jxfer.report.chart import Chart, Line

__all__ = ["Chart", "Code", "Gallery", "Image", "Line", "Link", "Number", "Table", "Text", "write"]

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
_CONTROLS[0x7F] = "\u2421"
# Those without a picture: the other controls, and what turns the direction of writing.
for _code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)):
    _CONTROLS[_code] = f"\\u{_code:04x}"


@dataclasses.dataclass(frozen=True)
class Link:
    """A link to a file beside the page.

    Raises:
      ValueError: the address is not relative.
    """

    text: str
    href: str
    """Relative to the page; quoted where a name needs it."""

    def __post_init__(self) -> None:
        address = urllib.parse.urlsplit(self.href)
        if address.scheme or address.netloc:
            raise ValueError(f"{self.href}: not a relative address")


@dataclasses.dataclass(frozen=True)
class Number:
    """A cell that shows a text and sorts by a value; NaN sorts as text does."""

    text: str
    value: float
    strong: bool = False

    @property
    def key(self) -> str | None:
        """The value as the page's script reads it."""
        return repr(float(self.value)) if math.isfinite(self.value) else None


@dataclasses.dataclass(frozen=True)
class Code:
    """A cell that holds a command, in one line."""

    text: str


Cell = str | Link | Number | Code


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that sort by a click on a column's name: numbers first, then text."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.heading}: a row that is not as long as the header")


@dataclasses.dataclass(frozen=True)
class Image:
    """An image file, such as a thumbnail; the caption is also its description."""

    src_bytes: bytes
    mime: str
    """Such as `image/png`."""
    caption: str

    @property
    def src(self) -> str:
        """The image as a `data:` address."""
        return f"data:{self.mime};base64,{base64.b64encode(self.src_bytes).decode()}"


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images side by side."""

    heading: str
    images: Sequence[Image]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs; the line breaks of each are kept."""

    heading: str
    paragraphs: Sequence[str]


Section = Table | Chart | Gallery | Image | Text


def write(file: pathlib.Path, title: str, sections: Sequence[Section]) -> None:
    """Writes the page.

    Control characters are shown by their pictures, such as U+241B for an escape, or by number.

    Args:
      file: such as `report/index.html`; its folder exists.
      title: heads the page.
      sections: in their order on it.

    Raises:
      DiskError: the file cannot be written.
    """
    style = _asset("page.css") + "".join(
        f".c{i} {{ --c: {colour}; }}\n" for i, colour in enumerate(charts.COLOURS)
    )
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.from_string(_asset("page.html.jinja")).render(
        title=title,
        sections=[(type(section).__name__.lower(), section) for section in sections],
        draw=charts.draw,
        json=json.dumps,
        hash=_hash,
        left=charts.LEFT,
        top=charts.TOP,
        width=charts.WIDTH,
        style=Markup(style),
        script=Markup(_asset("page.js")),
    )
    output.write_text(file, text)


def _asset(name: str) -> str:
    return importlib.resources.files("jxfer.report").joinpath(name).read_text("utf-8")


def _hash(source: str) -> str:
    """What a content security policy knows a script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _visible(value: Any) -> Any:
    """Shows control characters; HTML has no way to write them."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.translate(_CONTROLS)
    return value
