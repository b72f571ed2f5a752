"""The number of devices changes neither the training nor what an evaluation counts."""

import json

import jax
import numpy as np
import pytest
from sklearn.metrics import f1_score

from jxfer.data.transforms import CIFAR
from jxfer.models import registry
from jxfer.train import loop, parallel
from jxfer.train.evaluate import Evaluator
from jxfer.train.step import make_train_step
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig
from tests.noise import Noise
from tests.train import steps


def first_losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train_loss"] for line in lines if "train_loss" in line]


@pytest.mark.slow
def test_eight_devices_take_the_steps_of_one(small_config, make_entry, tmp_path, start_process):
    """The norms stay on their averages, so that no moments depend on the share of a device."""
    config = small_config(
        model=ModelConfig(weights=make_entry("folded")),
        strategy=StrategyConfig("full"),
        epochs=2.0,
        log_every=1,
    )
    alone = start_process(config, tmp_path / "one", devices=1)
    loop.run_config(config, tmp_path / "eight", quiet=True)
    _, output = alone.communicate()
    assert alone.returncode == 0, output
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "eight")
    ]
    assert [summary["devices"] for summary in summaries] == [1, 8]
    one, eight = first_losses(tmp_path / "one"), first_losses(tmp_path / "eight")
    assert len(one) == 5
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return registry.create("resnet20", 7, through="stage1")


@pytest.fixture(scope="module")
def variables(model):
    return model.init(3)


@pytest.fixture(scope="module")
def evaluator(model):
    return Evaluator(model, CIFAR, batch_size=60)  # rounded up to 64 on 8 devices


@pytest.fixture(scope="module")
def logits(model, variables):
    """Logits of a source on one device, without the loader, the padding or the evaluator."""
    apply = jax.jit(lambda pixels: model.apply(variables, pixels)[0]["logits"])

    def compute(source):
        mean, std = np.float32(CIFAR.mean), np.float32(CIFAR.std)
        pixels = (source.pixels / np.float32(255) - mean) / std
        return np.asarray(apply(np.resize(pixels, (130, 32, 32, 3))))[: len(source)]

    return compute


@pytest.mark.parametrize("examples", [1, 7, 13, 130])
def test_every_example_counts_once_whatever_the_split_size(examples, evaluator, variables, logits):
    source = Noise(examples)
    result = evaluator.evaluate(parallel.replicate(variables), source)
    scores = logits(source).astype(np.float64)
    predicted = scores.argmax(-1)
    own = scores[np.arange(examples), source.labels]
    assert result.examples == examples
    assert result.correct == (predicted == source.labels).sum()
    assert result.accuracy == (predicted == source.labels).mean()
    assert result.top5_accuracy == ((scores > own[:, None]).sum(-1) < 5).mean()
    assert result.macro_f1 == pytest.approx(f1_score(source.labels, predicted, average="macro"))
    losses = np.log(np.exp(scores).sum(-1)) - own
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)


def test_probabilities_keep_the_order_of_the_source_and_leave_padding_out(
    evaluator, variables, logits
):
    source = Noise(130)
    found = evaluator.probabilities(parallel.replicate(variables), source)
    powers = np.exp(logits(source).astype(np.float64))
    assert found.shape == (130, 7)
    np.testing.assert_allclose(found, powers / powers.sum(-1, keepdims=True), rtol=1e-4)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(one_line):
    with one_line("--batch-size 20", "8 devices", "try 16"):
        parallel.check_batch(20)


def test_replicating_and_fetching_gives_back_the_same_bits(variables, assert_same_bits):
    assert_same_bits(parallel.fetch(parallel.replicate(variables)), variables)


def test_pixels_cross_to_the_devices_as_bytes_two_batches_ahead():
    drawn = []

    def batches():
        for index in range(6):
            drawn.append(index)
            yield steps.draw_batch()

    batch = next(parallel.shard(batches()))
    assert drawn == [0, 1]
    assert isinstance(batch["image"], jax.Array)
    assert batch["image"].dtype == np.uint8
    assert batch["image"].shape == (8, 2, 8, 8, 3)
    plan = steps.make_plan()
    state = parallel.replicate(plan.initial_state(plan.model.init(0)))
    program = parallel.compile_step(make_train_step(plan)).lower(state, batch).as_text()
    (arguments,) = [line for line in program.splitlines() if "func.func public @main" in line]
    assert "x8x8x3xui8>" in arguments
    assert "x8x8x3xf32>" not in arguments
    assert "x8x8x3xf32>" in program  # normalised inside
