"""Whole runs that adapt: what they say, what they save, and that they resume."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from jxfer import trees
from jxfer.data.readers import FolderSource, View
from jxfer.data.transforms import AugmentConfig
from jxfer.train import feed, judge, loop, parallel
from jxfer.train.adaptation import DOMAIN_HEAD
from jxfer.train.evaluate import Evaluator
from jxfer.train.feature_store import CacheConfig
from jxfer.train.selection import evaluation_steps
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store, weights
from jxfer.zoo.pretrained import ModelConfig
from tests import runs
from tests.train.steps import SGD

METHODS = ("coral", "dan", "dann", "cdan", "mcc")


@pytest.mark.parametrize(
    "method", [*(pytest.param(name, marks=pytest.mark.slow) for name in METHODS[:-1]), "mcc"]
)
def test_a_run_says_how_it_does_on_the_target(method, adapted_config, tmp_path):
    config = adapted_config(method)
    found = loop.run_config(config, tmp_path / "run", quiet=True)
    adapt = found["adapt"]
    assert adapt["method"] == method
    assert (found["test_examples"], adapt["source_test_examples"]) == (15, 12)
    assert adapt["target_train_examples"] + adapt["target_val_examples"] == 30
    lines = runs.lines(tmp_path / "run")
    assert all(np.isfinite(line[f"train_{method}"]) for line in lines if "train_loss" in line)
    scores = [line["score"] for line in lines if "score" in line]
    assert adapt["score"] == max(scores) == found["val_accuracy"]
    card = weights.load(str(tmp_path / "run")).card
    assert [figure.dataset for figure in card.measured] == [config.data.source, config.adapt.target]
    assert DOMAIN_HEAD not in weights.load(str(tmp_path / "run")).variables["params"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "select"),
    [
        ("mcc", "source"),
        ("cdan", "importance_weighted"),
        ("dan", "entropy"),
        ("adabn", "density"),
    ],
)
def test_no_label_of_the_target_changes_what_is_chosen(
    method, select, adapted_config, tmp_path, monkeypatch, assert_same_bits
):
    """With the target's labels and without: the same model, and other figures."""
    config = adapted_config(method, adapt={"select": select}, augment=AugmentConfig())
    right = loop.run_config(config, tmp_path / "right", quiet=True)

    opened, seen = feed.open_target, []

    def open_with_wrong_labels(*arguments):
        target = opened(*arguments)
        val, test = AllOfOneClass(target.val), AllOfOneClass(target.test)
        seen.append(dataclasses.replace(target, val=val, test=test))
        return seen[-1]

    monkeypatch.setattr(feed, "open_target", open_with_wrong_labels)
    wrong = loop.run_config(config, tmp_path / "wrong", quiet=True)
    assert right["best_step"] == wrong["best_step"]
    assert right["adapt"]["score"] == wrong["adapt"]["score"]
    assert [set(target.test.labels) for target in seen] == [{0}]
    first, second = (weights.load(str(tmp_path / name)).variables for name in ("right", "wrong"))
    assert_same_bits(first, second)


@pytest.mark.slow
def test_a_run_that_ends_far_below_where_it_began_has_diverged(adapted_config, tmp_path, caplog):
    """From weights that know the source; at this rate the first steps undo them."""
    learned = adapted_config("source_only", epochs=20.0, optimizer=SGD)
    before = loop.run_config(learned, tmp_path / "learned", quiet=True)
    assert before["val_accuracy"] > 0.8
    assert not before["adapt"]["diverged"]
    model = ModelConfig(weights=str(tmp_path / "learned"), head="keep")
    fast = OptimizerConfig(lr=3.0, backbone_lr=3.0, clip_norm=1.0)
    config = adapted_config("mcc", model=model, epochs=1.0, eval_every=1.0, optimizer=fast)
    found = loop.run_config(config, tmp_path / "undone", quiet=True)
    assert found["adapt"]["diverged"]
    assert "the run has diverged" in caplog.text


