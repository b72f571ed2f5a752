"""A network without norms goes through a whole run: train, checkpoint, evaluate, keep its head."""

import json
import shutil

import pytest

from jxfer.commands import evaluate
from jxfer.models.heads import HeadConfig
from jxfer.train import loop, run_folder
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig

pytestmark = pytest.mark.slow

HEAD = HeadConfig("mlp", (8,), dropout=0.5)


@pytest.fixture(scope="module")
def run(small_config, tmp_path_factory):
    """AlexNet's first two stages from random weights, at its smallest size."""
    model = ModelConfig(arch="alexnet", through="stage2", image_size=63, classifier=HEAD)
    folder = tmp_path_factory.mktemp("runs") / "alexnet"
    loop.run_config(small_config(model=model, epochs=2.0), folder, quiet=True)
    return folder


def test_its_summary_counts_all_its_parameters(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 5
    stages = 11 * 11 * 3 * 64 + 64 + 5 * 5 * 64 * 192 + 192
    head = 192 * 8 + 8 + 8 * 3 + 3
    assert summary["parameters"] == {"frozen": 0, "low_lr": 0, "head": stages + head}


def test_its_last_checkpoint_comes_back(run, tmp_path, caplog):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "summary.json").unlink()
    summary = loop.run_config(run_folder.read_config(copy), copy, quiet=True)
    assert "resumes from step 5 of 5" in caplog.text
    assert summary["steps"] == 5


def test_its_best_model_evaluates_with_its_own_head(run, capsys):
    assert store.read_card(run / "model").head == HEAD
    assert evaluate.main([str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((run / "summary.json").read_text())
    assert found["correct"] == summary["test_correct"]


def test_its_head_is_kept_or_replaced(run, small_config, tmp_path):
    for head in ("keep", "new"):
        model = ModelConfig(weights=str(run), head=head)
        config = small_config(model=model, strategy=StrategyConfig("linear_probe"), epochs=1.0)
        summary = loop.run_config(config, tmp_path / head, quiet=True)
        assert ("params/head/hidden1/kernel" in summary["loaded"]) == (head == "keep")
        assert summary["frozen_unchanged"] is True
