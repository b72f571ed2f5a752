"""From an encoded image to model input: decode, evaluation view, normalise.

After `sources`, before `pictures`; `augmentation` has the training view. Everything up to
`normalise` runs on the host, on uint8 RGB `[H, W, 3]`; `normalise` runs on the device, inside the
jitted step, so that a quarter of the bytes crosses to it. `Preprocessing` travels in a model's
card: weights are only as good as the pixels that they are fed.
"""

import dataclasses
import io
from typing import Literal

import cv2
import jax
import numpy as np
from PIL import Image

from jxfer import choices
from jxfer.data.randaugment import LARGEST_MAGNITUDE
from jxfer.errors import UserError

LARGEST_PIXELS = 2 * 89_478_485
"""Of an image that is decoded: 0.5 GB as RGB, where Pillow refuses by itself."""
# No rotation by EXIF: the published ImageNet accuracies were measured on the stored orientation.
_DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# The flags for colour would ask for BGR, against those above; these are the factor alone.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names
_LARGEST_SIDE = 100_000  # that a model's pixels are cut from
LONGEST = 64  # sides of a strip that an evaluation view is cut from
_LARGEST_ALPHA = 1000  # of mixing; there every weight is 1/2 to two digits
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a model's input must look like.

    Raises:
      UserError: a field is out of range.
    """

    size: int
    """Side of the square model input, in pixels."""
    crop: float = 1.0
    """Fraction of the resized short side that the centre crop keeps (timm's crop_pct)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter for resizing; antialiased when it shrinks."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted per channel; always listed as RGB, for pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divided by per channel; always listed as RGB, for pixels in [0, 1]."""
    channel_order: Literal["RGB", "BGR"] = "RGB"
    """Order in which the model takes the channels."""

    def __post_init__(self) -> None:
        choices.check(self, "preprocessing: ")
        if not 1 <= self.size <= _LARGEST_SIDE:
            raise UserError(
                f"preprocessing: size must be 1 to {_LARGEST_SIDE:,} pixels, not {self.size}"
            )
        if not 0 < self.crop <= 1:
            raise UserError(f"preprocessing: crop must be above 0 and at most 1, not {self.crop}")
        if self.size / self.crop > _LARGEST_SIDE:
            raise UserError(
                f"preprocessing: crop {self.crop} of {self.size} px asks for huge images"
            )
        if not np.isfinite((*self.mean, *self.std)).all():
            raise UserError("preprocessing: mean and std must be finite numbers")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError("preprocessing: mean and std take 3 numbers each, std above 0")


IMAGENET = Preprocessing(size=224, crop=0.875)
CIFAR = Preprocessing(size=32)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images. All off: training sees the evaluation view.

    Raises:
      UserError: a field is out of range, or two fields contradict each other.
    """

    random_resized_crop: bool = False
    """Crop a random area and aspect ratio, resized to the model's input (ImageNet's recipe)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of that crop, as fractions of the image."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""
    pad_crop: int = 0
    """Zero pixels added on each side before a random crop of the model's size (CIFAR's recipe)."""
    colour_jitter: float = 0.0
    """Brightness, contrast and saturation are each scaled by 1 +- up to this."""
    views: int | None = None
    """Draw this many random views of each image and repeat them epoch after epoch, so that the
    output of a frozen part can be kept; a new view each time unless given."""
    randaugment: tuple[int, int] | None = None
    """Number of random operations and their magnitude, 0 to 30, such as 2 9 (Cubuk et al. 2020)."""
    mixup: float = 0.0
    """Alpha of mixup's Beta, such as 0.2; 0 is off. Training accuracy then counts the label of the
    image, not of the one mixed in (Zhang et al. 2018)."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta, such as 1.0; 0 is off. With both, each batch takes one of the two
    (Yun et al. 2019)."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(
                f"--augment.crop-scale needs 0 < smallest <= largest <= 1, not {low} {high}"
            )
        if self.crop_scale != AugmentConfig.crop_scale and not self.random_resized_crop:
            raise UserError(
                "--augment.crop-scale goes with --augment.random-resized-crop; turn that on"
            )
        if self.pad_crop < 0:
            raise UserError(f"--augment.pad-crop must be at least 0 pixels, not {self.pad_crop}")
        if not 0 <= self.colour_jitter <= 1:
            raise UserError(f"--augment.colour-jitter must be in [0, 1], not {self.colour_jitter}")
        operations, magnitude = self.randaugment or (1, 0)
        if operations < 1 or not 0 <= magnitude <= LARGEST_MAGNITUDE:
            raise UserError(
                f"--augment.randaugment needs at least 1 operation and a magnitude in "
                f"[0, {LARGEST_MAGNITUDE}], not {operations} {magnitude}"
            )
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if not 0 <= alpha <= _LARGEST_ALPHA:
                raise UserError(
                    f"--augment.{name} takes a number from 0 to {_LARGEST_ALPHA}, not {alpha}"
                )
        if self.random_resized_crop and self.pad_crop:
            raise UserError(
                "--augment.random-resized-crop and --augment.pad-crop are two ways to crop; turn "
                "one off"
            )
        if self.views is not None and self.views < 1:
            raise UserError(f"--augment.views must be at least 1, not {self.views}")
        if self.views is not None and not self.changes_pixels:
            raise UserError("--augment.views repeats random views, but no augmentation is on")

    @property
    def changes_pixels(self) -> bool:
        """Whether a training view differs from the evaluation view; mixing comes after it."""
        own = (self.random_resized_crop, self.flip, self.pad_crop, self.colour_jitter)
        return any(own) or self.randaugment is not None

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed with one another."""
        return bool(self.mixup or self.cutmix)

    @property
    def distinct_views(self) -> int | None:
        """How many views of an image training sees, before mixing; None: a new one each time."""
        return self.views if self.changes_pixels else 1


