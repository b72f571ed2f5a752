"""A small entry to save, damage and transplant, and a check that an error is one line."""

import contextlib
import re

import jax
import numpy as np
import pytest

from jxfer.errors import UserError
from jxfer.models import registry
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
def no_zoos(monkeypatch, tmp_path):
    """No zoo but those that a test names."""
    monkeypatch.delenv("JXFER_ZOO", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr("jxfer.zoo.store._shipped_zoo", lambda: tmp_path / "nothing")


@pytest.fixture
def one_line():
    """`with one_line("a", "b"):` expects a UserError of one line that holds every word."""

    @contextlib.contextmanager
    def expect(*words):
        with pytest.raises(UserError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert re.search(re.escape(word), message), f"{word!r} is not in: {message}"

    return expect
