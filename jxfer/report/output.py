"""Files of a report, and how its page links to others.

First of the report in the flow.
"""

import os
import pathlib
import urllib.parse

from jxfer import disk


def write_text(file: pathlib.Path, text: str) -> None:
    """Writes text as UTF-8 with plain line ends.

    Raises:
      DiskError: it cannot be written.
    """
    # A name that is not UTF-8 holds lone surrogates.
    disk.replace(file, text.encode("utf-8", errors="backslashreplace"))


def address(target: pathlib.Path, folder: pathlib.Path) -> str:
    """A file or folder as a page in a folder links to it."""
    return urllib.parse.quote(pathlib.PurePath(os.path.relpath(target, folder)).as_posix())
