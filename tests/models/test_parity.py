"""Every architecture against PyTorch on the same weights: each stage, the logits, the size."""

import jax
import numpy as np
import pytest
import torch

from jxfer import trees
from jxfer.models import registry
from jxfer.models.architectures import ARCHITECTURES
from jxfer.zoo import torch_names
from tests import torch_reference

TOLERANCE = 1e-4  # largest difference over largest magnitude, float32
CLASSES = 7
FAST = ("resnet20", "resnet20_b", "resnet18", "resnet50", "resnet18d", "alexnet")
CASES = [
    *FAST,
    *(
        pytest.param(arch, marks=pytest.mark.slow)
        for arch in (
            *(f"resnet{depth}" for depth in (32, 44, 56, 110, 34, 101, 152)),
            *(f"resnet{depth}_b" for depth in (32, 44, 56, 110)),
            *("wide_resnet50_2", "wide_resnet101_2", "resnext101_32x8d", "resnext101_64x4d"),
            *("resnet50d", "resnext50_32x4d"),
            *(f"vgg{depth}" for depth in (11, 13, 16, 19)),
            *(f"vgg{depth}_bn" for depth in (11, 13, 16, 19)),
        )
    ),
]


def side_of(arch: str) -> int:
    # Below the native size fc6 sees an averaged map, and XLA's 3x3 convolutions on tiny maps are
    # slow.
    if registry.architecture(arch).preprocessing.size == 32:
        return 32
    return 64 if arch.startswith("vgg") else 96


def compare(arch: str, height: int, width: int) -> None:
    reference = torch_reference.create(arch, CLASSES)
    torch_reference.randomise(reference, seed=0)
    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    model = registry.create(arch, CLASSES)
    variables = torch_names.import_torch(tensors, model).variables
    images = np.random.default_rng(1).standard_normal((2, height, width, 3), np.float32)
    with torch.inference_mode():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    outputs, _ = jax.jit(model.apply)(variables, images)
    assert outputs.keys() == expected.keys() == {*model.stages, "pooled", "logits"}
    for name, output in outputs.items():
        want = expected[name].numpy()
        if want.ndim == 4:
            want = want.transpose(0, 2, 3, 1)
        assert output.shape == want.shape, name
        largest = np.abs(want).max()
        assert 1e-2 < largest < 1e4, f"{name}: the weights make no sane activations: {largest}"
        assert np.abs(np.asarray(output) - want).max() / largest <= TOLERANCE, name


@pytest.mark.parametrize("arch", CASES)
def test_every_stage_and_the_logits_match_torch(arch):
    side = side_of(arch)
    compare(arch, side, side)


@pytest.mark.parametrize(
    ("arch", "height", "width"),
    [
        *(("resnet20", 75, 91), ("resnet18", 75, 91), ("resnet18d", 75, 91)),
        pytest.param("alexnet", 301, 227, marks=pytest.mark.slow),
    ],
)
def test_an_odd_size_that_is_not_square_matches_torch(arch, height, width):
    compare(arch, height, width)


def test_every_row_of_the_registry_has_a_case():
    covered = {case if isinstance(case, str) else case.values[0] for case in CASES}
    assert covered == set(ARCHITECTURES)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameter_count_is_the_published_one(arch):
    row = registry.architecture(arch)
    shapes = registry.create(arch, row.num_classes).shapes()
    assert trees.size(shapes["params"]) == row.parameters
    with torch.device("meta"):
        reference = torch_reference.create(arch, row.num_classes)
    assert sum(p.numel() for p in reference.parameters()) == row.parameters


def test_truncated_model_gives_the_same_stages():
    reference = torch_reference.create("resnet20_b", CLASSES)
    torch_reference.randomise(reference, seed=0)
    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    model = registry.create("resnet20_b", None, through="stage2")
    result = torch_names.import_torch(tensors, model)
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3), np.float32)
    with torch.inference_mode():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    outputs, _ = jax.jit(model.apply)(result.variables, images)
    assert set(outputs) == {"stem", "stage1", "stage2", "pooled"}
    want = expected["stage2"].numpy().transpose(0, 2, 3, 1)
    assert np.abs(np.asarray(outputs["stage2"]) - want).max() / np.abs(want).max() <= TOLERANCE
