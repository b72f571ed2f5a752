"""RandAugment: a few random operations of one magnitude on a training image.

Before `transforms`. Cubuk et al. 2020, "RandAugment: Practical Automated Data Augmentation with a
Reduced Search Space". The operations, their ranges and the way they are drawn are those of
torchvision's `RandAugment` with its defaults: nearest neighbour, and black (torchvision's fill)
where a moved image leaves a gap.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LARGEST_MAGNITUDE = 30
"""Torchvision's 31 bins: 0, 1, ..., 30."""

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """The pixel at (x, y) is the input's at (a x + b y + c, d x + e y + f), or black outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _translation(side: int, strength: float) -> int:
    """Pixels: at most 150 of 331, rounded towards 0."""
    return int(150 * side * strength / 331)


def _shear_x(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0.3 * strength, 0, 0, 1, 0)


def _shear_y(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0.3 * strength, 1, 0)


def _translate_x(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, -_translation(image.width, strength), 0, 1, 0)


def _translate_y(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, -_translation(image.height, strength))


def _rotate(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(30 * strength)  # degrees


def _brightness(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength)


def _colour(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + 0.9 * strength)


def _contrast(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength)


def _sharpness(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength)


def _identity(image: Image.Image, strength: float) -> Image.Image:
    return image


def _posterize(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * strength))


def _solarize(image: Image.Image, strength: float) -> Image.Image:
    threshold = 255 - 255 * strength
    return ImageOps.solarize(image, threshold)  # type: ignore[arg-type]  # a float compares as well


def _autocontrast(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.equalize(image)


SIGNED: dict[str, Operation] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "sharpness": _sharpness,
}
"""Operations with a direction: strength in [-1, 1], the sign drawn."""
UNSIGNED: dict[str, Operation] = {
    "identity": _identity,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""Operations without: strength in [0, 1]; the first and the last two take no notice of it."""

_OPERATIONS = tuple((SIGNED | UNSIGNED).items())


def randaugment(
    image: np.ndarray, operations: int, magnitude: int, rng: np.random.Generator
) -> np.ndarray:
    """Applies operations drawn evenly, with replacement, one after the other.

    Args:
      image: uint8 `[H, W, 3]`.
      operations: how many; the paper's N.
      magnitude: of each, 0 to `LARGEST_MAGNITUDE`; the paper's M.

    Returns:
      uint8 `[H, W, 3]`.
    """
    view = Image.fromarray(image)
    for index in rng.integers(len(_OPERATIONS), size=operations):
        name, operation = _OPERATIONS[index]
        strength = magnitude / LARGEST_MAGNITUDE
        if name in SIGNED and rng.random() < 0.5:
            strength = -strength
        view = operation(view, strength)
    return np.asarray(view)
