"""Are mirror images still of their class? Horizontal flips are safe to train with where they are.

Before `measure` in the flow.
"""

import dataclasses

import cv2
import numpy as np

from jxfer.data.readers import Example, Source
from jxfer.data.transforms import decode
from jxfer.probe.linear import LinearProbe

MOST_IMAGES = 200
FEWEST_IMAGES = 50


class MirroredSource(Source):
    """The images of a source, mirrored left to right; labels and names stay."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.class_names = source.class_names

    @property
    def labels(self) -> np.ndarray:
        return self._source.labels

    def name(self, index: int) -> str:
        return self._source.name(index)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        mirrored = decode(example.image, example.name)[:, ::-1, ::-1]  # OpenCV writes BGR
        encoded = cv2.imencode(".png", np.ascontiguousarray(mirrored))[1]
        return dataclasses.replace(example, image=encoded.tobytes())


@dataclasses.dataclass(frozen=True)
class Mirrors:
    """How a probe that has seen some images takes their mirror images."""

    accuracy: float
    """on the mirror images"""
    unseen: float
    """cross-validated accuracy, on images as they are"""
    images: int
    """mirrored"""

    @property
    def harmless(self) -> bool:
        """Whether mirror images are recognised as well as images that the probe has not seen.

        Within one standard error, and not on fewer than `FEWEST_IMAGES`. A digit's mirror image is
        mostly no digit, and fails by far.
        """
        if self.images < FEWEST_IMAGES:
            return False
        error = (self.unseen * (1 - self.unseen) / self.images) ** 0.5
        return self.accuracy >= self.unseen - error


def mirrors(probe: LinearProbe, unseen: float, rows: np.ndarray, labels: np.ndarray) -> Mirrors:
    """Asks a probe about mirror images.

    Args:
      probe: fitted to the images as they are.
      unseen: its cross-validated accuracy.
      rows: [N, D], features of the mirror images.
      labels: int [N].
    """
    return Mirrors(float((probe.predict(rows) == labels).mean()), unseen, len(labels))
