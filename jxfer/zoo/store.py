"""Zoo entries on disk: a folder with `card.json` and an Orbax checkpoint in `tensors/`.

After `card`, before `zoos`. The only file of the zoo that imports Orbax. Orbax restores
flipped bits without a word, so two digests in the card guard an entry: one over the checkpoint's
files, compared before Orbax parses any of them, and one over the arrays that came out.
"""

import dataclasses
import hashlib
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jxfer import disk, trees
from jxfer.data import remote
from jxfer.errors import UserError, first_line
from jxfer.models import registry
from jxfer.models.registry import Model
from jxfer.trees import Tree
from jxfer.zoo import whole
from jxfer.zoo.card import ANEW, Card
from jxfer.zoo.report import raise_problems

CARD = "card.json"
TENSORS = "tensors"


def save(folder: str | Path, card: Card, variables: Tree, *, overwrite: bool = False) -> Card:
    """Writes an entry, complete or not at all. With several hosts, call it on process 0 only.

    Args:
      folder: the entry's folder, whose parents are made, or its `gs://` address.
      card: `parameters`, `jxfer_version` and the two digests are filled in here.
      variables: `{"params": ..., "batch_stats": ...}` of host or device arrays.
      overwrite: replace an entry that is there.

    Returns:
      The card as written.

    Raises:
      UserError: the folder exists and `overwrite` is off, or it is no zoo entry; a folder on the
        way to it cannot be made.
    """
    if address := remote.address(folder):
        return _save_remote(address, card, variables, overwrite)
    folder = Path(folder)
    variables = trees.unflatten({k: np.asarray(v) for k, v in trees.flatten(variables).items()})
    with whole.replacing(
        folder, overwrite=overwrite, kind="zoo entry", is_one=lambda path: (path / CARD).is_file()
    ) as new:
        _write_tensors(new / TENSORS, variables)
        card = dataclasses.replace(
            card,
            parameters=trees.size(variables["params"]),
            jxfer_version=own_version(),
            tensors_sha256=trees.sha256(variables),
            files_sha256=_files_sha256(new / TENSORS),
        )
        (new / CARD).write_text(card.to_json(), encoding="utf-8")
    return card


def _save_remote(address: str, card: Card, variables: Tree, overwrite: bool) -> Card:
    there = list(remote.listing(address))
    # Tensors without a card are what a kill leaves.
    others = [name for name in there if not name.startswith(f"{TENSORS}/")]
    if others and not overwrite:
        raise UserError(f"{address} exists; choose another name or overwrite it")
    if others and CARD not in others:
        raise UserError(f"{address} is no zoo entry and is not overwritten")
    with tempfile.TemporaryDirectory() as scratch:
        entry = Path(scratch, "entry")
        card = save(entry, card, variables)
        names = [p.relative_to(entry).as_posix() for p in entry.rglob("*") if p.is_file()]
        # A folder without a card is no entry: it goes first and comes last.
        remote.delete(address, [CARD])
        remote.delete(address, there)
        remote.send(entry, [name for name in names if name != CARD], address)
        remote.send(entry, [CARD], address)
    return card


def load(folder: str | Path) -> tuple[Card, Tree]:
    """Reads an entry and verifies it.

    Returns:
      (card, nested dict of np.ndarray).

    Raises:
      UserError: a file is missing, the card is invalid, the tensors are not those that were
        saved, or not those of the network that the card describes; a link leads out of the folder.
    """
    folder = Path(folder)
    card = read_card(folder)
    tensors = folder / TENSORS
    if not tensors.is_dir():
        raise UserError(f"{tensors}: missing; the entry is not complete: {ANEW}")
    for file in (tensors, *tensors.rglob("*")):
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{file}: a link out of the entry; copy what it points to")
    if _files_sha256(tensors) != card.files_sha256:
        raise UserError(
            f"{tensors}: damaged: the files do not match files_sha256 in {CARD}; {ANEW}"
        )
    try:
        variables = _read_tensors(tensors)
    except Exception as error:  # Orbax raises many types; whatever it is, the entry is unusable
        reason = first_line(error)[:120]
        raise UserError(f"{tensors}: cannot be restored: {reason}; {ANEW}") from error
    if trees.sha256(variables) != card.tensors_sha256:
        raise UserError(f"{tensors}: the tensors do not match tensors_sha256 in {CARD}; {ANEW}")
    _check_fits(card, variables, str(folder / CARD))
    return card, variables


