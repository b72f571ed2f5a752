"""The report of a run that adapts is of the target's images."""

import dataclasses

import pytest

from jxfer.data.sources import DataConfig
from jxfer.losses.adaptation import AdaptConfig
from jxfer.report import run_results, run_tables
from jxfer.train import loop
from jxfer.train.config import TrainConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig


@pytest.mark.slow
def test_images_and_figures_are_those_of_the_target(images, other_domain, tmp_path):
    config = TrainConfig(
        data=DataConfig(f"folder:{images}"),
        model=ModelConfig(arch="resnet20", through="stage1"),
        strategy=StrategyConfig("scratch"),
        adapt=AdaptConfig("source_only", f"folder:{other_domain}"),
        epochs=1.0,
        batch_size=16,
    )
    summary = loop.run_config(config, tmp_path / "run", quiet=True)
    found = run_results.read(tmp_path / "run")
    assert found.data == config.adapt.target
    assert len(found.source) == summary["test_examples"] == 15
    assert found.correct == summary["test_correct"]
    rows = dict(run_tables.key_figures(found, 0.0).rows)
    assert rows["source"] == config.data.source
    assert rows["target"] == config.adapt.target
    assert rows["diverged"] == ("yes" if summary["adapt"]["diverged"] else "no")
    plain = dataclasses.replace(config, adapt=AdaptConfig())
    loop.run_config(plain, tmp_path / "plain", quiet=True)
    assert "target" not in dict(
        run_tables.key_figures(run_results.read(tmp_path / "plain"), 0.0).rows
    )
