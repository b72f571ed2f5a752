import io

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from jxfer.data.transforms import (
    CIFAR,
    IMAGENET,
    AugmentConfig,
    Preprocessing,
    decode,
    evaluation_view,
    normalise,
)
from jxfer.errors import UserError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_decode_returns_the_pixels_of_lossless_files(format):
    pixels = noise(9, 14)
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = decode(encode(Image.fromarray(pixels), format, **options), "x")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


def test_decode_is_within_one_grey_level_of_pillow_on_jpeg():
    smooth = cv2.resize(noise(4, 5), (50, 40), interpolation=cv2.INTER_CUBIC)
    data = encode(Image.fromarray(smooth), "JPEG")
    reference = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(decode(data, "x").astype(int) - reference).max() <= 1


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("shape", [(96, 160), (97, 163)])
def test_decode_reduces_jpegs_as_pillow_does(shape, reduction):
    """Pillow's draft mode asks libjpeg for the same scale."""
    smooth = cv2.resize(noise(6, 9), shape[::-1], interpolation=cv2.INTER_CUBIC)
    data = encode(Image.fromarray(smooth), "JPEG", quality=95)
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (shape[1] // reduction, shape[0] // reduction))
    decoded = decode(data, "x", reduction)
    assert decoded.shape == (-(-shape[0] // reduction), -(-shape[1] // reduction), 3)
    assert np.abs(decoded.astype(int) - np.asarray(image)).max() <= 1


def test_evaluation_view_is_the_identity_where_sizes_agree():
    image = noise(32, 32)
    np.testing.assert_array_equal(evaluation_view(image, CIFAR), image)


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (240, 240), (8, 8), (3, 400)])
@pytest.mark.parametrize("preprocessing", [IMAGENET, CIFAR, Preprocessing(33, 0.9, "bicubic")])
def test_evaluation_view_has_the_models_size(shape, preprocessing):
    view = evaluation_view(noise(*shape), preprocessing)
    assert view.shape == (preprocessing.size, preprocessing.size, 3)
    assert view.dtype == np.uint8


def test_evaluation_view_crops_the_centre():
    image = noise(32, 48)
    np.testing.assert_array_equal(evaluation_view(image, CIFAR), image[:, 8:40])


def test_upscaling_a_constant_keeps_it():
    image = np.full((8, 8, 3), 77, np.uint8)
    assert (evaluation_view(image, CIFAR) == 77).all()


@pytest.mark.realdata
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_view_matches_torchvision_on_photographs(hymenoptera, interpolation):
    """torchvision's Resize(256), CenterCrop(224), written out on Pillow alone."""
    preprocessing = Preprocessing(224, 0.875, interpolation)
    filter = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    differences, area = [], []
    for file in sorted(hymenoptera.glob("val/*/*.jpg"))[::10]:
        image = Image.open(file).convert("RGB")
        width, height = image.size
        if width < height:
            resized = (256, int(256 * height / width))
        else:
            resized = (int(256 * width / height), 256)
        left, top = (round((side - 224) / 2) for side in resized)
        box = (left, top, left + 224, top + 224)
        reference = np.asarray(image.resize(resized, filter[interpolation]).crop(box), np.int16)
        decoded = decode(file.read_bytes(), file.name)
        differences.append(np.abs(evaluation_view(decoded, preprocessing) - reference).mean())
        opencv = cv2.resize(decoded, resized, interpolation=cv2.INTER_AREA)
        area.append(np.abs(opencv[top : top + 224, left : left + 224] - reference).mean())
    assert np.mean(differences) < 0.01  # in grey levels of 255: the two JPEG decoders
    assert np.mean(area) > 0.5  # what OpenCV's closest filter would cost


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 4, 5, 3), (2, 2, 4, 5, 3)])
def test_normalise_equals_numpy(order, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    preprocessing = Preprocessing(4, channel_order=order)
    expected = (images / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    expected = expected[..., ::-1] if order == "BGR" else expected
    actual = jax.jit(normalise, static_argnums=1)(images, preprocessing)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Preprocessing(0), "size must be 1 to 100,000 pixels"),
        (lambda: Preprocessing(224, crop=1.5), "crop must be above 0"),
        (
            lambda: Preprocessing(224, interpolation="area"),
            "interpolation area: it must be bilinear or bicubic",
        ),
        (
            lambda: Preprocessing(224, channel_order="GBR"),
            "channel-order GBR: it must be RGB or BGR",
        ),
        (lambda: Preprocessing(224, std=(0.0, 1.0, 1.0)), "std above 0"),
        (lambda: AugmentConfig(crop_scale=(0.5, 0.1)), "--augment.crop-scale .* 0.5 0.1"),
        (lambda: AugmentConfig(crop_scale=(0.5, 1.0)), "--augment.crop-scale goes with"),
        (lambda: AugmentConfig(mixup=1e308), "--augment.mixup .* from 0 to 1000"),
        (lambda: AugmentConfig(pad_crop=-1), "--augment.pad-crop .* -1"),
        (lambda: AugmentConfig(colour_jitter=2.0), "--augment.colour-jitter .* 2.0"),
        (lambda: AugmentConfig(randaugment=(0, 9)), "at least 1 operation .* 0 9"),
        (lambda: AugmentConfig(randaugment=(2, 31)), r"magnitude in \[0, 30\], not 2 31"),
        (lambda: AugmentConfig(randaugment=(2, -1)), "magnitude .* 2 -1"),
        (lambda: AugmentConfig(mixup=-0.1), "mixup .* -0.1"),
        (lambda: AugmentConfig(mixup=float("nan")), "mixup .* nan"),
        (lambda: AugmentConfig(cutmix=float("inf")), "cutmix .* inf"),
        (
            lambda: AugmentConfig(random_resized_crop=True, pad_crop=4),
            "--augment.random-resized-crop and --augment.pad-crop",
        ),
    ],
)
def test_contradictory_options_are_refused(build, message):
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
