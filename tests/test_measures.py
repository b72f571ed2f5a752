"""Measures of the experiments, on runs whose figures are known."""

import importlib
import json
import pathlib

import pytest

from jxfer.data.sources import DataConfig
from jxfer.losses.adaptation import AdaptConfig
from jxfer.train.config import TrainConfig
from jxfer.train.loop import run_config
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"


@pytest.fixture
def measures(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("measures")


@pytest.mark.slow
def test_measures_of_a_probe_and_of_what_is_fine_tuned_from_it(measures, tmp_path):
    def run(name, weights, strategy, head="new"):
        config = TrainConfig(
            data=DataConfig("digits", per_class=4),
            model=ModelConfig(weights, head=head),
            strategy=StrategyConfig(strategy),
            optimizer=OptimizerConfig(lr=0.1),
            epochs=1.0,
            batch_size=40,
        )
        return 100 * run_config(config, tmp_path / name, quiet=True)["test_accuracy"]

    accuracy = run("probe", "resnet20-glyphs", "linear_probe")
    run("tuned", str(tmp_path / "probe"), "full", "keep")
    probe, tuned = tmp_path / "probe", tmp_path / "tuned"
    assert measures.accuracy_on("digits")(probe) == accuracy
    assert measures.accuracy_under_corruption("digits")(probe) < accuracy
    assert measures.feature_drift("digits")(probe) == 0
    assert measures.feature_drift("digits")(tuned) > 0
    assert measures.source_accuracy(tuned) == measures.start_accuracy(tuned) == accuracy
    assert measures.start_accuracy(probe) is None
    assert measures.adaptation("diverged")(tuned) is None
    assert measures.domain_distance(tuned) is None
    seconds = measures.seconds(tuned)
    assert seconds["step"] > 0
    # As after a kill, when the process that ended it took some of the steps only.
    timing = json.loads((tuned / "timing.json").read_text())
    (tuned / "timing.json").write_text(json.dumps(timing | {"steps": timing["steps"] - 1}))
    assert measures.seconds(tuned) is None


@pytest.mark.slow
def test_measures_of_a_run_that_adapts(measures, tmp_path):
    config = TrainConfig(
        data=DataConfig("rendered_digits", per_class=4),
        model=ModelConfig("resnet20-glyphs", image_size=16),
        adapt=AdaptConfig("mcc", "digits"),
        epochs=1.0,
        batch_size=40,
    )
    adapt = run_config(config, tmp_path, quiet=True)["adapt"]
    figure = measures.adaptation("source_test_accuracy", 100)(tmp_path)
    assert figure == 100 * adapt["source_test_accuracy"]
    assert measures.adaptation("diverged")(tmp_path) == adapt["diverged"]
    assert 0 <= measures.domain_distance(tmp_path) <= 2
    rows, labels = measures.pooled(tmp_path, "digits")
    assert rows.shape == (500, 64)
    assert len(labels) == 500
