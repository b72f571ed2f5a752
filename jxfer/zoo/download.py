"""One file by HTTP: resumed, verified, kept once. For publishers that have no client of their own.

Before `torchvision`. `requests` reads the proxies of the environment.
"""

import hashlib
import logging
import time
from pathlib import Path

import filelock
import requests
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jxfer.errors import UserError

ATTEMPTS = 4
"""How often a dropped connection is taken up again before giving up."""
_TIMEOUT = (10, 30)  # seconds to connect, and between two pieces
_PIECE = 1 << 20
_log = logging.getLogger("jxfer")


def fetch(url: str, target: Path, sha256_prefix: str) -> Path:
    """Downloads a file unless it is there.

    The bytes go to `TARGET.part`, which a later call takes up where this one ended, and become
    `target` once their hash is right. A second process waits for the first.

    Args:
      url: of the file.
      target: where it is kept.
      sha256_prefix: what its sha256 starts with, in hex.

    Returns:
      `target`.

    Raises:
      UserError: the server or the network fails, the content is not what was published, or the
        folder cannot be written.
    """
    if target.is_file():
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.with_name(target.name + ".lock")):
            if target.is_file():  # another process was first
                return target
            _complete(url, part)
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not digest.startswith(sha256_prefix):
                part.unlink()
                raise UserError(
                    f"{url}: the sha256 of what came is {digest[:8]}..., not {sha256_prefix}...; "
                    "nothing was kept, try again or through another network"
                )
            part.rename(target)
    except requests.RequestException as error:
        raise UserError(f"{url}: {_reason(error)}; the same command resumes") from None
    except OSError as error:
        raise UserError(f"{target.parent}: cannot be written: {error.strerror or error}") from None
    return target


def _complete(url: str, part: Path) -> None:
    """Appends to `part` until it holds the whole file."""
    for attempt in range(ATTEMPTS):
        try:
            _append(url, part)
            return
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ):
            if attempt == ATTEMPTS - 1:
                raise
            _log.warning("%s: the connection broke off; taking it up again", url)
            time.sleep(2**attempt / 4)


def _append(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # so that sizes are those of the file
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is left to send, or the file is another: its hash will tell
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file, _progress() as progress:
            task = progress.add_task(part.name.removesuffix(".part"), total=total, completed=start)
            for piece in response.iter_content(_PIECE):
                file.write(piece)
                progress.advance(task, len(piece))
    if total is not None and part.stat().st_size < total:
        raise requests.ConnectionError("the server closed the connection early")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy cannot be reached"
    return "no connection, or it broke off"
