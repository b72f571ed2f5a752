"""Runs with every regulariser: their figures, what they leave, and a kill."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer.data import screen, transforms
from jxfer.data.transforms import CIFAR, normalise
from jxfer.models.heads import HeadConfig
from jxfer.train import loop
from jxfer.train.evaluate import source_relationship
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig
from tests.conftest import CLASSES
from tests.runs import lines
from tests.train.steps import EVERY_REGULARISER, SGD, prepare


@pytest.fixture(scope="module")
def config(small_config, entries):
    """Of two phases, so that the source's head begins to train in the middle; 9 steps."""
    return small_config(
        model=ModelConfig(weights=entries["standard"], classifier=HeadConfig("mlp", (8,))),
        strategy=StrategyConfig("lp_ft", phase_epochs=1.0),
        regularise=EVERY_REGULARISER,
        optimizer=SGD,
        checkpoint_every=1,
        log_every=1,
    )


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("regularised") / "run"
    loop.run_config(config, run, quiet=True)
    return run


@pytest.mark.slow
def test_a_run_writes_a_figure_for_each_regulariser_that_acts(undisturbed):
    names = {"train_l2_sp", "train_l2_sp_head", "train_delta", "train_co_tuning", "train_bss"}
    train = [line for line in lines(undisturbed) if "train_loss" in line]
    for line in train:
        expected = {"train_l2_sp_head"} if line["phase"] == "head" else names
        assert {name for name in line if name in names} == expected
    pulls = [line["train_l2_sp"] for line in train if line["phase"] == "all"]
    assert pulls[0] == 0.0
    assert pulls[-1] > 0.0


def test_the_source_head_trains_and_stays_out_of_the_model(
    config, undisturbed, read_state, assert_same_bits
):
    state = read_state(config, undisturbed)
    pretrained, _ = prepare(config)
    begun = pretrained.variables["params"]["source_head"]
    assert not np.array_equal(state.params["source_head"]["kernel"], begun["kernel"])
    card, variables = store.load(undisturbed / "model")
    assert variables["params"].keys() == {"stem", "stage1", "stage2", "head"}
    assert card.class_names == CLASSES
    found = json.loads((undisturbed / "summary.json").read_text())
    assert found["phases"][0]["frozen_unchanged"] is True
    assert found["phases"][1]["parameters"]["low_lr/source_head"] == 330
    assert "params/source_head/kernel" in found["loaded"]


@pytest.mark.slow
def test_a_kill_changes_no_bit(
    config, undisturbed, tmp_path, stop_after_save, read_state, assert_same_bits
):
    run = tmp_path / "run"
    with stop_after_save(5):
        loop.run_config(config, run, quiet=True)
    loop.run_config(config, run, quiet=True)
    found, wanted = (read_state(config, folder) for folder in (run, undisturbed))
    assert_same_bits(found.params, wanted.params)
    assert_same_bits(found.batch_stats, wanted.batch_stats)
    assert lines(run) == lines(undisturbed)


def test_the_relationship_is_the_mean_of_the_sources_probabilities_by_class(config):
    """On the evaluation view, beside a forward pass of the entry as it is on disk."""
    pretrained, _ = prepare(config)
    train = screen.load_splits(config.data).train
    found = source_relationship(pretrained, train, 16)["relationship"]
    card, variables = store.load(config.model.weights)
    model = store.build(card)
    views = [
        transforms.evaluation_view(transforms.decode(e.image, e.name), pretrained.preprocessing)
        for e in (train[i] for i in range(len(train)))
    ]
    outputs, _ = jax.jit(model.apply)(variables, normalise(jnp.asarray(np.stack(views)), CIFAR))
    powers = np.exp(np.float64(outputs["logits"]))
    probabilities = powers / powers.sum(-1, keepdims=True)
    labels = np.asarray(train.labels)
    wanted = [probabilities[labels == label].mean(0) for label in range(3)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