class AllOfOneClass(View):
    """A source that says that every image is of its first class."""

    @property
    def labels(self):
        return np.zeros(len(self), np.int32)

    def __getitem__(self, index):
        return dataclasses.replace(self._source[index], label=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "fields"), [("dan", {}), ("dann", {"ema_decay": 0.8}), ("adabn", {})]
)
def test_a_cached_prefix_changes_nothing(method, fields, adapted_config, tmp_path):
    runs = {}
    for mode in ("off", "memory"):
        config = adapted_config(
            method,
            strategy=StrategyConfig("partial", "stage1"),
            augment=AugmentConfig(flip=True, views=2),
            cache=CacheConfig(mode=mode),
            epochs=1.5,
            **fields,
        )
        loop.run_config(config, tmp_path / mode, quiet=True)
        runs[mode] = trees.flatten(weights.load(str(tmp_path / mode)).variables)
    for path, leaf in runs["off"].items():
        largest = np.abs(leaf).max()
        np.testing.assert_allclose(
            runs["memory"][path], leaf, rtol=0, atol=1e-5 * largest, err_msg=path
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_adversary_waits_for_the_phase_in_which_the_backbone_learns(
    name, adapted_config, tmp_path
):
    """A linear probe first, from whose head the adversarial fine-tuning goes on."""
    config = adapted_config(
        "dann",
        strategy=StrategyConfig("lp_ft"),
        optimizer=OptimizerConfig(name, lr=0.01),
        log_every=1,
    )
    found = loop.run_config(config, tmp_path / "run", quiet=True)
    first, second = (phase["name"] for phase in found["phases"])
    lines = [line for line in runs.lines(tmp_path / "run") if "train_loss" in line]
    has_term = {(line["phase"], "train_dann" in line) for line in lines}
    assert has_term == {(first, False), (second, True)}
    assert found["phases"][0]["frozen_unchanged"] is True
    assert found["phases"][0]["parameters"].keys() == {"frozen", "head"}
    assert DOMAIN_HEAD not in weights.load(str(tmp_path / "run")).variables["params"]


@pytest.mark.slow
def test_patience_goes_by_the_score(adapted_config, tmp_path):
    """The run ends at the second evaluation in a row whose score is no better than the best."""
    config = adapted_config(
        "mcc", adapt={"select": "entropy"}, epochs=12.0, patience=2, optimizer=SGD_FAST
    )
    found = loop.run_config(config, tmp_path / "run", quiet=True)
    scores = {
        line["step"]: line["score"] for line in runs.lines(tmp_path / "run") if "score" in line
    }
    best, since, last = -math.inf, 0, None
    for step in evaluation_steps(config, found["train_examples"]):
        since = 0 if scores[step] > best else since + 1
        best, last = max(best, scores[step]), step
        if since == 2:
            break
    assert found["stopped_early"]
    assert found["steps"] == last == max(scores)
    assert found["adapt"]["score"] == best


SGD_FAST = dataclasses.replace(SGD, lr=0.5, backbone_lr=0.2)
"""So fast that a score does not rise at each evaluation."""


@pytest.mark.slow
def test_the_oracles_step_is_kept_and_measured(
    adapted_config, tmp_path, monkeypatch, read_variables
):
    """Under a score that falls, the first step is chosen, and a later one is the oracle's."""
    config = adapted_config("source_only", optimizer=OptimizerConfig(lr=0.1, backbone_lr=0.1))
    scores = iter(range(0, -100, -1))
    monkeypatch.setattr(judge.Judge, "_score", lambda *_: float(next(scores)))
    found = loop.run_config(config, tmp_path / "run", quiet=True)
    adapt = found["adapt"]
    first = min(line["step"] for line in runs.lines(tmp_path / "run") if "score" in line)
    assert found["best_step"] == first < adapt["oracle_step"]
    oracle = read_variables(config, tmp_path / "run", adapt["oracle_step"])
    chosen = weights.load(str(tmp_path / "run"))
    test = FolderSource(config.adapt.target.removeprefix("folder:"), "test")
    evaluator = Evaluator(store.build(chosen.card), chosen.card.preprocessing, 8)
    for variables, accuracy in (
        (oracle, adapt["oracle_test_accuracy"]),
        (chosen.variables, found["test_accuracy"]),
    ):
        assert evaluator.evaluate(parallel.replicate(variables), test).accuracy == accuracy


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adabn", "cdan"])
def test_a_run_that_is_resumed_ends_with_the_same_bits(
    method, adapted_config, tmp_path, assert_same_bits
):
    """As a kill after a checkpoint in the middle would have left it."""
    config = adapted_config(method, adapt={"select": "entropy"}, checkpoint_every=3)
    whole, part = tmp_path / "whole", tmp_path / "part"
    wanted = loop.run_config(config, whole, quiet=True)
    shutil.copytree(whole, part)
    (part / "summary.json").unlink()
    shutil.rmtree(part / "model")
    newest = max(int(path.name) for path in (part / "checkpoints").iterdir() if path.name.isdigit())
    shutil.rmtree(part / "checkpoints" / str(newest))
    found = loop.run_config(config, part, quiet=True)
    assert json.loads((part / "timing.json").read_text())["steps"] < found["steps"]
    assert found == wanted
    variables = [weights.load(str(run)).variables for run in (part, whole)]
    assert_same_bits(*variables)


@pytest.mark.slow
def test_kill_9_changes_no_bit(
    adapted_config, tmp_path, start_process, kill_after, assert_same_bits
):
    config = adapted_config("dann", epochs=6.0, checkpoint_every=3)
    whole, part = tmp_path / "whole", tmp_path / "part"
    loop.run_config(config, whole, quiet=True)
    kill_after(start_process(config, part), part, 8)
    assert not (part / "summary.json").exists()
    again = start_process(config, part)
    _, output = again.communicate()
    assert again.returncode == 0, output
    assert "resumes from step" in output
    assert runs.summary(part) == runs.summary(whole)
    assert_same_bits(*(weights.load(str(run)).variables for run in (part, whole)))


@pytest.mark.slow
def test_adabn_saves_the_model_with_the_targets_statistics(adapted_config, tmp_path):
    found = {}
    for method in ("source_only", "adabn"):
        loop.run_config(adapted_config(method), tmp_path / method, quiet=True)
        found[method] = weights.load(str(tmp_path / method)).variables
    params = (trees.flatten(found[method]["params"]) for method in found)
    for path, leaf in next(params).items():
        np.testing.assert_array_equal(trees.flatten(found["adabn"]["params"])[path], leaf)
    means = [found[method]["batch_stats"]["stem"]["norm"]["mean"] for method in found]
    assert not np.allclose(*means)


def test_adabn_needs_norms_of_its_own(adapted_config, one_line, tmp_path):
    with one_line("--adapt.method adabn", "folded"):
        loop.run_config(adapted_config("adabn", norms="folded"), tmp_path / "run", quiet=True)
