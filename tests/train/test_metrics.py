"""Sums and figures beside scikit-learn's."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

from jxfer.losses.classification import cross_entropy
from jxfer.train import metrics


def make_batch(examples, classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(examples, classes)).astype(np.float32)
    return logits, rng.integers(0, classes, examples).astype(np.int32)


def sums(logits, labels, mask=None):
    mask = np.ones(len(labels), np.float32) if mask is None else mask
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    losses = cross_entropy(logits, labels)
    return metrics.evaluation_sums(losses, logits, labels, jnp.asarray(mask))


def evaluate(*parts):
    return metrics.evaluation(metrics.add(parts))


@pytest.mark.parametrize("classes", [2, 6, 10])
def test_figures_are_scikit_learns(classes):
    logits, labels = make_batch(200, classes)
    found = evaluate(sums(logits, labels))
    predicted = logits.argmax(-1)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found.loss == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert (found.correct, found.examples) == ((predicted == labels).sum(), 200)
    if classes > 5:
        top5 = top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        assert found.top5_accuracy == pytest.approx(top5)


@pytest.mark.parametrize("classes", [2, 5])
def test_top_5_says_nothing_with_five_classes_or_fewer(classes):
    assert evaluate(sums(*make_batch(20, classes))).top5_accuracy is None


def test_macro_f1_is_over_the_classes_that_occur_or_are_predicted():
    """Of 10 classes, 0 and 1 occur, 2 is predicted and never right, 7 are not seen at all."""
    labels = np.array([0, 0, 1, 1], np.int32)
    predicted = np.array([0, 2, 1, 1])
    found = evaluate(sums(np.eye(10, dtype=np.float32)[predicted], labels))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_padding_counts_nowhere():
    logits, labels = make_batch(32, 7)
    mask = np.ones(32, np.float32)
    mask[20:] = 0
    logits[25] = np.nan  # whatever a padded row gives must not reach the sums
    assert evaluate(sums(logits, labels, mask)) == evaluate(sums(logits[:20], labels[:20]))


def test_batches_add_up_to_one_pass():
    logits, labels = make_batch(96, 7)
    parts = [sums(logits[i : i + 32], labels[i : i + 32]) for i in (0, 32, 64)]
    together, apart = evaluate(sums(logits, labels)), evaluate(*parts)
    assert together.loss == pytest.approx(apart.loss, rel=1e-6)
    for name in ("accuracy", "top5_accuracy", "macro_f1", "correct", "examples"):
        assert getattr(together, name) == getattr(apart, name)


def test_adding_does_not_round_small_losses_away_nor_overflow_counts():
    parts = [{"loss": np.float32(2**24), "examples": np.int32(2**31 - 1)}]
    parts += [{"loss": np.float32(1), "examples": np.int32(1)}] * 3
    total = metrics.add(parts)
    assert float(total["loss"]) == 2**24 + 3
    assert int(total["examples"]) == 2**31 + 2


def test_nothing_adds_up_to_nothing():
    assert metrics.add([]) == {}


def test_training_sums_are_the_batchs():
    logits, labels = make_batch(50, 7)
    losses = np.linspace(0, 1, 50, dtype=np.float32)
    found = metrics.training_sums(jnp.asarray(losses), jnp.asarray(logits), jnp.asarray(labels))
    assert float(found["loss"]) == pytest.approx(25.0)
    assert int(found["correct"]) == (logits.argmax(-1) == labels).sum()
    assert int(found["examples"]) == 50
