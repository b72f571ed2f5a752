"""Rendered characters: the drawing behind embedded sets that need no file but installed fonts.

First of the data files, before `embedded`. A character of a random font is thickened or thinned,
bent, turned, sheared, scaled and moved, blurred, and laid over a random background with noise. The
fonts are those that matplotlib installs (DejaVu, STIX, Computer Modern), by file name, so that the
fonts of a machine do not matter; the same seed gives the same pixels with the same Pillow and
OpenCV.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 32
"""Side of an image, in pixels."""
FONTS = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
    *(f"cm{style}10.ttf" for style in ("r", "b", "ss", "tt")),
)
_CANVAS = 96  # characters are drawn at three times the size, then shrunk
_POINTS = 64


def render(
    classes: Sequence[str], per_class: int, seed: Sequence[int]
) -> Iterator[tuple[np.ndarray, int]]:
    """Draws `per_class` images of each class, the classes taking turns.

    Args:
      classes: for each label the characters that stand for it, such as "Cc"; one is drawn at
        random.
      per_class: images of each class.
      seed: of every random choice.

    Yields:
      (uint8 [SIDE, SIDE] grey, label).
    """
    rng = np.random.default_rng(seed)
    for _ in range(per_class):
        for label, characters in enumerate(classes):
            yield _image(str(rng.choice(list(characters))), rng), label


def _image(character: str, rng: np.random.Generator) -> np.ndarray:
    ink = _bent(_thickness(_drawn(character, str(rng.choice(FONTS))), rng), rng)
    ink = cv2.resize(_placed(ink, rng), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    ink = cv2.GaussianBlur(ink, (0, 0), rng.uniform(0.3, 1.2))
    background = _background(rng)
    # At least a third of the range between ink and mean background, darker or brighter.
    level, contrast = background.mean(), rng.uniform(0.35, 0.9)
    colour = level + contrast if level + contrast <= 1 else level - contrast
    image = background + ink * (colour - background)
    image += rng.normal(0, rng.uniform(0, 0.07), image.shape)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


@functools.cache
def _font(file: str) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / file, _POINTS, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=4096)
def _drawn(character: str, font: str) -> np.ndarray:
    """The character in the middle of the canvas, float32 in [0, 1]."""
    image = Image.new("L", (_CANVAS, _CANVAS))
    left, top, right, bottom = _font(font).getbbox(character)
    corner = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=_font(font))
    return np.asarray(image, np.float32) / 255


def _thickness(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Strokes 1 canvas pixel thinner to 7 thicker, so that none vanishes."""
    change = int(rng.integers(-1, 8))
    if change == 0:
        return ink
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (abs(change) + 1, abs(change) + 1))
    return cv2.dilate(ink, disc) if change > 0 else cv2.erode(ink, disc)


def _bent(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth random displacement of each pixel: Simard et al. 2003, section 2."""
    x, y = np.meshgrid(np.arange(_CANVAS, dtype=np.float32), np.arange(_CANVAS, dtype=np.float32))
    strength = rng.uniform(0, 4)
    for axis in (x, y):
        coarse = rng.normal(0, 1, (5, 5)).astype(np.float32)
        axis += strength * cv2.resize(coarse, (_CANVAS, _CANVAS), interpolation=cv2.INTER_CUBIC)
    return cv2.remap(ink, x, y, cv2.INTER_LINEAR)


def _placed(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned, sheared, scaled on each axis, and moved; a tip may leave the canvas."""
    turn, shear = rng.uniform(-0.25, 0.25), rng.uniform(-0.35, 0.35)
    size = rng.uniform(1.0, 1.6)
    wide, high = size * np.exp(rng.uniform(-0.2, 0.2, 2))
    cos, sin = np.cos(turn), np.sin(turn)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    linear = linear @ np.diag([wide, high])
    centre = np.full(2, (_CANVAS - 1) / 2)
    offset = centre - linear @ centre + rng.uniform(-8, 8, 2)
    return cv2.warpAffine(ink, np.column_stack([linear, offset]), (_CANVAS, _CANVAS))


def _background(rng: np.random.Generator) -> np.ndarray:
    """Flat black, flat grey, or smooth texture; float32 [SIDE, SIDE] in [0, 1]."""
    kind = rng.integers(3)
    if kind == 0:
        return np.zeros((SIDE, SIDE), np.float32)
    flat = np.full((SIDE, SIDE), rng.uniform(0, 1), np.float32)
    if kind == 1:
        return flat
    cells = int(rng.integers(2, 9))
    coarse = rng.normal(0, rng.uniform(0.03, 0.12), (cells, cells)).astype(np.float32)
    texture = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.clip(flat + texture, 0, 1)
