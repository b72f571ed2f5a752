"""The training view: a random crop, then flip, RandAugment and colour.

After `pictures`, before `loader`. `transforms.AugmentConfig` says what is on.
"""

import math

import cv2
import numpy as np

from jxfer.data import transforms
from jxfer.data.pictures import Picture
from jxfer.data.randaugment import randaugment
from jxfer.data.transforms import AugmentConfig, Preprocessing

_ASPECT_RATIOS = (3 / 4, 4 / 3)  # of a random resized crop, as in Inception and torchvision
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601 luma, RGB


def random_crop(
    picture: Picture,
    preprocessing: Preprocessing,
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """A random area of a picture, resized to the model's input.

    Of a JPEG whose area is at least twice as large as the input, the decoder makes a half, a
    quarter or an eighth, and the area is rounded down to whole pixels of that. What is left, below
    a scale of two, OpenCV resizes bilinearly: it then reads every pixel, so nothing is aliased that
    evaluation's antialiased filter, which takes four times as long, would smooth away. Where that
    does not hold, or the model wants another filter, it is evaluation's.

    Args:
      scale: smallest and largest area, as fractions of the picture.

    Returns:
      uint8 `[size, size, 3]`.
    """
    top, left, height, width = _random_area(picture.shape, scale, rng)
    size = preprocessing.size
    reduction = picture.reduction(height, width, size)
    image = picture.pixels(reduction)
    top, left, height, width = (side // reduction for side in (top, left, height, width))
    area = image[top : top + height, left : left + width]
    if preprocessing.interpolation == "bilinear" and max(height, width) < 2 * size:
        return cv2.resize(area, (size, size), interpolation=cv2.INTER_LINEAR)
    return transforms.resize(area, (size, size), preprocessing)


def change(
    view: np.ndarray,
    preprocessing: Preprocessing,
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> np.ndarray:
    """What comes after the resizing: a padded crop, then flip, then RandAugment, then colour.

    Args:
      view: uint8 `[size, size, 3]`; stays as it is.
      rng: the only source of randomness.

    Returns:
      uint8 `[size, size, 3]`.
    """
    if augment.pad_crop:
        pad = augment.pad_crop
        padded = np.pad(view, ((pad, pad), (pad, pad), (0, 0)))
        top, left = rng.integers(0, 2 * pad + 1, size=2)
        view = padded[top : top + preprocessing.size, left : left + preprocessing.size]
    if augment.flip and rng.random() < 0.5:
        view = cv2.flip(view, 1)
    if augment.randaugment:
        view = randaugment(view, *augment.randaugment, rng)
    if augment.colour_jitter:
        view = _jitter(view, augment.colour_jitter, rng)
    return np.ascontiguousarray(view)


def _random_area(
    shape: tuple[int, ...], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop, drawn as torchvision's RandomResizedCrop."""
    rows, columns = shape
    low, high = (math.log(ratio) for ratio in _ASPECT_RATIOS)
    for _ in range(10):
        area = rows * columns * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(low, high))
        width = max(1, round(math.sqrt(area * ratio)))
        height = max(1, round(math.sqrt(area / ratio)))
        if width <= columns and height <= rows:
            top = int(rng.integers(0, rows - height + 1))
            left = int(rng.integers(0, columns - width + 1))
            return top, left, height, width
    # No draw fitted: the largest centre crop whose aspect ratio is in range.
    width = min(columns, max(1, round(rows * _ASPECT_RATIOS[1])))
    height = min(rows, max(1, round(columns / _ASPECT_RATIOS[0])))
    return (rows - height) // 2, (columns - width) // 2, height, width


def _jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scales brightness, contrast, saturation, in that order; uint8 `[H, W, 3]` in and out."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    pixels = np.clip(image.astype(np.float32) * np.float32(brightness), 0, 255)
    grey = (pixels @ _GREY).mean()
    pixels = np.clip(grey + np.float32(contrast) * (pixels - grey), 0, 255)
    luma = (pixels @ _GREY)[..., None]
    pixels = np.clip(luma + np.float32(saturation) * (pixels - luma), 0, 255)
    return np.rint(pixels).astype(np.uint8)
