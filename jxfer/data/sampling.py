"""The endless order of the training examples: shuffled, or every class equally often.

After `readers`, before `loader`. An order is an infinite `grain.MapDataset` of draws (position in
the source, how often that example was drawn before). Draw i depends on the seed and i alone. It is
seeded for the random operations that follow.
"""

import functools
from typing import Any

import numpy as np

from jxfer.data.readers import Source
from jxfer.errors import UserError


def order(source: Source, seed: int, *, balanced: bool = False) -> Any:
    """The order of a seed: a new permutation each epoch, or that of `class_balanced`."""
    import grain

    if balanced:
        return class_balanced(source, seed)
    shuffled = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
    return shuffled.map_with_index(lambda draw, index: (int(index), draw // len(source)))


def class_balanced(source: Source, seed: int) -> Any:
    """Every class equally often, and within a class every example.

    With K classes, each run of K draws from a multiple of K on holds every class once, in a new
    random order. The draws of a class of n examples go through a new permutation of them every n
    draws. So a small class repeats its examples sooner; nothing is left out of a large one.

    Raises:
      UserError: a class has no example.
    """
    import grain

    indices = members(source)
    classes = len(indices)

    # Drawn as a whole and kept: Grain's shuffle by index takes milliseconds where few are shuffled.
    @functools.lru_cache(maxsize=2 * classes + 2)
    def permutation(stream: int, number: int, length: int) -> np.ndarray:
        return np.random.default_rng((seed, stream, number)).permutation(length)

    def draw(number: int, _: int) -> tuple[int, int]:
        turn, place = divmod(number, classes)
        label = int(permutation(0, turn, classes)[place])
        own = indices[label]
        times, place = divmod(turn, len(own))
        return int(own[permutation(1 + label, times, len(own))[place]]), times

    endless = grain.MapDataset.range(classes).seed(seed).repeat(None)
    return endless.map_with_index(draw)


def members(source: Source) -> list[np.ndarray]:
    """The indices of each class's examples, ascending.

    Raises:
      UserError: a class has no example.
    """
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    if not counts.all():
        empty = source.class_names[int(counts.argmin())]
        raise UserError(
            f"class {empty} has no training image to draw: add some, or leave out "
            "--data.balanced-sampling"
        )
    return np.split(np.argsort(source.labels, kind="stable"), np.cumsum(counts)[:-1])
