"""The log of a cell: all that is said while it runs goes to a file.

Before `sweep` in the flow.
"""

import contextlib
import datetime
import logging
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

from jxfer import text


@contextlib.contextmanager
def logged(file: pathlib.Path, heading: str) -> Iterator[None]:
    """Sends to a file what a run says, start-up table included, and libraries below Python too."""
    log = logging.getLogger("jxfer")
    with file.open("a", buffering=1) as stream, contextlib.redirect_stderr(stream):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(text.OneLine("jxfer: %(message)s"))
        handlers, log.handlers = log.handlers, [handler]
        stderr = os.dup(2)
        os.dup2(stream.fileno(), 2)  # where XLA writes when it aborts
        try:
            _say(heading)
            yield
            _say("done")
        finally:
            log.handlers = handlers
            os.dup2(stderr, 2)
            os.close(stderr)


def _say(what: str) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    print(f"{now} {socket.gethostname()} {os.getpid()}: {text.one_line(what)}", file=sys.stderr)
