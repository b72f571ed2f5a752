"""The convolutional classifier beside the one it comes from, and what each score sees."""

import functools

import jax
import numpy as np
import pytest

import jxfer.models
from jxfer import trees
from jxfer.models import registry
from jxfer.models.dense import convolutional, score_geometry
from jxfer.models.heads import HeadConfig

TOLERANCE = 1e-5  # largest difference over largest magnitude, float32
MLP, CONV = HeadConfig("mlp", (8, 6)), HeadConfig("conv", (8, 6))

# architecture, last stage, head, training size
CASES = {
    "resnet20": ("resnet20", None, HeadConfig(), 32),
    "resnet20 mlp": ("resnet20", None, MLP, 32),
    "resnet20 conv": ("resnet20", None, CONV, 32),
    "resnet20 cut": ("resnet20", "stage2", HeadConfig(), 20),
    "resnet18": ("resnet18", None, HeadConfig(), 64),
    "alexnet": ("alexnet", None, HeadConfig(), 224),
    "alexnet conv": ("alexnet", "stage5", CONV, 96),
}
SLOW = {
    "resnet18d": ("resnet18d", None, HeadConfig(), 70),
    "alexnet mlp": ("alexnet", "fc6", MLP, 224),
    "resnet50d": ("resnet50d", None, HeadConfig(), 64),
    "resnext50 cut": ("resnext50_32x4d", "stage1", HeadConfig(), 64),
    "vgg11": ("vgg11", None, HeadConfig(), 224),
}
ALL = {
    name: pytest.param(*case, id=name, marks=pytest.mark.slow if name in SLOW else ())
    for name, case in (CASES | SLOW).items()
}
ALL_GIVEN = pytest.mark.parametrize(("arch", "through", "head", "size"), ALL.values())


@functools.lru_cache(maxsize=1)  # the largest hold half a gigabyte
def build(arch, through, head, size):
    """(model, variables, convolutional model, its variables), statistics and biases not trivial."""
    model = registry.create(arch, 3, through=through, head=head)
    variables = model.init(0)
    rng = np.random.default_rng(1)
    for path, leaf in trees.flatten(variables).items():
        if path.endswith(("bias", "mean")):
            leaf += rng.uniform(-0.1, 0.1, leaf.shape).astype(np.float32)
    return model, variables, *convolutional(model, variables, size)


@functools.lru_cache(maxsize=1)
def scorer(*case):
    """[H, W, 3] -> [h, w, 3] scores."""
    _, _, model, variables = build(*case)
    apply = jax.jit(lambda variables, image: model.apply(variables, image[None])[0]["logits"][0])
    return lambda image: np.asarray(apply(variables, image))


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@ALL_GIVEN
def test_on_images_of_the_training_size_there_is_one_score_the_classifiers_own(
    arch, through, head, size
):
    model, variables, dense, dense_variables = build(arch, through, head, size)
    images = draw(2, size, size, 3)
    wanted = np.asarray(jax.jit(model.apply)(variables, images)[0]["logits"])
    found = np.asarray(jax.jit(dense.apply)(dense_variables, images)[0]["logits"])
    assert found.shape == (2, 1, 1, 3)
    assert np.abs(found[:, 0, 0] - wanted).max() <= TOLERANCE * np.abs(wanted).max()


@ALL_GIVEN
def test_a_crop_scores_as_the_image_does_wherever_no_padding_reaches(arch, through, head, size):
    geometry = score_geometry(build(arch, through, head, size)[0], size)
    window, stride, offset = geometry.window, geometry.stride, geometry.offset
    down, right = 2, 1  # where the crop starts, in strides
    side = window + 3 * stride + 5  # of the crop; no multiple of the stride
    image = draw(side + down * stride + 9, side + right * stride + 2, 3)
    crop = image[down * stride :, right * stride :][:side, :side]
    score = scorer(arch, through, head, size)
    whole, part = score(image), score(crop)
    starts = np.arange(part.shape[0]) * stride - offset
    inside = (starts >= 0) & (starts + window <= side)
    assert inside.sum() >= 3
    aligned = whole[down:, right:][: len(starts), : len(starts)]
    wanted, found = aligned[inside][:, inside], part[inside][:, inside]
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    if offset:  # elsewhere the padding is part of the score
        assert np.abs(part - aligned).max() > 100 * TOLERANCE * np.abs(wanted).max()


