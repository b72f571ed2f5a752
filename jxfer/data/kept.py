"""Decoded images that stay in memory from one pass over a source to the next.

After `loader` in the flow, which asks a source for what it keeps. Nothing is decoded beforehand:
what the first pass decodes is what the next ones find, and pixels are the same with and without.
"""

import dataclasses
import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from jxfer import machine
from jxfer.data.pictures import Picture
from jxfer.data.readers import Example, Made, Source, View
from jxfer.data.sources import Splits
from jxfer.data.transforms import AugmentConfig, Preprocessing

SHARE = 0.25
"""Of the memory that is available when a run starts: at most this part holds images."""
_SAMPLE = 32  # images whose sizes stand for those of a split


class Room:
    """Memory that several sources share.

    Args:
      max_bytes: of all that is kept.
    """

    def __init__(self, max_bytes: float) -> None:
        self._left = max_bytes
        self._lock = threading.Lock()

    def take(self, kept: dict[Hashable, Any], key: Hashable, value: Any) -> None:
        """Puts `value` into `kept` if it is new and fits."""
        with self._lock:
            if key not in kept and value.nbytes <= self._left:
                self._left -= value.nbytes
                kept[key] = value


class KeptImages(View):
    """A source that keeps what was made of its images, as far as there is room."""

    def __init__(self, source: Source, room: Room) -> None:
        super().__init__(source)
        self._room = room
        self._kept: dict[Hashable, Any] = {}

    def __getitem__(self, index: int) -> Example:
        return self._source[index]

    def keep(self, key: Hashable, make: Callable[[], Made]) -> Made:
        found: Made | None = self._kept.get(key)
        if found is None:
            found = make()
            self._room.take(self._kept, key, found)
        return found


def keep_images(
    splits: Splits, preprocessing: Preprocessing, augment: AugmentConfig, max_gb: float
) -> tuple[Splits, str]:
    """Keeps the decoded images of training and validation, where those of both fit.

    Random crops need the whole images of the training split, whose size is estimated from a few;
    anything else needs the evaluation view. Should the estimate be too low, what does not fit is
    decoded each time.

    Args:
      max_gb: at most this many 10^9 bytes.

    Returns:
      (the splits, a line that says what was decided).

    Raises:
      UserError: one of the few images cannot be read.
    """
    view = preprocessing.size**2 * 3
    each = _decoded_bytes(splits.train) if augment.random_resized_crop else view
    needed = len(splits.train) * each + len(splits.val) * view
    available = machine.available_bytes()
    room = min(max_gb * 1e9, SHARE * available)
    images = f"decoded images take {'about ' if each != view else ''}{needed / 1e9:.2g} GB"
    if needed <= room:
        shared = Room(room)
        train, val = KeptImages(splits.train, shared), KeptImages(splits.val, shared)
        kept = dataclasses.replace(splits, train=train, val=val)
        return kept, f"{images} and stay in memory after the first pass"
    limit = f"--cache.images-gb {max_gb:g}"
    if room < max_gb * 1e9:
        limit = f"{SHARE:.0%} of the {available / 1e9:.3g} GB of memory that are available"
    return splits, f"{images}, more than {limit}: each is decoded every time"


def _decoded_bytes(source: Source) -> float:
    """Mean over a few examples, evenly spaced, of what `Picture` takes at most."""
    rows = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int))
    return float(np.mean([Picture(source[int(row)]).nbytes for row in rows]))
