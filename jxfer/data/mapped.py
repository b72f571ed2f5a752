"""A source with its pixels changed: mirrored, corrupted, on another background.

After `transforms` in the flow. These are other images, not augmentation: each is the same whenever
it is read.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from jxfer.data.readers import Example, Source, View
from jxfer.data.transforms import decode


class MappedSource(View):
    """The images of a source through a function; labels and names stay.

    Args:
      source: whose images.
      change: from the pixels of an image, uint8 `[H, W, 3]` RGB, and its name, to other pixels,
        uint8 `[H', W', 3]`. What it draws must follow from the name, so that an image does not
        depend on the order that a source is read in.
    """

    def __init__(self, source: Source, change: Callable[[np.ndarray, str], np.ndarray]) -> None:
        super().__init__(source)
        self._change = change

    def __getitem__(self, index: int) -> Example:
        """The example with its image as a PNG file."""
        example = self._source[index]
        pixels = self._change(decode(example.image, example.name), example.name)
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        return dataclasses.replace(example, image=cv2.imencode(".png", bgr)[1].tobytes())
