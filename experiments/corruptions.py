"""Corrupted images: three of the corruptions of CIFAR-10-C, at severity 5, the strongest.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", section 3.1 and appendix B; the numbers are those of their code for 32 px images.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
import scipy.ndimage
from PIL import Image

from jxfer.data.sources import Example, Source
from jxfer.data.transforms import decode

Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""From float64 [H, W, 3] in [0, 1] to the same, not clipped."""


def gaussian_noise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds normal noise of standard deviation 0.10."""
    return pixels + rng.normal(scale=0.10, size=pixels.shape)


def gaussian_blur(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurs each channel, with a standard deviation of one pixel."""
    return scipy.ndimage.gaussian_filter(pixels, sigma=(1, 1, 0), mode="nearest")


def contrast(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scales the distance to each channel's mean by 0.15."""
    means = pixels.mean((0, 1), keepdims=True)
    return (pixels - means) * 0.15 + means


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
    "contrast": contrast,
}


class Corrupted(Source):
    """A source's images, corrupted: always the same way, whatever their order.

    Noise is drawn from an image's name, which training and test images do not share.
    """

    def __init__(self, source: Source, corruption: str) -> None:
        self._source, self._corrupt = source, CORRUPTIONS[corruption]
        self.class_names = source.class_names

    @property
    def labels(self) -> np.ndarray:
        return self._source.labels

    def name(self, index: int) -> str:
        return self._source.name(index)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """The example with its image as a PNG file."""
        clean = self._source[index]
        rng = np.random.default_rng(zlib.crc32(clean.name.encode()))
        pixels = self._corrupt(decode(clean.image, clean.name) / 255, rng)
        file = io.BytesIO()
        Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8)).save(file, "PNG")
        return Example(file.getvalue(), clean.label, clean.name)
