"""Features on disk: a folder of plain .npy files, which NumPy opens without jxfer.

After `features` in the flow. A whole folder holds

    OUTPUT.npy         float32 [N, ...] of each output, in the source's order
    labels.npy         int32 [N]
    ids.npy            unicode [N], the names of the examples
    features.json      a `Manifest`, written last: where it is, the folder is whole

and, while rows are computed,

    OUTPUT.npy.part    the header of the whole and the rows so far; NumPy refuses it as too short
    progress.json      what is computed, how many rows are known to be whole, and their CRC-32

`docs/features.md` tells the same to those who read a folder without jxfer.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jxfer import disk, sealed
from jxfer.data.readers import Source, images_sha256
from jxfer.errors import UserError
from jxfer.json_fields import decode, parse
from jxfer.probe.features import Form
from jxfer.zoo.card import Card

MANIFEST = "features.json"
PROGRESS = "progress.json"
DTYPE = np.dtype("<f4")
"""Of the features."""
_ABOUT_EXAMPLES = ("labels", "ids")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`features.json`."""

    format: Literal[1]
    """of the folder; another number is another layout"""
    rows: int
    """N"""
    class_names: tuple[str, ...]
    """by label"""
    key: dict[str, Any]
    """what the features are: see `make_key`"""
    program: dict[str, Any]
    """what computed them, which decides their last bits: see `program.identity`"""
    jxfer_version: str
    """version that wrote the folder"""
    crc32: dict[str, int]
    """of each .npy file, header and all"""


@dataclasses.dataclass(frozen=True)
class Features:
    """A whole folder, verified."""

    arrays: dict[str, np.ndarray]
    """float32 [N, ...] by output, memory-mapped and read-only"""
    labels: np.ndarray
    """int32 [N]"""
    ids: np.ndarray
    """unicode [N]"""
    class_names: tuple[str, ...]
    """by label"""
    key: dict[str, Any]
    """see `make_key`"""


def make_key(
    card: Card, data: str, split: str | None, source: Source, outputs: Sequence[str], form: Form
) -> dict[str, Any]:
    """All that decides the features but for rounding, as JSON values. Reads the whole source.

    Args:
      card: of the weights; its digest of the tensors is complete.
      data: the data spec.
      split: as it was asked for.
    """
    examples = [[source.name(i), int(label)] for i, label in enumerate(source.labels)]
    digest = hashlib.sha256(json.dumps([source.class_names, examples]).encode())
    key = {
        "weights": {"name": card.name, "tensors_sha256": card.tensors_sha256},
        "network": {
            "arch": card.arch,
            "through": card.through,
            "head": dataclasses.asdict(card.head) if card.class_names else None,
        },
        "preprocessing": dataclasses.asdict(card.preprocessing),
        "data": {
            "source": data,
            "split": split,
            "examples_sha256": digest.hexdigest(),
            "images_sha256": images_sha256(source),
        },
        "outputs": list(outputs),
        "form": form,
        "dtype": DTYPE.name,
    }
    return dict(json.loads(json.dumps(key)))


def load(folder: pathlib.Path) -> Features:
    """Opens a whole folder and verifies it, which reads every file once.

    Raises:
      UserError: it is none, not whole, of another format, or damaged.
    """
    if not (folder / MANIFEST).is_file():
        if (folder / PROGRESS).exists():
            raise UserError(f"{folder} is not complete; the same jxfer features command resumes it")
        raise UserError(f"{folder} holds no features: no {MANIFEST}; jxfer features writes some")
    path = folder / MANIFEST
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    manifest = decode(Manifest, sealed.bare(values), str(path))
    _check_complete(manifest, path)
    sealed.unseal(values, str(path))
    arrays = {}
    for name, crc in manifest.crc32.items():
        path = folder / name
        try:
            if disk.crc32(path) != crc:
                raise _damaged(path)
            arrays[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _damaged(path) from error
        if arrays[path.stem].shape[:1] != (manifest.rows,):
            raise _damaged(path)
    labels, ids = (arrays.pop(name) for name in _ABOUT_EXAMPLES)
    return Features(arrays, labels, ids, manifest.class_names, manifest.key)


def load_splits(folders: Sequence[pathlib.Path]) -> list[Features]:
    """Opens the features of several splits, which one network must have put out.

    Raises:
      UserError: as `load`; a folder is of another network or of other classes than the first, or
        holds maps; two folders share images.
    """
    found = [load(folder) for folder in folders]
    first, key = folders[0], found[0].key
    if key["form"] == "spatial":
        raise UserError(f"{first} holds maps; a probe takes vectors: --form pooled or flat")
    for folder, other in zip(folders[1:], found[1:], strict=True):
        ours, theirs = _network(key), _network(other.key)
        if differing := [part for part in ours if ours[part] != theirs[part]]:
            raise UserError(
                f"{folder} holds features of another network than {first}: its "
                f"{' and '.join(differing)} differ"
            )
        if found[0].class_names != other.class_names:
            raise UserError(f"{folder} holds other classes than {first}")
    for (folder, one), (later, other) in itertools.combinations(
        zip(folders, found, strict=True), 2
    ):
        data, other_data = one.key["data"], other.key["data"]
        if data["images_sha256"] == other_data["images_sha256"]:
            raise UserError(f"{later} holds the same images as {folder}")
        if data["source"] != other_data["source"]:
            continue  # names of examples mean nothing across data sets
        shared = np.intersect1d(one.ids, other.ids)
        if shared.size:
            raise UserError(
                f"{later} holds {shared.size} of the images of {folder}, the first {shared[0]}: "
                "write features of splits that share none"
            )
    return found


def _network(key: dict[str, Any]) -> dict[str, Any]:
    """The parts of a key that two splits of one probe share; weights by their digest alone."""
    parts = {name: key[name] for name in ("network", "preprocessing", "outputs", "form")}
    return {"weights": key["weights"]["tensors_sha256"], **parts}


def _check_complete(manifest: Manifest, path: pathlib.Path) -> None:
    """Raises UserError unless it names every file, and its key has every part that is read."""
    try:
        key = manifest.key
        _network(key), key["weights"]["name"], key["data"]["source"], key["data"]["images_sha256"]
        files = {f"{name}.npy" for name in (*_ABOUT_EXAMPLES, *key["outputs"])}
    except (KeyError, TypeError) as error:
        raise _damaged(path) from error
    inside = all(pathlib.PurePath(name).name == name for name in files)
    if not inside or files != set(manifest.crc32):
        raise _damaged(path)


def _damaged(path: pathlib.Path) -> UserError:
    return UserError(f"{path} is damaged or missing; write the features again, to a new folder")
