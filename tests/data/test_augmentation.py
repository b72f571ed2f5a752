import cv2
import numpy as np
import pytest

from jxfer.data import augmentation
from jxfer.data.pictures import Picture
from jxfer.data.readers import Example
from jxfer.data.transforms import (
    CIFAR,
    AugmentConfig,
    Preprocessing,
    evaluation_view,
    resize,
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(image: np.ndarray, extension: str = ".png") -> Picture:
    bgr = np.ascontiguousarray(image[..., ::-1])
    return Picture(Example(cv2.imencode(extension, bgr)[1].tobytes(), 0, "x"))


def training_view(image, preprocessing, augment, rng):
    """What the loader does with an image."""
    if augment.random_resized_crop:
        view = augmentation.random_crop(picture(image), preprocessing, augment.crop_scale, rng)
    else:
        view = evaluation_view(image, preprocessing)
    return augmentation.change(view, preprocessing, augment, rng)


def test_training_view_without_augmentation_is_the_evaluation_view():
    image = noise(40, 60)
    view = training_view(image, CIFAR, AugmentConfig(), np.random.default_rng(0))
    np.testing.assert_array_equal(view, evaluation_view(image, CIFAR))


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(random_resized_crop=True),
        AugmentConfig(random_resized_crop=True, crop_scale=(0.5, 1.0), flip=True),
        AugmentConfig(pad_crop=4, flip=True),
        AugmentConfig(colour_jitter=0.4),
        AugmentConfig(pad_crop=4, flip=True, colour_jitter=1.0),
    ],
)
@pytest.mark.parametrize("shape", [(32, 32), (8, 8), (50, 37)])
def test_training_view_depends_on_the_generator_alone(augment, shape):
    image = noise(*shape)
    views = [training_view(image, CIFAR, augment, np.random.default_rng(seed)) for seed in range(9)]
    assert all(view.shape == (32, 32, 3) and view.dtype == np.uint8 for view in views)
    assert any((view != views[0]).any() for view in views)
    again = [training_view(image, CIFAR, augment, np.random.default_rng(seed)) for seed in range(9)]
    np.testing.assert_array_equal(views, again)


@pytest.mark.parametrize("shape", [(2, 300), (300, 2), (1, 1)])
def test_random_resized_crop_falls_back_to_the_centre_of_extreme_shapes(shape):
    augment = AugmentConfig(random_resized_crop=True, crop_scale=(1.0, 1.0))
    view = training_view(noise(*shape), CIFAR, augment, np.random.default_rng(0))
    assert view.shape == (32, 32, 3)


def test_flip_mirrors_half_of_the_views():
    image = noise(32, 32)
    rng = np.random.default_rng(0)
    views = [training_view(image, CIFAR, AugmentConfig(flip=True), rng) for _ in range(400)]
    mirrored = [np.array_equal(view, image[:, ::-1]) for view in views]
    plain = [np.array_equal(view, image) for view in views]
    assert all(a != b for a, b in zip(mirrored, plain, strict=True))
    assert 160 < sum(mirrored) < 240  # 4 standard deviations around 200


def test_pad_crop_reaches_every_offset_and_pads_with_zeros():
    image = noise(32, 32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 32, x : x + 32].tobytes() for y in range(5) for x in range(5)}
    rng = np.random.default_rng(0)
    views = [training_view(image, CIFAR, AugmentConfig(pad_crop=2), rng) for _ in range(400)]
    assert {view.tobytes() for view in views} == windows


def test_random_resized_crop_stays_inside_the_range_of_areas():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3)).copy()
    augment = AugmentConfig(random_resized_crop=True, crop_scale=(0.25, 0.25))
    rng = np.random.default_rng(0)
    for _ in range(50):
        columns = training_view(ramp, CIFAR, augment, rng)[0, :, 0].astype(int)
        width = (columns[-1] - columns[0]) * 32 / 31  # of a crop with a quarter of the area
        assert 100 * (3 / 4) ** 0.5 - 4 < width < 100 * (4 / 3) ** 0.5 + 4


def test_colour_jitter_moves_a_grey_image_by_brightness_only():
    grey = np.full((32, 32, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    means = [training_view(grey, CIFAR, AugmentConfig(colour_jitter=0.2), rng) for _ in range(100)]
    assert all(view.min() == view.max() for view in means)
    levels = [int(view.flat[0]) for view in means]
    assert 80 <= min(levels) < 90
    assert 110 < max(levels) <= 120


SMOOTH = cv2.resize(noise(15, 20), (800, 600), interpolation=cv2.INTER_CUBIC)


def crop(shown: Picture, size: int, share: float, seed: int, interpolation="bilinear"):
    """A crop of `share` of the area, and the rectangle it was drawn from."""
    rng = np.random.default_rng(seed)
    area = augmentation._random_area(shown.shape, (share, share), np.random.default_rng(seed))
    preprocessing = Preprocessing(size, interpolation=interpolation)
    return augmentation.random_crop(shown, preprocessing, (share, share), rng), area


@pytest.mark.parametrize(
    ("size", "share", "reduction"), [(64, 0.9, 8), (64, 0.1, 2), (224, 0.9, 2)]
)
def test_a_reduced_crop_shows_what_the_antialiased_one_shows(monkeypatch, size, share, reduction):
    shown, reductions = picture(SMOOTH, ".jpg"), []
    pixels = Picture.pixels
    monkeypatch.setattr(
        Picture, "pixels", lambda self, r=1: reductions.append(r) or pixels(self, r)
    )
    for seed in range(5):
        view, area = crop(shown, size, share, seed)
        assert min(area[2:]) >= reductions[-1] * size
        top, left, height, width = (side // reductions[-1] * reductions[-1] for side in area)
        whole = pixels(shown)[top : top + height, left : left + width]
        wanted = resize(whole, (size, size), Preprocessing(size))
        assert np.abs(view.astype(int) - wanted).mean() < 3
    assert reduction in reductions


def test_a_crop_that_is_small_keeps_the_full_resolution():
    shown = picture(SMOOTH, ".jpg")
    for seed in range(20):
        view, (top, left, height, width) = crop(shown, 224, 0.1, seed)
        assert min(height, width) < 2 * 224
        whole = shown.pixels()[top : top + height, left : left + width]
        wanted = cv2.resize(whole, (224, 224), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(view, wanted)


@pytest.mark.parametrize(
    ("extension", "interpolation"), [(".png", "bilinear"), (".jpg", "bicubic")]
)
def test_what_opencv_would_alias_has_the_filter_of_evaluation(extension, interpolation):
    """No reduction of a PNG, and no bicubic filter of OpenCV's, which has another coefficient."""
    shown = picture(SMOOTH, extension)
    share = 0.9 if extension == ".png" else 0.1
    view, (top, left, height, width) = crop(shown, 200, share, 0, interpolation)
    whole = shown.pixels()[top : top + height, left : left + width]
    wanted = resize(whole, (200, 200), Preprocessing(200, interpolation=interpolation))
    np.testing.assert_array_equal(view, wanted)
