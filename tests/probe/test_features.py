"""Features are the network's own outputs, each example's once, in the source's order."""

import jax
import numpy as np
import pytest

from jxfer.data.transforms import CIFAR
from jxfer.models import registry
from jxfer.probe import features
from tests.train.test_devices import Noise

OUTPUTS = ("stem", "stage1", "pooled", "logits")


@pytest.fixture(scope="module")
def model():
    return registry.create("resnet20", 7, through="stage1")


@pytest.fixture(scope="module")
def variables(model):
    return model.init(3)


@pytest.fixture(scope="module")
def direct(model, variables):
    """All outputs of a source on one device, without the loader, the padding or the step."""
    apply = jax.jit(lambda pixels: model.apply(variables, pixels)[0])

    def compute(source):
        mean, std = np.float32(CIFAR.mean), np.float32(CIFAR.std)
        pixels = (source.pixels / np.float32(255) - mean) / std
        return {name: np.asarray(array) for name, array in apply(pixels).items()}

    return compute


@pytest.mark.parametrize("examples", [3, 21])
@pytest.mark.parametrize("form", ["pooled", "flat", "spatial"])
def test_rows_are_the_networks_outputs_in_order(model, variables, direct, examples, form):
    source = Noise(examples)
    found = features.extract(model, CIFAR, variables, source, OUTPUTS, form=form, batch_size=16)
    wanted = direct(source)
    assert list(found) == list(OUTPUTS)
    for name, array in found.items():
        expected = wanted[name]
        if expected.ndim == 4 and form == "pooled":
            expected = expected.mean((1, 2), dtype=np.float64).astype(np.float32)
        if expected.ndim == 4 and form == "flat":
            expected = expected.reshape(examples, -1)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)
    assert found["stage1"].min() >= 0
