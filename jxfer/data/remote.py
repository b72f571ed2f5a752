"""`gs://` addresses: what a bucket holds, and its objects.

Before `copies`, and all that reads data, weights or runs in a bucket. Google's own client does the
talking (extra `gcs`): it finds the credentials of the machine, `gcloud` or
$GOOGLE_APPLICATION_CREDENTIALS, compares checksums, and honours $STORAGE_EMULATOR_HOST.
TensorStore, which Orbax brings along, lists a bucket that it may not read as empty, so it is not
what reads buckets here.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jxfer.errors import UserError

Place = str | os.PathLike[str]
"""A path on this machine, or a `gs://` address."""

# pathlib folds the two slashes into one.
_ADDRESS = re.compile(r"gs:/{1,2}(?P<bucket>[a-z0-9][a-z0-9._-]+[a-z0-9])(?P<path>(/[^/]+)*)/*")
_TIMEOUT = (10, 30)  # seconds to connect, and between two pieces
_RETRY_SECONDS = 60.0
_THREADS = 8
_local = threading.local()


class StorageError(UserError):
    """A bucket, the network or the credentials fail: what was asked for may be fine."""


@dataclasses.dataclass(frozen=True)
class Object:
    """What a listing says of one object."""

    size: int
    """in bytes"""
    generation: int
    """a number that every writing of it changes"""


def address(place: Place) -> str | None:
    """The address `gs://BUCKET[/PATH]` that a place is; None for a path on this machine.

    Raises:
      UserError: it begins as an address and is none.
    """
    text = os.fspath(place)
    if not text.startswith("gs:/"):
        return None
    match = _ADDRESS.fullmatch(text)
    parts = match["path"].split("/") if match else []
    if not match or {".", ".."} & set(parts) or not text.isprintable() or re.search("[?@#]", text):
        # Not echoed: what stands before an @ or after a ? may be secret.
        raise UserError("an address in a bucket is gs://BUCKET/PATH, without user, query or '..'")
    return f"gs://{match['bucket']}{match['path']}"


def shown(place: Place) -> str:
    """A place as a person writes it."""
    return address(place) or os.fspath(place)


def refuse(place: Place, option: str) -> None:
    """Raises UserError if a place is an address where only a folder of this machine will do."""
    if found := address(place):
        raise UserError(f"{option} {found}: it takes a folder of this machine; name one")


def listing(where: str) -> dict[str, Object]:
    """Every object below an address by its name relative to it, sorted by the parts of the name.

    Markers of empty folders end in a slash.

    Raises:
      UserError: the bucket is not there or cannot be read (a `StorageError`, as below), or a name
        is no relative path.
    """
    bucket, path = _split(where)
    prefix = f"{path}/" if path else ""
    with _answered(where):
        blobs = _bucket(bucket).list_blobs(
            prefix=prefix,
            fields="items(name,size,generation),nextPageToken",
            timeout=_TIMEOUT,
            retry=_retry(),
        )
        found = {blob.name[len(prefix) :]: Object(blob.size, blob.generation) for blob in blobs}
    found.pop("", None)
    for name in found:
        if {"", ".", ".."} & set(name.removesuffix("/").split("/")):
            raise UserError(
                f"{where}: the object {name!r} has a name that no file can have; rename it"
            )
    return dict(sorted(found.items(), key=lambda item: item[0].split("/")))


def read(where: str) -> bytes | None:
    """An object's bytes, checksum verified; None if there is none.

    Raises:
      UserError: it cannot be read.
    """
    bucket, path = _split(where)
    with _answered(where):
        try:
            return bytes(
                _bucket(bucket).blob(path).download_as_bytes(timeout=_TIMEOUT, retry=_retry())
            )
        except _errors().NotFound:
            return None


def write(where: str, content: bytes | pathlib.Path, *, new: bool = False) -> bool:
    """Makes an object of bytes or of a file, whole or not at all, checksum verified.

    Args:
      where: the object's address.
      content: its bytes.
      new: leave alone what another process, of any machine, has put there; the storage decides.

    Returns:
      False where there was one and `new` is on. As requests are repeated, it may be one's own.

    Raises:
      UserError: it cannot be written.
      FileNotFoundError: there is no such file.
    """
    bucket, path = _split(where)
    options: dict[str, Any] = {"timeout": _TIMEOUT, "retry": _retry(), "checksum": "auto"}
    if new:
        options["if_generation_match"] = 0  # of an object that is not there
    with _answered(where):
        blob = _bucket(bucket).blob(path)
        kind = "application/octet-stream"
        try:
            if isinstance(content, bytes):
                blob.upload_from_string(content, content_type=kind, **options)
            else:
                blob.upload_from_filename(str(content), content_type=kind, **options)
        except _errors().PreconditionFailed:
            if not new:
                raise
            return False
    return True


def delete(where: str, names: Iterable[str]) -> None:
    """Removes objects below an address, as far as they are there.

    Raises:
      UserError: one cannot be removed.
    """

    def remove(name: str) -> None:
        bucket, path = _split(f"{where}/{name}")
        with _answered(where), contextlib.suppress(_errors().NotFound):
            _bucket(bucket).blob(path).delete(timeout=_TIMEOUT, retry=_retry())

    _each(remove, names)


def fetch(where: str, names: Iterable[str], folder: pathlib.Path) -> None:
    """Writes objects below an address to the same names in a folder.

    Raises:
      UserError: one cannot be read, or the folder cannot be written.
    """

    def bring(name: str) -> None:
        bucket, path = _split(f"{where}/{name}".rstrip("/"))
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with _answered(where):
            try:
                _bucket(bucket).blob(path).download_to_filename(
                    str(target), timeout=_TIMEOUT, retry=_retry()
                )
            except _errors().NotFound:
                raise StorageError(f"{where}/{name}: it was removed meanwhile; try again") from None

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _each(bring, names)
    except OSError as error:
        raise UserError(
            f"{where} cannot be copied to {folder}: {error.strerror or error}; "
            "point JXFER_CACHE to a folder that can be written"
        ) from error


def send(folder: pathlib.Path, names: Iterable[str], where: str) -> None:
    """Makes objects below an address of the files of the same names in a folder.

    Raises:
      UserError: one cannot be written.
      FileNotFoundError: there is no such file.
    """
    _each(lambda name: write(f"{where}/{name}", folder / name), names)


def _split(where: str) -> tuple[str, str]:
    """(bucket, path without slashes around it)."""
    bucket, _, path = where.removeprefix("gs://").partition("/")
    return bucket, path


def _each(act: Callable[[str], object], names: Iterable[str]) -> None:
    """Calls it for every name, some at a time; the first error that it meets is raised."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        waiting = [pool.submit(act, name) for name in names]
        try:
            for one in waiting:
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _storage() -> Any:
    try:
        from google.cloud import storage
    except ImportError:
        raise UserError(
            "reading and writing gs:// needs the extra gcs: pip install 'jxfer[gcs]'"
        ) from None
    return storage


