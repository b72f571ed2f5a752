"""Images that cannot be read: found before training, and left out where the config says so.

After `transforms` and `sampling`, before `loader`.
"""

import concurrent.futures
import itertools
import logging

import numpy as np

from jxfer import machine
from jxfer.data import remote, sampling, sources, transforms
from jxfer.data.readers import Source, Subset
from jxfer.data.sources import DataConfig, Splits
from jxfer.errors import UserError

_log = logging.getLogger("jxfer")


def load_splits(config: DataConfig, *, by_class: bool = True) -> Splits:
    """Opens the splits for training and, with `on_bad_image="skip"`, leaves bad images out.

    Args:
      by_class: see `sources.open_splits`.

    Raises:
      UserError: as `sources.open_splits`; a class has no training image to balance with, or no
        readable one.
    """
    screen = None if config.on_bad_image == "error" else drop_unreadable
    splits = sources.open_splits(config, screen=screen, by_class=by_class)
    if splits.skipped:
        _log.warning(
            "unreadable images skipped: %d, the first %s", len(splits.skipped), splits.skipped[0]
        )
    train = splits.train
    if config.balanced_sampling:
        sampling.members(train)
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    if by_class and splits.skipped and not counts.all():
        empty = train.class_names[int(counts.argmin())]
        raise UserError(
            f"class {empty} has no readable training image ({len(splits.skipped)} skipped, "
            f"the first {splits.skipped[0]}): repair or replace them"
        )
    return splits


def load_for_evaluation(
    config: DataConfig, split: str | None = None
) -> tuple[Source, tuple[str, ...]]:
    """Opens one split, whole but, with `on_bad_image="skip"`, for its bad images.

    Returns:
      (the split, names of the unreadable images that were left out).

    Raises:
      UserError: as `sources.open_for_evaluation`.
    """
    source = sources.open_for_evaluation(config, split)
    return (source, ()) if config.on_bad_image == "error" else drop_unreadable(source)


def drop_unreadable(source: Source) -> tuple[Source, tuple[str, ...]]:
    """Decodes every image once, on all cores that this process may use.

    Returns:
      (the source without the unreadable images, their names in the source's order).

    Raises:
      UserError: no image is left.
    """

    def unreadable(chunk: range) -> list[int]:
        bad = []
        for index in chunk:
            try:
                example = source[index]
                transforms.decode(example.image, example.name)
            except remote.StorageError:  # says nothing of the image
                raise
            except UserError:
                bad.append(index)
        return bad

    chunks = [range(len(source))[start : start + 64] for start in range(0, len(source), 64)]
    with concurrent.futures.ThreadPoolExecutor(machine.visible_cores()) as pool:
        bad = list(itertools.chain.from_iterable(pool.map(unreadable, chunks)))
    if not bad:
        return source, ()
    kept = np.setdiff1d(np.arange(len(source)), bad)
    if not kept.size:
        raise UserError(
            f"none of {len(source)} images is readable, the first {source.name(0)}: repair or "
            "replace them"
        )
    return Subset(source, kept), tuple(source.name(index) for index in bad)
