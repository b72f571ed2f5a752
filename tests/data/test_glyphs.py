"""What is rendered: shape, order, determinism, legibility."""

import cv2
import numpy as np
import pytest

from jxfer.data import glyphs

CLASSES = ("A", "Bb", "x")


def drawn(per_class=20, seed=(0,)):
    images, labels = zip(*glyphs.render(CLASSES, per_class, seed), strict=True)
    return np.stack(images), np.array(labels)


def test_classes_take_turns_and_images_are_grey_bytes():
    images, labels = drawn()
    assert images.shape == (60, glyphs.SIDE, glyphs.SIDE)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.tile([0, 1, 2], 20))


def test_the_seed_decides_every_pixel():
    images, _ = drawn()
    np.testing.assert_array_equal(images, drawn()[0])
    assert not (images == drawn(seed=(1,))[0]).all(axis=(1, 2)).any()


def test_no_image_is_blank_and_none_is_like_another():
    images, _ = drawn(per_class=100)
    assert len({image.tobytes() for image in images}) == 300
    # Ink differs from its background by more than the noise: a blurred image keeps contrast.
    smooth = np.stack([cv2.GaussianBlur(image, (0, 0), 1.5) for image in images]).astype(float)
    assert np.ptp(smooth, axis=(1, 2)).min() > 25


@pytest.mark.parametrize("font", glyphs.FONTS)
@pytest.mark.parametrize("characters", ["ABCXYZabdefghnqrt", "0123456789"])
def test_every_font_is_there_and_draws_every_character_differently(font, characters):
    inks = [glyphs._drawn(character, font) for character in characters]
    assert all(ink.sum() > 50 for ink in inks)
    assert len({ink.tobytes() for ink in inks}) == len(inks)


def test_a_character_stays_whole_on_its_canvas():
    for font in glyphs.FONTS:
        for character in "MWQgj0123456789":
            ink = glyphs._drawn(character, font)
            border = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
            assert border.max() == 0, (font, character)
