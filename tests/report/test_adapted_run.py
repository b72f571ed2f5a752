"""The report of a run that adapts is of the target's images."""

import dataclasses

import cv2
import numpy as np
import pytest

from jxfer.data.sources import DataConfig
from jxfer.losses.adaptation import AdaptConfig
from jxfer.report import run_results, run_tables
from jxfer.train import loop
from jxfer.train.config import TrainConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig


@pytest.mark.slow
def test_images_and_figures_are_those_of_the_target(images, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for name in ("ants", "bees", "cats"):
            folder = tmp_path / "target" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f"{i}.png"), image)
    config = TrainConfig(
        data=DataConfig(f"folder:{images}"),
        model=ModelConfig(arch="resnet20", through="stage1"),
        strategy=StrategyConfig("scratch"),
        adapt=AdaptConfig("source_only", f"folder:{tmp_path / 'target'}"),
        epochs=1.0,
        batch_size=16,
    )
    summary = loop.run_config(config, tmp_path / "run", quiet=True)
    found = run_results.read(tmp_path / "run")
    assert found.data == config.adapt.target
    assert len(found.source) == summary["test_examples"] == 9
    assert found.correct == summary["test_correct"]
    rows = dict(run_tables.key_figures(found, 0.0).rows)
    assert rows["source"] == config.data.source
    assert rows["target"] == config.adapt.target
    assert rows["diverged"] in ("yes", "no")
    plain = dataclasses.replace(config, adapt=AdaptConfig())
    loop.run_config(plain, tmp_path / "plain", quiet=True)
    assert "target" not in dict(
        run_tables.key_figures(run_results.read(tmp_path / "plain"), 0.0).rows
    )
