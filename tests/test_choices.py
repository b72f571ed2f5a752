"""A misspelt choice in a config that Python builds, and what the command line calls a field."""

import dataclasses
import re

import pytest
import tyro

from jxfer import choices
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import Preprocessing
from jxfer.losses.adaptation import AdaptConfig
from jxfer.losses.classification import LossConfig
from jxfer.models.heads import HeadConfig
from jxfer.probe.stages import ProbeConfig
from jxfer.train.config import TrainConfig
from jxfer.train.feature_store import CacheConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

NEEDED = {
    DataConfig: {"source": "digits"},
    TrainConfig: {"data": DataConfig("digits"), "model": ModelConfig()},
    Preprocessing: {"size": 8},
}


@pytest.mark.parametrize(
    ("make", "option", "choice"),
    [
        (OptimizerConfig, "--optimizer.name", "adamw"),
        (OptimizerConfig, "--optimizer.schedule", "one_cycle"),
        (StrategyConfig, "--strategy.name", "linear_probe"),
        (StrategyConfig, "--strategy.trainable-norms", "train"),
        (ModelConfig, "--model.head", "keep"),
        (CacheConfig, "--cache.mode", "shared"),
        (ProbeConfig, "--probe.kind", "knn"),
        (ProbeConfig, "--probe.metric", "euclidean"),
        (TrainConfig, "--compute-dtype", "bfloat16"),
        (DataConfig, "--data.on-bad-image", "skip"),
        (LossConfig, "--loss.class-weights", "balanced"),
        (AdaptConfig, "--adapt.method", "dann"),
        (AdaptConfig, "--adapt.select", "source"),
        (HeadConfig, "head: kind", "mlp"),
        (Preprocessing, "preprocessing: channel-order", "BGR"),
    ],
)
def test_a_choice_that_is_none_is_one_line(one_line, make, option, choice):
    field = option.rpartition(".")[2].rpartition(" ")[2].lstrip("-").replace("-", "_")
    with one_line(f"{option} misspelt: it must be", choice):
        make(**NEEDED.get(make, {}), **{field: "misspelt"})


def test_an_option_is_what_the_command_line_takes(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(TrainConfig, args=["--help"])
    told = capsys.readouterr().out
    for part in ("adapt", "regularise", "optimizer"):
        config = next(f.type for f in dataclasses.fields(TrainConfig) if f.name == part)
        for field in dataclasses.fields(config):
            assert re.search(rf"{choices.option(f'--{part}.', field.name)}\b", told)
