"""Features are the network's own outputs, each example's once, in the source's order."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from jxfer.data import transforms
from jxfer.data.transforms import CIFAR, IMAGENET
from jxfer.models import registry
from jxfer.probe import features
from jxfer.zoo import torch_names
from tests import torch_reference
from tests.noise import Noise

OUTPUTS = ("stem", "stage1", "pooled", "logits")


@pytest.fixture(scope="module")
def model():
    return registry.create("resnet20", 7, through="stage1")


@pytest.fixture(scope="module")
def variables(model):
    return model.init(3)


def pixels(source, preprocessing):
    """What the network takes, without the loader: float32 [N, H, W, 3]."""
    views = [
        transforms.evaluation_view(transforms.decode(example.image, example.name), preprocessing)
        for example in map(source.__getitem__, range(len(source)))
    ]
    mean, std = np.float32(preprocessing.mean), np.float32(preprocessing.std)
    return (np.stack(views) / np.float32(255) - mean) / std


@pytest.fixture(scope="module")
def on_one_device(model, variables):
    """All outputs of `Noise(21)`, without the loader, the padding or the step."""
    return jax.jit(model.apply)(variables, pixels(Noise(21), CIFAR))[0]


@pytest.mark.parametrize("form", ["pooled", "flat", "spatial"])
def test_eight_devices_give_the_networks_own_rows_in_order(model, variables, on_one_device, form):
    """21 examples: neither a multiple of the batch nor of the devices."""
    assert jax.device_count() == 8
    source = Noise(21)
    found = features.extract(model, CIFAR, variables, source, OUTPUTS, form=form, batch_size=16)
    assert tuple(found) == OUTPUTS
    shapes = features.row_shapes(model, CIFAR, OUTPUTS, form)
    for name, array in found.items():
        wanted = np.asarray(on_one_device[name])
        if wanted.ndim == 4 and form == "pooled":
            wanted = wanted.mean((1, 2), dtype=np.float64).astype(np.float32)
        if wanted.ndim == 4 and form == "flat":
            wanted = wanted.reshape(21, -1)
        assert array.dtype == np.float32
        assert array.shape == wanted.shape == (21, *shapes[name])
        largest = np.abs(wanted).max()
        assert np.abs(array - wanted).max() <= 1e-5 * largest, name
    if form == "pooled":
        np.testing.assert_allclose(found["stage1"], found["pooled"], rtol=1e-6)


@pytest.mark.parametrize(
    ("examples", "batch_size", "rows"), [(21, 16, 16), (21, 10, 16), (21, 500, 24), (0, 16, 8)]
)
def test_a_block_divides_over_the_devices(examples, batch_size, rows):
    assert features.rows_per_block(examples, batch_size) == rows


def test_a_later_start_gives_the_same_bits(model, variables):
    def blocks(start):
        found = features.blocks(
            model, CIFAR, variables, Noise(40), OUTPUTS, batch_size=16, start=start
        )
        return list(found)

    whole = blocks(0)
    assert [len(block["pooled"]) for block in whole] == [16, 16, 8]
    for start, rest in ((16, whole[1:]), (32, whole[2:]), (40, [])):
        again = blocks(start)
        assert len(again) == len(rest)
        for block, wanted in zip(again, rest, strict=True):
            for name in OUTPUTS:
                assert block[name].tobytes() == wanted[name].tobytes()


def test_an_output_that_is_not_there_is_named(model, variables, one_line):
    with one_line("resnet20", "'stage2'", "stem, stage1, pooled, logits"):
        features.blocks(model, CIFAR, variables, Noise(3), ["stage2"])
    with one_line("at least one of stem, stage1"):
        features.blocks(model, CIFAR, variables, Noise(3), [])
    headless = registry.create("resnet20", None, through="stage1")
    with one_line("'logits'", "stem, stage1, pooled"):
        features.row_shapes(headless, CIFAR, ["logits"])


def test_a_batch_of_none_is_refused(model, variables, one_line):
    with one_line("--batch-size 0"):
        features.blocks(model, CIFAR, variables, Noise(3), ["pooled"], batch_size=0)


@pytest.mark.parametrize(
    ("arch", "through", "preprocessing", "relus"),
    [
        # Position of each stage's last ReLU in the forward pass.
        ("resnet20", "stage1", CIFAR, {"stem": 0, "stage1": 6}),
        pytest.param(
            "alexnet",
            "fc7",
            dataclasses.replace(IMAGENET, size=96, crop=1.0),
            {"stage3": 2, "fc6": 5, "fc7": 6},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_codes_are_the_thresholded_ones(monkeypatch, arch, through, preprocessing, relus):
    """PyTorch's pre-activations, thresholded at 0 here."""
    reference = torch_reference.create(arch, 7)
    torch_reference.randomise(reference, seed=0)
    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    whole = torch_names.import_torch(tensors, registry.create(arch, 7)).variables
    model = registry.create(arch, None, through=through)
    variables = {
        kind: {stage: tree[stage] for stage in model.stages if stage in tree}
        for kind, tree in whole.items()
    }
    source = Noise(9)
    found = features.extract(model, preprocessing, variables, source, list(relus), form="spatial")

    before, relu = [], torch.nn.functional.relu

    def recording(x, *args, **kwargs):
        before.append(x.clone())
        return relu(x, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "relu", recording)
    images = pixels(source, preprocessing).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        reference(torch.from_numpy(images.copy()))
    for name, position in relus.items():
        signed = before[position].numpy()
        if signed.ndim == 4:
            signed = signed.transpose(0, 2, 3, 1)
        assert (signed < 0).mean() > 0.1
        wanted = np.maximum(signed, 0)
        assert found[name].min() == 0
        assert np.abs(found[name] - wanted).max() <= 1e-4 * wanted.max()
