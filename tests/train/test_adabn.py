"""AdaBN's statistics beside those of the images themselves, and on any number of devices."""

import jax
import numpy as np
import pytest

from jxfer import trees
from jxfer.data import loader
from jxfer.data.readers import FolderSource, Subset
from jxfer.data.transforms import CIFAR, AugmentConfig, normalise
from jxfer.models import registry
from jxfer.train import adabn, parallel


@pytest.fixture(scope="module")
def source(images):
    return FolderSource(images, "train")  # 36 images


@pytest.fixture(scope="module")
def network():
    model = registry.create("resnet20", 3, through="stage1")
    return model, model.init(0)


def test_the_first_norm_has_the_mean_and_variance_of_all_that_it_sees(network, source):
    """16 divides 32: each image counts once. What the first norm sees depends on no other one."""
    model, variables = network
    some = Subset(source, np.arange(32))
    found = adabn.statistics(model, CIFAR, parallel.replicate(variables), some, 16)
    batch = next(loader.eval_batches(some, CIFAR, batch_size=32))
    seen = model.norm_inputs(variables, normalise(batch["image"], CIFAR))["stem/norm"]
    seen = np.asarray(seen, np.float64)
    norm = found["stem"]["norm"]
    np.testing.assert_allclose(norm["mean"], seen.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm["var"], seen.var((0, 1, 2)), rtol=1e-4)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_statistics_are_those_of_one_device_combined_over_batches(network, source):
    """Every norm, by train mode on one device and the law of total variance in float64."""
    model, variables = network
    found = trees.flatten(adabn.statistics(model, CIFAR, parallel.replicate(variables), source, 16))
    stream = loader.train_batches(source, CIFAR, AugmentConfig(), batch_size=16, seed=0)
    norms = frozenset(model.norm_paths())
    moments = []
    for _ in range(3):  # 36 images in batches of 16
        images = normalise(next(stream)["image"], CIFAR)
        start = jax.tree.map(np.zeros_like, variables["batch_stats"])
        _, moved = model.apply(variables | {"batch_stats": start}, images, norms)
        flat = trees.flatten(moved)
        moments.append({path: 10 * np.asarray(leaf, np.float64) for path, leaf in flat.items()})
    for norm in norms:
        means = np.stack([one[f"{norm}/mean"] for one in moments])
        variances = np.stack([one[f"{norm}/var"] for one in moments])
        np.testing.assert_allclose(found[f"{norm}/mean"], means.mean(0), rtol=1e-3, atol=1e-4)
        wanted = variances.mean(0) + means.var(0)
        np.testing.assert_allclose(found[f"{norm}/var"], wanted, rtol=1e-3)


def test_they_do_not_depend_on_the_stored_ones(network, source):
    model, variables = network
    other = jax.tree.map(lambda leaf: leaf + 3, variables["batch_stats"])
    found = [
        trees.flatten(adabn.statistics(model, CIFAR, parallel.replicate(tree), source, 16))
        for tree in (variables, variables | {"batch_stats": other})
    ]
    for path, leaf in found[0].items():
        np.testing.assert_array_equal(found[1][path], leaf)
