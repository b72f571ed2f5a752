"""Compiled programs are kept on disk, so that a command that runs again does not compile again.

After `program` in the flow; called by the commands alone, never by an import. The cache is JAX's
own, which keys a program by its code, the versions of jaxlib and of the backend, XLA's flags and
the kind of device, a CPU's instruction set included (`jax/_src/cache_key.py`). XLA also divides a
CPU program among the cores that it sees as it compiles, and the key leaves them out: hence a folder
for each number of cores, so that a program from the cache gives the bits of one compiled anew.

JAX itself notices a damaged program only by its compression: zlib's checksum tells, but zstd, which
it takes where the package `zstandard` is installed, keeps none, and JAX runs what comes out, to a
crash or to other numbers. So each program is kept behind a digest of its own.
"""

import hashlib
import logging
import os
import pathlib
import re
import warnings
from typing import Any

import filelock
import jax
from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface
from jax._src.lru_cache import LRUCache

from jxfer import disk, machine
from jxfer.errors import UserError

SWITCH = "JXFER_COMPILED"
"""The environment variable that switches it off."""
MAX_BYTES = 5 * 2**30
"""Of a folder; the programs that were not used for longest make room."""
_DIGEST = hashlib.sha256
_JAX_FAILS = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for [^:]*: (?P<why>.*)", re.DOTALL
)
_log = logging.getLogger("jxfer")


class _Sealed(CacheInterface):
    """A cache of JAX whose programs stand behind their digests; a damaged one is compiled anew.

    Args:
      folder: as JAX gives it.
    """

    def __init__(self, folder: str) -> None:
        self._cache = LRUCache(folder, max_size=MAX_BYTES)
        self._path = self._cache.path

    def get(self, key: str) -> bytes | None:
        found = self._cache.get(key)
        size = _DIGEST().digest_size
        if found is None or _DIGEST(found[size:]).digest() == found[:size]:
            return None if found is None else found[size:]
        file = self._path / f"{key}-cache"
        _log.warning("%s is damaged, or of an earlier version: compiling it again", file)
        with self._cache.lock:
            for name in (f"{key}-cache", f"{key}-atime"):
                (self._path / name).unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        self._cache.put(key, _DIGEST(value).digest() + value)


def switch_on() -> None:
    """Keeps the programs of this process in `cache_dir()/compiled`, and finds those that are there.

    Does nothing where `$JAX_COMPILATION_CACHE_DIR` names a folder, whose settings are then JAX's
    own, or where `$JXFER_COMPILED` is `off`. A folder that cannot be written, or no longer, is one
    warning: programs are then compiled as if there were no cache.

    Raises:
      UserError: `$JXFER_COMPILED` is something else.
    """
    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise UserError(f"{SWITCH}={switch}: it must be on or off")
    if switch == "off" or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    folder = disk.cache_dir() / "compiled" / f"{machine.visible_cores()}-cores"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lockfile"):  # JAX's own, held while it writes
            _drop_unfinished(folder)
    except OSError as error:
        _tell(folder, error.strerror or str(error))
        return
    for name, value in {
        "jax_compilation_cache_dir": str(folder.resolve()),
        "jax_compilation_cache_max_size": MAX_BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }.items():
        jax.config.update(name, value)
    compilation_cache.get_file_cache = _open
    _tell_once(folder)


def switch_off() -> None:
    """Undoes `switch_on`, as long as nothing was compiled.

    For several hosts, which need not share the folder: on GPUs XLA divides the search for the
    fastest kernels among those that compile, and might wait for one that found its program.
    """
    if compilation_cache.get_file_cache is _open:
        jax.config.update("jax_compilation_cache_dir", None)


def _open(path: str) -> tuple[CacheInterface, str]:
    """In place of JAX's own."""
    return _Sealed(path), path


def _tell(folder: pathlib.Path, why: str) -> None:
    _log.warning(
        "%s: %s; nothing that is compiled is kept: point JXFER_CACHE to a folder that can be "
        "written, or set %s=off",
        folder,
        why,
        SWITCH,
    )


def _tell_once(folder: pathlib.Path) -> None:
    """Of the warnings that JAX gives for each program, the first is told, in one line."""
    show, told = warnings.showwarning, False

    def show_others(message: Warning | str, *rest: Any, **named: Any) -> None:
        nonlocal told
        if not (found := _JAX_FAILS.match(str(message))):
            show(message, *rest, **named)
        elif not told:
            told = True
            _tell(folder, " ".join(found["why"].split()))

    warnings.showwarning = show_others


def _drop_unfinished(folder: pathlib.Path) -> None:
    """Removes what a kill cut off: JAX writes the time of use after the program, and needs both."""
    for program_file in folder.glob("*-cache"):
        if not program_file.with_name(program_file.name.removesuffix("cache") + "atime").exists():
            program_file.unlink()
