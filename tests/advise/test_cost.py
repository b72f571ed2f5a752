"""The cost of a run, against sums made by hand."""

import dataclasses

import pytest

from jxfer.advise.cost import cost, forward_flops
from jxfer.data.sources import DataConfig, open_splits
from jxfer.train.config import TrainConfig
from jxfer.train.plans import load
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

HEAD = 2 * 64 * 10  # FLOPs of an image


@pytest.fixture(scope="module")
def found():
    """What a strategy costs: 50 steps of 8 images, of 100, on eight devices."""
    data = DataConfig("digits", per_class=10)
    splits = open_splits(data)
    config = TrainConfig(data, ModelConfig(weights="resnet20-cifar100"), epochs=4, batch_size=8)

    def of(strategy):
        one = dataclasses.replace(config, strategy=strategy)
        pretrained = load(one, splits.train.class_names)
        return cost(one, pretrained, splits), forward_flops(pretrained)

    return of


def test_a_probe_runs_the_backbone_once_an_image(found):
    spent, forward = found(StrategyConfig("linear_probe"))
    assert (spent.steps, spent.trainable) == (50, 650)
    # Forward, and the gradient of the kernel; nothing lies below.
    assert spent.flops == 100 * (forward - HEAD) + 50 * 8 * 2 * HEAD


def test_full_fine_tuning_takes_three_forward_passes_and_some_padding(found):
    spent, forward = found(StrategyConfig("full"))
    assert spent.trainable == 269_722
    # The gradient of a kernel, as matrix products, takes the padded border in.
    assert 3 < spent.flops / (50 * 8 * forward) < 3.5


def test_phases_add_up(found):
    both, forward = found(StrategyConfig("lp_ft"))
    full, _ = found(StrategyConfig("full"))
    probe = 100 * (forward - HEAD) + 25 * 8 * 2 * HEAD
    assert both.flops == pytest.approx(full.flops / 2 + probe)


def test_what_lies_below_a_frozen_stage_costs_no_backward_pass(found):
    part, _ = found(StrategyConfig("partial", "stage1"))
    most, _ = found(StrategyConfig("partial", "stage2"))
    full, _ = found(StrategyConfig("full"))
    assert most.flops < part.flops < full.flops
