"""Corrupted images: three of the corruptions of CIFAR-10-C, at severity 5, the strongest.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", section 3.1 and appendix B; the numbers are those of their code for 32 px images.
"""

import zlib
from collections.abc import Callable

import numpy as np
import scipy.ndimage

from jxfer.data.mapped import MappedSource
from jxfer.data.readers import Source

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


def corrupted(source: Source, corruption: str) -> MappedSource:
    """A source's images, corrupted: always the same way, whatever their order.

    Noise is drawn from an image's name, which training and test images do not share.
    """

    def change(pixels: np.ndarray, name: str) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        changed = CORRUPTIONS[corruption](pixels / 255, rng)
        return (np.clip(changed, 0, 1) * 255).astype(np.uint8)

    return MappedSource(source, change)
