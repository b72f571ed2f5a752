"""Does a data set look the same in a mirror? Where it does, flips are safe to train with.

After `similarity`, before `measure` in the flow.
"""

import dataclasses

import numpy as np

from jxfer.advise.similarity import proxy_a_distance
from jxfer.data.mapped import MappedSource
from jxfer.data.readers import Source

MOST_IMAGES = 200
FEWEST_IMAGES = 100
HARMLESS_DISTANCE = 0.35
"""Between hymenoptera's, at most 0.1, and that of digits, at least 0.6, on 100 images or more."""


def mirrored(source: Source) -> MappedSource:
    """The images of a source, mirrored left to right."""
    return MappedSource(source, lambda pixels, name: pixels[:, ::-1])


@dataclasses.dataclass(frozen=True)
class Mirrors:
    """Whether images and mirror images of a data set look like one set."""

    distance: float
    """proxy A-distance between half of the images and the mirror images of the others"""
    images: int
    """of both halves"""

    @property
    def harmless(self) -> bool:
        """Whether no linear classifier tells the halves apart, which too few images cannot say.

        Photographs of animals are as often of the one side as of the other; writing is not. What a
        probe says of mirror images would be no evidence: the features of networks that were trained
        with flips are much the same for both, whatever the classes are.
        """
        return self.images >= FEWEST_IMAGES and self.distance < HARMLESS_DISTANCE


def mirrors(rows: np.ndarray, mirrored: np.ndarray, seed: int) -> Mirrors:
    """Compares the features of some images with those of the mirror images of others.

    Args:
      rows: [N, D], of the images.
      mirrored: [N, D], of the same images mirrored.
      seed: of the halves and folds.
    """
    if len(rows) < 4:
        return Mirrors(0.0, len(rows))
    order = np.random.default_rng([seed, 3]).permutation(len(rows))
    one, other = order[: len(rows) // 2], order[len(rows) // 2 :]
    return Mirrors(proxy_a_distance(rows[one], mirrored[other], seed), len(rows))
