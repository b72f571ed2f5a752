"""One file by HTTP: resumed, verified, kept once. For publishers that have no client of their own.

Before `torchvision`. `requests` reads the proxies of the environment. HF_HUB_OFFLINE=1 stands for
all downloads: who sets it on a machine without a network shall not wait for one.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import requests
import urllib3
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
"""Connections in a row that bring nothing new before giving up."""
LARGEST = 2 << 30
"""Bytes of a download; four times the largest file of torchvision's."""
_TIMEOUT = (10, 30)  # seconds to connect, and between two pieces
_PIECE = 1 << 16  # bytes at most
_LEAST = 1 << 10  # bytes a second, on average over each stretch of so many seconds:
_STRETCH = 60.0
_log = logging.getLogger("jxfer")


def fetch(url: str, target: Path, sha256_prefix: str) -> Path:
    """Downloads a file unless it is there, whole.

    The bytes go to `TARGET.part`, which a later call takes up where this one ended, and become
    `target` once their hash is right. A second process waits for the first. A kept file that was
    damaged since is downloaded again.

    Args:
      url: of the file.
      target: where it is kept.
      sha256_prefix: what its sha256 starts with, in hex.

    Returns:
      `target`.

    Raises:
      UserError: the server or the network fails, is slower than 1 KiB a second for a minute, or
        sends us elsewhere or more than `LARGEST`; offline mode forbids the download, the content is
        not what was published, or the folder cannot be written.
    """
    if _is_whole(target, sha256_prefix):  # a cache that others filled may be read-only
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.with_name(target.name + ".lock")):
            if _is_whole(target, sha256_prefix):  # another process was first
                return target
            if target.exists():
                _log.warning("%s is damaged; downloading it again", target)
                target.unlink()
            if _offline():
                raise UserError(
                    f"{target.name} is not in {target.parent}, and HF_HUB_OFFLINE forbids downloads"
                )
            _complete(url, part)
            digest = _sha256(part)
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
    furthest, in_vain = _size(part), 0
    while True:
        try:
            _append(url, part)
            return
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ):
            in_vain = 0 if _size(part) > furthest else in_vain + 1
            furthest = max(furthest, _size(part))
            if in_vain >= ATTEMPTS:
                raise
            _log.warning("%s: the connection broke off; taking it up again", url)
            time.sleep(2**in_vain / 4)


def _append(url: str, part: Path) -> None:
    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # so that sizes are those of the file
    if have:
        headers["Range"] = f"bytes={have}-"
    # Eight hex digits of a hash, all that torchvision states, do not tell a forgery from the file:
    # the publisher's own https address must.
    with requests.get(
        url, headers=headers, stream=True, timeout=_TIMEOUT, allow_redirects=False
    ) as response:
        if 300 <= response.status_code < 400:
            elsewhere = response.headers.get("Location", "nowhere")[:100]
            raise UserError(f"{url}: the server redirects to {elsewhere}, which is not followed")
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is left to send, or the file is another: its hash will tell
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        start = have if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if (total or 0) > LARGEST:
            raise UserError(f"{url}: the server announces {total:,} bytes, more than {LARGEST:,}")
        with part.open("ab" if resumed else "wb") as file, _progress() as progress:
            task = progress.add_task(part.name.removesuffix(".part"), total=total, completed=start)
            for piece in _pieces(url, response):
                file.write(piece)
                progress.advance(task, len(piece))
                if file.tell() > LARGEST:
                    break
        if _size(part) > LARGEST:
            part.unlink()
            raise UserError(f"{url}: the server sends more than {LARGEST:,} bytes; nothing is kept")
    if total is not None and _size(part) < total:
        raise requests.ConnectionError("the server closed the connection early")


def _pieces(url: str, response: requests.Response) -> Iterator[bytes]:
    """The body as it comes: `iter_content` would wait until a piece is full, however long."""
    since, received = time.monotonic(), 0
    try:
        while piece := response.raw.read1(_PIECE):
            yield piece
            received += len(piece)
            seconds = time.monotonic() - since
            if seconds < _STRETCH:
                continue
            if received < _LEAST * seconds:
                raise UserError(
                    f"{url}: the server sent {received:,} bytes in {seconds:.0f} s, fewer than "
                    f"{_LEAST:,} a second; the same command resumes"
                )
            since, received = time.monotonic(), 0
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _is_whole(target: Path, sha256_prefix: str) -> bool:
    return target.is_file() and _sha256(target).startswith(sha256_prefix)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


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
