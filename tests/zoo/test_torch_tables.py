"""PyTorch's names beside the reference's tensors, and the two layouts of VGG."""

import numpy as np
import pytest
import torch

from jxfer import trees
from jxfer.models import registry
from jxfer.models.architectures import ARCHITECTURES
from jxfer.zoo import torch_names, torch_tables
from tests import torch_reference


def reference_shapes(arch, classes=3):
    """Names and shapes of the reference's floating-point tensors, without their memory."""
    with torch.device("meta"):
        reference = torch_reference.create(arch, classes)
    return {
        name: tuple(tensor.shape)
        for name, tensor in reference.state_dict().items()
        if tensor.is_floating_point()
    }


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_table_pairs_every_tensor_of_the_reference_with_one_leaf(arch):
    row = registry.architecture(arch)
    leaves = trees.flatten(registry.create(arch, 3).shapes())
    found = {}
    for name, shape in reference_shapes(arch).items():
        path, layout = torch_tables.our_path(name, row)  # raises on two matches
        assert layout.torch_shape(leaves[path].shape) == shape, name
        assert torch_tables.torch_name(path, row) == (name, layout)
        found[path] = name
    assert found.keys() == leaves.keys()


def test_a_fully_connected_layer_sees_the_map_in_torchs_order():
    """Torch flattens [C, H, W]; our kernel is [H, W, C, K]."""
    layout = torch_tables.our_path("classifier.0.weight", registry.architecture("vgg11"))[1]
    kernel = np.random.default_rng(0).normal(size=(7, 7, 5, 4)).astype(np.float32)
    features = np.random.default_rng(1).normal(size=(7, 7, 5)).astype(np.float32)
    flat = layout.to_torch(kernel)
    assert flat.shape == (4, 5 * 7 * 7)
    np.testing.assert_allclose(
        flat @ features.transpose(2, 0, 1).reshape(-1),
        np.einsum("hwck,hwc->k", kernel, features),
        rtol=1e-4,
    )
    np.testing.assert_array_equal(layout.to_ours(flat, kernel.shape), kernel)


def timm_layout(tensors):
    """VGG as timm has it: fc6 and fc7 as convolutions, under names of its own."""
    renamed = dict(tensors)
    for ours, theirs, side in (
        ("classifier.0", "pre_logits.fc1", 7),
        ("classifier.3", "pre_logits.fc2", 1),
        ("classifier.6", "head.fc", None),
    ):
        weight = renamed.pop(f"{ours}.weight")
        renamed[f"{theirs}.bias"] = renamed.pop(f"{ours}.bias")
        renamed[f"{theirs}.weight"] = (
            weight.reshape(len(weight), -1, side, side) if side else weight
        )
    return renamed


@pytest.fixture(scope="module")
def vgg():
    """VGG-11's tensors as zeros that take no memory, and what fills it."""
    zero = np.zeros((), np.float32)
    tensors = {n: np.broadcast_to(zero, shape) for n, shape in reference_shapes("vgg11").items()}
    return tensors, registry.create("vgg11", 3)


def test_both_layouts_of_vgg_are_known(vgg):
    tensors, model = vgg
    timm = timm_layout(tensors)
    assert timm["pre_logits.fc1.weight"].shape == (4096, 512, 7, 7)
    assert torch_names.class_count(timm, model.architecture) == 3
    assert torch_names.class_count(tensors, model.architecture) == 3
    leaves = trees.flatten(model.shapes())
    for name, tensor in timm.items():
        path, layout = torch_tables.our_path(name, model.architecture)
        assert layout.torch_shape(leaves[path].shape) == tensor.shape


@pytest.mark.slow
def test_both_layouts_of_vgg_give_the_same_leaves():
    tensors, model = torch_reference.state("vgg11", 3), registry.create("vgg11", 3)
    ours, theirs = (
        trees.sha256(torch_names.import_torch(t, model).variables)
        for t in (tensors, timm_layout(tensors))
    )
    assert ours == theirs


def test_two_layouts_in_one_file_are_refused(one_line, vgg):
    tensors, model = vgg
    name = "pre_logits.fc2.weight"
    with one_line("vgg11: 1 problem:", "classifier.3.weight", name, "both stand for"):
        torch_names.import_torch(tensors | {name: timm_layout(tensors)[name]}, model)


def test_a_vgg_without_a_bias_lacks_it(one_line, vgg):
    """Where convolutions have biases, none of them is a folded norm."""
    tensors = {name: tensor for name, tensor in vgg[0].items() if name != "features.0.bias"}
    with one_line("vgg11: 1 problem: missing features.0.bias"):
        torch_names.import_torch(tensors, vgg[1])


def test_a_flat_layer_of_another_size_is_refused_before_anything_is_allocated(one_line, vgg):
    zeros = np.broadcast_to(np.float32(0), (4096, 512))
    with one_line("classifier.0.weight has shape (4096, 512), expected (4096, 25088)"):
        torch_names.import_torch(vgg[0] | {"classifier.0.weight": zeros}, vgg[1])
