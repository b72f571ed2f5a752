"""The run folder: its files, its lock, and whether a config belongs to it.

`config.json`, `metrics.jsonl`, `events*`, `checkpoints/`, `summary.json`, `timing.json`, `model/`.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from jxfer import disk, sealed, trees
from jxfer.data import remote
from jxfer.errors import DiskError, UserError
from jxfer.json_fields import decode, parse
from jxfer.train import config as configs
from jxfer.train.config import TrainConfig

_LEFT_BY_A_KILL = (".lock", "config.json.tmp")  # before there was a config.json


@contextlib.contextmanager
def open_run(folder: pathlib.Path, config: TrainConfig) -> Iterator[Callable[[], None]]:
    """Holds the folder for this process and checks the config that is there, if there is one.

    Yields:
      A function that raises DiskError once the path no longer leads to the folder. Call it before
      what would make the folder anew, or write to whatever took its place.

    Raises:
      UserError: the folder belongs to another config, to something else, or to a live process.
    """
    remote.refuse(folder, "run folder")  # see mirror.mirrored
    with _of_option(folder, "--run"):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; --run takes a folder")
        if folder.is_dir() and not (folder / "config.json").exists():
            others = [entry.name for entry in folder.iterdir() if entry.name not in _LEFT_BY_A_KILL]
            if others:
                raise UserError(
                    f"{folder} holds other files ({others[0]}) and no config.json; "
                    "take a new folder as --run"
                )
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")

    def check() -> None:
        try:
            same = os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / ".lock"))
        except OSError:
            same = False
        if not same:
            raise DiskError(
                f"{folder} was moved, removed or unmounted while it was in use; put it back, and "
                "the same command resumes"
            )

    # The lock goes with the process, however it ends.
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is training here; wait for it") from error
        check()  # the process that held it before may have removed a folder that it had made
        if (folder / "config.json").exists():
            _check_same(folder, _read_values(folder), configs.to_dict(config))
        try:
            yield check
        except UserError:
            if is_new and not (folder / "config.json").exists():
                # A typo leaves no folder behind, unless another process has come to it.
                with contextlib.suppress(OSError):
                    (folder / ".lock").unlink()
                    folder.rmdir()
            raise


def write_config(folder: pathlib.Path, config: TrainConfig) -> None:
    """From here on the folder belongs to this config: call it when the run is about to start."""
    if not (folder / "config.json").exists():
        disk.write_json(folder / "config.json", sealed.seal(configs.to_dict(config)))


def move_weights(folder: pathlib.Path, weights: str) -> None:
    """Of a run that may have begun: its config calls the weights that it starts from by this name.

    For whoever knows that they are the same, such as a sweep that goes on in another directory.

    Raises:
      UserError: as `read_config`, where there is a config.
      DiskError: it cannot be written.
    """
    if not (folder / "config.json").exists():
        return
    config = read_config(folder)
    if config.model.weights != weights:
        model = dataclasses.replace(config.model, weights=weights)
        config = dataclasses.replace(config, model=model)
        disk.write_json(folder / "config.json", sealed.seal(configs.to_dict(config)))


def read_config(folder: pathlib.Path) -> TrainConfig:
    """The config of a run.

    Raises:
      UserError: there is none, or it is damaged or of another version.
    """
    return decode(TrainConfig, _read_values(folder), str(folder / "config.json"))


def read_summary(folder: pathlib.Path) -> dict[str, Any] | None:
    """`summary.json`, or None while the run has not finished.

    Raises:
      UserError: it is damaged.
    """
    path = folder / "summary.json"
    if not path.exists():
        return None
    found: dict[str, Any] = sealed.read(
        path, "remove it, and the command that trained the run writes it again"
    )
    return found


def read_timing(folder: pathlib.Path) -> dict[str, Any]:
    """`timing.json` of a finished run.

    Raises:
      UserError: there is none, or it is damaged.
    """
    found: dict[str, Any] = sealed.read(
        folder / "timing.json", "restore it: it cannot be measured again"
    )
    return found


def _read_values(folder: pathlib.Path) -> Any:
    try:
        found = parse((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is no run folder: no readable config.json; restore it, or name another"
        ) from error
    return sealed.unseal(found, str(folder / "config.json"))


def _check_same(folder: pathlib.Path, found: Any, wanted: dict[str, Any]) -> None:
    old, new = trees.flatten(found), trees.flatten(wanted)
    old["cache/images_gb"] = new["cache/images_gb"]  # the pixels are the same
    if {old.get("cache/mode"), new["cache/mode"]} <= {"memory", "disk"}:
        # Features may move: the bits are the same, and a disk may fill up.
        old |= {path: new[path] for path in ("cache/mode", "cache/max_gb")}
    if changed := changes(old, new):
        raise UserError(
            f"{folder} holds a run with another config ({changed}); "
            "take a new folder as --run, or the old options"
        )


def make_folder(folder: pathlib.Path, option: str) -> None:
    """Makes the folder that an option names, unless it is there.

    Raises:
      UserError: it is a file, cannot be made, or takes no files.
    """
    remote.refuse(folder, option)
    with _of_option(folder, option):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{option} {folder} is a file; name a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def write_result(path: pathlib.Path, values: Any, option: str) -> None:
    """As `disk.write_json`, into a folder that an option names.

    Raises:
      UserError: it cannot be written.
    """
    with _of_option(path.parent, option):
        disk.write_json(path, values)


@contextlib.contextmanager
def _of_option(folder: pathlib.Path, option: str) -> Iterator[None]:
    """Tells which option names the folder that fails."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{option} {folder}: {error.strerror or error}; name another folder"
        ) from error


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two flat dicts, as `a.b 1 -> 2; a.c 'x' -> None`; "" if nothing."""
    return "; ".join(
        f"{path.replace('/', '.')} {old.get(path)!r} -> {new.get(path)!r}"
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    )
