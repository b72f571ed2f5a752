"""Each operation beside its definition in NumPy: torchvision's, on PIL images."""

import collections

import numpy as np
import pytest
from PIL import Image

from jxfer.data import randaugment
from jxfer.data.augmentation import change
from jxfer.data.randaugment import SIGNED, UNSIGNED
from jxfer.data.transforms import CIFAR, AugmentConfig

STRENGTHS = [-1.0, -0.3, 0.1, 0.7, 1.0]


@pytest.fixture(scope="module")
def image():
    """Noise with neither black nor white in it, a little darker in red."""
    return np.random.default_rng(0).integers([20, 30, 40], [200, 230, 250], (31, 47, 3), np.uint8)


def apply(name, image, strength):
    operation = (SIGNED | UNSIGNED)[name]
    return np.asarray(operation(Image.fromarray(image), strength))


def luma(image):
    """Pillow's: ITU-R 601 in 16-bit integers."""
    return (image @ np.array([19595, 38470, 7471]) + 0x8000) >> 16


def positions(image, matrix):
    """(x, y) in the input of the centre of each output pixel."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.tensordot(matrix, [x, y, np.ones_like(x)], 1)


def moved(image, matrix):
    """The input's pixel under the centre of each output pixel, black outside."""
    height, width, _ = image.shape
    columns, rows = np.floor(positions(image, matrix)).astype(int)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    source = image[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return np.where(inside[..., None], source, 0)


@pytest.mark.parametrize("name", [*SIGNED, "identity", "posterize", "solarize"])
def test_magnitude_0_leaves_the_pixels_as_they_are(name, image):
    np.testing.assert_array_equal(apply(name, image, 0.0), image)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("shear_x", lambda s: [[1, 0.3 * s, 0], [0, 1, 0]]),
        ("shear_y", lambda s: [[1, 0, 0], [0.3 * s, 1, 0]]),
        ("translate_x", lambda s: [[1, 0, -int(150 * 47 * s / 331)], [0, 1, 0]]),
        ("translate_y", lambda s: [[1, 0, 0], [0, 1, -int(150 * 31 * s / 331)]]),
    ],
)
def test_geometry_moves_the_pixels_and_fills_with_black(name, matrix, strength, image):
    expected = moved(image, np.array(matrix(strength)))
    np.testing.assert_array_equal(apply(name, image, strength), expected)
    assert (expected == 0).any()


@pytest.mark.parametrize("strength", STRENGTHS)
def test_rotate_turns_counterclockwise_around_the_centre(strength, image):
    angle = np.deg2rad(30 * strength)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([47 / 2, 31 / 2])
    matrix = np.column_stack([turn, centre - turn @ centre])
    # Pillow computes in 1/65536 of a pixel, so what falls between two pixels may fall to either.
    places = positions(image, matrix)
    clear = (np.abs(places - np.rint(places)) > 1e-2).all(0)
    assert clear.mean() > 0.9
    found = apply("rotate", image, strength)
    np.testing.assert_array_equal(found[clear], moved(image, matrix)[clear])


def smoothed(image):
    """Each pixel but those of the border: (its 8 neighbours + 5 times itself) / 13."""
    blurred = image.astype(int)
    inner = sum(
        blurred[1 + y : image.shape[0] - 1 + y, 1 + x : image.shape[1] - 1 + x]
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    )
    blurred[1:-1, 1:-1] = np.rint((inner + 4 * blurred[1:-1, 1:-1]) / 13)
    return blurred


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(
    ("name", "degenerate"),
    [
        ("brightness", lambda image: 0 * image),
        ("colour", lambda image: luma(image)[..., None]),
        ("contrast", lambda image: np.rint(luma(image).mean())),
        ("sharpness", smoothed),
    ],
)
def test_colour_moves_the_pixels_from_or_towards_another_image(name, degenerate, strength, image):
    """From it by 0.9 * strength of the way, and Pillow cuts the fraction of a level off."""
    pixels, other = image.astype(int), degenerate(image.astype(int))
    exact = np.clip(other + (1 + 0.9 * strength) * (pixels - other), 0, 255)
    found = apply(name, image, strength)
    assert (np.abs(found - exact) < 1 + 1e-3).all()
    assert (found != image).any()


def test_posterize_keeps_the_highest_bits(image):
    np.testing.assert_array_equal(apply("posterize", image, 1.0), image & 0b11110000)
    np.testing.assert_array_equal(apply("posterize", image, 9 / 30), image & 0b11111110)


@pytest.mark.parametrize("magnitude", range(31))
def test_solarize_inverts_from_its_threshold_on(magnitude):
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    expected = np.where(2 * levels.astype(int) < 510 - 17 * magnitude, levels, 255 - levels)
    np.testing.assert_array_equal(apply("solarize", levels, magnitude / 30), expected)


def test_autocontrast_stretches_each_channel_over_all_levels(image):
    low, high = image.min((0, 1)).astype(int), image.max((0, 1)).astype(int)
    found = apply("autocontrast", image, 0.3)
    assert (np.abs(found - (image - low) * 255 / (high - low)) < 1).all()
    assert (found.min((0, 1)) == 0).all()
    assert (found.max((0, 1)) == 255).all()


def test_equalize_gives_each_level_as_many_pixels(image):
    """Level i becomes the number of pixels below it, over that of one of 255 equal bins."""
    expected = np.empty_like(image)
    for channel in range(3):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        bin_size = (image[..., channel].size - counts[counts > 0][-1]) // 255
        below = np.cumsum(counts) - counts
        levels = np.minimum((below + bin_size // 2) // bin_size, 255)
        expected[..., channel] = levels[image[..., channel]]
    np.testing.assert_array_equal(apply("equalize", image, 0.3), expected)


def outcomes(image, magnitude):
    """`{pixels: names}` of each operation, and of those with a sign under both."""
    found = collections.defaultdict(set)
    for name in SIGNED:
        for sign in (1, -1):
            found[apply(name, image, sign * magnitude / 30).tobytes()].add((name, sign))
    for name in UNSIGNED:
        found[apply(name, image, magnitude / 30).tobytes()].add((name, 1))
    return found


def test_operations_and_signs_are_drawn_evenly(image):
    names = outcomes(image, 30)
    assert all(len(found) == 1 for found in names.values())
    rng = np.random.default_rng(0)
    counts = collections.Counter()
    for _ in range(2800):
        [drawn] = names[randaugment.randaugment(image, 1, 30, rng).tobytes()]
        counts[drawn] += 1
    for name, sign in set().union(*names.values()):
        expected = 100 if name in SIGNED else 200
        assert abs(counts[name, sign] - expected) < 4 * expected**0.5


def test_operations_follow_one_another():
    image = np.random.default_rng(1).integers(20, 200, (7, 6, 3), np.uint8)
    pairs = {
        second
        for first in outcomes(image, 12)
        for second in outcomes(np.frombuffer(first, np.uint8).reshape(7, 6, 3), 12)
    }
    rng = np.random.default_rng(0)
    views = {randaugment.randaugment(image, 2, 12, rng).tobytes() for _ in range(200)}
    assert views <= pairs
    assert not views <= outcomes(image, 12).keys()


def test_training_view_applies_it_by_its_generator():
    image = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    augment = AugmentConfig(randaugment=(2, 9))
    view = change(image, CIFAR, augment, np.random.default_rng(3))
    expected = randaugment.randaugment(image, 2, 9, np.random.default_rng(3))
    np.testing.assert_array_equal(view, expected)
    assert (view != image).any()
