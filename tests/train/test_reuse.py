"""A run on stages of an entry in another architecture: what is new trains at the full rate."""

import numpy as np
import pytest

from jxfer import trees
from jxfer.train import loop
from jxfer.train.plans import set_up
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig
from tests.conftest import CLASSES

NEW = {"stage1/block3", "stage1/block4"}  # of ResNet-32, beside the three of ResNet-20


@pytest.fixture(scope="module")
def make_config(small_config, make_entry):
    entry = make_entry("standard")

    def make(strategy, reuse=("stem", "stage1"), through="stage1"):
        model = ModelConfig(weights=entry, arch="resnet32", through=through, reuse=reuse)
        return small_config(model=model, strategy=strategy, epochs=1.0)

    return make


def unit(path):
    return "/".join(path.split("/")[:2])


@pytest.mark.parametrize(
    ("strategy", "stem"),
    [(StrategyConfig("full"), "low_lr"), (StrategyConfig("partial", "stem"), "frozen")],
    ids=["full", "partial"],
)
def test_what_is_new_has_the_label_of_the_head(make_config, strategy, stem):
    _, (plan,) = set_up(make_config(strategy), CLASSES, total_steps=5, steps_per_epoch=2.25)
    for path, label in trees.flatten(plan.labels).items():
        if path.startswith("stem/"):
            assert label == stem, path
        else:
            full = unit(path) in NEW or path.startswith("head/")
            assert label == ("head" if full else "low_lr"), path
    rate = plan.rates["head"](0), plan.rates["low_lr"](0)
    assert rate[0] > rate[1]
    assert {f"{block}/norm{i}" for block in NEW for i in (1, 2)} < plan.train_layers


def test_a_stage_that_is_not_named_is_new(make_config):
    config = make_config(StrategyConfig("full"), reuse=("stem",))
    _, (plan,) = set_up(config, CLASSES, total_steps=5, steps_per_epoch=2.25)
    labels = trees.flatten(plan.labels)
    assert {label for path, label in labels.items() if path.startswith("stage1/")} == {"head"}


@pytest.mark.parametrize(
    "strategy", [StrategyConfig("linear_probe"), StrategyConfig("partial", "stage1")]
)
def test_what_is_new_is_never_frozen(one_line, make_config, strategy):
    with one_line("stage1/block3 is new", strategy.name):
        set_up(make_config(strategy), CLASSES, total_steps=5, steps_per_epoch=2.25)


@pytest.mark.slow
def test_a_run(make_config, tmp_path):
    config = make_config(StrategyConfig("partial", "stem"))
    summary = loop.run_config(config, tmp_path / "run", quiet=True)
    card, end = store.load(tmp_path / "run" / "model")
    parent, start = store.load(config.model.weights)
    assert (card.arch, card.through) == ("resnet32", "stage1")
    assert card.parents == (parent.as_ancestor(),)
    accounts = [set(summary[name]) for name in ("loaded", "reinitialised", "dropped")]
    assert accounts[0] | accounts[1] == set(trees.flatten(end))
    assert accounts[0] | accounts[2] == set(trees.flatten(start))
    fresh = {unit(path.split("/", 1)[1]) for path in accounts[1]}
    assert fresh == {*NEW, "head/linear"}
    assert summary["frozen_unchanged"]
    start, end = trees.flatten(start), trees.flatten(end)
    for path in accounts[0]:
        assert np.array_equal(start[path], end[path]) == ("/stem/" in path), path
