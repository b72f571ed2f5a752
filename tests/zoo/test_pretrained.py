"""From a config to a model: the form of its head, sizes that fit, networks without norms."""

import jax
import numpy as np
import pytest

from jxfer import trees
from jxfer.models import registry
from jxfer.models.heads import HeadConfig
from jxfer.zoo import store
from jxfer.zoo.card import Card
from jxfer.zoo.pretrained import ModelConfig, create_model

CLASSES = ("cat", "dog", "owl")
MLP = HeadConfig("mlp", (8,), dropout=0.5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A ResNet-20 through stage 1 with an MLP head: (folder, variables)."""
    model = registry.create("resnet20", 3, through="stage1", head=MLP)
    variables = model.init(5)
    card = Card(
        name="small",
        arch="resnet20",
        class_names=CLASSES,
        preprocessing=model.architecture.preprocessing,
        through="stage1",
        head=MLP,
    )
    folder = tmp_path_factory.mktemp("zoo") / "small"
    store.save(folder, card, variables)
    return str(folder), variables


def head_leaves(variables):
    return {path: leaf.shape for path, leaf in trees.flatten(variables["params"]["head"]).items()}


def test_a_kept_head_has_the_form_of_its_card(saved):
    folder, variables = saved
    for classifier in (HeadConfig(), MLP):
        config = ModelConfig(weights=folder, head="keep", classifier=classifier)
        pretrained = create_model(config, CLASSES)
        assert pretrained.model.head == MLP
        assert pretrained.report.reinitialised == ()
        assert trees.sha256(pretrained.variables) == trees.sha256(variables)


def test_another_form_for_a_kept_head_is_refused(saved, one_line):
    config = ModelConfig(weights=saved[0], head="keep", classifier=HeadConfig("conv", (8,)))
    with one_line("--model.classifier", "--model.head keep"):
        create_model(config, CLASSES)


@pytest.mark.parametrize(
    "classifier", [HeadConfig(), HeadConfig("conv", (4,))], ids=["linear", "conv"]
)
def test_a_new_head_has_the_form_that_is_asked_for(saved, classifier):
    config = ModelConfig(weights=saved[0], classifier=classifier)
    pretrained = create_model(config, ("ant", "bee"), seed=3)
    model = registry.create("resnet20", 2, through="stage1", head=classifier)
    assert pretrained.model == model
    assert head_leaves(pretrained.variables) == head_leaves(model.shapes())
    fresh = {path for path in pretrained.report.reinitialised if "/head/" in path}
    assert fresh == {f"params/head/{path}" for path in head_leaves(model.shapes())}


def test_an_image_too_small_for_the_architecture_is_refused(one_line):
    config = ModelConfig(arch="alexnet", through="stage1", image_size=62)
    with one_line("alexnet", "at least 63 px, not 62", "--model.image-size"):
        create_model(config, CLASSES, scratch=True)


def test_a_network_without_norms_is_stored_and_loaded(tmp_path):
    model = registry.create("alexnet", 3, through="stage2")
    variables = model.init(1)
    assert variables["batch_stats"] == {}
    card = Card(
        name="alex",
        arch="alexnet",
        class_names=CLASSES,
        preprocessing=model.architecture.preprocessing,
        through="stage2",
    )
    store.save(tmp_path / "alex", card, variables)
    config = ModelConfig(weights=str(tmp_path / "alex"), head="keep", image_size=63)
    pretrained = create_model(config, CLASSES)
    images = np.random.default_rng(0).standard_normal((2, 63, 63, 3), np.float32)
    found, statistics = jax.jit(pretrained.model.apply)(pretrained.variables, images)
    wanted, _ = jax.jit(model.apply)(variables, images)
    np.testing.assert_array_equal(found["logits"], wanted["logits"])
    assert statistics == {}