def _errors() -> Any:
    from google.api_core import exceptions

    return exceptions


def _retry() -> Any:
    _storage()
    from google.cloud.storage.retry import DEFAULT_RETRY

    # Whole objects are read and written, so each request may be sent again.
    return DEFAULT_RETRY.with_timeout(_RETRY_SECONDS)


def _bucket(name: str) -> Any:
    """The bucket, by a client of this thread's own: they are not made to be shared."""
    client = getattr(_local, "client", None)
    if client is None:
        # No project is asked for anything here, but the client wants one.
        client = _local.client = _storage().Client(project="none")
    return client.bucket(name)


@contextlib.contextmanager
def _answered(where: str) -> Iterator[None]:
    """Turns what a bucket, the network or the credentials refuse into one line."""
    storage = _storage()
    import google.auth.exceptions
    import google.cloud.storage.exceptions
    import requests

    errors = _errors()
    try:
        yield
    except errors.NotFound:
        reason = f"there is no bucket {_split(where)[0]}"
    except errors.Forbidden:
        reason = (
            "access is denied: log in with gcloud auth application-default login, or let the "
            "machine's service account use the bucket"
        )
    except (google.auth.exceptions.GoogleAuthError, errors.Unauthorized):
        reason = (
            "no valid Google credentials: log in with gcloud auth application-default login, or "
            "set GOOGLE_APPLICATION_CREDENTIALS"
        )
    except errors.RetryError as error:
        reason = f"the storage does not answer ({_line(error.cause or error)})"
    except (
        requests.RequestException,
        errors.GoogleAPIError,
        storage.exceptions.DataCorruption,
        ConnectionError,
    ) as error:
        reason = f"the storage fails ({_line(error)})"
    else:
        return
    raise StorageError(f"{where}: {reason}")


def _line(error: BaseException) -> str:
    """The kind of an error and its code: its text holds URLs."""
    code = getattr(error, "code", None) or getattr(
        getattr(error, "response", None), "status_code", None
    )
    return f"{type(error).__name__}, {int(code)}" if code else type(error).__name__
