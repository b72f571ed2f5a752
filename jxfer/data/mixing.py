"""Mixing the examples of a training batch in pairs: mixup and CutMix.

Before `loader`, which calls this in its threads. Each example is mixed with another one of the same
host's batch, all by one draw, as in both papers' code.
"""

import cv2
import numpy as np

Batch = dict[str, np.ndarray]


def mix(batch: Batch, rng: np.random.Generator, *, mixup: float, cutmix: float) -> Batch:
    """Mixes each example of a batch with a partner.

    Mixup is w x_a + (1 - w) x_b, pixels rounded to the nearest level, with w ~ Beta(a, a): Zhang et
    al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1. CutMix replaces a rectangle
    of x_a by x_b's; its centre is uniform, its sides are sqrt(1 - l) of the image's with
    l ~ Beta(a, a), and w is the part of x_a that is left after the rectangle has been clipped to
    the image: Yun et al. 2019, "CutMix", equations 1 and 2. With both, the batch takes either, with
    probability 1/2.

    Args:
      batch: `image` uint8 `[B, H, W, 3]` and `label` int32 `[B]`, B at least 2.
      rng: the only source of randomness.
      mixup: a of its Beta, 0 for none.
      cutmix: likewise; at least one of the two is above 0.

    Returns:
      The batch with mixed `image`, the `label` of x_a, and
      `partner_label`: int32 `[B]`, of x_b;
      `own_weight`: float32 `[B]`, w, so that the loss is w loss(label) + (1 - w)
      loss(partner_label).
    """
    images, labels = batch["image"], batch["label"]
    shift = int(rng.integers(1, len(images)))  # never 0: no example is its own partner
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    weight = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    if cut:
        images, weight = _paste(images, shift, weight, rng)
    else:
        images = _blend(images, np.roll(images, shift, axis=0), weight)
    return batch | {
        "image": images,
        "partner_label": np.roll(labels, shift),
        "own_weight": np.full(len(images), weight, np.float32),
    }


def _blend(images: np.ndarray, partners: np.ndarray, weight: float) -> np.ndarray:
    """`weight` of the images and the rest of their partners, each uint8 `[B, H, W, 3]`."""
    flat = (len(images), -1)
    # Without a float copy of the batch: 15 times faster than NumPy.
    blended = cv2.addWeighted(images.reshape(flat), weight, partners.reshape(flat), 1 - weight, 0)
    return blended.reshape(images.shape)


def _paste(
    images: np.ndarray, shift: int, weight: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Pastes a rectangle of each partner; uint8 `[B, H, W, 3]`, and the part that is left."""
    _, height, width, _ = images.shape
    side = np.sqrt(1 - weight)
    top, bottom = _interval(height, int(side * height), rng)
    left, right = _interval(width, int(side * width), rng)
    pasted = images.copy()
    pasted[:, top:bottom, left:right] = np.roll(images[:, top:bottom, left:right], shift, axis=0)
    return pasted, 1 - (bottom - top) * (right - left) / (height * width)


def _interval(side: int, length: int, rng: np.random.Generator) -> tuple[int, int]:
    """(start, stop) of `length` pixels around a uniform centre, clipped to [0, side]."""
    centre = int(rng.integers(side))
    start = centre - length // 2
    return max(start, 0), min(start + length, side)
