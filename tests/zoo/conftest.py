"""A small entry to save, damage and transplant."""

import jax
import numpy as np
import pytest

from jxfer.models import registry
from jxfer.zoo import store
from jxfer.zoo.card import Card

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="session")
def model():
    return registry.create("resnet20", len(CLASSES))


@pytest.fixture(scope="session")
def variables(model):
    """Distinct random values in every leaf of the model, statistics too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), model.shapes()
    )


@pytest.fixture
def card(model):
    return Card(
        name="small",
        arch="resnet20",
        class_names=CLASSES,
        preprocessing=model.architecture.preprocessing,
    )


@pytest.fixture
def entry(tmp_path, card, variables):
    folder = tmp_path / "zoo" / "small"
    store.save(folder, card, variables)
    return folder
