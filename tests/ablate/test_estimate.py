"""What a sweep will cost, where some cells start from others that are still to be trained."""

import dataclasses

import pytest

from jxfer.ablate.estimate import estimate
from jxfer.ablate.experiment import PARENT, Cell, Experiment, Setting
from jxfer.ablate.sweep import Sweep
from jxfer.data.sources import DataConfig
from jxfer.train.config import TrainConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig


@pytest.fixture
def kinds(images, tmp_path):
    """Of one arm that starts from a cell; `model` is the child's."""

    def of(model, size, strategy=StrategyConfig("full")):
        def cell(setting, arm, choice, seed):
            before = TrainConfig(
                data=DataConfig(f"folder:{images}"),
                model=ModelConfig(arch="resnet20", through="stage1", image_size=size),
                strategy=StrategyConfig("scratch"),
                batch_size=8,
                epochs=1,
            )
            after = dataclasses.replace(before, model=model, strategy=strategy, seed=seed)
            return Cell(after, after=Cell(before))

        arms = {"arm": ({"lr": 0.1},)}
        found = Experiment("a table", (Setting("one"),), ("arm",), cell, (0, 1), arms)
        return estimate(Sweep(found, tmp_path))

    return of


@pytest.mark.slow
def test_a_child_has_the_architecture_and_image_size_of_its_source(kinds):
    source, child = kinds(ModelConfig(PARENT), size=16)
    assert (source.arm, source.cells, child.cells) == ("arm: its source", 1, 2)
    assert child.steps == 5  # 36 images of 8 a step
    # The same network on the same images, all of it trained.
    assert child.flops == pytest.approx(source.flops, rel=0.02)
    whole = kinds(ModelConfig(PARENT, image_size=32), size=16)[1]
    assert whole.flops == pytest.approx(4 * child.flops, rel=0.1)


@pytest.mark.slow
def test_a_child_may_keep_the_head_and_freeze_it(kinds):
    rules = StrategyConfig("rules", rules=("stem/.*=low_lr", ".*=frozen"))
    source, child = kinds(ModelConfig(PARENT, head="keep"), 16, rules)
    assert 0 < child.flops < source.flops
