import io

import numpy as np
import pytest
from PIL import Image

from jxfer.data.pictures import Picture, jpeg_size
from jxfer.data.readers import Example
from jxfer.errors import UserError


def encode(shape, format="JPEG", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 300}])
@pytest.mark.parametrize("shape", [(40, 70, 3), (301, 9)])
def test_the_size_of_a_jpeg_is_that_of_pillow(shape, options):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    file = encode(shape, exif=exif, **options)
    assert jpeg_size(file) == Image.open(io.BytesIO(file)).size[::-1] == shape[:2]
    padded = file[:2] + b"\xff\xff" + file[2:]
    assert jpeg_size(padded) == shape[:2]


def test_other_and_damaged_files_have_no_size():
    file = encode((40, 70, 3))
    start = file.index(b"\xff\xc0")
    no_lines = file[: start + 5] + bytes(2) + file[start + 7 :]  # the height comes later, by DNL
    for data in (b"", b"\xff\xd8", file[:start], no_lines, encode((4, 4, 3), "PNG")):
        assert jpeg_size(data) is None


@pytest.mark.realdata
def test_the_size_of_every_photograph_is_that_of_pillow(hymenoptera):
    for path in hymenoptera.glob("*/*/*.jpg"):
        with Image.open(path) as image:
            assert jpeg_size(path.read_bytes()) == image.size[::-1]


def test_a_picture_takes_no_more_than_it_says():
    shown = Picture(Example(file := encode((301, 70, 3)), 3, "x"))
    arrays = [shown.pixels(reduction) for reduction in (1, 2, 4, 8)]
    assert shown.nbytes == len(file) + sum(array.nbytes for array in arrays)
    assert all(shown.pixels(r) is array for r, array in zip((1, 2, 4, 8), arrays, strict=True))
    assert (shown.label, shown.shape) == (3, (301, 70))


def test_a_file_that_is_no_jpeg_is_decoded_at_once_and_never_reduced():
    shown = Picture(Example(file := encode((30, 20, 3), "PNG"), 0, "x"))
    assert shown.shape == (30, 20)
    assert shown.nbytes == len(file) + 30 * 20 * 3
    assert shown.reduction(30, 20, 1) == 1
    with pytest.raises(UserError, match="image ants/3 is truncated"):
        Picture(Example(file[:50], 0, "ants/3"))


@pytest.mark.parametrize(("side", "reduction"), [(447, 1), (448, 2), (895, 2), (896, 4), (9999, 8)])
def test_the_reduction_leaves_as_many_pixels_as_are_needed(side, reduction):
    shown = Picture(Example(encode((9, 9, 3)), 0, "x"))
    assert shown.reduction(side, side + 50, 224) == reduction
    assert shown.reduction(side + 50, side, 224) == reduction
