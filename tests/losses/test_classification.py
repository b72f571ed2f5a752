import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from jxfer.losses.classification import LossConfig, balanced_weights, cross_entropy


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=5.0, size=(16, 7)).astype(np.float32)
    return logits, rng.integers(0, 7, 16)


def torchs(logits, labels, label_smoothing, reduction="none", weights=None):
    return torch.nn.functional.cross_entropy(
        logits,
        torch.tensor(labels),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_each_examples_loss_is_torchs(batch, label_smoothing):
    logits, labels = batch
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(labels, jnp.int32), label_smoothing)
    theirs = torchs(torch.tensor(logits), labels, label_smoothing)
    assert ours.shape == (16,)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_gradient_is_torchs(batch, label_smoothing):
    logits, labels = batch
    index = jnp.asarray(labels, jnp.int32)
    ours = jax.grad(lambda x: jnp.mean(cross_entropy(x, index, label_smoothing)))(logits)
    leaf = torch.tensor(logits, requires_grad=True)
    torchs(leaf, labels, label_smoothing, "mean").backward()
    np.testing.assert_allclose(ours, leaf.grad, rtol=1e-5, atol=1e-7)


def test_large_logits_stay_finite():
    logits = jnp.asarray([[1e4, 0.0], [0.0, 1e4]], jnp.float32)
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray([0, 0])), [0.0, 1e4])


def test_equal_logits_cost_the_log_of_the_number_of_classes():
    losses = cross_entropy(jnp.zeros((3, 10)), jnp.asarray([0, 4, 9]), 0.1)
    np.testing.assert_allclose(losses, np.log(10), rtol=1e-6)


def test_half_precision_logits_give_a_float32_loss():
    logits = jnp.asarray([[1.0, 2.0, 3.0]], jnp.bfloat16)
    losses = cross_entropy(logits, jnp.asarray([2]))
    assert losses.dtype == jnp.float32
    theirs = torchs(torch.tensor([[1.0, 2.0, 3.0]]), [2], 0.0)
    np.testing.assert_allclose(losses, theirs, rtol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_each_examples_weighted_loss_is_torchs(batch, label_smoothing):
    logits, labels = batch
    weights = (0.5, 3.0, 1.0, 0.1, 2.0, 1.5, 0.7)
    index = jnp.asarray(labels, jnp.int32)
    ours = cross_entropy(jnp.asarray(logits), index, label_smoothing, weights)
    theirs = torchs(torch.tensor(logits), labels, label_smoothing, weights=weights)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_balanced_weights_are_scikit_learns():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [100, 50, 4, 1]))
    found = balanced_weights(labels, "abcd")
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert found == pytest.approx(expected, rel=1e-15)
    assert found == (155 / 400, 155 / 200, 155 / 16, 155 / 4)
    hash(found)  # part of a plan


def test_a_class_without_examples_has_no_weight(one_line):
    with one_line("class ants has no training image", "--loss.class-weights"):
        balanced_weights(np.array([0, 2, 2]), ("bees", "ants", "cats"))


def test_unknown_class_weights_are_refused(one_line):
    with one_line("--loss.class-weights inverse", "none or balanced"):
        LossConfig(class_weights="inverse")