def decode(data: bytes, name: str, reduction: int = 1) -> np.ndarray:
    """Decodes an image file.

    Grey and palette images come out as RGB, 16-bit ones scaled to 8 bits, transparency is dropped,
    of an animation the first frame is taken, and EXIF rotation ignored. `docs/reliability.md` has
    the table.

    Args:
      data: the encoded file: JPEG, PNG, PNM, BMP, TIFF, WebP or GIF, whatever its name says.
      name: the record's id, for the error.
      reduction: 1, 2, 4 or 8, above 1 for JPEG alone: the decoder leaves out the high frequencies
        of each block, which takes less time. Only random crops ask for it: on the ants and bees it
        changes a view by some 3 grey levels, and evaluation's pixels are those of torchvision.

    Returns:
      uint8 `[ceil(H / reduction), ceil(W / reduction), 3]`, RGB.

    Raises:
      UserError: the data is empty, truncated or not an image, or its header asks for more than
        `LARGEST_PIXELS`; then nothing is decoded.
    """
    _check_header(data, name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _DECODE_FLAGS | _REDUCED[reduction])
    except cv2.error:  # its header contradicts what follows
        image = None
    if image is None:
        raise _unreadable(name, "is truncated or not an image")
    return image


def _check_header(data: bytes, name: str) -> None:
    """Reads the size before anything is decoded: 100 kB of PNG can ask for 3 GB."""
    if not data:
        raise _unreadable(name, "is empty")
    try:
        Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise _unreadable(name, f"has more than {LARGEST_PIXELS:,} pixels by its header") from None
    except Exception as error:  # Pillow raises many kinds for the ways a header can be bad
        raise _unreadable(name, "is truncated or not an image") from error
    if data.startswith(b"\x89PNG") and not _chunks_fit(data):
        raise _unreadable(name, "is truncated or not an image")


def _chunks_fit(png: bytes) -> bool:
    """Whether each chunk of a PNG ends within it: OpenCV allocates what a chunk says it holds."""
    place = 8
    while place + 12 <= len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if end > len(png):
            return False
        if png[place + 4 : place + 8] == b"IEND":
            return end == place + 12  # with content OpenCV reads on
        place = end
    return False


def _unreadable(name: str, what: str) -> UserError:
    return UserError(
        f"image {name} {what}: repair it, remove it, or train with --data.on-bad-image skip"
    )


def evaluation_view(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes the short side to `round(size / crop)`, then crops the centre.

    Sizes and offsets are torchvision's (the long side is rounded down), and so are the pixels:
    the filter is Pillow's. OpenCV's closest, INTER_AREA, is 0.8 grey levels off on average, and
    its bilinear 1.7, because it does not antialias.

    Of a strip that is more than 64 times as long as wide, only the middle is resized: whole, one of
    60,000 x 1 pixels would take 12 GB at 224 px.

    Args:
      image: uint8 `[H, W, 3]`.

    Returns:
      uint8 `[size, size, 3]`; the very pixels of `image` where the sizes agree.
    """
    longest = LONGEST * min(image.shape[:2])
    top, left = (max(0, (side - longest) // 2) for side in image.shape[:2])
    image = image[top : top + longest, left : left + longest]
    image = resize_short_side(image, round(preprocessing.size / preprocessing.crop), preprocessing)
    top, left = (round((side - preprocessing.size) / 2) for side in image.shape[:2])
    return image[top : top + preprocessing.size, left : left + preprocessing.size]


def resize_short_side(image: np.ndarray, short: int, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes so that the short side has `short` pixels; the long side is rounded down.

    Args:
      image: uint8 `[H, W, 3]`.

    Returns:
      uint8 `[h, w, 3]`, min(h, w) = `short`.
    """
    height, width = image.shape[:2]
    if height <= width:
        target = (short, int(short * width / height))
    else:
        target = (int(short * height / width), short)
    return resize(image, target, preprocessing)


def resize(image: np.ndarray, target: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
    """uint8 `[H, W, 3]` -> uint8 `[*target, 3]`, antialiased, by Pillow."""
    height, width = target
    if image.shape[:2] == (height, width):
        return image
    resampling = _RESAMPLING[preprocessing.interpolation]
    return np.asarray(Image.fromarray(image).resize((width, height), resampling))


def normalise(images: jax.typing.ArrayLike, preprocessing: Preprocessing) -> jax.Array:
    """Pixels to model input, on the device: `(pixels / 255 - mean) / std` in the model's order.

    Args:
      images: uint8 `[..., H, W, 3]`, RGB.

    Returns:
      float32 `[..., H, W, 3]`, channels in `preprocessing.channel_order`.
    """
    scaled = jax.numpy.asarray(images).astype(jax.numpy.float32) / 255
    per_channel = (1,) * (scaled.ndim - 1) + (3,)  # full rank: rank promotion may be an error
    mean = np.asarray(preprocessing.mean, np.float32).reshape(per_channel)
    std = np.asarray(preprocessing.std, np.float32).reshape(per_channel)
    normalised = (scaled - mean) / std
    return normalised[..., ::-1] if preprocessing.channel_order == "BGR" else normalised
