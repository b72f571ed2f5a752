import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jxfer import trees
from jxfer.models import registry
from jxfer.models.architectures import ARCHITECTURES
from jxfer.models.heads import HeadConfig
from jxfer.zoo import torch_names, torch_tables
from jxfer.zoo.readers import read_tensors
from tests import torch_reference


def state(arch, classes=3):
    reference = torch_reference.create(arch, classes)
    torch_reference.randomise(reference, seed=0)
    return {name: tensor.numpy() for name, tensor in reference.state_dict().items()}


@pytest.fixture(scope="module")
def tensors():
    return state("resnet20_b")


@pytest.fixture(scope="module")
def small():
    return registry.create("resnet20_b", 3)


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
        np.testing.assert_array_equal(tensor, tensors[name])
    with torch.device("meta"):
        other = torch_reference.create(arch, 3)
    other.load_state_dict(
        {n: torch.from_numpy(t) for n, t in back.items()}, strict=True, assign=True
    )


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
    tensors, model = state("vgg11"), registry.create("vgg11", 3)
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
