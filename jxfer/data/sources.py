"""From a data spec to its splits: train, val and test as random-access sources.

After `embedded`, `prepared`, `subsets` and `readers`, before `transforms`. The specs:

- `digits`, `glyphs`, `rendered_digits`: those of `embedded.EMBEDDED`
- `tfds:NAME[/CONFIG][:VERSION]`, in `data_dir`
- `folder:PATH` with `train/ val/ test/` folders of class folders, or one folder of class folders;
  PATH is on this machine or `gs://BUCKET/...`, of which each image is read when it is needed
"""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jxfer import choices
from jxfer.data import embedded, prepared, remote, subsets
from jxfer.data.folders import BucketFolder, Folder, LocalFolder
from jxfer.data.readers import (
    Example,
    FolderSource,
    Source,
    Subset,
    TfdsSource,
)
from jxfer.errors import UserError

__all__ = [
    "DataConfig",
    "Example",
    "FolderSource",
    "Source",
    "Splits",
    "Subset",
    "TfdsSource",
    "has_one_split",
    "open_for_evaluation",
    "open_splits",
    "place",
]

_FOLDER_SPLITS = ("train", "val", "test")
_log = logging.getLogger("jxfer")

Screen = Callable[[Source], tuple[Source, tuple[str, ...]]]
"""Leaves examples out of a source: returns what is left, and the names of the others."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images to learn from.

    Raises:
      UserError: a field is out of range.
    """

    source: str
    """Data spec: digits, glyphs, rendered_digits, tfds:NAME[/CONFIG][:VERSION] or folder:PATH, a
    folder or gs://."""
    data_dir: str | None = None
    """Where tfds: datasets are prepared, a folder or gs://; else TFDS_DATA_DIR."""
    split_seed: int = 0
    """Draws the validation split and the few-shot subset; not the run's seed."""
    val_fraction: float = 0.1
    """Part of each class held out for validation, where the data has no val split."""
    per_class: int | None = None
    """Train on this many images of each class, drawn after validation is held out; else on all."""
    balanced_sampling: bool = False
    """Draw every class equally often in training; an epoch stays as many images as there are."""
    on_bad_image: Literal["error", "skip"] = "error"
    """Stop at an image that cannot be read, or decode all first and leave such images out."""

    def __post_init__(self) -> None:
        choices.check(self, "--data.")
        if self.split_seed < 0:
            raise UserError(f"--data.split-seed must be at least 0, not {self.split_seed}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"--data.val-fraction must be between 0 and 1, not {self.val_fraction}")
        if self.per_class is not None and self.per_class < 1:
            raise UserError(f"--data.per-class must be at least 1, not {self.per_class}")


@dataclasses.dataclass(frozen=True)
class Splits:
    """What training reads. All splits have the same class names."""

    train: Source
    """the examples to learn from"""
    val: Source
    """for every choice: the best step, learning rate, depth"""
    test: Source | None
    """read once, at the end; None where the data has none"""
    skipped: tuple[str, ...] = ()
    """names of unreadable images that were left out"""
    left_out: int = 0
    """number of files in a data folder that are no image in a class folder"""


def open_splits(
    config: DataConfig, screen: Screen | None = None, *, by_class: bool = True
) -> Splits:
    """Opens the splits for training.

    Args:
      config: which data; its `on_bad_image` is up to the caller, by `screen`.
      screen: applied to each split after validation is held out and before the few are drawn.
        So the validation split is the same with or without it, and the few are balanced.
      by_class: a validation split that is held out has its part of each class; False reads no
        label for it.

    Raises:
      UserError: the spec is unknown, the data is absent or not usable, there is no train split,
        or it has too few images to hold out validation or to draw `per_class`.
    """
    stored = _stored_splits(config)
    if "train" not in stored:
        raise UserError(
            f"data source {config.source} has no train split, only {', '.join(stored)}: "
            "training needs one"
        )
    opened = {name: stored[name]() for name in _FOLDER_SPLITS if name in stored}
    left_out = _warn_left_out(list(opened.values()))
    if "val" not in opened:
        opened["train"], opened["val"] = _carve(opened["train"], config, by_class)
    skipped: tuple[str, ...] = ()
    if screen is not None:
        for name, source in opened.items():
            opened[name], dropped = screen(source)
            skipped += dropped
    train = opened["train"]
    if config.per_class is not None:
        few = subsets.few_per_class(
            train.labels, train.class_names, config.per_class, config.split_seed
        )
        train = Subset(train, few)
    return Splits(train, opened["val"], opened.get("test"), skipped, left_out)


def open_for_evaluation(config: DataConfig, split: str | None = None) -> Source:
    """Opens one split, whole: neither `per_class` nor `on_bad_image` applies.

    Args:
      config: which data.
      split: `train` and `val` are what training sees, held out from one another where the data
        has no val split; other names as the data has them. None takes `test`, else a stored
        `val`, else the only split, all of it.

    Raises:
      UserError: as `open_splits`, or the data has no such split.
    """
    stored = _stored_splits(config)
    if split is None:
        split = next((name for name in ("test", "val") if name in stored), None)
        if split is None and len(stored) == 1:
            [split] = stored
    elif split in ("train", "val", "validation") and "train" in stored and "val" not in stored:
        source = stored["train"]()
        _warn_left_out([source])
        train, val = _carve(source, config)
        return train if split == "train" else val
    elif split == "validation":
        split = "val"
    if split not in stored:
        wanted = f"has no split {split}" if split else "has neither a test nor a val split"
        raise UserError(
            f"data source {config.source} {wanted}: name one of {', '.join(stored)} by --split"
        )
    source = stored[split]()
    _warn_left_out([source])
    return source


def has_one_split(config: DataConfig) -> bool:
    """Whether the data have a single split; raises as `open_splits`."""
    return len(_stored_splits(config)) == 1


def place(config: DataConfig) -> str:
    """Where the images of data that can be opened lie, however their spec is written.

    Returns:
      The path of a folder, of a TFDS dataset that of its version, without symbolic links; the
      address of one in a bucket; the name of an embedded set.

    Raises:
      UserError: as `open_splits`.
    """
    kind, _, rest = config.source.partition(":")
    if kind == "tfds":
        rest = str(prepared.open_prepared(rest, config.data_dir).data_dir)
    elif kind != "folder":
        return config.source
    return remote.address(rest) or os.path.realpath(os.path.expanduser(rest))


def _stored_splits(config: DataConfig) -> dict[str, Callable[[], Source]]:
    """`{split: opens it}` for the splits on disk; a TFDS `validation` goes by `val`."""
    if "\0" in config.source + (config.data_dir or ""):  # as only a file of options can hold
        raise UserError("--data.source and --data.data-dir are names, without a null byte")
    kind, _, rest = config.source.partition(":")
    if config.source in embedded.EMBEDDED:
        return _tfds_splits(embedded.open_embedded(config.source))
    try:
        if kind == "tfds" and rest:
            return _tfds_splits(prepared.open_prepared(rest, config.data_dir))
        if kind == "folder" and rest:
            return _folder_splits(_open_folder(rest))
    except OSError as error:  # a name too long, or no right to read
        why = error.strerror or error
        raise UserError(f"data source {config.source} cannot be read: {why}") from error
    hint = (
        f"; for the folder of that name: folder:{config.source}"
        if os.path.isdir(config.source)
        else ""
    )
    raise UserError(
        f"unknown data source {config.source!r}: expected {', '.join(embedded.EMBEDDED)}, "
        f"tfds:NAME[/CONFIG][:VERSION] or folder:PATH{hint}"
    )


def _tfds_splits(builder: Any) -> dict[str, Callable[[], Source]]:
    return {
        "val" if split == "validation" else split: functools.partial(TfdsSource, builder, split)
        for split in builder.info.splits
    }


def _open_folder(place: str) -> Folder:
    """Raises UserError if no such folder is there."""
    if address := remote.address(place):
        images = BucketFolder(address)
        if not images.is_there:
            raise UserError(f"data folder {address} does not exist: check the path after folder:")
        return images
    root = pathlib.Path(os.path.expanduser(place))
    if not root.exists():
        raise UserError(f"data folder {root} does not exist: check the path after folder:")
    if not root.is_dir():
        raise UserError(f"data folder {root} is a file: give the folder that holds class folders")
    return LocalFolder(root)


def _folder_splits(images: Folder) -> dict[str, Callable[[], Source]]:
    """One folder of class folders is its own, only split, `train`.

    Raises:
      UserError: its splits differ in their class folders.
    """
    inside = images.folders()
    classes = {
        split: found
        for split in _FOLDER_SPLITS
        if split in inside and (found := images.folders(split))
    }
    if not classes:
        if inside and set(inside) <= set(_FOLDER_SPLITS):
            raise UserError(
                f"data folder {images} has {', '.join(inside)} without class folders in them: "
                f"expected {images}/{inside[0]}/CLASS/IMAGE"
            )
        return {"train": functools.partial(FolderSource, images)}
    first, *others = classes
    for split in others:
        if differing := sorted(set(classes[first]) ^ set(classes[split])):
            raise UserError(
                f"data folder {images}: the class folders of {first} and {split} differ: "
                f"{', '.join(differing)} in one of them only; give both the same"
            )
    return {split: functools.partial(FolderSource, images, split) for split in classes}


def _carve(train: Source, config: DataConfig, by_class: bool = True) -> tuple[Source, Source]:
    labels = train.labels if by_class else np.zeros(len(train), np.int32)
    kept, carved = subsets.carve(labels, config.val_fraction, config.split_seed)
    return Subset(train, kept), Subset(train, carved)


def _warn_left_out(sources: list[Source]) -> int:
    """Logs the files that folders left out, once; returns how many."""
    names = [n for source in sources if isinstance(source, FolderSource) for n in source.left_out]
    if names:
        _log.warning(
            "left out %d file%s that %s no image in a class folder: %s%s",
            len(names),
            "" if len(names) == 1 else "s",
            "is" if len(names) == 1 else "are",
            names[0],
            "" if len(names) == 1 else ", ...",
        )
    return len(names)