def build(card: Card) -> Model:
    """The network that a card describes, without a head if it names no classes.

    Raises:
      UserError: an unknown architecture or stage.
    """
    classes = len(card.class_names) or None
    return registry.create(card.arch, classes, through=card.through, head=card.head)


def verify(folder: str | Path) -> Card:
    """Reads an entry whole and compares both digests; raises as `load`."""
    return load(folder)[0]


def read_card(folder: str | Path) -> Card:
    """Reads the card alone, of an address too.

    Raises:
      UserError: there is none, or it is invalid.
    """
    address = remote.address(folder)
    path = Path(folder) / CARD
    where = f"{address}/{CARD}" if address else str(path)
    content = None
    if address:
        content = remote.read(where)
    elif path.is_file():
        content = path.read_bytes()
    if content is None:
        raise UserError(
            f"{where}: missing; {remote.shown(folder)} is no zoo entry; jxfer zoo list "
            "shows what there is"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not valid UTF-8: {error.reason}; {ANEW}") from None
    return Card.from_json(text, where)


def write_card(folder: str | Path, card: Card) -> None:
    """Replaces the card of an entry, and leaves its tensors alone.

    Raises:
      UserError: there is no entry, it holds other tensors by now, or it cannot be written.
    """
    folder = Path(folder)
    if read_card(folder).tensors_sha256 != card.tensors_sha256:
        raise UserError(f"{folder} holds other tensors by now; run the command again")
    with whole.replacing(
        folder / CARD, overwrite=True, kind="card", is_one=lambda path: path.is_file()
    ) as new:
        new.write_text(card.to_json(), encoding="utf-8")


def own_version() -> str:
    """Version of jxfer; "unknown" in a checkout that is not installed."""
    try:
        return importlib.metadata.version("jxfer")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _files_sha256(folder: Path) -> str:
    """Hex digest over relative path, size and bytes of every file, in path order."""
    digest = hashlib.sha256()
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*")}
    for name, file in sorted(files.items()):
        if file.is_file() and not file.name.startswith("."):  # .DS_Store and its like do no harm
            digest.update(f"{name} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _check_fits(card: Card, variables: Tree, where: str) -> None:
    """Raises UserError unless these are the leaves of the network that the card describes."""
    try:
        expected = trees.flatten(build(card).shapes())
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    found = trees.flatten(variables)
    problems = [f"unexpected {path}" for path in found if path not in expected]
    for path, leaf in expected.items():
        if path not in found:
            problems.append(f"missing {path}")
        elif found[path].shape != leaf.shape:
            problems.append(f"{path} has shape {found[path].shape}, expected {leaf.shape}")
    raise_problems(f"{where} is not the card of these tensors", problems)


def _checkpointer() -> Any:
    import jax
    import orbax.checkpoint as ocp

    disk.tell_once()
    # Each process reads and writes for itself: no barrier that waits for the other hosts.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"zoo{me}"
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _write_tensors(folder: Path, variables: Tree) -> None:
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(folder.absolute(), variables)
    except Exception:
        disk.let_writers_end(folder.parent)
        raise
    # A marker for file systems without rename, which holds the absolute path: not for others' eyes.
    (folder / "commit_success.txt").unlink(missing_ok=True)


def _read_tensors(folder: Path) -> Tree:
    with _checkpointer() as checkpointer:
        restored = checkpointer.restore(folder.absolute())
    return trees.unflatten({k: np.asarray(v) for k, v in trees.flatten(restored).items()})
