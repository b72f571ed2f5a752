"""PyTorch's tensors become our variables and come back: strict, and bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jxfer import trees
from jxfer.models import registry
from jxfer.models.architectures import ARCHITECTURES
from jxfer.models.heads import HeadConfig
from jxfer.zoo import torch_names
from jxfer.zoo.readers import read_tensors
from tests import torch_reference


@pytest.fixture(scope="module")
def tensors():
    return torch_reference.state("resnet20_b", 3)


@pytest.fixture(scope="module")
def small():
    return registry.create("resnet20_b", 3)


# One of each kind of layer, and of each family; the others differ in depth and width alone.
ROUND_TRIPS = ("resnet20", "resnet20_b", "resnet18d", "resnext50_32x4d")


@pytest.mark.parametrize(
    "arch",
    [
        arch if arch in ROUND_TRIPS else pytest.param(arch, marks=pytest.mark.slow)
        for arch in ARCHITECTURES
    ],
)
def test_import_then_export_gives_every_tensor_back_bit_for_bit(arch):
    reference = torch_reference.create(arch, 3)
    tensors = {
        name: tensor.numpy()
        for name, tensor in reference.state_dict().items()
        if tensor.is_floating_point()
    }
    model = registry.create(arch, 3)
    back = torch_names.export_torch(torch_names.import_torch(tensors, model).variables, model)
    assert back.keys() == tensors.keys()
    for name, tensor in back.items():
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous
        assert tensor.shape == tensors[name].shape
        assert tensor.tobytes() == tensors[name].tobytes()
    with torch.device("meta"):
        other = torch_reference.create(arch, 3)
    other.load_state_dict(
        {n: torch.from_numpy(t) for n, t in back.items()}, strict=True, assign=True
    )


def test_a_cut_backbone_without_a_head_exports_what_it_has(tensors):
    model = registry.create("resnet20_b", None, through="stage2")
    variables = torch_names.import_torch(tensors, model).variables
    found = torch_names.export_torch(variables, model)
    assert found.keys() == {
        n for n in tensors if not n.startswith(("layer3", "linear", "num")) and "num_b" not in n
    }


def test_a_head_of_several_layers_goes_neither_way(one_line, tensors):
    model = registry.create("resnet20_b", 3, head=HeadConfig("mlp", (8,)))
    with one_line("resnet20_b", "mlp"):
        torch_names.export_torch(model.init(0), model)
    with one_line("resnet20_b", "mlp"):
        torch_names.import_torch(tensors, model)


def test_layouts_and_report(tensors, small):
    result = torch_names.import_torch(tensors, small)
    flat = trees.flatten(result.variables)
    block = "stage2/block0"
    for path, name, axes in (
        (f"params/{block}/conv1/kernel", "layer2.0.conv1.weight", (2, 3, 1, 0)),
        (f"params/{block}/downsample/conv/kernel", "layer2.0.shortcut.0.weight", (2, 3, 1, 0)),
        (f"params/{block}/downsample/norm/scale", "layer2.0.shortcut.1.weight", (0,)),
        (f"batch_stats/{block}/norm2/mean", "layer2.0.bn2.running_mean", (0,)),
        (f"batch_stats/{block}/norm2/var", "layer2.0.bn2.running_var", (0,)),
        ("params/head/linear/kernel", "linear.weight", (1, 0)),
        ("params/head/linear/bias", "linear.bias", (0,)),
    ):
        np.testing.assert_array_equal(flat[path], tensors[name].transpose(axes))
    assert result.batchnorm == "standard"
    assert set(result.report.loaded) == set(flat)
    assert result.report.reinitialised == ()
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    assert set(result.report.dropped) == counters != set()


def test_half_and_double_precision_become_float32(tensors, small):
    for kind in (np.float16, np.float64):
        cast = {n: t.astype(kind) if t.dtype == np.float32 else t for n, t in tensors.items()}
        flat = trees.flatten(torch_names.import_torch(cast, small).variables)
        assert {leaf.dtype for leaf in flat.values()} == {np.dtype(np.float32)}


def test_all_problems_come_at_once(one_line, tensors, small):
    bad = dict(tensors)
    del bad["layer3.0.conv1.weight"]
    bad["foo.bar"] = np.zeros(3, np.float32)
    bad["conv1.weight"] = np.zeros((16, 1, 3, 3), np.float32)
    with one_line(
        "resnet20_b: 3 problems:",
        "missing layer3.0.conv1.weight",
        "unexpected foo.bar",
        "conv1.weight has shape (16, 1, 3, 3), expected (16, 3, 3, 3)",
    ):
        torch_names.import_torch(bad, small)


def test_many_problems_are_cut(one_line, small):
    with one_line("resnet20_b:", "missing bn1.bias", "more"):
        torch_names.import_torch({}, small)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("linear.weight", np.zeros((10, 64), np.float32), ("(10, 64), expected (3, 64)",)),
        ("linear.weight", np.zeros(64, np.float32), ("(64,), expected (3, 64)",)),
        ("linear.bias", np.zeros(3, np.int64), ("int64", "floating point")),
        ("linear.bias", np.array([0, np.nan, 0], np.float32), ("NaN",)),
        ("conv1.bias", np.zeros(16, np.float32), ("bn1.bias and conv1.bias both",)),
        ("layer1.0.shortcut.0.weight", np.zeros((16, 16, 1, 1), np.float32), ("unexpected",)),
        ("layer4.0.conv1.weight", np.zeros((16, 16, 3, 3), np.float32), ("unexpected",)),
        ("xconv1.weight", np.zeros((16, 3, 3, 3), np.float32), ("unexpected",)),
    ],
)
def test_refuses(one_line, tensors, small, name, tensor, words):
    with one_line("1 problem:", name, *words):
        torch_names.import_torch(tensors | {name: tensor}, small)


def test_truncation_drops_later_stages_and_the_head(tensors):
    model = registry.create("resnet20_b", None, through="stage1")
    report = torch_names.import_torch(tensors, model).report
    gone = ("layer2.", "layer3.", "linear.")
    assert set(report.dropped) == {
        name for name in tensors if name.startswith(gone) or name.endswith("num_batches_tracked")
    }
    assert set(report.loaded) == set(trees.flatten(model.shapes()))


def test_class_count(tensors, small):
    assert torch_names.class_count(tensors, small.architecture) == 3
    assert torch_names.class_count({}, small.architecture) is None


def fold(tensors):
    """The same network with every BatchNorm folded into its convolution, in float64."""
    folded = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 4:
            conv = name.removesuffix(".weight")
            norm = conv.replace("conv", "bn").replace("shortcut.0", "shortcut.1")
            get = {k: tensors[f"{norm}.{k}"].astype(np.float64)
                   for k in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
            scale = get["weight"] / np.sqrt(get["running_var"] + 1e-5)
            folded[name] = (tensor * scale[:, None, None, None]).astype(np.float32)
            folded[f"{conv}.bias"] = (get["bias"] - get["running_mean"] * scale).astype(np.float32)
    return folded | {n: t for n, t in tensors.items() if n.startswith("linear")}


def test_folded_weights_give_the_same_outputs(tensors, small):
    result = torch_names.import_torch(fold(tensors), small)
    assert result.batchnorm == "folded"
    plain = torch_names.import_torch(tensors, small)
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
    apply = jax.jit(small.apply)
    got, want = (apply(r.variables, images)[0]["logits"] for r in (result, plain))
    assert np.abs(got - want).max() / np.abs(want).max() < 1e-5


def test_a_norm_with_a_tensor_of_its_own_is_not_folded(one_line, tensors, small):
    bad = fold(tensors) | {"bn1.running_mean": tensors["bn1.running_mean"]}
    with one_line("2 problems", "missing bn1.running_var", "missing bn1.weight"):
        torch_names.import_torch(bad, small)


def test_the_folded_norm_is_exactly_an_added_bias():
    var = jnp.full(5, torch_names._FOLDED_VAR)
    assert (jax.jit(lambda v: jax.lax.rsqrt(v + 1e-5))(var) == 1.0).all()


@pytest.mark.realdata
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_the_real_cifar10_networks_import_strictly(test_data, depth):
    (path,) = (test_data / "weights" / "cifar10-resnets").glob(f"resnet{depth}-*.th")
    tensors, _ = read_tensors(path)
    model = registry.create(f"resnet{depth}", 10)
    result = torch_names.import_torch(tensors, model)
    assert set(result.report.loaded) == set(trees.flatten(model.shapes()))
    assert all(name.endswith("num_batches_tracked") for name in result.report.dropped)
    assert len(result.report.loaded) + len(result.report.dropped) == len(tensors)
    assert result.batchnorm == "standard"


@pytest.fixture(scope="module")
def imagenet(test_data):
    return read_tensors(test_data / "weights" / "imagenet-resnet18-folded-partial")[0]


@pytest.mark.realdata
def test_the_partial_resnet18_imports_through_stage3(imagenet):
    model = registry.create("resnet18", None, through="stage3")
    result = torch_names.import_torch(imagenet, model)
    assert result.batchnorm == "folded"
    assert set(result.report.loaded) == set(trees.flatten(model.shapes()))
    assert set(result.report.dropped) == {n for n in imagenet if n.startswith(("layer4.", "fc."))}

    images = np.random.default_rng(0).standard_normal((1, 64, 64, 3), np.float32)
    outputs, _ = jax.jit(model.apply)(result.variables, images)
    with torch.inference_mode():
        x = torch.nn.functional.conv2d(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
            torch.from_numpy(imagenet["conv1.weight"]),
            torch.from_numpy(imagenet["conv1.bias"]),
            stride=2,
            padding=3,
        )
        want = torch.nn.functional.max_pool2d(torch.relu(x), 3, 2, padding=1)
    want = want.numpy().transpose(0, 2, 3, 1)
    assert np.abs(np.asarray(outputs["stem"]) - want).max() / np.abs(want).max() < 1e-5


@pytest.mark.realdata
def test_the_whole_resnet18_lacks_four_tensors(imagenet, one_line):
    with one_line("resnet18: 4 problems:", "missing layer4.1.conv2.weight"):
        torch_names.import_torch(imagenet, registry.create("resnet18", 1000))