@ALL_GIVEN
def test_a_score_depends_on_the_pixels_of_its_square_and_on_no_other(arch, through, head, size):
    """Lines of pixels at both sides of each edge of the square are disturbed."""
    geometry = score_geometry(build(arch, through, head, size)[0], size)
    window, stride, offset = geometry.window, geometry.stride, geometry.offset
    i = -(-(offset + 1) // stride)  # the first score whose square has a pixel on each side
    start = i * stride - offset
    end = start + window
    image = draw(end + stride + 3, end + stride + 3, 3)
    score = scorer(arch, through, head, size)
    before = score(image)[i, i]
    for line, seen in ((start - 1, False), (start, True), (end - 1, True), (end, False)):
        for axis in (0, 1):
            disturbed = image.copy()
            disturbed.swapaxes(0, axis)[line] += 1000 * draw(len(image), 3)
            assert np.array_equal(score(disturbed)[i, i], before) != seen, (line - start, axis)


def test_an_image_may_have_any_height_and_width():
    _, _, model, variables = build(*CASES["resnet20"])
    for height, width, shape in ((32, 35, (1, 2)), (33, 41, (2, 4)), (64, 32, (9, 1))):
        outputs, _ = jax.eval_shape(model.apply, variables, draw(2, height, width, 3))
        assert outputs["logits"].shape == (2, *shape, 3)
        assert outputs["pooled"].shape == (2, *shape, 64)


def test_the_weights_are_the_same_numbers():
    model, variables, dense, dense_variables = build(*CASES["resnet20 mlp"])
    before, after = trees.flatten(variables), trees.flatten(dense_variables)
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(after[path].reshape(before[path].shape), before[path])
    assert after["params/head/hidden1/kernel"].shape == (1, 1, 64, 8)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(dense.shapes()).items()}
    assert shapes == {path: leaf.shape for path, leaf in after.items()}
    assert score_geometry(dense) == score_geometry(model, 32)


def test_a_backbone_without_a_head_gives_maps_of_features():
    model = registry.create("resnet20", None)
    dense, variables = convolutional(model, model.init(0))
    outputs, _ = jax.eval_shape(dense.apply, variables, draw(1, 48, 48, 3))
    assert outputs["pooled"].shape == (1, 5, 5, 64)
    assert "logits" not in outputs


@pytest.mark.parametrize("name", ["resnet20", "resnet20 conv", "alexnet"])
def test_a_smaller_image_is_refused(name, one_line):
    size = CASES[name][-1]
    _, _, dense, variables = build(*CASES[name])
    with one_line("too small", "training size"):
        jax.eval_shape(dense.apply, variables, draw(1, size * 3 // 4, size, 3))


def test_a_map_that_fc6_averaged_has_no_convolution(one_line):
    model = registry.create("alexnet", 3)
    with one_line("alexnet at 160 px", "4x4", "6x6", "224 px", "--model.through stage5"):
        convolutional(model, model.shapes(), 160)
    with one_line("alexnet at 160 px"):
        score_geometry(model, 160)
    with one_line("at least 63 px, not 40"):
        convolutional(model, model.shapes(), 40)


def test_a_convolutional_model_is_not_converted_again(one_line):
    _, _, dense, variables = build(*CASES["resnet20"])
    with one_line("convolutional already"):
        convolutional(dense, variables)


def test_the_package_offers_both():
    assert jxfer.models.convolutional is convolutional
    assert jxfer.models.score_geometry is score_geometry
    with pytest.raises(AttributeError, match="deconvolutional"):
        jxfer.models.deconvolutional  # noqa: B018
